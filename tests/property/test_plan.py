"""The plan of a fragment, for all fragments: order, completeness, and paths below the home directory."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from sandboxkit.errors import FragmentError
from sandboxkit.fragment import Fragment
from sandboxkit.runner import plan
from sandboxkit.runner._plan import Install, Run, Start, Wait, WriteFile
from sandboxkit.template import Template

CELLS = Template("cells", file="script.py")
APP = Template("app", file="app.py", port=8501, start="serve app.py", ready="/healthz")

simple_names = st.sampled_from(["a", "b", "c.py", "script.py", "app.py", "sub/d.py", "./e", "\u00e9"])


@st.composite
def fragments(draw: st.DrawFn) -> tuple[Fragment, Template]:
    """A fragment with its template."""
    template = draw(st.sampled_from([CELLS, APP]))
    common = {
        "template": template.id,
        "dependencies": draw(st.lists(st.sampled_from(["numpy", "polars>=1"]), max_size=2)),
        "port": None if template is CELLS else draw(st.one_of(st.none(), st.integers(1, 65535))),
    }
    if draw(st.booleans()):
        return Fragment.model_validate(
            common | {"code": draw(st.text()), "file": draw(st.none() | simple_names)}
        ), template
    files = draw(st.dictionaries(simple_names, st.text(), min_size=1, max_size=4))
    return Fragment.model_validate(
        common | {"files": files, "file": draw(st.none() | st.sampled_from(list(files)))}
    ), template


@given(fragments())
def test_every_plan_keeps_its_order(drawn: tuple[Fragment, Template]) -> None:
    """All files are written first, each once and below home; then packages; then the app is started and awaited, or
    one of the written files is run, with exactly its text."""
    fragment, template = drawn
    try:
        steps = plan(fragment, template)
    except FragmentError:
        assert template is CELLS
        assert fragment.file is None
        assert len(fragment.files or ()) > 1
        assert "script.py" not in (fragment.files or ())
        return
    names = [step.name for step in steps]
    written = {step.path: step.text for step in steps if isinstance(step, WriteFile)}
    assert sorted(names, key=["write", "install", "start", "wait", "run"].index) == names
    assert len(written) == names.count("write") == len(fragment.files or {"": fragment.code})
    assert sorted(written.values()) == sorted((fragment.files or {"": fragment.code}).values(), key=str)
    assert all(path.startswith("/home/user/") for path in written)
    assert [step.dependencies for step in steps if isinstance(step, Install)] == [fragment.dependencies] * bool(
        fragment.dependencies
    )
    if template is CELLS:
        run = steps[-1]
        assert isinstance(run, Run)
        assert written[run.path] == run.code
        assert "start" not in names
        assert "wait" not in names
    else:
        assert steps[-2:] == (Start("serve app.py"), Wait(fragment.port or 8501, "/healthz"))
        assert "run" not in names


@given(fragments())
def test_a_plan_is_a_function(drawn: tuple[Fragment, Template]) -> None:
    """The same fragment has the same plan, and no step's detail tells a listener a file's text."""
    try:
        steps = plan(*drawn)
    except FragmentError:
        return
    assert plan(*drawn) == steps
    for step in steps:
        if isinstance(step, WriteFile):
            assert step.detail == step.path
