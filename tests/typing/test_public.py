"""The types that users see, checked by mypy: this file is never run."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, assert_type

from sandboxkit import (
    App,
    AsyncApp,
    AsyncCommandHandle,
    AsyncSafeFS,
    AsyncSandboxPool,
    AsyncSession,
    CommandHandle,
    CommandResult,
    Endpoint,
    Event,
    Execution,
    FileInfo,
    Fragment,
    FragmentResult,
    PoolStats,
    SafeFS,
    SandboxPool,
    Session,
    confine,
    errors,
)


def sync_face() -> None:
    """What the synchronous face returns."""
    with SandboxPool(endpoint=Endpoint("k"), network="deny") as pool:
        assert_type(pool, SandboxPool)
        assert_type(pool.stats(), PoolStats)
        assert_type(pool.close(), tuple[str, ...])
        with pool.session("a") as session:
            assert_type(session, Session)
            assert_type(session.key, str | None)
            assert_type(session.run_code("1"), Execution)
            assert_type(session.run_code("1").raise_for_error().text, str | None)
            assert_type(session.run_command("true"), CommandResult)
            assert_type(session.run_command(["true"], background=False), CommandResult)
            assert_type(session.run_command("true", background=True), CommandHandle)
            assert_type(session.run_command("true", background=True).wait(timeout=1), CommandResult)
            assert_type(session.run(Fragment(template="t", code="1")), FragmentResult[App])
            assert_type(session.url(3000), str)
            assert_type(session.browser_url(3000), str)
            assert_type(session.stream(Fragment(template="t", code="1")), Generator[Event, None, None])
            assert_type(session.files, SafeFS)
            assert_type(session.files.read_bytes("a"), bytes)
            assert_type(session.files.walk(), Generator[FileInfo, None, None])
            assert_type(session.sandbox, Any)


async def async_face() -> None:
    """What the asynchronous face returns, awaited and entered."""
    async with AsyncSandboxPool(endpoint="local") as pool:
        assert_type(await pool.session("a"), AsyncSession)
        async with pool.session(None) as session:
            assert_type(session, AsyncSession)
            assert_type(await session.run_code("1"), Execution)
            assert_type(await session.run_command("true", background=True), AsyncCommandHandle)
            assert_type(await session.run(Fragment(template="t", code="1")), FragmentResult[AsyncApp])
            assert_type(await session.url(3000), str)
            assert_type(session.files, AsyncSafeFS)
            async for event in session.stream(Fragment(template="t", code="1")):
                assert_type(event, Event)


def refused() -> None:
    """What the checker refuses."""
    SandboxPool(endpoint="cloud")  # type: ignore[arg-type]
    SandboxPool(network="everything")  # type: ignore[arg-type]
    SandboxPool("auto")  # type: ignore[call-arg]
    with SandboxPool() as pool, pool.session("a") as session:
        session.run_code(b"1")  # type: ignore[arg-type]
        session.run_command("true", background=True, timeout=1)  # type: ignore[call-overload]


def plain_values() -> None:
    """Functions and errors without colour."""
    assert_type(confine("a"), str)
    assert_type(errors.SandboxNotFound("x").sandbox_id, str | None)
