"""What every provider must do: one check for each sentence of the contract in `sandboxkit.provider._base`.

A provider of your own is held to it like this, with pytest and anyio's plugin:

    @pytest.mark.anyio
    @pytest.mark.parametrize("check", conformance.CHECKS, ids=conformance.name_of)
    async def test_provider(check):
        await check(MyProvider())

A check needs the template `code-interpreter-v1`, or another with Python and a shell whose id is passed as `template=`.
It kills what it made. It fails with an AssertionError whose message is the sentence that does not hold.
"""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol

import anyio
import anyio.lowlevel

from sandboxkit._types import CODE_INTERPRETER, DEFAULT_ROOT, NetworkPolicy, OutputMessage, Result
from sandboxkit.errors import (
    CodeTimeout,
    CommandTimeout,
    ConfigurationError,
    IsADirectory,
    KernelDied,
    NotADirectory,
    NotFound,
    OutputTooLarge,
    SandboxLost,
    SandboxNotFound,
    TemplateNotFound,
    TooLarge,
    UnsupportedOption,
)
from sandboxkit.provider._base import CreateRequest, Provider, ProviderSandbox

CHECK_TAG = "sandboxkit-conformance"
LIFETIME = 120.0


class Check(Protocol):
    """One check. It raises AssertionError where the provider does not do what its docstring says."""

    __name__: str

    async def __call__(self, provider: Provider, *, template: str = CODE_INTERPRETER) -> None: ...


CHECKS: list[Check] = []
"""All checks, in the order of the contract."""


def name_of(check: Check) -> str:
    """The name of a check, for pytest's `ids=`."""
    return check.__name__


def _check(func: Check) -> Check:
    CHECKS.append(func)
    return func


def _must(condition: object, sentence: str) -> None:
    if not condition:
        raise AssertionError(sentence)


async def _raises(kind: type[BaseException], work: Callable[[], Awaitable[object]], sentence: str) -> Any:
    try:
        value = await work()
    except kind as error:
        return error
    raise AssertionError(f"{sentence} It returned {value!r} instead of raising {kind.__name__}.")


def _request(template: str, **changes: Any) -> CreateRequest:
    values: dict[str, Any] = {
        "template": template,
        "lifetime": LIFETIME,
        "idempotency_key": uuid.uuid4().hex,
        "metadata": {CHECK_TAG: uuid.uuid4().hex},
    }
    return CreateRequest(**(values | changes))


@asynccontextmanager
async def _sandbox(provider: Provider, template: str, **changes: Any) -> AsyncIterator[ProviderSandbox]:
    sandbox = await provider.create(_request(template, **changes))
    try:
        yield sandbox
    finally:
        with anyio.move_on_after(30, shield=True):
            await provider.kill(sandbox.sandbox_id)


async def _listed(provider: Provider, metadata: dict[str, str]) -> set[str]:
    return {info.sandbox_id async for info in provider.list(metadata=metadata)}


# -- creating -----------------------------------------------------------------------------------------------------


@_check
async def create_makes_a_running_sandbox(provider: Provider, *, template: str = CODE_INTERPRETER) -> None:
    """A created sandbox runs, knows its template, and ends about `lifetime` seconds from now."""
    before = datetime.now(UTC)
    async with _sandbox(provider, template) as sandbox:
        _must(await sandbox.is_running(), "A created sandbox runs.")
        _must(sandbox.sandbox_id, "A sandbox has an id.")
        _must(sandbox.template == template, "A sandbox knows its template.")
        _must(sandbox.end_at is not None, "The end of a created sandbox is known.")
        assert sandbox.end_at is not None
        _must(sandbox.end_at.tzinfo is not None, "end_at is UTC, and says so.")
        late = abs((sandbox.end_at - before).total_seconds() - LIFETIME)
        _must(late < 30, f"end_at is about `lifetime` from now; it is {late:.0f} s off.")


@_check
async def create_twice_with_one_key_makes_one(provider: Provider, *, template: str = CODE_INTERPRETER) -> None:
    """A repeated request with the same idempotency key returns the same sandbox."""
    request = _request(template)
    first = await provider.create(request)
    try:
        second = await provider.create(request)
        _must(first.sandbox_id == second.sandbox_id, "One idempotency key stands for one sandbox.")
        _must(await _listed(provider, dict(request.metadata)) == {first.sandbox_id}, "No second one was made.")
    finally:
        await provider.kill(first.sandbox_id)


