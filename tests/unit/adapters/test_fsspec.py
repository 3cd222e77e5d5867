"""fsspec over SafeFS, with the in-memory provider."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import pytest

from sandboxkit import SandboxPool
from sandboxkit.adapters.fsspec import SandboxFileSystem
from sandboxkit.errors import ConfigurationError, IsADirectory, NotFound, PathEscape
from sandboxkit.testing import FakeProvider

fsspec: Any = pytest.importorskip("fsspec")


@pytest.fixture
def pool() -> Iterator[SandboxPool]:
    with SandboxPool(endpoint=FakeProvider()) as made:  # type: ignore[arg-type]
        yield made


@pytest.fixture
def fs(pool: SandboxPool) -> Iterator[SandboxFileSystem]:
    made = SandboxFileSystem(pool=pool)
    yield made
    made.close()


def test_urls(pool: SandboxPool) -> None:
    """A URL names session and path; what is written in one is there in the session."""
    with fsspec.open("sandboxkit://alice/data/x.csv", "w", pool=pool) as file:
        file.write("x\n1\n")
    assert pool.session("alice").files.read_text("data/x.csv") == "x\n1\n"
    with fsspec.open("sandboxkit://alice/data/x.csv", "rb", pool=pool) as file:
        assert file.read() == b"x\n1\n"


def test_everything_that_a_file_system_has(fs: SandboxFileSystem) -> None:
    """Listing, describing, parts, copies, moves, patterns and removal, within a sandbox and between two."""
    fs.pipe_file("a/d/f", b"0123456789")
    assert fs.ls("a", detail=False) == ["a/d"]
    assert fs.find("a") == ["a/d/f"]
    assert (fs.info("a/d/f")["size"], fs.info("a/d")["type"], fs.isdir("a")) == (10, "directory", True)
    assert fs.cat_file("a/d/f", 2, -3) == b"23456"
    assert fs.cat_file("a/d/f", 20, 30) == b""
    fs.cp_file("a/d/f", "b/f")
    fs.mv("b/f", "b/g")
    fs.mv("b/g", "a/g")
    assert fs.cat("a/g") == b"0123456789"
    assert fs.glob("a/*") == ["a/d", "a/g"]
    assert not fs.exists("b/g")
    fs.makedirs("a/new/dir", exist_ok=True)
    with pytest.raises(FileExistsError):
        fs.mkdir("a/new")
    with pytest.raises(IsADirectory):
        fs.rm_file("a/new")
    with pytest.raises(OSError, match="not empty"):
        fs.rmdir("a/new")
    fs.rm("a/d", recursive=True)
    assert not fs.exists("a/d/f")
    with fs.open("a/g") as file:
        assert isinstance(file, io.BufferedReader)
        file.seek(-2, io.SEEK_END)
        assert file.read() == b"89"
    assert sorted(fs.ls("", detail=False)) == ["a", "b"]


def test_paths_are_guarded(fs: SandboxFileSystem) -> None:
    """A path that leads out of a session is refused, and one session's path never reaches another's."""
    with pytest.raises(PathEscape):
        fs.cat_file("a/../b/x")
    with pytest.raises(NotFound):
        fs.cat_file("a/none")
    with pytest.raises(ConfigurationError):
        fs.cat_file("")


def test_it_takes_a_pool_or_files(pool: SandboxPool) -> None:
    """One of the two, and not both."""
    files = pool.session("x").files
    assert SandboxFileSystem(files={"mine": files}).ls("mine") == []
    for wrong in ({}, {"pool": pool, "files": {}}):
        with pytest.raises(ConfigurationError):
            SandboxFileSystem(**wrong, skip_instance_cache=True)  # type: ignore[arg-type]
