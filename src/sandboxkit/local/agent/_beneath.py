"""Reaches what lies below a root directory, and nothing else: the resolver of level `enforced`.

It runs inside a sandbox as the sandbox's user: in the engine's agent, and in the helper that SafeFS sends to a sandbox
of E2B's (its text is sent, so it is one file, of the standard library, and Python 3.8 must take it).

What is promised: the object was reached from the open root directory by steps that used no link that leads out, no
magic link of /proc and no mount below the root but those that were allowed. Everything is opened before it is looked
at, and what is looked at is what was opened. Links:

- A relative link is followed as long as no step of it rises above the root.
- An absolute one is followed where its text begins with the root's own path; it then counts from the root.
- Any other is refused with EXDEV, whether its target exists or not.
- One that leads nowhere, or in a circle, is not there (ENOENT).
- On request every link on the way is refused, with EXDEV.

Which root, and what is asked besides, are its terms: its identity (or nothing), and, each after a NUL, a string of
letters (`l` refuses links, `h` files with more than one name), and the allowed mount points, counted from the root.

Two ways: openat2 does it in the kernel; where that is missing, refused by a filter, or says EXDEV (it knows no absolute
links), the walk decides: a stack of directories held by O_PATH, one O_NOFOLLOW step at a time. `..` takes one off the
stack and never asks the kernel, so a directory that is moved away meanwhile cannot turn it into a way out.
"""

from __future__ import annotations

import errno
import os
import stat

TYPE_CHECKING = False  # the module of that name takes longer to import than all of this
if TYPE_CHECKING:
    from typing import Any

RESOLVE = 0x08 | 0x02 | 0x01  # BENEATH, NO_MAGICLINKS, NO_XDEV
NO_SYMLINKS = 0x04
OPENAT2 = 437
UNDECIDED = (errno.ENOSYS, errno.EPERM, errno.EXDEV, errno.ELOOP, errno.EAGAIN, errno.E2BIG)
"""What openat2 says where the walk has to decide."""
LINKS = 40
TRIES = 128
DIRECTORY = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC


def fail(number: int, path: bytes = b"") -> OSError:
    """An OSError with the usual text."""
    return OSError(number, os.strerror(number), path)


def cut(path: bytes) -> list[bytes]:
    """The names in a path."""
    return [part for part in path.split(b"/") if part not in (b"", b".")]


class Kernel:
    """openat2, looked for when it is first needed; `missing` for good where the kernel has none."""

    def __init__(self) -> None:
        self.missing = False
        self.call: Any = None

    def open(self, root: int, path: bytes, flags: int, links: bool = True) -> int:
        """Open beneath `root`. OSError; ENOSYS where it cannot be done so."""
        if self.missing:
            raise fail(errno.ENOSYS)
        try:
            import ctypes
            import struct

            if self.call is None:
                self.call = ctypes.CDLL(None, use_errno=True).syscall
        except (ImportError, OSError, AttributeError):
            self.missing = True
            raise fail(errno.ENOSYS) from None
        how = struct.pack("QQQ", flags, 0, RESOLVE if links else RESOLVE | NO_SYMLINKS)
        for _ in range(TRIES):
            # Each argument has its full width: a bare int is passed as 32 bits, and the size would be garbage.
            fd = self.call(
                ctypes.c_long(OPENAT2),
                ctypes.c_long(root),
                ctypes.c_char_p(path),
                ctypes.c_char_p(how),
                ctypes.c_long(len(how)),
            )
            if fd >= 0:
                return int(fd)
            number = ctypes.get_errno()
            if number not in (errno.EAGAIN, errno.EINTR):
                self.missing = number in (errno.ENOSYS, errno.E2BIG)
                raise fail(number, path)
        raise fail(errno.EAGAIN, path)


KERNEL = Kernel()