@_check
async def create_refuses_an_unknown_template(provider: Provider, *, template: str = CODE_INTERPRETER) -> None:
    """An unknown template is TemplateNotFound, with its id."""
    error = await _raises(
        TemplateNotFound,
        lambda: provider.create(_request("no-such-template")),
        "A template that nobody knows is refused.",
    )
    _must(error.template == "no-such-template", "TemplateNotFound names the template.")


@_check
async def create_refuses_what_it_cannot_do(provider: Provider, *, template: str = CODE_INTERPRETER) -> None:
    """A network mode that cannot be had is UnsupportedOption, and no sandbox is made."""
    for network in (NetworkPolicy(allow=("example.org",), deny=("192.0.2.0/24",)),):
        request = _request(template, network=network)
        error = await _raises(
            UnsupportedOption,
            lambda request=request: provider.create(request),  # type: ignore[misc]  # bound now, not later
            "A network mode that cannot be had is refused.",
        )
        _must(error.option == "network", "UnsupportedOption names the option.")
        _must(not await _listed(provider, dict(request.metadata)), "A refused create makes nothing.")


@_check
async def create_sets_metadata_and_environment(provider: Provider, *, template: str = CODE_INTERPRETER) -> None:
    """Metadata find the sandbox, pair by pair; its environment is seen by code and by commands."""
    tag = {CHECK_TAG: uuid.uuid4().hex, "a b=c&d": "e%f/g"}
    async with _sandbox(provider, template, metadata=tag, envs={"GREETING": "hello world"}) as sandbox:
        _must(await _listed(provider, tag) == {sandbox.sandbox_id}, "A sandbox is found by its metadata.")
        _must(not await _listed(provider, tag | {"other": "x"}), "All pairs must be there.")
        _must(not await _listed(provider, {CHECK_TAG: "other"}), "Another value does not match.")
        ran = await sandbox.run_code("import os\nos.environ['GREETING']")
        _must(ran.text == "hello world", "Code sees the sandbox's environment.")
        done = await sandbox.run_command('echo "$GREETING"')
        _must(done.stdout == "hello world\n", "Commands see the sandbox's environment.")


@_check
async def create_leaves_nothing_when_cancelled(provider: Provider, *, template: str = CODE_INTERPRETER) -> None:
    """However soon a create is cancelled, what it made is killed."""
    for delay in (0.0, 0.001, 0.01, 0.05, 0.2):
        request = _request(template)
        with anyio.move_on_after(delay) as limit:
            sandbox = await provider.create(request)
            if not limit.cancel_called:
                await provider.kill(sandbox.sandbox_id)
        with anyio.move_on_after(5):
            while await _listed(provider, dict(request.metadata)):  # noqa: ASYNC110  # another process's doing
                await anyio.sleep(0.02)
            continue
        raise AssertionError(f"A create that was cancelled after {delay} s left a sandbox.")


# -- code ---------------------------------------------------------------------------------------------------------


@_check
async def code_keeps_its_state(provider: Provider, *, template: str = CODE_INTERPRETER) -> None:
    """Variables live from run to run; the last expression is the main result; runs are counted."""
    async with _sandbox(provider, template) as sandbox:
        first = await sandbox.run_code("x = 20")
        _must(first.text is None and first.error is None, "A statement has no result.")
        second = await sandbox.run_code("print('out')\nx + 1")
        _must(second.text == "21", "Variables live on, and the last expression is the result.")
        _must(second.stdout == "out\n" and second.stderr == "", "Standard output is in the result.")
        _must((await sandbox.run_code("'text'")).text == "text", "The text of a string has no quotes, as E2B's.")
        _must(isinstance(second.count, int) and second.count > (first.count or 0), "Runs are counted.")


