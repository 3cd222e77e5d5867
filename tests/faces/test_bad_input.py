"""What cannot work is refused with a typed error before anything is asked of a sandbox."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sandboxkit import Endpoint, SandboxPool, Session, TimeoutPolicy
from sandboxkit.errors import ConfigurationError, SandboxkitError, SandboxNotFound, UnsupportedOption
from sandboxkit.local._child import stop_engines
from sandboxkit.testing import FakeProvider


@pytest.fixture
def session() -> Iterator[Session]:
    with SandboxPool(endpoint=FakeProvider()) as pool:
        yield pool.session("bad")


CALLS: dict[str, Callable[[Any], object]] = {
    "code: a surrogate": lambda s: s.run_code("'\ud800'"),
    "code: envs are no mapping": lambda s: s.run_code("1", envs=3),
    "code: envs hold a number": lambda s: s.run_code("1", envs={"A": 1}),
    "code: endless": lambda s: s.run_code("1", timeout=1e12),
    "code: a context that is a number": lambda s: s.run_code("1", context=3),
    "code: no language": lambda s: s.run_code("1", language=""),
    "command: a surrogate": lambda s: s.run_command("echo \ud800"),
    "command: envs hold a number": lambda s: s.run_command("ls", envs={"A": 1}),
    "command: cwd is a number": lambda s: s.run_command("ls", cwd=3),
    "command: endless": lambda s: s.run_command("ls", timeout=1e12),
    "code: on_stdout is a text": lambda s: s.run_code("1", on_stdout="x"),
    "code: on_stderr is a number": lambda s: s.run_code("1", on_stderr=3),
    "code: on_result is a list": lambda s: s.run_code("1", on_result=[]),
    "command: on_stdout is a text": lambda s: s.run_command("ls", on_stdout="x"),
    "command: on_stderr is a text": lambda s: s.run_command("ls", on_stderr="x"),
    "command: a variable that Linux does not take": lambda s: s.run_command("ls", envs={"A": "x" * 200_000}),
    "files: None": lambda s: s.files.write("a", None),
    "files: a number is not that many zero bytes": lambda s: s.files.write("a", 3),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_call_that_cannot_work_is_refused(session: Session, name: str) -> None:
    """It is a ConfigurationError, never an error of the SDK, of httpx or of datetime, and the session goes on."""
    with pytest.raises(ConfigurationError):
        CALLS[name](session)
    assert session.run_code("1 + 1").text == "2"


@pytest.mark.engine
@pytest.mark.usefixtures("engine")
def test_a_language_is_refused_by_the_engine() -> None:
    """The session passes every language on; where the interpreter lacks it, its refusal names the option."""
    with SandboxPool(endpoint="local") as pool, pool.session("a") as session:
        with pytest.raises(UnsupportedOption, match="language='cobol'") as caught:
            session.run_code("1", language="cobol")
        assert caught.value.option == "language"
        assert session.run_code("1 + 1", language="Python").text == "2"


@pytest.mark.engine
@pytest.mark.usefixtures("engine")
def test_more_than_a_request_may_have() -> None:
    """Environments over the engine's bounds are refused with advice, and the session goes on."""
    large = {f"A{number}": "x" * 100_000 for number in range(20)}
    with SandboxPool(endpoint="local") as pool, pool.session("a") as session:
        with pytest.raises(ConfigurationError, match="into a file"):
            pool.session("b", envs=large)
        with pytest.raises(ConfigurationError, match="into a file"):
            session.run_code("1", envs={"A": "x" * 17_000_000})
        assert session.run_code("1 + 1").text == "2"


def test_a_variable_that_no_program_can_be_started_with() -> None:
    """It is refused before a sandbox is made, without its value."""
    with SandboxPool(endpoint=FakeProvider()) as pool:
        with pytest.raises(ConfigurationError, match="into a file") as caught:
            pool.session("a", envs={"A": "x" * 200_000})
        assert len(str(caught.value)) < 400


