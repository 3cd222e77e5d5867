"""Carrying fragments out, on the in-memory provider: steps, events, results, refusals."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from sandboxkit._types import TimeoutPolicy
from sandboxkit.errors import (
    AppNotReady,
    CodeTimeout,
    DependencyError,
    FragmentError,
    NoSpace,
    NotFound,
    OutputTooLarge,
    PathEscape,
)
from sandboxkit.events import Event
from sandboxkit.fragment import Fragment, FragmentResult
from sandboxkit.provider._base import CreateRequest
from sandboxkit.runner import Bench, carry_out, plan, stream
from sandboxkit.safefs import AsyncSafeFS
from sandboxkit.template import Template
from sandboxkit.testing import FakeProvider, FakeSandbox

pytestmark = pytest.mark.anyio

CELLS = Template("code-interpreter-v1", file="script.py")
APP = Template("app", file="app.py", port=8501, start="serve")


class Stage:
    """One sandbox with its files, and the events that were told."""

    def __init__(self, sandbox: FakeSandbox) -> None:
        self.sandbox = sandbox
        self.events: list[Event] = []

    def emit(self, name: str, /, **data: Any) -> Event:
        event = Event(name=name, at=0.0, sandbox_id=self.sandbox.sandbox_id, data=data)
        self.events.append(event)
        return event

    def bench(self, **changes: Any) -> Bench:
        given: dict[str, Any] = {
            "template": CELLS,
            "sandbox": self.sandbox,
            "files": AsyncSafeFS(self.sandbox),
            "timeouts": TimeoutPolicy(),
            "emit": self.emit,
        }
        return Bench(**(given | changes))

    async def run(self, fragment: Fragment, **changes: Any) -> FragmentResult:
        return await carry_out(fragment, self.bench(**changes))

    @property
    def steps(self) -> list[tuple[str, str]]:
        return [(e.data["step"], e.data["detail"]) for e in self.events if e.name == "fragment.step"]


@pytest.fixture
async def stage() -> AsyncIterator[Stage]:
    """A fresh sandbox to run fragments in."""
    provider = FakeProvider(disk=1024 * 1024)
    request = CreateRequest(template=CELLS.id, lifetime=600.0, idempotency_key="runner")
    yield Stage(await provider.create(request))
    await provider.aclose()


def code(text: str, **fields: Any) -> Fragment:
    return Fragment(template=CELLS.id, code=text, **fields)


async def test_code_is_written_and_run_as_a_cell(stage: Stage) -> None:
    """The code lies in the template's file afterwards; its output and its last value are the result."""
    result = await stage.run(code("print('hi')\n6 * 7"))
    assert result.execution is not None
    assert (result.execution.stdout, result.execution.text) == ("hi\n", "42")
    assert (result.sandbox_id, result.template) == (stage.sandbox.sandbox_id, CELLS.id)
    assert [node.name for node in result.files] == ["script.py"]
    assert result.duration >= 0
    assert stage.steps == [("write", "/home/user/script.py"), ("run", "/home/user/script.py")]


async def test_variables_stay_for_the_next_fragment(stage: Stage) -> None:
    """Two fragments in one sandbox share the interpreter's variables."""
    await stage.run(code("x = 20"))
    result = await stage.run(code("x + 1"))
    assert result.execution is not None
    assert result.execution.text == "21"


async def test_w6_all_files_are_there_before_the_main_one_runs(stage: Stage) -> None:
    """Of several files every one is written first, and only the named one is run, as one cell."""
    files = {
        "main.py": "len(open('/home/user/data/a.txt').read())",
        "data/a.txt": "12345",
        "other.py": "raise SystemExit",
    }
    result = await stage.run(Fragment(template=CELLS.id, files=files, file="main.py"))
    assert result.execution is not None
    assert result.execution.error is None
    assert result.execution.text == "5"
    assert [step for step, _ in stage.steps] == ["write", "write", "write", "run"]
    assert {node.name for node in result.files} == {"main.py", "data", "other.py"}


async def test_an_exception_is_a_result(stage: Stage) -> None:
    """What user code raises is data in the result, and the run counts as finished."""
    result = await stage.run(code("1 / 0"))
    assert result.execution is not None
    assert result.execution.error is not None
    assert result.execution.error.name == "ZeroDivisionError"
    assert (stage.events[-1].name, stage.events[-1].data["error"]) == ("fragment.finished", "ZeroDivisionError")


async def test_output_is_passed_on_live(stage: Stage) -> None:
    """Callbacks get output and results while the code runs."""
    out: list[str] = []
    results: list[object] = []
    await stage.run(code("print('a')\n1"), on_stdout=lambda m: out.append(m.text), on_result=results.append)
    assert "".join(out) == "a\n"
    assert len(results) == 1