@_check
async def code_exceptions_are_data(provider: Provider, *, template: str = CODE_INTERPRETER) -> None:
    """An exception in the code is data in the result, and so is a syntax error; output before it is kept."""
    async with _sandbox(provider, template) as sandbox:
        ran = await sandbox.run_code("import sys\nprint('before')\nsys.stderr.write('oops\\n')\n1 / 0")
        _must(ran.error is not None and ran.error.name == "ZeroDivisionError", "An exception is data in the result.")
        assert ran.error is not None
        _must("division by zero" in ran.error.value, "Its value is told.")
        _must("ZeroDivisionError" in ran.error.traceback, "Its traceback is told.")
        _must(ran.stdout == "before\n" and "oops" in ran.stderr, "Output before the exception is kept, by stream.")
        broken = await sandbox.run_code("def (")
        _must(broken.error is not None and broken.error.name == "SyntaxError", "A syntax error is data, too.")


@_check
async def code_tells_callbacks_in_order(provider: Provider, *, template: str = CODE_INTERPRETER) -> None:
    """Callbacks get the output and the results in order, and what they return is awaited if it can be."""
    told: list[str] = []

    async def on_result(result: Result) -> None:
        await anyio.lowlevel.checkpoint()
        told.append(f"result {result.text}")

    def on_stdout(message: OutputMessage) -> None:
        _must(message.stream == "stdout", "A message names its stream.")
        told.append(message.text)

    async with _sandbox(provider, template) as sandbox:
        await sandbox.run_code("for n in range(3):\n    print(n)\n'last'", on_stdout=on_stdout, on_result=on_result)
    _must("".join(told) == "0\n1\n2\nresult last", f"Callbacks are called in order, and awaited: {told}.")


@_check
async def code_ends_with_a_callbacks_exception(provider: Provider, *, template: str = CODE_INTERPRETER) -> None:
    """A callback that raises ends the run with its exception; the sandbox serves the next run."""

    class Mine(Exception):
        pass

    def refuse(message: OutputMessage) -> None:
        raise Mine(message.text)

    async with _sandbox(provider, template) as sandbox:
        await _raises(
            Mine,
            lambda: sandbox.run_code("while True:\n    print('x')", on_stdout=refuse, timeout=20),
            "A callback's exception ends the run.",
        )
        _must((await sandbox.run_code("1 + 1", timeout=20)).text == "2", "The next run is served.")


@_check
async def code_is_interrupted_at_its_limit(provider: Provider, *, template: str = CODE_INTERPRETER) -> None:
    """Past its limit a run is interrupted and raises CodeTimeout; variables are kept."""
    async with _sandbox(provider, template) as sandbox:
        await sandbox.run_code("kept = 7")
        started = anyio.current_time()
        error = await _raises(
            CodeTimeout,
            lambda: sandbox.run_code("while True:\n    pass", timeout=0.5),
            "A run that goes past its limit is ended.",
        )
        _must(anyio.current_time() - started < 5, "The limit holds by the wall clock.")
        _must(isinstance(error, TimeoutError) and "timeout=0.5" in str(error), "The error names the limit.")
        _must(error.sandbox_id == sandbox.sandbox_id, "The error names the sandbox.")
        _must((await sandbox.run_code("kept", timeout=20)).text == "7", "The run was interrupted, the kernel lives.")


@_check
async def code_is_interrupted_when_cancelled(provider: Provider, *, template: str = CODE_INTERPRETER) -> None:
    """A cancelled run is interrupted."""
    async with _sandbox(provider, template) as sandbox:
        started = anyio.Event()
        async with anyio.create_task_group() as group:

            async def run() -> None:
                await sandbox.run_code(
                    "print('started')\nwhile True:\n    pass", on_stdout=lambda _: started.set(), timeout=60
                )

            group.start_soon(run)
            with anyio.fail_after(20):
                await started.wait()
            group.cancel_scope.cancel()
        _must((await sandbox.run_code("'free'", timeout=20)).text == "free", "The next run is not kept waiting.")


@_check
async def code_output_has_a_bound(provider: Provider, *, template: str = CODE_INTERPRETER) -> None:
    """More than `max_output` bytes end the run with OutputTooLarge, which keeps the head and the tail."""
    async with _sandbox(provider, template) as sandbox:
        error = await _raises(
            OutputTooLarge,
            lambda: sandbox.run_code(
                "print('HEAD')\nwhile True:\n    print('x' * 1000)", max_output=50_000, timeout=30
            ),
            "Endless output is ended.",
        )
        _must(error.head.startswith("HEAD\n"), "`head` is the beginning.")
        _must(len(error.head) + len(error.tail) <= 50_000, "No more than the bound is kept.")
        _must("x" in error.tail, "`tail` is the end.")
        _must((await sandbox.run_code("1", timeout=20)).text == "1", "The run was interrupted.")


