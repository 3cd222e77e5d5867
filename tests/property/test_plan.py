"""The plan of a fragment, for all fragments: order, completeness, and paths below the home directory."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandboxkit.errors import FragmentError
from sandboxkit.fragment import Fragment
from sandboxkit.runner import plan
from sandboxkit.runner._plan import EditFile, Install, Run, Start, Wait, WriteFile, edited
from sandboxkit.runner._sockets import elsewhere, read_sockets
from sandboxkit.template import Template

CELLS = Template("cells", file="script.py", install="pip install")
APP = Template("app", file="app.py", port=8501, start="serve app.py", ready="/healthz", install="npm install")

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
    edit = st.fixed_dictionaries({"path": simple_names, "search": st.text(min_size=1), "replace": st.text()})
    common["edits"] = draw(st.lists(edit, max_size=3))
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
        assert len(fragment.files or ()) + len(fragment.edits) > 1
        assert "script.py" not in (fragment.files or ())
        return
    names = [step.name for step in steps]
    written = {step.path: step.text for step in steps if isinstance(step, WriteFile)}
    order = ["write", "edit", "install", "check", "start", "wait", "run"]
    assert sorted(names, key=order.index) == names
    assert len(written) == names.count("write") == len(fragment.files or {"": fragment.code})
    assert sorted(written.values()) == sorted((fragment.files or {"": fragment.code}).values(), key=str)
    edits = [step for step in steps if isinstance(step, EditFile)]
    assert all(path.startswith("/home/user/") for path in [*written, *(edit.path for edit in edits)])
    assert len({edit.path for edit in edits}) == len(edits)
    assert sorted(change for edit in edits for change in edit.changes) == sorted(
        (edit.search, edit.replace) for edit in fragment.edits
    )
    installs = [step for step in steps if isinstance(step, Install)]
    assert [step.dependencies for step in installs] == [fragment.dependencies] * bool(fragment.dependencies)
    for step in installs:
        argv = step.argv(step.dependencies)
        assert argv[: len(step.installer)] == step.installer
        assert argv[len(argv) - len(step.dependencies) :] == step.dependencies
    if template is CELLS:
        run = steps[-1]
        assert isinstance(run, Run)
        assert run.code == (None if run.path in {edit.path for edit in edits} else written.get(run.path))
        assert not {"start", "wait", "check"} & set(names)
    else:
        assert steps[-2:] == (Start("serve app.py"), Wait(fragment.port or 8501, "/healthz"))
        assert "run" not in names
        touched = [*written, *(edit.path for edit in edits)]
        assert ("check" in names) == any(path.endswith(".py") for path in touched)


@given(fragments())
def test_a_plan_is_a_function(drawn: tuple[Fragment, Template]) -> None:
    """The same fragment has the same plan, and no step's detail tells a listener a file's text."""
    try:
        steps = plan(*drawn)
    except FragmentError:
        return
    assert plan(*drawn) == steps
    for step in steps:
        if isinstance(step, WriteFile | EditFile):
            assert step.detail == step.path


@given(st.text(), st.lists(st.tuples(st.text(min_size=1, max_size=3), st.text(max_size=3)), max_size=3))
def test_an_edit_is_made_where_its_passage_is_alone(text: str, changes: list[tuple[str, str]]) -> None:
    """Either every passage occurred exactly once when its turn came, or nothing was changed and it says which."""
    edit = EditFile("/home/user/a", tuple(changes))
    expected = text
    for search, replace in changes:
        if expected.count(search) != 1:
            with pytest.raises(FragmentError, match="exactly once"):
                edited(text, edit)
            return
        expected = expected.replace(search, replace)
    assert edited(text, edit) == expected


@given(st.text(max_size=200) | st.binary(max_size=200).map(lambda data: data.decode("latin-1")))
def test_any_table_of_sockets_is_read(text: str) -> None:
    """What a sandbox shows as its sockets is hostile: it is read as far as it goes, and nothing is raised."""
    for one in read_sockets(text):
        assert 0 < one.port < 65536
        assert str(one)
    assert len(read_sockets(text)) <= 20


def test_sockets_are_read_as_the_kernel_writes_them() -> None:
    """Addresses are words in the machine's order; only what listens counts."""
    table = (
        "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
        "   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1 1\n"
        "   1: 00000000:0BB8 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1 1\n"
        "   2: 0100007F:1F91 0100007F:9999 01 00000000:00000000 00:00000000 00000000     0        0 1 1\n"
        "   0: 00000000000000000000000001000000:2328 00000000000000000000000000000000:0000 0A 0:0 0:0 0 0 0 1\n"
        "   0: 0000000000000000FFFF00000200007F:2329 00000000000000000000000000000000:0000 0A 0:0 0:0 0 0 0 1\n"
    )
    found = read_sockets(table)
    assert list(map(str, found)) == ["0.0.0.0:3000", "127.0.0.1:8080", "[::1]:9000", "127.0.0.2:9001"]
    assert "what listens is 0.0.0.0:3000, 127.0.0.1:8080" in elsewhere(1234, found)
    assert "has to listen on 127.0.0.1" in elsewhere(9001, found)
    assert "no answer to HTTP" in elsewhere(3000, found)
    assert elsewhere(1234, ()) == " Nothing listens on port 1234."
