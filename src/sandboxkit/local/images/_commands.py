"""What a step's command line asks of root and of apt, as well as can be said without a shell."""

from __future__ import annotations

import posixpath
import re
import shlex
from collections.abc import Iterable

NEED_ROOT = frozenset(
    {"add-apt-repository", "addgroup", "adduser", "apk", "chroot", "dnf", "dpkg", "groupadd", "insmod", "iptables"}
    | {"locale-gen", "modprobe", "mount", "pacman", "service", "snap", "su", "sysctl", "systemctl", "umount"}
    | {"update-alternatives", "useradd", "usermod", "visudo", "yum"}
)
APT = frozenset({"apt", "apt-get"})

_ASSIGNED = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_PACKAGE = re.compile(r"[a-z0-9][a-z0-9+.-]*")
_SUDO = re.compile(r"(^|&&|\|\||[;|(\n]|\b(?:then|do)\b)(\s*)sudo\s+(?:-[EHnS]+\s+)*")


def without_sudo(command: str) -> str:
    """There is nobody else to become: the rest of the command is what counts."""
    return _SUDO.sub(r"\1\2", command)


def programs_of(command: str) -> Iterable[str]:
    """The programs that a command line begins its parts with, as well as can be said without a shell."""
    for part in re.split(r"&&|\|\||[;|\n]", command):
        for word in part.split():
            if "=" in word and _ASSIGNED.fullmatch(word.split("=")[0]):
                continue
            yield posixpath.basename(word.strip("'\"("))
            break


def split_apt(command: str) -> tuple[tuple[str, ...], str]:
    """Take apt's parts out of a command: the packages that they would install, and the rest to run."""
    packages: list[str] = []
    rest: list[str] = []
    parts = [part for part in re.split(r"&&|;|\n", command.replace("\\\n", " ")) if part.strip()]
    if not any(program in APT for part in parts for program in programs_of(part)):
        return (), command
    for part in parts:
        if not any(program in APT for program in programs_of(part)):
            rest.append(part.strip())
            continue
        try:
            words = shlex.split(part)
        except ValueError:
            words = part.split()
        while words and posixpath.basename(words[0]) not in APT:
            words.pop(0)
        verbs = [word for word in words[1:] if not word.startswith("-")]
        if verbs[:1] == ["install"]:
            packages += [word.split("=")[0] for word in verbs[1:] if _PACKAGE.fullmatch(word.split("=")[0])]
    return tuple(dict.fromkeys(packages)), " && ".join(rest)
