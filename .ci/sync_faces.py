"""Which classes have a synchronous face, and the parts of them that are not copied from the asynchronous ones."""

from __future__ import annotations

from dataclasses import dataclass, field

HEADER = '''"""The synchronous face. GENERATED from the asynchronous one by .ci/generate_sync.py: do not edit.

Every call is carried out by the portal's event loop while the calling thread waits. Callbacks run in that thread.
"""

# ruff: noqa: B008

from __future__ import annotations

from sandboxkit import _portal
'''


@dataclass(frozen=True)
class Face:
    """One class: where it is, what it becomes, and the parts that are not copied."""

    module: str
    source: str
    target: str
    wrapped: bool = True
    """Made from an asynchronous object that a call returned, not by its user."""
    init: str = ""
    extra: str = ""
    bodies: dict[str, str] = field(default_factory=dict)
    returns: dict[str, str] = field(default_factory=dict)
    doc: tuple[tuple[str, str], ...] = ()
    skip: frozenset[str] = frozenset()


FACES = (
    Face(
        "sandboxkit.safefs._safefs",
        "AsyncSafeFS",
        "SafeFS",
        wrapped=False,
        init="""
            self._portal = _portal.current()
            self._async = AsyncSafeFS(_async_twin(sandbox), {rest})
        """,
        extra='''
            @classmethod
            def _of(cls, portal: _portal.Portal, files: AsyncSafeFS) -> SafeFS:
                """The synchronous form of a session's own files."""
                self = cls.__new__(cls)
                self._portal = portal
                self._async = files
                return self

            def open(self, path: AnyPath, mode: Mode = "rb", *, max_bytes: int = DEFAULT_MAX_BYTES) -> IO[Any]:
                """Open a file as Python's `open` does (modes `r`, `w`, `a`, with `b` for bytes; text is UTF-8).

                What is written, up to `max_bytes`, takes the file's place when it is closed; an exception that leaves
                the `with` block leaves the file as it was. Raises as `read_bytes` and `write`.
                """
                return opened(self, path, mode, max_bytes=max_bytes)
        ''',
        skip=frozenset({"open"}),
        doc=(
            (
                "a session's sandbox, or the SDK's own `AsyncSandbox`; no pool is needed.",
                "the SDK's own `Sandbox`, such as a session's `.sandbox`; no pool is needed.",
            ),
            ("(a synchronous one belongs to `SafeFS`)", "(an asynchronous one belongs to `AsyncSafeFS`)"),
        ),
    ),
    Face("sandboxkit.pool._command", "AsyncCommandHandle", "CommandHandle"),
    Face("sandboxkit.runner._app", "AsyncApp", "App"),
    Face(
        "sandboxkit.pool._session",
        "AsyncSession",
        "Session",
        extra="""
            def __enter__(self) -> Self:
                return self

            def __exit__(
                self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
            ) -> None:
                self.close()
        """,
        bodies={
            "files": """
                if self._files is None:
                    self._files = SafeFS._of(self._portal, self._async.files)
                return self._files
            """,
            "sandbox": """
                raw = self._async.sandbox
                if self._twin is None or self._twin[0] is not raw:  # another one, after a loss
                    self._twin = raw, _sync_twin(raw)
                return self._twin[1]
            """,
            "close": """
                try:
                    self._portal.call(self._async.close)
                except BaseException:  # Ctrl-C, perhaps before the call had begun: the hold is given back all the same
                    self._portal.start(self._async.close, lambda _: None)
                    raise
            """,
            "run": """
                call: _portal.Call[Any] = _portal.Call(self._portal)
                return with_app(call(self._async.run, {call}), partial(App, self._portal))
            """,
            "stream": """
                events = _portal.Call[Any](self._portal).iterate(lambda: self._async.stream({call}))
                return with_apps(events, partial(App, self._portal))
            """,
        },
        doc=(("or cancelling the call, interrupts it.", "or Ctrl-C, interrupts it."),),
    ),
    Face(
        "sandboxkit.pool._pool",
        "AsyncSandboxPool",
        "SandboxPool",
        wrapped=False,
        init="""
            self._portal = _portal.current()
            on_event = _portal.contained(on_event, "on_event")
            on_give_up = _portal.contained(on_give_up, "on_give_up")

            async def make() -> AsyncSandboxPool:
                return self._kind({all})

            self._async = self._portal.call(make)
            self._held = _portal.Held(self._portal, self._async)
            self._held.enter()
            self._portal.close_at_exit(self, self._async.close)
        """,
        extra="""
            _kind: ClassVar[type[AsyncSandboxPool]] = AsyncSandboxPool

            def __enter__(self) -> Self:
                self._portal.check()
                return self

            def __exit__(
                self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
            ) -> None:
                self.close()
        """,
        bodies={
            "session": """
                call: _portal.Call[AsyncSession] = _portal.Call(self._portal, discard=AsyncSession.close)
                opened = call(_opened, self._async, {call})
                return Session(self._portal, opened)
            """,
            "attach": """
                call: _portal.Call[AsyncSession] = _portal.Call(self._portal, discard=AsyncSession.close)
                return Session(self._portal, call(self._async.attach, {call}))
            """,
            "close": """
                left = self._portal.call(self._async.close)
                self._held.exit(None, None, None)
                self._portal.forget(self)
                return left
            """,
        },
        returns={"session": "Session"},
        doc=(
            (
                "Open it with `async with`: its tasks live in the block that opened it, and are gone when the block is "
                "left, with every sandbox killed. Where there is no block, "
                "`AsyncExitStack.enter_async_context(pool)` is the way, in one task from its beginning to its end; the "
                "cells of a notebook are several, and there `SandboxPool` is the way. `close()` may be called before "
                "the block's end, from any task of the same event loop.",
                "It is open once it is made. Use it with `with`: when the block is left, every sandbox is killed. "
                "Where there is no block, `close()` does that, and the end of the interpreter at the latest. It may be "
                "used from any thread, and where an event loop runs already (a notebook).",
            ),
            (
                "is told every event, in the event loop's thread: a plain function that does not block. What it raises "
                "is logged.",
                "is told every event, in a thread of sandboxkit's own: a plain function that neither blocks nor uses "
                "the pool. What it raises is logged.",
            ),
            ("PoolError: the pool has not been opened.\n", ""),
            ("Await it, or enter it with `async with`.", "Close it, or enter it with `with`."),
            ("again, from anywhere, also while a cancellation is on its way", "again, from any thread"),
        ),
    ),
)

