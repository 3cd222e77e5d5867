"""pydantic-ai's conformance suite for workspaces, through the harness's own E2B backend."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from pydantic_ai.workspaces import WorkspaceBackend, WorkspaceRef
from pydantic_ai.workspaces.conformance import WorkspaceBackendSuite
from pydantic_ai_harness.e2b_sandbox import E2BSandboxBackend
from pydantic_ai_harness.e2b_sandbox._backend import kill_sandbox


@pytest.fixture
def anyio_backend() -> str:
    """The SDK of E2B runs on asyncio."""
    return "asyncio"


class TestE2BSandboxBackend(WorkspaceBackendSuite):
    """All that the suite can ask is asked; nothing that it lets E2B off is claimed."""

    @pytest.fixture
    async def made(self) -> AsyncIterator[list[E2BSandboxBackend]]:
        backends: list[E2BSandboxBackend] = []
        yield backends
        for backend in backends:
            if backend.ref is not None:
                await kill_sandbox(backend.ref.id)

    @pytest.fixture
    def fresh_backend(self, made: list[E2BSandboxBackend]) -> Callable[[], WorkspaceBackend]:
        def fresh() -> WorkspaceBackend:
            made.append(E2BSandboxBackend(allow_internet_access=False, sandbox_timeout=120))
            return made[-1]

        return fresh

    @pytest.fixture
    def backend(self, fresh_backend: Callable[[], WorkspaceBackend]) -> WorkspaceBackend:
        return fresh_backend()

    @pytest.fixture
    def attach_backend(self) -> Callable[[WorkspaceRef], WorkspaceBackend]:
        return lambda ref: E2BSandboxBackend(ref=ref, sandbox_timeout=120)

    @pytest.fixture
    def destroy_environment(self) -> Callable[[WorkspaceBackend], Awaitable[None]]:
        async def destroy(backend: WorkspaceBackend) -> None:
            assert backend.ref is not None
            await kill_sandbox(backend.ref.id)

        return destroy
