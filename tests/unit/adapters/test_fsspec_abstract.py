"""fsspec's own tests of a file system, on ours."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

pytest.importorskip("fsspec")

from fsspec.tests.abstract import (
    AbstractCopyTests,
    AbstractFixtures,
    AbstractGetTests,
    AbstractOpenTests,
    AbstractPipeTests,
    AbstractPutTests,
)

from sandboxkit import SandboxPool
from sandboxkit.adapters.fsspec import SandboxFileSystem
from sandboxkit.testing import FakeProvider

# Their class-scoped fixtures are methods of instances, which pytest will give up.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::pytest.PytestRemovedIn10Warning")]


class Fixtures(AbstractFixtures):
    """Where fsspec's tests work: a folder in a session."""

    @pytest.fixture(scope="class")
    def fs(self) -> Iterator[SandboxFileSystem]:
        with SandboxPool(endpoint=FakeProvider()) as pool:  # type: ignore[arg-type]
            made = SandboxFileSystem(pool=pool, skip_instance_cache=True)
            yield made
            made.close()

    @pytest.fixture
    def fs_path(self) -> str:
        return "alice/work"

    @pytest.fixture(scope="class")
    def fs_join(self) -> Callable[..., str]:
        return lambda *parts: "/".join(parts)

    @pytest.fixture(scope="class")
    def fs_sanitize_path(self) -> Callable[[str], str]:
        return lambda path: path

    @pytest.fixture
    def supports_empty_directories(self) -> bool:
        return True


class TestCopy(AbstractCopyTests, Fixtures):
    """Within the sandbox."""


class TestGet(AbstractGetTests, Fixtures):
    """Out of it."""


class TestPut(AbstractPutTests, Fixtures):
    """Into it."""


class TestOpen(AbstractOpenTests, Fixtures):
    """File objects."""


class TestPipe(AbstractPipeTests, Fixtures):
    """Whole contents."""


def test_there_are_tests() -> None:
    """fsspec ships them, and they were found."""
    names: list[Any] = [name for kind in (TestCopy, TestGet, TestPut) for name in dir(kind) if name.startswith("test_")]
    assert len(names) > 40
