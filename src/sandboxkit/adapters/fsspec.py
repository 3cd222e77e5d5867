"""Files of sandboxes for fsspec, and so for pandas, pyarrow, dask and the like: `sandboxkit://session/path`.

    import fsspec, pandas
    from sandboxkit.adapters.fsspec import SandboxFileSystem

    fs = SandboxFileSystem(pool=pool)
    pandas.read_csv("sandboxkit://alice/data/x.csv", storage_options={"pool": pool})

The first part of a path is the session's key; the rest counts from the root of its files. Every path goes through
SafeFS, at the level `enforced`. The extra `fsspec` has what this needs.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from fsspec import register_implementation
from fsspec.spec import AbstractFileSystem

from sandboxkit._sync import SafeFS, SandboxPool, Session
from sandboxkit._types import FileInfo
from sandboxkit.errors import ConfigurationError, IsADirectory, NotFound

PROTOCOL = "sandboxkit"


class SandboxFileSystem(AbstractFileSystem):  # type: ignore[misc]  # fsspec has no types
    """A file system whose top-level directories are sessions of a pool, or names given to SafeFS objects.

    Args:
        pool: sessions are opened when their key is first named, and held until `close()` or the pool's end.
        files: instead of a pool, SafeFS objects by name.
    """

    protocol = PROTOCOL
    root_marker = ""
    cachable = False

    def __init__(
        self, *, pool: SandboxPool | None = None, files: Mapping[str, SafeFS] | None = None, **options: Any
    ) -> None:
        if (pool is None) == (files is None):
            raise ConfigurationError("SandboxFileSystem takes a pool, or files={name: SafeFS}, and one of them.")
        super().__init__(**options)
        self._pool = pool
        self._files = dict(files or {})
        self._held: dict[str, Session] = {}

    def close(self) -> None:
        """Give back the sessions that were opened here. Idempotent."""
        for key in list(self._held):
            self._held.pop(key).close()

    # -- looking -------------------------------------------------------------------------------------------------

    def ls(self, path: str, detail: bool = True, **options: Any) -> list[Any]:
        """List a directory; the root lists the sessions that have been used."""
        path = self._strip_protocol(path)
        if not path:
            names = sorted({*self._files, *self._held})
            return [_directory(name) for name in names] if detail else names
        files, below = self._split(path)
        info = files.stat(below)
        entries = files.list(below) if info.type == "dir" else [info]
        told = [self._told(path, files, entry) for entry in entries]
        return told if detail else [entry["name"] for entry in told]

    def info(self, path: str, **options: Any) -> dict[str, Any]:
        """Describe one entry."""
        path = self._strip_protocol(path)
        if "/" not in path:
            return _directory(path)
        files, below = self._split(path)
        return self._told(path, files, files.stat(below))

    def modified(self, path: str) -> datetime:
        """When an entry was last changed."""
        when = self.info(path).get("modified")
        if not isinstance(when, datetime):
            raise NotFound(f"{path!a} has no time.", path=path)
        return when

    # -- contents ------------------------------------------------------------------------------------------------

    def _open(self, path: str, mode: str = "rb", block_size: Any = None, **options: Any) -> Any:
        files, below = self._split(path)
        if "x" in mode:  # looked at, then written: somebody who makes it in between loses
            if files.exists(below):
                raise FileExistsError(path)
            mode = mode.replace("x", "w")
        return files.open(below, mode)  # type: ignore[arg-type]  # it refuses what is no mode

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **options: Any) -> bytes:
        """Read a file, or the part from `start` to `end`, which count from its end when negative."""
        files, below = self._split(self._strip_protocol(path))
        if start is None and end is None:
            return files.read_bytes(below)
        size = files.stat(below).size
        first, last, _ = slice(start, end).indices(size)
        return files.read_range(below, first, max(last - first, 0))

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **options: Any) -> None:
        """Write a file."""
        files, below = self._split(self._strip_protocol(path))
        if mode == "create" and files.exists(below):
            raise FileExistsError(path)
        files.write_bytes(below, value)

    # -- changes -------------------------------------------------------------------------------------------------

    def mkdir(self, path: str, create_parents: bool = True, **options: Any) -> None:
        """Make a directory, and its parents in any case. FileExistsError where it was."""
        files, below = self._split(self._strip_protocol(path))
        if not files.make_dir(below):
            raise FileExistsError(path)

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        """Make a directory and its parents."""
        files, below = self._split(self._strip_protocol(path))
        if not files.make_dir(below) and not exist_ok:
            raise FileExistsError(path)

    def rm_file(self, path: str) -> None:
        """Remove a file or a link."""
        files, below = self._split(self._strip_protocol(path))
        info = files.stat(below)
        if info.type == "dir" and info.link_target is None:
            raise IsADirectory(f"{path!a} is a directory; rm(recursive=True) removes it.", path=path)
        files.remove(below)

    def rm(self, path: str | list[str], recursive: bool = False, maxdepth: int | None = None) -> None:
        """Remove entries, patterns allowed; with `recursive`, directories with all that is in them."""
        if maxdepth is not None:
            raise ConfigurationError("rm(maxdepth=...) is not supported: a directory goes as a whole, or not.")
        for one in self.expand_path(path):
            files, below = self._split(one)
            if recursive:
                files.remove(below)
            else:
                self.rm_file(one)

    def rmdir(self, path: str) -> None:
        """Remove a directory that is empty."""
        files, below = self._split(self._strip_protocol(path))
        if files.list(below):
            raise OSError(39, "Directory not empty", path)
        files.remove(below)

    def cp_file(self, path1: str, path2: str, **options: Any) -> None:
        """Copy a file, within one sandbox or from one to another; of a directory, the directory alone, as `copy` of
        whole trees wants it."""
        source, old = self._split(self._strip_protocol(path1))
        target, new = self._split(self._strip_protocol(path2))
        try:
            if source is target:
                source.copy(old, new)
            else:
                target.write_bytes(new, source.read_bytes(old))
        except IsADirectory:
            if source.stat(old).type != "dir":
                raise
            target.make_dir(new)

    def mv(self, path1: str, path2: str, recursive: bool = False, maxdepth: Any = None, **options: Any) -> None:
        """Move an entry; from one sandbox to another it is copied and removed."""
        source, old = self._split(self._strip_protocol(path1))
        target, new = self._split(self._strip_protocol(path2))
        if source is target:
            source.rename(old, new)
        else:
            super().mv(path1, path2, recursive=recursive, maxdepth=maxdepth, **options)

    # -- names ---------------------------------------------------------------------------------------------------

    def _split(self, path: str) -> tuple[SafeFS, str]:
        name, _, below = path.partition("/")
        if not name:
            raise ConfigurationError(f"{path!a} names no session: sandboxkit://SESSION/PATH.")
        if self._pool is None:
            if name not in self._files:
                raise NotFound(f"There are no files of the name {name!a}.", path=path)
            return self._files[name], below or "."
        if name not in self._held:
            self._held[name] = self._pool.session(name)
            self._files[name] = self._held[name].files
        return self._files[name], below or "."

    def _told(self, path: str, files: SafeFS, entry: FileInfo) -> dict[str, Any]:
        name = path.partition("/")[0]
        below = entry.path.removeprefix(files.root).strip("/")
        return {
            "name": f"{name}/{below}" if below else name,
            "size": entry.size,
            "type": {"dir": "directory"}.get(entry.type, entry.type),
            "modified": entry.modified,
            "islink": entry.link_target is not None,
            "mode": entry.mode,
        }


register_implementation(PROTOCOL, SandboxFileSystem, clobber=True)


def _directory(name: str) -> dict[str, Any]:
    return {"name": name, "size": 0, "type": "directory"}
