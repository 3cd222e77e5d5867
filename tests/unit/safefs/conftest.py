"""A sandbox of the in-memory provider for SafeFS, and the record of what was sent to it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from sandboxkit.provider._base import CreateRequest
from sandboxkit.testing import FakeProvider, FakeSandbox


@pytest.fixture
async def fake_sandbox() -> AsyncIterator[FakeSandbox]:
    """A fresh sandbox with a small disk."""
    provider = FakeProvider(disk=1024 * 1024)
    yield await provider.create(CreateRequest(template="code-interpreter-v1", lifetime=600.0, idempotency_key="safefs"))
    await provider.aclose()


class Recorded:
    """A sandbox whose file requests are written down before they are carried out."""

    def __init__(self, sandbox: FakeSandbox) -> None:
        self._sandbox = sandbox
        self.requests: list[tuple[str, ...]] = []

    @property
    def files(self) -> Any:
        return _RecordedFiles(self._sandbox.files, self.requests)

    async def confined(self, root: str) -> Any:
        return _RecordedConfined(await self._sandbox.confined(root), self.requests)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sandbox, name)


class _RecordedConfined:
    def __init__(self, confined: Any, requests: list[tuple[str, ...]]) -> None:
        self._confined = confined
        self._requests = requests

    def __getattr__(self, name: str) -> Any:
        return getattr(self._confined, name)

    async def call(self, call: Any) -> Any:
        targets = call.args[:1] if call.operation in ("rename", "copy") else ()
        self._requests.append((call.operation, call.path, *targets))
        return await self._confined.call(call)


class _RecordedFiles:
    def __init__(self, files: Any, requests: list[tuple[str, ...]]) -> None:
        self._files = files
        self._requests = requests

    def __getattr__(self, name: str) -> Any:
        def call(*paths: Any, **options: Any) -> Any:
            self._requests.append((name, *(path for path in paths if isinstance(path, str))))
            return getattr(self._files, name)(*paths, **options)

        return call


@pytest.fixture
def recorded(fake_sandbox: FakeSandbox) -> Recorded:
    """The same sandbox, with `.requests`."""
    return Recorded(fake_sandbox)