@_check
async def code_tells_of_a_dead_kernel(provider: Provider, *, template: str = CODE_INTERPRETER) -> None:
    """A kernel that dies raises KernelDied; the next run has a new one, and files are still there."""
    async with _sandbox(provider, template) as sandbox:
        await sandbox.files.write(f"{DEFAULT_ROOT}/kept.txt", b"kept")
        await sandbox.run_code("x = 1")
        error = await _raises(
            KernelDied, lambda: sandbox.run_code("import os\nos._exit(3)", timeout=30), "A dead kernel is told of."
        )
        _must(error.sandbox_id == sandbox.sandbox_id, "The error names the sandbox.")
        again = await sandbox.run_code("'x' in globals()", timeout=30)
        _must(again.text == "False", "The next run has a new interpreter.")
        _must(await sandbox.files.read(f"{DEFAULT_ROOT}/kept.txt") == b"kept", "Files outlive the interpreter.")


@_check
async def code_has_an_environment_of_its_own(provider: Provider, *, template: str = CODE_INTERPRETER) -> None:
    """`envs` of a run are seen by that run only."""
    async with _sandbox(provider, template) as sandbox:
        ask = "import os\nos.environ.get('ONCE')"
        _must((await sandbox.run_code(ask, envs={"ONCE": "1"})).text == "1", "The run sees its environment.")
        _must((await sandbox.run_code(ask)).text is None, "The next run does not.")


@_check
async def restart_forgets_variables(provider: Provider, *, template: str = CODE_INTERPRETER) -> None:
    """restart() forgets variables and keeps files; an unknown context is a ConfigurationError."""
    async with _sandbox(provider, template) as sandbox:
        await sandbox.run_code("x = 1")
        await sandbox.files.write(f"{DEFAULT_ROOT}/kept.txt", b"kept")
        await sandbox.restart()
        _must((await sandbox.run_code("'x' in globals()")).text == "False", "Variables are gone.")
        _must(await sandbox.files.exists(f"{DEFAULT_ROOT}/kept.txt"), "Files are there.")
        unknown = "00000000-0000-0000-0000-000000000000"
        await _raises(ConfigurationError, lambda: sandbox.restart(unknown), "There is no such context.")
        await _raises(ConfigurationError, lambda: sandbox.run_code("1", context=unknown), "There is no such context.")


@_check
async def code_fails_when_the_sandbox_goes(provider: Provider, *, template: str = CODE_INTERPRETER) -> None:
    """A sandbox that goes away in the middle of a run raises SandboxLost, and so does the next run."""
    async with _sandbox(provider, template) as sandbox:
        failures: list[BaseException] = []
        started = anyio.Event()

        async def run() -> None:
            try:
                await sandbox.run_code(
                    "print('started')\nwhile True:\n    pass", timeout=60, on_stdout=lambda _: started.set()
                )
            except Exception as error:
                failures.append(error)

        async with anyio.create_task_group() as group:
            group.start_soon(run)
            with anyio.fail_after(20):
                await started.wait()
            _must(await sandbox.kill(), "kill() tells that it killed.")
        _must(
            len(failures) == 1 and isinstance(failures[0], SandboxLost),
            f"A run whose sandbox goes away raises SandboxLost: {failures}.",
        )
        await _raises(SandboxLost, lambda: sandbox.run_code("1"), "A run in a sandbox that is gone fails.")
        await _raises(SandboxLost, lambda: sandbox.run_command("true"), "So does a command.")
        await _raises(SandboxLost, lambda: sandbox.start_command("true"), "So does a start.")


# -- commands -----------------------------------------------------------------------------------------------------