WORDS = (
    (r"`async with`", "`with`"),
    (r"`async for`", "`for`"),
    (r"\bAsync(SandboxPool|Session|SafeFS|CommandHandle|App)\b", r"\1"),
    (r"\bawaited\b", "called"),
)

HELPERS = '''
def _async_twin(sandbox: object) -> object:
    """The asynchronous object for a synchronous one of the SDK's. ConfigurationError for any other."""
    from sandboxkit.provider import _e2b  # late: it imports the SDK

    return _e2b.async_twin(sandbox)


def _sync_twin(sandbox: object) -> Any:
    """The synchronous object for an asynchronous one of the SDK's; what is not the SDK's stays as it is."""
    from sandboxkit.provider import _e2b  # late: it imports the SDK

    return _e2b.sync_twin(sandbox)


async def _opened(pool: AsyncSandboxPool, *args: Any, **kwargs: Any) -> AsyncSession:
    return await pool.session(*args, **kwargs)


async def _asked(func: Callable[..., T], *args: Any, **kwargs: Any) -> T:
    """Read something in the loop's thread, where it does not change meanwhile."""
    return func(*args, **kwargs)


class NullSandboxPool(SandboxPool):
    """A pool that keeps nothing, as `AsyncNullSandboxPool` says: each session's sandbox dies with its last holder."""

    _kind = AsyncNullSandboxPool


for _public in (SafeFS, CommandHandle, App, Session, SandboxPool, NullSandboxPool):
    _public.__module__ = "sandboxkit"
'''