class Root:
    """An open root directory. Use it in `with`.

    Raises:
        OSError: EXDEV where a link lies on the way to it, ESTALE where it is not the directory that its terms name.
    """

    def __init__(self, path: bytes, terms: bytes = b"", make: bool = False, kernel: Kernel | None = None) -> None:
        identity, *asked = terms.split(b"\0")
        letters = asked[0] if asked else b""
        self.refuses_links = b"l" in letters
        self.refuses_hard_links = b"h" in letters
        self.allowed = [cut(point) for point in asked[1:]]
        self.parts = cut(path)
        self.path = b"/" + b"/".join(self.parts)
        self.kernel = KERNEL if kernel is None else kernel
        self.fd = open_root(self.parts, make)
        info = os.fstat(self.fd)
        self.device = info.st_dev
        self.identity = b"%d:%d" % (info.st_dev, info.st_ino)
        if identity and identity != self.identity:
            self.close()
            raise fail(errno.ESTALE, path)

    def __enter__(self) -> Root:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the directory. Idempotent."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def parts_of(self, path: bytes) -> list[bytes]:
        """The names of an absolute, normalised path below the root. EXDEV for any other."""
        parts = cut(path)
        if b".." in parts or b"\0" in path or parts[: len(self.parts)] != self.parts:
            raise fail(errno.EXDEV, path)
        return parts[len(self.parts) :]

    # -- reaching ------------------------------------------------------------------------------------------------

    def reach(self, parts: list[bytes], flags: int) -> int:
        """Open what lies at `parts`, links followed as far as they stay inside. The caller looks at its type."""
        if not parts:
            return os.open(b".", flags | os.O_CLOEXEC, dir_fd=self.fd)
        try:
            return self.kernel.open(self.fd, b"/".join(parts), flags | os.O_CLOEXEC, links=not self.refuses_links)
        except OSError as error:
            if error.errno not in UNDECIDED:
                raise
        fd, _ = self._walk(parts, flags | os.O_CLOEXEC, False)
        return fd

    def parent(self, parts: list[bytes]) -> int:
        """The directory that the last of `parts` is a name in."""
        return self.reach(parts[:-1], DIRECTORY)

    def place(self, parts: list[bytes]) -> tuple[int, bytes, os.stat_result | None]:
        """Where the content of a file lies: its directory, its name there, and what has that name now. Final links are
        followed. EMEDIUMTYPE for one that leads nowhere: nothing is written through it."""
        directory = self.parent(parts)
        try:
            info = self.look(parts[-1], directory)
            if info is None or not stat.S_ISLNK(info.st_mode):
                return directory, parts[-1], info
        except OSError:
            os.close(directory)
            raise
        os.close(directory)
        try:
            directory, name = self._walk(parts, 0, True)
        except FileNotFoundError:
            raise fail(errno.EMEDIUMTYPE) from None
        try:
            if name in (b".", b".."):
                raise fail(errno.EISDIR)
            info = self.look(name, directory)
            if info is None:
                raise fail(errno.EMEDIUMTYPE)
        except OSError:
            os.close(directory)
            raise
        return directory, name, info

    def look(self, name: bytes, directory: int) -> os.stat_result | None:
        """lstat in an open directory; None where there is nothing, EXDEV where a mount lies."""
        try:
            return facts(self.step(name, directory, os.O_PATH))
        except FileNotFoundError:
            return None

    def make_dirs(self, parts: list[bytes]) -> tuple[int, bool]:
        """mkdir -p, one name at a time: the directory, and whether it was made. ENOTDIR where something else is in the
        way, be it a link that leads nowhere."""
        try:
            return self.reach(parts, DIRECTORY), False
        except FileNotFoundError:
            pass
        made = False
        for end in range(1, len(parts) + 1):
            try:
                os.close(self.reach(parts[:end], DIRECTORY))
                made = False
                continue
            except FileNotFoundError:
                pass
            parent = self.parent(parts[:end])
            try:
                os.mkdir(parts[end - 1], 0o755, dir_fd=parent)
                made = True
            except FileExistsError:
                made = False
            finally:
                os.close(parent)
            try:
                os.close(self.reach(parts[:end], DIRECTORY))
            except FileNotFoundError:  # a link that leads nowhere has the name
                raise fail(errno.ENOTDIR) from None
        return self.reach(parts, DIRECTORY), made

    # -- the walk ------------------------------------------------------------------------------------------------

    def _walk(self, parts: list[bytes], flags: int, to_place: bool) -> tuple[int, bytes]:
        """Go there step by step. Returns the opened object, or with `to_place` the directory and the name in it."""
        stack = [os.dup(self.fd)]
        where: list[bytes] = []
        todo = parts[::-1]
        links = 0
        try:
            while True:
                name = todo.pop()
                if name == b"..":
                    if len(stack) == 1:
                        raise fail(errno.EXDEV)
                    os.close(stack.pop())
                    where.pop()
                if name in (b"..", b"."):
                    if todo:
                        continue
                    if to_place:
                        return stack.pop(), b"."
                    return os.open(b".", flags, dir_fd=stack[-1]), b""
                here = stack[-1]
                text = link_text(name, here)
                if text is None:
                    if not todo and to_place:
                        return stack.pop(), name
                    found = self.step(name, here, DIRECTORY if todo else flags, [*where, name])
                    if not todo:
                        if stat.S_ISLNK(os.fstat(found).st_mode):  # O_PATH opens links
                            os.close(found)
                            raise fail(errno.EAGAIN)
                        return found, b""
                    stack.append(found)
                    where.append(name)
                    continue
                links += 1
                if self.refuses_links:
                    raise fail(errno.EXDEV)
                if links > LINKS:
                    raise fail(errno.ENOENT)
                todo += self._spliced(text)[::-1]
                if text.startswith(b"/"):
                    where.clear()
                    while len(stack) > 1:
                        os.close(stack.pop())
        finally:
            for fd in stack:
                os.close(fd)

    def step(self, name: bytes, here: int, flags: int, where: list[bytes] | None = None) -> int:
        """Open one name of an open directory, not through a link, and on the same mount; or on another where its
        place, counted from the root, is an allowed one. EAGAIN where it is a link, but with O_PATH alone."""
        flags |= os.O_NOFOLLOW | os.O_CLOEXEC
        may_cross = where in self.allowed
        try:
            return self.kernel.open(here, name, flags)
        except OSError as error:
            if error.errno not in UNDECIDED or (error.errno == errno.EXDEV and not may_cross):
                self._tell_links(error, name, here)
                raise
            # A directory is held as what it is first: that it lies elsewhere comes before that it is none.
            holds = bool(flags & os.O_DIRECTORY)
            try:
                fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC if holds else flags, dir_fd=here)
            except OSError as second:
                self._tell_links(second, name, here)
                raise
            try:
                if not may_cross and self._is_elsewhere(fd, here, where):
                    raise fail(errno.EXDEV)
                return self._as_directory(fd, flags) if holds else os.dup(fd)
            finally:
                os.close(fd)

    def _as_directory(self, fd: int, flags: int) -> int:
        """Open what is held as the directory that it is."""
        mode = os.fstat(fd).st_mode
        if not stat.S_ISDIR(mode):
            raise fail(errno.EAGAIN if stat.S_ISLNK(mode) else errno.ENOTDIR)
        return os.open(b".", flags & ~os.O_NOFOLLOW, dir_fd=fd)

    def _tell_links(self, error: OSError, name: bytes, here: int) -> None:
        """What was no link when we looked and has become one is a race, and refused."""
        if error.errno == errno.ELOOP or (error.errno == errno.ENOTDIR and link_text(name, here) is not None):
            raise fail(errno.EAGAIN) from None

    def _is_elsewhere(self, fd: int, here: int, where: list[bytes] | None) -> bool:
        """Whether an open file lies on another mount than the directory that it is in, also of the same file system."""
        if os.fstat(fd).st_dev != os.fstat(here).st_dev:
            return True
        mount = mount_of(fd)
        if mount:
            return mount != mount_of(here)
        return bool(self.mounts()) if where is None else where in self.mounts()

    def mounts(self) -> list[list[bytes]]:
        """The mount points below the root, counted from it. EXDEV where the kernel does not tell: nothing can be said
        then of what lies where."""
        try:
            with open("/proc/self/mountinfo", "rb") as file:
                points = [cut(unescaped(line.split(b" ")[4])) for line in file]
        except (OSError, IndexError):
            raise fail(errno.EXDEV) from None
        depth = len(self.parts)
        return [point[depth:] for point in points if len(point) > depth and point[:depth] == self.parts]

    def _spliced(self, text: bytes) -> list[bytes]:
        """The steps that a link stands for. EXDEV where its text says that it leaves."""
        parts = cut(text)
        if text.startswith(b"/"):
            if parts[: len(self.parts)] != self.parts:
                raise fail(errno.EXDEV)
            parts = parts[len(self.parts) :]
        # "dir/" and "dir/." mean a directory; so does a text with no name at all ("/root", "./").
        return [*parts, b"."] if text.endswith((b"/", b"/.")) or not parts else parts