@_check
async def commands_give_their_output_and_code(provider: Provider, *, template: str = CODE_INTERPRETER) -> None:
    """A command's output and exit code are data, by stream; it has its directory and environment."""
    async with _sandbox(provider, template) as sandbox:
        told: list[tuple[str, str]] = []
        done = await sandbox.run_command(
            "echo out; echo err >&2; exit 3",
            on_stdout=lambda m: told.append((m.stream, m.text)),
            on_stderr=lambda m: told.append((m.stream, m.text)),
        )
        _must((done.exit_code, done.stdout, done.stderr) == (3, "out\n", "err\n"), f"Non-zero exit is data: {done}.")
        _must(sorted(told) == [("stderr", "err\n"), ("stdout", "out\n")], f"Callbacks are told: {told}.")
        await sandbox.files.make_dir(f"{DEFAULT_ROOT}/work")
        done = await sandbox.run_command('pwd; echo "$WHO"', cwd=f"{DEFAULT_ROOT}/work", envs={"WHO": "me"})
        _must(done.stdout == f"{DEFAULT_ROOT}/work\nme\n", "A command has its directory and environment.")
        await _raises(
            ConfigurationError, lambda: sandbox.run_command("pwd", cwd="/no/such/dir"), "A directory must be there."
        )


@_check
async def commands_are_killed_at_their_limit(provider: Provider, *, template: str = CODE_INTERPRETER) -> None:
    """Past its limit a command raises CommandTimeout, and has been killed."""
    async with _sandbox(provider, template) as sandbox:
        error = await _raises(
            CommandTimeout,
            lambda: sandbox.run_command("sleep 1; echo late > late.txt", timeout=0.3),
            "A command that goes past its limit is ended.",
        )
        _must(isinstance(error, TimeoutError) and "timeout=0.3" in str(error), "The error names the limit.")
        await sandbox.run_command("sleep 1.2")
        _must(not await sandbox.files.exists(f"{DEFAULT_ROOT}/late.txt"), "It does not go on.")


@_check
async def commands_are_killed_when_cancelled(provider: Provider, *, template: str = CODE_INTERPRETER) -> None:
    """A cancelled command has been killed."""
    async with _sandbox(provider, template) as sandbox:
        with anyio.move_on_after(0.3):
            await sandbox.run_command("sleep 1; echo late > late.txt")
        await sandbox.run_command("sleep 1.2")
        _must(not await sandbox.files.exists(f"{DEFAULT_ROOT}/late.txt"), "A cancelled command does not go on.")


@_check
async def commands_output_has_a_bound(provider: Provider, *, template: str = CODE_INTERPRETER) -> None:
    """More than `max_output` bytes end the command with OutputTooLarge."""
    async with _sandbox(provider, template) as sandbox:
        error = await _raises(
            OutputTooLarge,
            lambda: sandbox.run_command("echo HEAD; yes", max_output=50_000, timeout=30),
            "Endless output is ended.",
        )
        _must(error.head.startswith("HEAD\n") and "y\ny\n" in error.tail, "Head and tail are kept.")


@_check
async def background_commands_run_on(provider: Provider, *, template: str = CODE_INTERPRETER) -> None:
    """A background command takes input, is waited for, and killed once."""
    async with _sandbox(provider, template) as sandbox:
        reader = await sandbox.start_command('read LINE; echo "got $LINE"', stdin=True)
        _must(reader.pid > 0, "A command has a process id.")
        await reader.send_stdin("ping\n")
        with anyio.fail_after(20):
            done = await reader.wait()
        _must((done.exit_code, done.stdout) == (0, "got ping\n"), f"It read its input: {done}.")
        _must(await reader.kill() is False, "One that has ended cannot be killed.")
        sleeper = await sandbox.start_command("sleep 60")
        await _raises(ConfigurationError, lambda: sleeper.send_stdin("x"), "It was not started with stdin=True.")
        _must(await sleeper.kill() is True, "A running one can.")
        with anyio.fail_after(20):
            _must((await sleeper.wait()).exit_code != 0, "A killed one ends with a code that is not zero.")


# -- files --------------------------------------------------------------------------------------------------------