async def test_listeners_get_no_code_and_no_output(stage: Stage) -> None:
    """No event that is told carries the code, what it printed, or its value."""
    await stage.run(code("print('sec' + 'ret')\n'tre' + 'asure'  # hidden"))
    told = repr(stage.events)
    assert not any(word in told for word in ("secret", "treasure", "hidden"))
    assert stage.events[-1].data.keys() == {"duration", "error"}


async def test_a_stream_yields_steps_and_ends_with_the_result(stage: Stage) -> None:
    """Each step is yielded before it happens; the last event has the result, which listeners do not get."""
    seen = []
    async for event in stream(code("1 + 1"), stage.bench()):
        seen.append((event.name, event.data.get("step"), await AsyncSafeFS(stage.sandbox).exists("script.py")))
        last = event
    assert seen == [
        ("fragment.step", "write", False),
        ("fragment.step", "run", True),
        ("fragment.finished", None, True),
    ]
    assert last.data["result"].execution.text == "2"
    assert "result" not in stage.events[-1].data


async def test_leaving_a_stream_ends_the_fragment_between_steps(stage: Stage) -> None:
    """A caller that stops listening before the run has not run anything."""
    events = stream(code("open('/home/user/ran', 'w')"), stage.bench())
    async for event in events:
        if event.data["step"] == "run":
            break
    await events.aclose()
    assert not await AsyncSafeFS(stage.sandbox).exists("ran")
    assert stage.steps[-1][0] == "run"


@pytest.mark.parametrize(
    ("fragment", "template", "error", "says"),
    [
        (code("1", dependencies=["numpy", "polars>=1"]), CELLS, DependencyError, r"numpy polars>=1.*Template\.install"),
        (Fragment(template="app", code="1", dependencies=["numpy"]), APP, DependencyError, "numpy"),
        (code("1", install_command="pip install x"), CELLS, DependencyError, "allow_install_command"),
        (code("1"), APP, FragmentError, "'code-interpreter-v1', not for 'app'"),
        (code("1", port=80), CELLS, FragmentError, "serves no port"),
        (Fragment(template=CELLS.id, files={"a": "", "b": ""}), CELLS, FragmentError, "which one runs"),
        (
            Fragment(template="app", code="1", title="T"),
            Template("app", file="app.py", port=1),
            FragmentError,
            "'T'.*no start command",
        ),
    ],
    ids=[
        "dependencies",
        "app with dependencies",
        "command",
        "wrong template",
        "port",
        "no main file",
        "no start command",
    ],
)
async def test_what_cannot_be_done_is_refused_before_anything_is_written(
    stage: Stage, fragment: Fragment, template: Template, error: type[Exception], says: str
) -> None:
    """A fragment that cannot be carried out is a typed error with no step taken and no file written."""
    with pytest.raises(error, match=says):
        await stage.run(fragment, template=template)
    assert stage.events == []
    assert await AsyncSafeFS(stage.sandbox).list() == []


async def test_a_dependency_error_lists_the_dependencies(stage: Stage) -> None:
    """The packages are an attribute of the error, which is a FragmentError."""
    with pytest.raises(FragmentError) as caught:
        await stage.run(code("1", dependencies=["numpy", "polars>=1"]))
    assert isinstance(caught.value, DependencyError)
    assert caught.value.dependencies == ("numpy", "polars>=1")


async def test_edits_are_made_before_the_run(stage: Stage) -> None:
    """Code that an edit changed runs as it is then; a file that is not there cannot be edited."""
    files = {"main.py": "answer = 6 * 8\nanswer", "other.py": "x"}
    edit = {"path": "main.py", "search": "6 * 8", "replace": "6 * 7"}
    first = Fragment.model_validate({"template": CELLS.id, "files": files, "file": "main.py", "edits": [edit]})
    result = await stage.run(first)
    assert result.execution is not None
    assert result.execution.text == "42"
    assert [step for step, _ in stage.steps] == ["write", "write", "edit", "run"]
    again = {"path": "main.py", "search": "6 * 7", "replace": "6 * 9"}
    result = await stage.run(Fragment.model_validate({"template": CELLS.id, "edits": [again]}))
    assert result.execution is not None
    assert result.execution.text == "54"
    with pytest.raises(NotFound):
        await stage.run(Fragment.model_validate({"template": CELLS.id, "edits": [again | {"path": "none.py"}]}))


async def test_a_main_file_that_is_there_already_can_be_run(stage: Stage) -> None:
    """`file` may name one that only an edit touches, or that lies there."""
    await AsyncSafeFS(stage.sandbox).write("lib.py", "1")
    await AsyncSafeFS(stage.sandbox).write("there.py", "40 + 2")
    edit = {"path": "lib.py", "search": "1", "replace": "2"}
    fragment = Fragment.model_validate({"template": CELLS.id, "edits": [edit], "file": "there.py"})
    result = await stage.run(fragment)
    assert result.execution is not None
    assert result.execution.text == "42"


