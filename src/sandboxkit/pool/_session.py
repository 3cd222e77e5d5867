"""Sessions: what a caller does with the sandbox that the pool gave it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from time import monotonic
from types import TracebackType
from typing import Any, Literal, Self, overload

import anyio

from sandboxkit._types import CommandResult, Execution, FileNode, Loss, SessionRef, Source
from sandboxkit.errors import (
    ProviderUnavailable,
    SandboxLost,
    SessionBusy,
    UnsupportedOption,
)
from sandboxkit.events import Event, EventHandler, listener, name_of
from sandboxkit.fragment import Fragment, FragmentResult
from sandboxkit.pool._command import AsyncCommandHandle, command_line
from sandboxkit.pool._files import files_of
from sandboxkit.pool._fragments import bench
from sandboxkit.pool._lease import Lease, LeasedSandbox
from sandboxkit.pool._options import a_port, callback, code_text, count, environment, pairs, seconds, text
from sandboxkit.provider._base import OnOutput, OnResult
from sandboxkit.runner import AsyncApp, Bench, carry_out
from sandboxkit.runner import stream as stream_fragment
from sandboxkit.safefs import AsyncSafeFS

KILL_WAIT = 15.0
"""Seconds that `kill()`, and the end of an anonymous session, wait for the confirmation."""


class AsyncSession:
    """A hold on the sandbox of one session. Made by `pool.session()`, never directly.

    Everyone in this process who opens the same key shares one sandbox: its files, its interpreter's variables. The
    sandbox is given back when the last of them has closed; each closes its own hold, and closing twice counts once.
    Every use renews the sandbox's life as the pool's `TimeoutPolicy` says.

    Any use may raise, besides what is said at the method: PoolError after `close()`, PoolClosed after the pool's end,
    SandboxNotFound or SandboxExpired when the sandbox is gone, ForkedProcess in a forked child, and ProviderError
    when the service fails. After SandboxNotFound or SandboxExpired, open the session again for a new sandbox.
    """

    def __init__(self, lease: Lease) -> None:
        self._lease = lease
        self._sandbox = LeasedSandbox(lease)
        self._files: AsyncSafeFS | None = None

    # -- what is known without a request ---------------------------------------------------------------------------

    @property
    def key(self) -> str | None:
        """The session's key; None for an anonymous one."""
        return self._lease.core.key

    @property
    def sandbox_id(self) -> str:
        """The id of its sandbox."""
        return self._lease.core.sandbox.sandbox_id

    @property
    def template(self) -> str:
        """The id of the template that its sandbox was made from."""
        return self._lease.core.spec.template

    @property
    def sandbox(self) -> Any:
        """The SDK's own sandbox object, for all that is not wrapped here. Its uses renew nothing."""
        self._lease.check()
        return self._sandbox.raw

    @property
    def source(self) -> Source:
        """Where this hold got its sandbox: `"reused"`, the session's own from before; `"warm"`, from the stock;
        `"created"`, made for it; `"attached"`. As in the event `session.opened`; after a loss, the new one's."""
        return self._lease.source

    @property
    def losses(self) -> tuple[Loss, ...]:
        """What this hold lost when sandboxes vanished under it, oldest first; empty with `on_loss="fail"`."""
        return self._lease.losses

    @property
    def files(self) -> AsyncSafeFS:
        """The files beneath `/home/user`, at the level `enforced`."""
        if self._files is None:
            self._files = files_of(self._lease, self._sandbox)
        return self._files

    async def url(self, port: int) -> str:
        """The URL of a port of the sandbox, for programs on this machine; no promise that something answers.

        On E2B it is public. On the engine it is a port of 127.0.0.1, opened for this and closed with the sandbox: the
        name that `browser_url` gives does not resolve in Python.

        Raises:
            ConfigurationError: `port` is not between 1 and 65535.
            ProviderError: the engine refused: the port is one of its own services', or the sandbox has too many open.
        """
        return await self._sandbox.url(a_port(port))

    def browser_url(self, port: int) -> str:
        """The URL of a port of the sandbox, for a browser; no request, and no promise that something answers.

        On the engine it has a name of the sandbox's own, so that its pages share cookies with nobody.

        Raises:
            ConfigurationError: `port` is not between 1 and 65535.
        """
        self._lease.check()
        return self._sandbox.browser_url(a_port(port))

    # -- running ---------------------------------------------------------------------------------------------------

    async def run_code(
        self,
        code: str,
        *,
        language: str = "python",
        context: str | None = None,
        timeout: float | None = None,
        envs: Mapping[str, str] | None = None,
        on_stdout: OnOutput | None = None,
        on_stderr: OnOutput | None = None,
        on_result: OnResult | None = None,
        max_output: int = 10 * 1024 * 1024,
    ) -> Execution:
        """Run code in the sandbox's interpreter. An exception that the code raises is data in the result.

        Args:
            code: what to run; variables stay for the next call.
            language: of the code, `"python"` by default. The engine on this machine has JavaScript, TypeScript, bash,
                and whatever else the sandbox has a Jupyter kernel for.
            context: the id of an interpreter context; the language's default one when None.
            timeout: seconds that it may take; `TimeoutPolicy.code` when None.
            envs: environment variables for this call alone.
            on_stdout, on_stderr, on_result: called with each piece of output and each result as it comes.
            max_output: bytes that output and results may have together.

        Raises:
            CodeTimeout: it took longer, and was interrupted; its variables stay.
            OutputTooLarge: more came out; the run was stopped.
            KernelDied: the interpreter ended, or could not be started.
            UnsupportedOption: the sandbox's interpreter does not have the language.
            SandboxLost: the sandbox is gone.
        """
        limit = self._lease.shell.options.timeouts.code if timeout is None else seconds("timeout", timeout)
        count("max_output", max_output, least=1)
        code_text("code", code)
        pairs("envs", envs)
        text("language", language)
        callback("on_stdout", on_stdout)
        callback("on_stderr", on_stderr)
        callback("on_result", on_result)
        if context is not None:
            text("context", context)
        self._lease.check_usable()
        tell, started_at = self._lease.core.tell, monotonic()
        tell("code.started", language=language)
        error: str | None = None
        try:
            execution = await self._sandbox.run_code(
                code,
                language=None if context is not None else language,  # a context has its language
                context=context,
                timeout=limit,
                envs=envs,
                on_stdout=on_stdout,
                on_stderr=on_stderr,
                on_result=on_result,
                max_output=max_output,
            )
            error = None if execution.error is None else execution.error.name
            return execution
        except BaseException as failure:
            error = name_of(failure)
            raise
        finally:
            tell("code.finished", duration=monotonic() - started_at, error=error)

    @overload
    async def run_command(
        self,
        cmd: str | Sequence[str],
        *,
        timeout: float | None = None,
        cwd: str | None = None,
        envs: Mapping[str, str] | None = None,
        on_stdout: OnOutput | None = None,
        on_stderr: OnOutput | None = None,
        background: Literal[False] = False,
        max_output: int = 10 * 1024 * 1024,
    ) -> CommandResult: ...

    @overload
    async def run_command(
        self,
        cmd: str | Sequence[str],
        *,
        timeout: None = None,
        cwd: str | None = None,
        envs: Mapping[str, str] | None = None,
        on_stdout: OnOutput | None = None,
        on_stderr: OnOutput | None = None,
        background: Literal[True],
        max_output: int = 10 * 1024 * 1024,
    ) -> AsyncCommandHandle: ...

    async def run_command(
        self,
        cmd: str | Sequence[str],
        *,
        timeout: float | None = None,
        cwd: str | None = None,
        envs: Mapping[str, str] | None = None,
        on_stdout: OnOutput | None = None,
        on_stderr: OnOutput | None = None,
        background: bool = False,
        max_output: int = 10 * 1024 * 1024,
    ) -> CommandResult | AsyncCommandHandle:
        """Run a command in the sandbox. A non-zero exit code is data in the result.

        Args:
            cmd: a line for the sandbox's shell, or a sequence of arguments, which no shell interprets.
            timeout: seconds that it may take; `TimeoutPolicy.command` when None. Not with `background=True`.
            cwd: the directory to run it in; the home directory when None.
            envs: environment variables for this command.
            on_stdout, on_stderr: called with each piece of output as it comes. With `background=True` also before
                anybody waits.
            background: return as soon as it has started, with a handle; it then has no time limit.
            max_output: bytes that its output may have.

        Raises:
            CommandTimeout: it took longer, and was killed.
            OutputTooLarge: more came out; the command was killed.
            UnsupportedOption: `timeout` together with `background=True`.
            SandboxLost: the sandbox is gone.
        """
        limit = self._lease.shell.options.timeouts.command if timeout is None else seconds("timeout", timeout)
        count("max_output", max_output, least=1)
        line = code_text("cmd", command_line(cmd))
        environment(envs)
        if cwd:
            text("cwd", cwd)
        callback("on_stdout", on_stdout)
        callback("on_stderr", on_stderr)
        if background and timeout is not None:
            raise UnsupportedOption(
                "timeout= has no effect with background=True; use handle.wait(timeout=...) and handle.kill().",
                option="timeout",
            )
        self._lease.check_usable()
        tell, started_at = self._lease.core.tell, monotonic()
        tell("command.started", background=background)
        if background:
            command = await self._sandbox.start_command(
                line, cwd=cwd, envs=envs, on_stdout=on_stdout, on_stderr=on_stderr, max_output=max_output
            )
            return AsyncCommandHandle(self._lease, command)
        exit_code: int | None = None
        error: str | None = None
        try:
            result = await self._sandbox.run_command(
                line,
                timeout=limit,
                cwd=cwd,
                envs=envs,
                on_stdout=on_stdout,
                on_stderr=on_stderr,
                max_output=max_output,
            )
            exit_code = result.exit_code
            return result
        except BaseException as failure:
            error = name_of(failure)
            raise
        finally:
            tell("command.finished", duration=monotonic() - started_at, exit_code=exit_code, error=error)

    async def run(
        self, fragment: Fragment, *, on_event: EventHandler | None = None, allow_install_command: bool = False
    ) -> FragmentResult[AsyncApp]:
        """Carry a fragment out: write its files, install what it needs, then run it, or see its app answer.

        An app that runs already, also by the template's own start command, is not started again: its server loads what
        changed. Files that are as they are to be are not written again, and nothing is installed twice. If the run
        fails, an app that it has started is stopped.

        Args:
            fragment: what to carry out; its template has to be the session's.
            on_event: is told the fragment's events, besides the pool's own listener; a plain function, as the pool's.
            allow_install_command: run the fragment's `install_command`, a shell line that its author chose.

        Raises:
            ConfigurationError: `on_event` is an async function, or none at all.
            SessionConflict: the fragment is for another template than the session's.
            TemplateNotFound: its template is not registered.
            FragmentError: it does not fit its template, and nothing was written; or an edit cannot be made.
            DependencyError: what it needs could not be installed within `TimeoutPolicy.install`, or is missing.
            AppStartFailed: its app ended before it answered, or its code cannot be read.
            AppNotReady: its app did not answer within `TimeoutPolicy.ready`, or with errors only.
            SafeFSError: a file could not be written.
            CodeTimeout, OutputTooLarge, KernelDied, SandboxLost: as in `run_code`.
        """
        return await carry_out(fragment, self._bench(fragment, listener(on_event), allow_install_command))

    async def stream(self, fragment: Fragment, *, allow_install_command: bool = False) -> AsyncGenerator[Event, None]:
        """Carry a fragment out, yielding its events; the last one has the `FragmentResult` as `data["result"]`.

        Besides, an installation's output comes as it is written: `fragment.log` with `text`. Leaving the loop early
        ends the run between two steps, and an installation at once.

        Raises:
            The same as `run`.
        """
        events = stream_fragment(fragment, self._bench(fragment, None, allow_install_command))
        async with aclosing(events):
            async for event in events:
                yield event

    async def tree(self) -> FileNode:
        """The files beneath `/home/user`, as `files.tree()` gives them.

        Raises:
            SafeFSError: they cannot be listed.
        """
        return await self.files.tree()

    async def interrupt(self) -> bool:
        """Interrupt the code that runs in this process's sessions of the sandbox; variables and files stay.

        Each `run_code` under way returns an `Execution` whose error is a KeyboardInterrupt; its output went to the
        callbacks, and is not in there. What other processes run is left alone, and so are commands. Returns whether
        anything was running.
        """
        self._lease.check()
        return self._lease.core.interrupt()

    async def restart(self, *, context: str | None = None) -> None:
        """Start the interpreter anew: its variables are gone, files and commands stay.

        Args:
            context: which context's; the default Python one's when None.
        """
        await self._sandbox.restart(context)

    async def pause(self) -> None:
        """Pause the sandbox: files, variables and processes stay, and it has no end. The next use lets it go on.

        It goes on counting towards `max_live`. A session that is closed while it is paused stays so.

        Raises:
            SessionBusy: work runs in it.
            SandboxLost: the sandbox is gone.
            ProviderError: the service did not answer, or cannot pause.
        """
        core = self._lease.core
        self._lease.check()
        if core.uses:
            raise SessionBusy(
                f"Work runs in sandbox {self.sandbox_id}; a pause would cut it off.", sandbox_id=self.sandbox_id
            )
        try:
            await self._lease.shell.life.pause(core)
        except SandboxLost as error:
            raise self._lease.shell.lost(core, error) from error

    # -- the end ---------------------------------------------------------------------------------------------------

    async def close(self) -> None:
        """Give this hold back; a second time does nothing. Raises nothing.

        The sandbox of a keyed session stays until its lifetime ends, for whoever opens the key again, or until its
        place is needed. An anonymous one is killed; this waits for it, and may be cancelled while the pool goes on.
        """
        core = self._lease.core
        self._lease.shell.check()
        self._lease.release()
        if core.key is None and core.gone == "released":
            with anyio.move_on_after(KILL_WAIT):
                await core.tried_to_kill.wait()

    async def detach(self) -> SessionRef:
        """Take the sandbox out of the pool and leave it alive, for `pool.attach()` in this or another process.

        This hold is closed by it. From here on the sandbox is nobody's: its lifetime, prolonged once more, ends it, if
        nobody attaches. Variables that it was given late (`secrets`; `envs` where it was a warm one) do not go with it:
        pass them to `attach` again. Another process may attach only where both pools have the same `owner`.

        Raises:
            SessionBusy: others hold the session too, or work runs in it.
            SandboxLost: the sandbox is gone.
            ProviderError: the service did not answer; nothing has changed.
        """
        core = self._lease.core
        self._lease.check()
        try:
            await self._lease.shell.detach(core)
        except SandboxLost as error:
            raise self._lease.shell.lost(core, error) from error
        self._lease.release()
        return SessionRef(sandbox_id=core.sandbox.sandbox_id, template=core.spec.template, key=core.key)

    async def kill(self) -> None:
        """Kill the sandbox, for everyone who holds the session. A second time does nothing.

        Raises:
            ProviderError: the service did not confirm it. The pool goes on trying, and the sandbox counts until then.
        """
        core = self._lease.core
        self._lease.shell.check()
        self._lease.shell.discard(core)
        self._lease.release()
        with anyio.move_on_after(KILL_WAIT):
            await core.tried_to_kill.wait()
        if core.kill_error is not None:
            raise ProviderUnavailable(
                f"Killing sandbox {self.sandbox_id} was not confirmed: {core.kill_error}. The pool tries again.",
                sandbox_id=self.sandbox_id,
            ) from core.kill_error

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def __repr__(self) -> str:
        core = self._lease.core
        state = core.gone or ("closed" if self._lease.is_released else "open")
        return f"<{type(self).__name__} key={core.key!r} sandbox={self.sandbox_id} template={self.template} {state}>"

    def _bench(self, fragment: Fragment, on_event: EventHandler | None, allowed: bool) -> Bench:
        return bench(
            self._lease,
            fragment,
            sandbox=self._sandbox,
            files=self.files,
            on_event=on_event,
            allow_install_command=allowed,
        )


AsyncSession.__module__ = "sandboxkit"
