"""The processes of a box as the host sees them, found by their pid namespace, and what they use."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import stat
from collections.abc import Iterable
from dataclasses import dataclass

PAGE = os.sysconf("SC_PAGE_SIZE")
TICKS = os.sysconf("SC_CLK_TCK")
NS_GET_PARENT = 0xB702
EXITING = 4
"""The kernel's PF_EXITING."""
NAMELESS = (b"/dev/zero", b"/SYSV", b"/memfd:")
"""How maps show memory that is shared and lies in no file."""


@dataclass(frozen=True, slots=True)
class Found:
    """Sums over a box's processes: memory is resident bytes, shared pages counted in each."""

    cpu_seconds: float
    memory: int
    processes: int


def namespace_of(pid: int) -> str | None:
    """What names a process's pid namespace; None when the process is gone or not ours to see."""
    try:
        return os.readlink(f"/proc/{pid}/ns/pid")
    except OSError:
        return None


def place_of(init_fd: int) -> str:
    """What names the pid namespace of a box, by a pidfd of its init; nothing once that is gone."""
    try:
        with open(f"/proc/self/fdinfo/{init_fd}") as file:
            pid = next(int(line.split()[1]) for line in file if line.startswith("Pid:"))
        place = namespace_of(pid) or ""
        signal.pidfd_send_signal(init_fd, 0)  # it has not ended meanwhile, and so its number has stayed its own
    except (OSError, StopIteration):
        return ""
    else:
        return place


def is_within(pid: int, place: str) -> bool:
    """Whether a process lives in the pid namespace of this name, or in one below it."""
    if namespace_of(pid) == place:
        return True
    try:
        namespace = os.open(f"/proc/{pid}/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
        try:
            while True:
                above = fcntl.ioctl(namespace, NS_GET_PARENT)
                os.close(namespace)
                namespace = above
                if os.readlink(f"/proc/self/fd/{namespace}") == place:
                    return True
        finally:
            os.close(namespace)
    except OSError:  # none of ours is above it, or it is gone
        return False


def signal_within(pid: int, place: str, signum: int) -> bool:
    """Signal a process of a box. False where that number is, by now, nobody's or somebody else's."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return False
    try:
        # Where it is another process than the pidfd's that we look at, the pidfd's has ended: then none gets it.
        if not is_within(pid, place):
            return False
        signal.pidfd_send_signal(pidfd, signum)
    except ProcessLookupError:
        return False
    else:
        return True
    finally:
        os.close(pidfd)


def all_pids() -> list[int]:
    """Every process that this /proc shows."""
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def processes_of(init: int) -> list[int]:
    """All processes in the pid namespace of a box's init, itself included."""
    wanted = namespace_of(init)
    if wanted is None:
        return []
    return [pid for pid in all_pids() if namespace_of(pid) == wanted]


def nameless_bytes(init: int, *, device: int | None = None) -> int:
    """Bytes of the regular files without a name that a box's processes have open, all or those on one file system;
    walking a directory finds none of them. Not seen are those of a process that cannot be dumped and of a thread
    that has a table of its own, and what is only mapped or under way in a socket. Blocks."""
    found: dict[tuple[int, int], int] = {}
    for pid in processes_of(init):
        for place in _open_files(pid):
            with contextlib.suppress(OSError):
                info = os.stat(place)
                if stat.S_ISREG(info.st_mode) and info.st_nlink == 0 and device in (None, info.st_dev):
                    found[info.st_dev, info.st_ino] = info.st_blocks * 512
    return sum(found.values())


def _open_files(pid: int) -> list[str]:
    """Where the files that a process has open are shown: by the first of its threads that has not ended."""
    for place in (f"/proc/{pid}", *(f"/proc/{pid}/task/{task}" for task in tasks_of(pid))):
        with contextlib.suppress(OSError):
            if names := os.listdir(f"{place}/fd"):
                return [f"{place}/fd/{name}" for name in names]
    return []


def is_ending(pid: int) -> bool:
    """Whether a process is on its way out or gone: an init takes all others with it before its own end shows."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return bool(int(file.read().rpartition(b")")[2].split()[6]) & EXITING)
    except OSError:
        return True


def tasks_of(pid: int) -> list[str]:
    """The threads of a process; none when it is gone."""
    try:
        return os.listdir(f"/proc/{pid}/task")
    except OSError:
        return []


def resident(pid: int) -> int:
    """Resident bytes of a process that are its own (not shared files'); 0 when it is gone."""
    _, (_, pages, others) = _memory(pid)
    return (pages - others) * PAGE


def shared(pid: int) -> int:
    """Resident bytes of a process that others may have, too: files' and shared memory's; 0 when it is gone."""
    return _memory(pid)[1][2] * PAGE


def _memory(pid: int) -> tuple[str, tuple[int, int, int]]:
    """Where a process's memory is shown, and its pages: of addresses, resident, and of those shared. A first thread
    that has ended before the others shows none; what they have is theirs together, and any of them shows it."""
    place = f"/proc/{pid}"
    pages = _pages(place)
    if not pages[0]:
        for task in tasks_of(pid):
            place = f"/proc/{pid}/task/{task}"
            pages = _pages(place)
            if pages[0]:
                break
    return place, pages


def _pages(place: str) -> tuple[int, int, int]:
    try:
        with open(f"{place}/statm", "rb") as file:
            fields = file.read().split()
        return int(fields[0]), int(fields[1]), int(fields[2])
    except (OSError, IndexError):
        return 0, 0, 0


def shared_memory(pid: int) -> int:
    """A process's part of the memory without a file that it has mapped together with others, in bytes: each of them
    answers for its own. 0 when it is gone. Slow: the kernel walks its page tables."""
    found = 0
    counts = False
    try:
        with open(f"{_memory(pid)[0]}/smaps", "rb") as file:
            for line in file:
                fields = line.split()
                # The first line of a mapping: addresses, rights, offset, device, inode, name.
                if not fields[0].endswith(b":"):
                    counts = fields[1].endswith(b"s") and fields[5:6] != [] and fields[5].startswith(NAMELESS)
                elif counts and fields[0] == b"Pss:":
                    found += int(fields[1]) * 1024
    except OSError:
        return found
    return found


def usage_of(pids: Iterable[int]) -> Found:
    """Sum up. CPU time is that of the living and of children that they have waited for."""
    ticks = memory = count = 0
    for pid in pids:
        try:
            with open(f"/proc/{pid}/stat", "rb") as file:
                fields = file.read().rpartition(b")")[2].split()
        except OSError:
            continue
        ticks += sum(map(int, fields[11:15]))
        memory += resident(pid)
        count += 1
    return Found(ticks / TICKS, memory, count)
