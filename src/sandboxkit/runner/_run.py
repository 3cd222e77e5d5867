"""Carries out the steps of a fragment's plan in one sandbox, telling each as an event.

Who owns the sandbox when a step fails is the caller's business (the pool kills one that this call created). Here a
failure ends the steps, and nothing that was started stays: `run_code` abandons its run on any error or cancellation,
an installation is killed, and an app that this call has started is stopped. One that ran before goes on.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Protocol

import anyio

from sandboxkit._types import DEFAULT_MAX_OUTPUT, Execution, FileNode, TimeoutPolicy
from sandboxkit.errors import AppStartFailed, DependencyError, NotADirectory, NotFound, TooLarge
from sandboxkit.events import Event, name_of
from sandboxkit.fragment import Fragment, FragmentResult
from sandboxkit.provider._base import OnOutput, OnResult, ProviderSandbox
from sandboxkit.runner import _app as apps
from sandboxkit.runner import _inside as inside
from sandboxkit.runner._app import AsyncApp, Site
from sandboxkit.runner._install import install
from sandboxkit.runner._plan import (
    Check,
    EditFile,
    Install,
    InstallCommand,
    Run,
    Start,
    Step,
    Wait,
    WriteFile,
    edited,
    plan,
)
from sandboxkit.runner._workshop import Workshop
from sandboxkit.safefs import AsyncSafeFS
from sandboxkit.template import Template


class Emit(Protocol):
    """Makes an event of a name and its data, hands it to whoever listens, and returns it."""

    def __call__(self, name: str, /, **data: Any) -> Event: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """Where a fragment is carried out, and by what rules.

    Attributes:
        has_index: the sandbox reaches a package index.
        allow_install_command: the fragment's own shell command may run.
        on_stdout, on_stderr, on_result, max_output: as in `ProviderSandbox.run_code`.
    """

    template: Template
    sandbox: ProviderSandbox
    files: AsyncSafeFS
    timeouts: TimeoutPolicy
    emit: Emit
    workshop: Workshop = dataclasses.field(default_factory=Workshop)
    has_index: bool = True
    allow_install_command: bool = False
    on_stdout: OnOutput | None = None
    on_stderr: OnOutput | None = None
    on_result: OnResult | None = None
    max_output: int = DEFAULT_MAX_OUTPUT


async def carry_out(fragment: Fragment, bench: Bench) -> FragmentResult[AsyncApp]:
    """Carry a fragment out and return what came of it. An exception in its code is data in the result.

    Raises:
        FragmentError: it does not fit its template, and nothing was written; or an edit cannot be made.
        DependencyError: what it needs cannot be installed, or is missing.
        AppStartFailed, AppNotReady: its app did not come up; what this call started is stopped.
        SafeFSError: a file could not be written; nothing was run.
        CodeTimeout, OutputTooLarge, KernelDied, SandboxLost: as in `ProviderSandbox.run_code`.
    """
    events = stream(fragment, bench)
    async with aclosing(events):
        async for event in events:
            result = event.data.get("result")
            if isinstance(result, FragmentResult):
                return result
    raise AssertionError("a stream of events ends with a result or an error")


async def stream(fragment: Fragment, bench: Bench) -> AsyncGenerator[Event]:
    """Carry a fragment out, yielding a `fragment.step` before each step, what an installer says as `fragment.log`, and
    one `fragment.finished` at the end.

    The caller's own last event has the `FragmentResult` as `data["result"]`; listeners get it without, and no log,
    since no event of theirs carries output. No step runs while the caller holds an event, but for an installation:
    leaving the loop ends the run between steps, or the installation.

    Raises:
        The same as `carry_out`.
    """
    steps = plan(
        fragment,
        bench.template,
        has_index=bench.has_index,
        allow_install_command=bench.allow_install_command,
    )
    started_at = anyio.current_time()
    work = _Work(bench, steps)
    try:
        for step in steps:
            event = bench.emit("fragment.step", step=step.name, detail=step.detail)
            yield event
            if isinstance(step, Install | InstallCommand):
                lines = install(step, bench.sandbox, bench.workshop, bench.timeouts)
                async with aclosing(lines):
                    async for text in lines:
                        log = {"step": step.name, "text": text}
                        yield dataclasses.replace(event, name="fragment.log", at=time.time(), data=log)
            else:
                await work.do(step)
        entries = await _entries(bench.files)
        app = await work.app()
    except BaseException as failure:
        await work.undo()
        bench.emit("fragment.finished", duration=anyio.current_time() - started_at, error=name_of(failure))
        raise
    duration = anyio.current_time() - started_at
    result = FragmentResult(
        sandbox_id=bench.sandbox.sandbox_id,
        template=bench.template.id,
        execution=work.execution,
        app=app,
        files=entries,
        duration=duration,
    )
    raised = work.execution.error.name if work.execution is not None and work.execution.error is not None else None
    finished = bench.emit("fragment.finished", duration=duration, error=raised)
    yield dataclasses.replace(finished, data={**finished.data, "result": result})


class _Work:
    """The steps of one run, carried out one by one."""

    def __init__(self, bench: Bench, steps: tuple[Step, ...]) -> None:
        self._bench = bench
        self._site = _site(bench, steps)
        self._has_started = False
        self.execution: Execution | None = None

    async def do(self, step: Step) -> None:
        """Carry out one step."""
        bench = self._bench
        match step:
            case WriteFile():
                if not await self._holds(step.path, step.text):
                    await bench.files.write_text(step.path, step.text)
            case EditFile():
                before = await bench.files.read_text(step.path)
                if (after := edited(before, step)) != before:
                    await bench.files.write_text(step.path, after)
            case Check():
                await self._check(step)
            case Start():
                assert self._site is not None
                async with bench.workshop.lock:
                    self._has_started = await apps.start(self._site)
            case Wait():
                assert self._site is not None
                await apps.wait(self._site)
            case Run():
                await self._run(step)

    async def app(self) -> AsyncApp | None:
        """The app that answers now, if the fragment has one."""
        site = self._site
        if site is None:
            return None
        sandbox = site.sandbox
        return AsyncApp(site, url=await sandbox.url(site.port), browser_url=sandbox.browser_url(site.port))

    async def undo(self) -> None:
        """Stop what this run has started. Raises nothing."""
        if self._has_started and self._site is not None:
            await apps.stop_on_failure(self._site)

    async def _holds(self, path: str, text: str) -> bool:
        """Whether a file has this text already: writing it again would make a server load it again."""
        wanted = text.encode()
        try:
            return await self._bench.files.read_bytes(path, max_bytes=len(wanted) + 1) == wanted
        except (NotFound, NotADirectory, TooLarge):
            return False

    async def _check(self, step: Check) -> None:
        bench = self._bench
        verdict = await inside.check_python(bench.sandbox, step.paths)
        if verdict.broken:
            path, text = verdict.broken[0]
            raise AppStartFailed(
                f"{path} is no Python that can be read: {text.strip().splitlines()[-1][:300]}",
                sandbox_id=bench.sandbox.sandbox_id,
                path=path,
                log_tail="".join(text for _, text in verdict.broken),
            )
        if verdict.missing:
            lines = [f"{path}, line {line}: there is no module {name!r}" for path, line, name in verdict.missing]
            names = tuple(dict.fromkeys(name for _, _, name in verdict.missing))
            raise DependencyError(
                f"The app imports what is not installed: {', '.join(names)}. List the packages in `dependencies`.",
                sandbox_id=bench.sandbox.sandbox_id,
                dependencies=names,
                log_tail="\n".join(lines),
            )

    async def _run(self, step: Run) -> None:
        bench = self._bench
        code = step.code if step.code is not None else await bench.files.read_text(step.path)
        self.execution = await bench.sandbox.run_code(
            code,
            language=step.language,
            timeout=bench.timeouts.code,
            on_stdout=bench.on_stdout,
            on_stderr=bench.on_stderr,
            on_result=bench.on_result,
            max_output=bench.max_output,
        )


def _site(bench: Bench, steps: tuple[Step, ...]) -> Site | None:
    start = next((step for step in steps if isinstance(step, Start)), None)
    wait = next((step for step in steps if isinstance(step, Wait)), None)
    if start is None or wait is None:
        return None
    return Site(bench.sandbox, bench.workshop, bench.timeouts, start.command, wait.port, wait.path)


async def _entries(files: AsyncSafeFS) -> tuple[FileNode, ...]:
    """The home directory after the run; empty where the code removed it, since its result is not lost for that."""
    try:
        return (await files.tree()).children
    except (NotFound, NotADirectory):
        return ()
