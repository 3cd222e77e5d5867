"""Carries out the steps of a fragment's plan in one sandbox, telling each as an event.

Who owns the sandbox when a step fails is the caller's business (the pool kills one that this call created). Here a
failure ends the steps, and nothing that was started stays: `run_code` abandons its run on any error or cancellation.
"""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any, Protocol

import anyio

from sandboxkit._types import DEFAULT_MAX_OUTPUT, Execution, FileNode, TimeoutPolicy
from sandboxkit.errors import DependencyError, NotADirectory, NotFound, UnsupportedOption
from sandboxkit.events import Event, name_of
from sandboxkit.fragment import Fragment, FragmentResult
from sandboxkit.provider._base import OnOutput, OnResult, ProviderSandbox
from sandboxkit.runner._plan import Install, Run, Start, Step, Wait, WriteFile, plan
from sandboxkit.safefs import AsyncSafeFS
from sandboxkit.template import Template


class Emit(Protocol):
    """Makes an event of a name and its data, hands it to whoever listens, and returns it."""

    def __call__(self, name: str, /, **data: Any) -> Event: ...


async def carry_out(
    fragment: Fragment,
    *,
    template: Template,
    sandbox: ProviderSandbox,
    files: AsyncSafeFS,
    timeouts: TimeoutPolicy,
    emit: Emit,
    on_stdout: OnOutput | None = None,
    on_stderr: OnOutput | None = None,
    on_result: OnResult | None = None,
    max_output: int = DEFAULT_MAX_OUTPUT,
) -> FragmentResult:
    """Carry a fragment out and return what came of it. An exception in its code is data in the result.

    Raises:
        FragmentError: it does not fit its template; nothing was written.
        DependencyError: it names packages, which cannot be installed yet; nothing was written.
        UnsupportedOption: its template serves an app, which is not supported yet; nothing was written.
        SafeFSError: a file could not be written; nothing was run.
        CodeTimeout, OutputTooLarge, KernelDied, SandboxLost: as in `ProviderSandbox.run_code`.
    """
    events = stream(
        fragment,
        template=template,
        sandbox=sandbox,
        files=files,
        timeouts=timeouts,
        emit=emit,
        on_stdout=on_stdout,
        on_stderr=on_stderr,
        on_result=on_result,
        max_output=max_output,
    )
    async with aclosing(events):
        async for event in events:
            result = event.data.get("result")
            if isinstance(result, FragmentResult):
                return result
    raise AssertionError("a stream of events ends with a result or an error")


async def stream(
    fragment: Fragment,
    *,
    template: Template,
    sandbox: ProviderSandbox,
    files: AsyncSafeFS,
    timeouts: TimeoutPolicy,
    emit: Emit,
    on_stdout: OnOutput | None = None,
    on_stderr: OnOutput | None = None,
    on_result: OnResult | None = None,
    max_output: int = DEFAULT_MAX_OUTPUT,
) -> AsyncGenerator[Event]:
    """Carry a fragment out, yielding a `fragment.step` before each step and one `fragment.finished` at the end.

    The caller's own last event has the `FragmentResult` as `data["result"]`; listeners get it without, since no event
    of theirs carries output. No step runs while the caller holds an event: leaving the loop ends the run between steps.

    Raises:
        The same as `carry_out`.
    """
    steps = _supported(plan(fragment, template), fragment)
    started_at = anyio.current_time()
    execution: Execution | None = None
    try:
        for step in steps:
            yield emit("fragment.step", step=step.name, detail=step.detail)
            if isinstance(step, WriteFile):
                await files.write_text(step.path, step.text)
            else:
                execution = await sandbox.run_code(
                    step.code,
                    language=step.language,
                    timeout=timeouts.code,
                    on_stdout=on_stdout,
                    on_stderr=on_stderr,
                    on_result=on_result,
                    max_output=max_output,
                )
        entries = await _entries(files)
    except BaseException as failure:
        emit("fragment.finished", duration=anyio.current_time() - started_at, error=name_of(failure))
        raise
    duration = anyio.current_time() - started_at
    result = FragmentResult(
        sandbox_id=sandbox.sandbox_id,
        template=template.id,
        execution=execution,
        files=entries,
        duration=duration,
    )
    raised = execution.error.name if execution is not None and execution.error is not None else None
    finished = emit("fragment.finished", duration=duration, error=raised)
    yield dataclasses.replace(finished, data={**finished.data, "result": result})


def _supported(steps: tuple[Step, ...], fragment: Fragment) -> tuple[WriteFile | Run, ...]:
    """Refuse, before the first step, a plan with a step that cannot be carried out."""
    supported: list[WriteFile | Run] = []
    for step in steps:
        match step:
            case Install():
                raise DependencyError(
                    f"The fragment needs {step.detail}, but installing a fragment's dependencies is not supported yet. "
                    f"Use what the template {fragment.template!r} has, or a template that has them built in.",
                    dependencies=step.dependencies,
                    template=fragment.template,
                )
            case Start() | Wait():
                raise UnsupportedOption(
                    f"The template {fragment.template!r} serves an app; only fragments for templates that run code "
                    f"cell by cell, such as 'code-interpreter-v1', can be carried out yet.",
                    option="template",
                    template=fragment.template,
                )
            case WriteFile() | Run():
                supported.append(step)
    return tuple(supported)


async def _entries(files: AsyncSafeFS) -> tuple[FileNode, ...]:
    """The home directory after the run; empty where the code removed it, since its result is not lost for that."""
    try:
        return (await files.tree()).children
    except (NotFound, NotADirectory):
        return ()
