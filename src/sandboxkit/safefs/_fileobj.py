"""File objects over SafeFS: the asynchronous one, and Python's own kind for synchronous code."""

from __future__ import annotations

import io
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any, Final, Literal, Self, TypeAlias

from sandboxkit.errors import ConfigurationError, TooLarge

if TYPE_CHECKING:
    from sandboxkit._sync import SafeFS
    from sandboxkit.safefs._guard import AnyPath
    from sandboxkit.safefs._safefs import AsyncSafeFS

Mode: TypeAlias = Literal["r", "rb", "w", "wb", "a", "ab"]
MODES: Final = ("r", "rb", "w", "wb", "a", "ab")
CHUNK: Final = 1024 * 1024


def mode_of(mode: str) -> Mode:
    """Check a mode. ConfigurationError names those that there are."""
    if mode not in MODES:
        raise ConfigurationError(f"open(mode={mode!r}): one of {', '.join(MODES)} is needed.")
    return mode  # type: ignore[return-value]  # checked just above


class AsyncSafeFile:
    """An open file of a sandbox. Made by `AsyncSafeFS.open()`; use it with `async with`."""

    def __init__(self, files: AsyncSafeFS, path: AnyPath, mode: Mode, *, max_bytes: int) -> None:
        self._files = files
        self._path = path
        self._mode = mode
        self._max_bytes = max_bytes
        self._at = 0
        self._written = bytearray()
        self._is_open = True

    async def read(self, size: int = -1) -> Any:
        """Read so many bytes from here on, all that is left when negative: bytes, or text in a mode without `b`,
        where only the whole rest can be read."""
        self._check("r")
        if "b" not in self._mode and size >= 0:
            raise ConfigurationError("A file that is open as text is read as a whole; open it as 'rb' for pieces.")
        pieces: list[bytes] = []
        while size != 0:
            piece = await self._files.read_range(self._path, self._at, CHUNK if size < 0 else min(size, CHUNK))
            self._at += len(piece)
            pieces.append(piece)
            size -= len(piece) if size > 0 else 0
            if not piece:
                break
        data = b"".join(pieces)
        return data if "b" in self._mode else data.decode()

    async def seek(self, offset: int) -> int:
        """Go to an offset from the beginning; where one writes, that cannot be."""
        self._check("r")
        if offset < 0:
            raise ConfigurationError(f"seek({offset!r}): an offset is not negative.")
        self._at = offset
        return offset

    def tell(self) -> int:
        """The offset from the beginning; where one writes, the bytes so far."""
        return self._at if "r" in self._mode else len(self._written)

    async def write(self, data: str | bytes) -> int:
        """Keep what will be in the file once it is closed; text in a mode without `b`. TooLarge past `max_bytes`."""
        self._check("wa")
        if isinstance(data, str) == ("b" in self._mode):
            raise ConfigurationError(f"write() of a file that is open as {self._mode!r} takes the other kind of data.")
        raw = data.encode() if isinstance(data, str) else data
        if len(self._written) + len(raw) > self._max_bytes:
            raise TooLarge(f"More than max_bytes={self._max_bytes} were written.", path=self._path)
        self._written += raw
        return len(data)

    async def close(self) -> None:
        """Put in place what was written. Idempotent."""
        if not self._is_open:
            return
        self._is_open = False
        if "w" in self._mode:
            await self._files.write_bytes(self._path, bytes(self._written))
        elif "a" in self._mode:
            await self._files.append(self._path, bytes(self._written))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            await self.close()
        self._is_open = False

    def _check(self, letters: str) -> None:
        if not self._is_open:
            raise ValueError("The file is closed.")
        if self._mode[0] not in letters:
            raise io.UnsupportedOperation(f"The file is open as {self._mode!r}.")


def opened(files: SafeFS, path: AnyPath, mode: str, *, max_bytes: int) -> IO[Any]:
    """A file object of Python's own kind."""
    checked = mode_of(mode)
    if "r" in checked:
        reading = io.BufferedReader(_Reading(files, path), CHUNK)
        return reading if "b" in checked else io.TextIOWrapper(reading, encoding="utf-8", newline="")
    writing = _Writing(files, path, adds="a" in checked, max_bytes=max_bytes)
    return writing if "b" in checked else _WritingText(writing)


class _Reading(io.RawIOBase):
    """A file of a sandbox, read piece by piece."""

    def __init__(self, files: SafeFS, path: AnyPath) -> None:
        self._files = files
        self._path = path
        self._at = 0
        files.read_range(path, 0, 0)  # what cannot be read is told now, as by open()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._files.read_range(self._path, self._at, len(buffer))
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at}.get(whence)
        if base is None:
            base = self._files.stat(self._path).size
        if base + offset < 0:
            raise ValueError("a negative offset")
        self._at = base + offset
        return self._at

    def tell(self) -> int:
        return self._at


class _Writing(io.BytesIO):
    """What takes a file's place when it is closed, unless an exception leaves its block."""

    def __init__(self, files: SafeFS, path: AnyPath, *, adds: bool, max_bytes: int) -> None:
        super().__init__()
        self._files = files
        self._path = path
        self._adds = adds
        self._max_bytes = max_bytes
        self.is_discarded = False

    def write(self, data: Any) -> int:
        if self.tell() + len(memoryview(data).cast("B")) > self._max_bytes:
            raise TooLarge(f"More than max_bytes={self._max_bytes} were written.", path=self._path)
        return super().write(data)

    def close(self) -> None:
        if self.closed:
            return
        try:
            if not self.is_discarded:
                put = self._files.append if self._adds else self._files.write_bytes
                put(self._path, self.getvalue())
        finally:
            super().close()

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        self.is_discarded = self.is_discarded or kind is not None
        self.close()

    def __del__(self) -> None:
        # One that was never closed was not finished: nothing is written behind anybody's back.
        self.is_discarded = True


class _WritingText(io.TextIOWrapper):
    """The same for text."""

    def __init__(self, writing: _Writing) -> None:
        super().__init__(writing, encoding="utf-8", newline="")
        self._writing = writing

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        self._writing.is_discarded = kind is not None
        self.close()

    def __del__(self) -> None:
        self._writing.is_discarded = True
