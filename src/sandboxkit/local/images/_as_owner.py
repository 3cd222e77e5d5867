"""Does a piece of work in another user's directory as that user: root must not trip over what lies there.

What a store holds is its owner's, who may put links and names there that lead elsewhere. As the owner one gets no
further by them than the owner does.
"""

from __future__ import annotations

import fcntl  # noqa: F401 (the work needs it, and cannot load it: the interpreter may lie where only root can read)
import os
from collections.abc import Callable
from pathlib import Path

LONGEST_NUMBER = 20


def do_as_owner(folder: Path, uid: int, work: Callable[[Path], int]) -> int:
    """Call `work` with a directory's path, in a child that has its owner's rights if we are root; returns its number.

    Raises:
        OSError: there is no such directory of this user's, or the work failed.
    """
    if os.geteuid() != 0 or uid == 0:
        return work(folder)
    place = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    told, tell = os.pipe()
    try:
        if os.fstat(place).st_uid != uid:
            raise PermissionError(f"{folder} is not user {uid}'s")
        child = os.fork()
        if child == 0:
            _work(place, uid, work, tell)
        os.close(tell)
        tell = -1
        said = os.read(told, LONGEST_NUMBER)
        if os.waitpid(child, 0)[1] != 0 or not said.isdigit():
            raise OSError(f"{folder} could not be cleared up as user {uid}")
        return int(said)
    finally:
        for fd in (place, told, tell):
            if fd >= 0:
                os.close(fd)


def _work(place: int, uid: int, work: Callable[[Path], int], tell: int) -> None:
    try:
        # By its descriptor: it may lie below directories that are closed to its owner.
        os.fchdir(place)
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
        os.write(tell, b"%d" % work(Path()))
    except BaseException:
        os._exit(1)
    os._exit(0)