def open_root(parts: list[bytes], make: bool) -> int:
    """Open a directory by a path without any link. EXDEV where there is one."""
    fd = os.open(b"/", DIRECTORY)
    for name in parts:
        try:
            try:
                below = os.open(name, DIRECTORY | os.O_NOFOLLOW, dir_fd=fd)
            except FileNotFoundError:
                if not make:
                    raise
                os.mkdir(name, 0o755, dir_fd=fd)
                below = os.open(name, DIRECTORY | os.O_NOFOLLOW, dir_fd=fd)
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.ENOTDIR) and link_text(name, fd) is not None:
                raise fail(errno.EXDEV, name) from None
            raise
        finally:
            os.close(fd)
        fd = below
    return fd


def facts(fd: int) -> os.stat_result:
    """fstat, and close."""
    try:
        return os.fstat(fd)
    finally:
        os.close(fd)


def link_text(name: bytes, directory: int) -> bytes | None:
    """What a link says; None for anything else. OSError where there is nothing."""
    try:
        return os.readlink(name, dir_fd=directory)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return None


def unescaped(point: bytes) -> bytes:
    """A path as mountinfo has it, where blanks and backslashes are octal."""
    first, *rest = point.split(b"\\")
    return first + b"".join(bytes([int(part[:3], 8)]) + part[3:] for part in rest)


def mount_of(fd: int) -> bytes:
    """The mount that an open file lies on; empty where /proc does not say."""
    try:
        with open(f"/proc/self/fdinfo/{fd}", "rb") as file:
            for line in file:
                if line.startswith(b"mnt_id:"):
                    return line
    except OSError:
        pass
    return b""