@_check
async def files_are_read_and_written(provider: Provider, *, template: str = CODE_INTERPRETER) -> None:
    """A file is written whole, with its parents, replaces what was there, and is read whole."""
    async with _sandbox(provider, template) as sandbox:
        files, path = sandbox.files, f"{DEFAULT_ROOT}/a/b/ü x.bin"
        data = bytes(range(256)) * 5000
        await files.write(path, data)
        _must(await files.read(path) == data, "What was written is read.")
        await files.write(path, b"")
        _must(await files.read(path) == b"", "Writing replaces, and a file may be empty.")
        await files.write(path, b"12345")
        _must(await files.read(path, max_bytes=5) == b"12345", "max_bytes is a bound, not a wish.")
        await _raises(TooLarge, lambda: files.read(path, max_bytes=4), "A file past the bound is not read.")
        info = await files.stat(path)
        _must((info.name, info.path, info.type, info.size) == ("ü x.bin", path, "file", 5), f"stat describes: {info}.")


@_check
async def files_are_listed(provider: Provider, *, template: str = CODE_INTERPRETER) -> None:
    """A directory is listed down to `depth` levels."""
    async with _sandbox(provider, template) as sandbox:
        files, root = sandbox.files, f"{DEFAULT_ROOT}/tree"
        await files.write(f"{root}/one.txt", b"1")
        await files.write(f"{root}/sub/two.txt", b"2")
        entries = {(e.path, e.type) for e in await files.list(root)}
        _must(entries == {(f"{root}/one.txt", "file"), (f"{root}/sub", "dir")}, f"One level: {entries}.")
        deeper = {e.path for e in await files.list(root, depth=2)}
        _must(deeper == {f"{root}/one.txt", f"{root}/sub", f"{root}/sub/two.txt"}, f"Two levels: {deeper}.")
        _must(await files.make_dir(f"{root}/new/dir"), "make_dir makes parents.")
        _must(not await files.make_dir(f"{root}/new/dir"), "A second make_dir says that it was there.")
        _must(await files.list(f"{root}/new/dir") == [], "An empty directory has no entries.")


@_check
async def files_are_renamed_and_removed(provider: Provider, *, template: str = CODE_INTERPRETER) -> None:
    """rename replaces a file; remove takes a tree, and raises NotFound where there is nothing."""
    async with _sandbox(provider, template) as sandbox:
        files, root = sandbox.files, f"{DEFAULT_ROOT}/tree"
        await files.write(f"{root}/a", b"a")
        await files.write(f"{root}/b", b"b")
        await files.rename(f"{root}/a", f"{root}/b")
        _must(await files.read(f"{root}/b") == b"a", "rename replaces a file.")
        _must(not await files.exists(f"{root}/a"), "The source is gone.")
        await _raises(NotFound, lambda: files.rename(f"{root}/a", f"{root}/c"), "There is nothing to rename.")
        await files.remove(root)
        _must(not await files.exists(root), "remove takes a whole tree.")
        await _raises(NotFound, lambda: files.remove(root), "There is nothing to remove.")


@_check
async def files_have_typed_errors(provider: Provider, *, template: str = CODE_INTERPRETER) -> None:
    """NotFound, IsADirectory and NotADirectory say what is wrong, with the path."""
    async with _sandbox(provider, template) as sandbox:
        files, root = sandbox.files, DEFAULT_ROOT
        await files.write(f"{root}/file", b"x")
        await files.make_dir(f"{root}/dir")
        missing = f"{root}/missing"
        for sentence, work in (
            ("read", lambda: files.read(missing)),
            ("stat", lambda: files.stat(missing)),
            ("list", lambda: files.list(missing)),
        ):
            error = await _raises(NotFound, work, f"{sentence} of a missing path is NotFound.")
            _must(error.path == missing, "The error names the path.")
        await _raises(IsADirectory, lambda: files.read(f"{root}/dir"), "A directory cannot be read.")
        await _raises(IsADirectory, lambda: files.write(f"{root}/dir", b""), "A directory cannot be written.")
        await _raises(NotADirectory, lambda: files.list(f"{root}/file"), "A file cannot be listed.")
        await _raises(NotADirectory, lambda: files.make_dir(f"{root}/file"), "A file is in the way.")
        await _raises(NotADirectory, lambda: files.write(f"{root}/file/x", b""), "A file is no parent.")
        _must(not await files.exists(f"{root}/file/x"), "What cannot be there is not there.")


# -- life ---------------------------------------------------------------------------------------------------------