async def test_what_is_there_is_not_written_again(stage: Stage) -> None:
    """A file that has its text already is left alone, so that no server loads it again."""
    written: list[str] = []
    write: Callable[..., Any] = stage.sandbox.tree.write

    def noted(path: str, *args: Any, **options: Any) -> Any:
        written.append(path)
        return write(path, *args, **options)

    stage.sandbox.tree.write = noted  # type: ignore[method-assign]  # the fake's own files, whoever writes them
    for text in ("1", "1", "2", "2"):
        await stage.run(code(text))
    assert written == ["/home/user/script.py"] * 2


async def test_w6_a_failed_write_runs_nothing(stage: Stage) -> None:
    """When a file cannot be written the fragment stops with that error, and no code runs."""
    files = {"a.txt": "x" * 2 * 1024 * 1024, "main.py": "open('/home/user/ran', 'w')"}
    with pytest.raises(NoSpace):
        await stage.run(Fragment(template=CELLS.id, files=files, file="main.py"))
    assert [step for step, _ in stage.steps] == ["write"]
    assert not await AsyncSafeFS(stage.sandbox).exists("ran")
    assert (stage.events[-1].name, stage.events[-1].data["error"]) == ("fragment.finished", "no_space")


async def test_a_path_that_was_smuggled_in_is_refused(stage: Stage) -> None:
    """The guard looks again when the plan is made: a dictionary that was changed after its check gains nothing."""
    fragment = Fragment(template=CELLS.id, files={"main.py": "1"}, file="main.py")
    assert fragment.files is not None
    fragment.files["../../etc/passwd"] = "evil"
    with pytest.raises(PathEscape):
        await stage.run(fragment)
    assert stage.events == []


@pytest.mark.slow
async def test_the_time_limit_is_the_policys(stage: Stage) -> None:
    """Code runs no longer than TimeoutPolicy.code."""
    with pytest.raises(CodeTimeout):
        await stage.run(code("import time\nwhile True: time.sleep(0.01)"), timeouts=TimeoutPolicy(code=0.1))
    assert (stage.events[-1].name, stage.events[-1].data["error"]) == ("fragment.finished", "code_timeout")


async def test_output_is_bounded(stage: Stage) -> None:
    """More output than max_output ends the run."""
    with pytest.raises(OutputTooLarge):
        await stage.run(code("print('x' * 1000)"), max_output=100)


async def test_a_result_survives_a_home_that_the_code_removed(stage: Stage) -> None:
    """If the code took the home directory away, its result still comes back, with no files."""
    run_code: Callable[..., Any] = stage.sandbox.run_code

    async def run_and_remove(*args: Any, **options: Any) -> Any:
        execution = await run_code(*args, **options)
        await stage.sandbox.files.remove("/home/user")
        return execution

    stage.sandbox.run_code = run_and_remove  # type: ignore[method-assign]  # the fake's code cannot remove directories
    result = await stage.run(code("2"))
    assert result.files == ()
    assert result.execution is not None
    assert result.execution.text == "2"


async def test_w8_an_app_that_answers_is_a_result(stage: Stage) -> None:
    """An app that runs already, and answers, is not started; the result has where it is."""
    stage.sandbox.answers[8501] = 404
    result = await stage.run(Fragment(template="app", code="x"), template=APP)
    assert result.execution is None
    assert result.app is not None
    assert result.app.url == result.app.browser_url == stage.sandbox.browser_url(8501)
    assert [step for step, _ in stage.steps] == ["write", "check", "start", "wait"]


@pytest.mark.slow
async def test_an_app_that_answers_with_errors_is_not_ready(stage: Stage) -> None:
    """The error has the status, whatever the last moment of the wait was too short for."""
    stage.sandbox.answers[8501] = 503
    with pytest.raises(AppNotReady, match="the status 503") as caught:
        await stage.run(Fragment(template="app", code="x"), template=APP, timeouts=TimeoutPolicy(ready=0.3))
    assert caught.value.status == 503


def test_code_may_name_its_own_file() -> None:
    """`file` says where code goes; without it the template does."""
    assert plan(code("1", file="sub/x.py"), CELLS)[0].detail == "/home/user/sub/x.py"
    assert plan(code("1"), CELLS)[0].detail == "/home/user/script.py"


def test_the_main_file_is_the_named_the_templates_or_the_only_one() -> None:
    """Which file runs is decided in this order."""
    several = {"a.py": "1", "script.py": "2"}
    assert plan(Fragment(template=CELLS.id, files=several, file="a.py"), CELLS)[-1].detail == "/home/user/a.py"
    assert plan(Fragment(template=CELLS.id, files=several), CELLS)[-1].detail == "/home/user/script.py"
    assert plan(Fragment(template=CELLS.id, files={"a.py": "1"}), CELLS)[-1].detail == "/home/user/a.py"