@pytest.mark.parametrize("url", ["notaurl", "", "ftp://a", "http://", "https:///x", "http://[::1", "http://a:b", 3])
@pytest.mark.parametrize("name", ["api_url", "sandbox_url"])
def test_an_endpoint_that_is_no_url(name: str, url: Any) -> None:
    """It is refused when the Endpoint is made, and named."""
    with pytest.raises(ConfigurationError, match=name):
        Endpoint("key", **{name: url})


@pytest.mark.parametrize("wrong", [{"renew": "x"}, {"at_end": "x"}, {"max_lifetime": "a"}, {"max_lifetime": True}])
def test_a_timeout_policy_that_cannot_be(wrong: dict[str, Any]) -> None:
    """It is refused when the policy is made, and named."""
    with pytest.raises(ConfigurationError, match=next(iter(wrong))):
        TimeoutPolicy(**wrong)


def test_a_long_id_is_not_repeated() -> None:
    """The error shortens what attach() was given."""
    with SandboxPool(endpoint=FakeProvider()) as pool, pytest.raises(SandboxNotFound) as caught:
        pool.attach("x" * 100_000)
    assert len(str(caught.value)) < 300


def test_the_package_runs_as_a_module() -> None:
    """`python -m sandboxkit` is the command."""
    done = subprocess.run(
        [sys.executable, "-m", "sandboxkit", "--help"], capture_output=True, text=True, timeout=30, check=True
    )
    assert "doctor" in done.stdout


def test_metadata_that_is_no_mapping() -> None:
    """It is named."""
    with SandboxPool(endpoint=FakeProvider()) as pool, pytest.raises(ConfigurationError, match="metadata"):
        pool.session("a", metadata=3)  # type: ignore[arg-type]


def test_times_have_an_end() -> None:
    """A time so long that no date could name its end is refused."""
    with pytest.raises(ConfigurationError, match="lifetime"):
        TimeoutPolicy(lifetime=1e12)


@pytest.fixture
def engine() -> Iterator[None]:
    """The engine of this process ends with the test."""
    yield
    stop_engines()


@pytest.mark.usefixtures("engine")
def test_an_interpreter_context_of_its_own() -> None:
    """run_code(context=...) takes the id of a context of the sandbox, without naming a language."""
    with SandboxPool(endpoint="local") as pool:
        session = pool.session("contexts")
        sandbox: Any = session.sandbox
        context = sandbox.create_code_context(cwd="/tmp")
        assert session.run_code("import os; x = 1; os.getcwd()", context=context.id).text == "/tmp"
        assert session.run_code("x", context=context.id).text == "1"
        unknown = session.run_code("x").error
        assert unknown is not None
        assert unknown.name == "NameError"
        with pytest.raises(SandboxkitError):
            session.run_code("1", context="nope")


def _run(program: str, **environment: str | None) -> subprocess.CompletedProcess[str]:
    changed = {**os.environ, **environment}
    return subprocess.run(
        [sys.executable, "-m", "sandboxkit.cli", "run", "-"],
        input=program,
        env={name: value for name, value in changed.items() if value is not None},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_without_home() -> None:
    """HOME need not be set, as it is not in a service: the engine, whose uid has no home, is told where to look."""
    done = _run("print(6 * 7)", HOME=None)
    assert "Traceback" not in done.stderr
    if not os.environ.get("SANDBOXKIT_HOME") and "is not built" in done.stderr:
        pytest.skip("HOME of the tests is not this user's home, and there is no template there")
    assert done.stdout == "42\n"


def test_a_cache_that_cannot_be(tmp_path: Path) -> None:
    """A file where the cache should be is named, with the remedy, and there is no traceback."""
    (tmp_path / "file").write_text("")
    done = _run("1", SANDBOXKIT_HOME=str(tmp_path / "file"))
    assert done.returncode == 125
    assert "Traceback" not in done.stderr
    assert str(tmp_path / "file") in done.stderr
    assert "SANDBOXKIT_HOME" in done.stderr