@_check
async def extend_never_shortens(provider: Provider, *, template: str = CODE_INTERPRETER) -> None:
    """extend() moves the end later, never earlier, and returns it."""
    async with _sandbox(provider, template) as sandbox:
        first = sandbox.end_at
        assert first is not None
        _must(await sandbox.extend(10) >= first, "A short extension does not shorten.")
        later = await sandbox.extend(LIFETIME + 100)
        _must(later >= first + timedelta(seconds=90), "A longer one moves the end.")
        _must(sandbox.end_at == later, "end_at is what was answered.")
        again = await provider.connect(sandbox.sandbox_id, lifetime=10)
        assert again.end_at is not None
        _must(again.end_at >= later - timedelta(seconds=5), "connect() does not shorten either.")
        _must(again.sandbox_id == sandbox.sandbox_id, "connect() takes up the same sandbox.")
        _must(again.template == template, "connect() knows the template.")
        _must((await again.run_code("1 + 1")).text == "2", "A connected sandbox can be used.")


@_check
async def sandboxes_expire(provider: Provider, *, template: str = CODE_INTERPRETER) -> None:
    """A sandbox ends with its lifetime; what runs then raises SandboxLost."""
    async with _sandbox(provider, template, lifetime=2.0) as sandbox:
        with anyio.fail_after(30):
            await _raises(
                SandboxLost,
                lambda: sandbox.run_code("while True:\n    pass", timeout=25),
                "A sandbox ends with its lifetime.",
            )
        _must(not await sandbox.is_running(), "It does not run any more.")


@_check
async def kill_is_told_once(provider: Provider, *, template: str = CODE_INTERPRETER) -> None:
    """kill() returns True, then False; a killed sandbox is not listed, not running, and SandboxNotFound."""
    tag = {CHECK_TAG: uuid.uuid4().hex}
    sandbox = await provider.create(_request(template, metadata=tag))
    _must(await sandbox.kill() is True, "kill() kills.")
    _must(await sandbox.kill() is False, "A second kill() is no error.")
    _must(await provider.kill(sandbox.sandbox_id) is False, "Nor is one by id.")
    _must(await provider.kill("nosuchsandbox") is False, "Nor is one of a sandbox that never was.")
    _must(not await sandbox.is_running(), "A killed sandbox does not run.")
    _must(not await _listed(provider, tag), "A killed sandbox is not listed.")
    await _raises(SandboxNotFound, lambda: sandbox.extend(10), "It cannot be extended.")
    await _raises(
        SandboxNotFound, lambda: provider.connect(sandbox.sandbox_id, lifetime=10), "It cannot be connected to."
    )
    await _raises(SandboxNotFound, lambda: sandbox.files.read("/etc/hostname"), "Its files are gone.")


@_check
async def list_goes_over_all(provider: Provider, *, template: str = CODE_INTERPRETER) -> None:
    """list() yields every sandbox, with its template, state, times and metadata."""
    tag = {CHECK_TAG: uuid.uuid4().hex}
    async with (
        _sandbox(provider, template, metadata=tag) as one,
        _sandbox(provider, template, metadata=tag | {"which": "two"}) as two,
    ):
        infos = {info.sandbox_id: info async for info in provider.list(metadata=tag)}
        _must(set(infos) == {one.sandbox_id, two.sandbox_id}, "All are listed.")
        info = infos[two.sandbox_id]
        _must(info.state == "running" and info.template == template, f"State and template are told: {info}.")
        _must(info.metadata["which"] == "two", "Metadata are told.")
        _must(info.started_at < info.end_at, "Times are told.")
        everything = {info.sandbox_id async for info in provider.list()}
        _must(set(infos) <= everything, "Without a filter, all are listed.")


@_check
async def host_needs_no_request(provider: Provider, *, template: str = CODE_INTERPRETER) -> None:
    """host() names the port and the sandbox, also of one that is gone."""
    async with _sandbox(provider, template) as sandbox:
        await sandbox.kill()
        _must(sandbox.host(3000).startswith(f"3000-{sandbox.sandbox_id}."), "host() names port and sandbox.")


@_check
async def aclose_kills_no_sandbox(provider: Provider, *, template: str = CODE_INTERPRETER) -> None:
    """aclose() kills no sandbox, and may be called again."""
    async with _sandbox(provider, template) as sandbox:
        await provider.aclose()
        await provider.aclose()
        _must(await sandbox.is_running(), "aclose() kills no sandbox.")
