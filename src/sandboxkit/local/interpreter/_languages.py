"""Which program runs a language's code, and what its clients may call it: pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from sandboxkit.local.isolation._base import ENV_PYTHON, PREFIX

KERNEL = f"{PREFIX}/agent/kernel.py"
NODE_KERNEL = f"{PREFIX}/agent/kernel_node.mjs"

NO_KERNEL = 69
"""How the program of a language ends when there is no kernel for it (`agent/kernel_jupyter.py`)."""

ALIASES = {"python3": "python", "js": "javascript", "ts": "typescript"}
"""E2B's own; `typescript` is its JavaScript kernel in a context of its own."""

NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")

WITH_ENVS = ("python", "javascript", "typescript", "bash", "r", "deno")
"""Languages whose running kernels take the environment variables of a single call."""


class UnknownLanguage(ValueError):
    """What was asked for cannot be the name of a language."""


@dataclass(frozen=True, slots=True)
class Language:
    """A language by its one name, and how its interpreter is started and interrupted."""

    name: str
    argv: Sequence[str]
    interrupted_by: Literal["signal", "frame"] = "signal"
    """`frame`: its process may be too busy to heed a signal."""

    @property
    def takes_envs(self) -> bool:
        """Whether a call may bring environment variables of its own."""
        return self.name in WITH_ENVS


PYTHON = Language("python", (ENV_PYTHON, KERNEL))
DEFAULTS = ("python", "javascript")
"""The languages that have a context from the start, whether or not anybody uses it."""


def language(asked: str | None) -> Language:
    """The language that a client means; Python where it says none.

    Every other name than those that we know is looked for among the template's Jupyter kernels, inside.

    Raises:
        UnknownLanguage: it is not the name of any.
    """
    name = (asked or "python").strip().lower()
    name = ALIASES.get(name, name)
    if not NAME.fullmatch(name):
        raise UnknownLanguage(f"Language {asked!r} is not supported: it is no language's name.")
    if name == "python":
        return PYTHON
    if name in ("javascript", "typescript"):
        return Language(name, ("node", NODE_KERNEL, name), "frame")
    return Language(name, (ENV_PYTHON, KERNEL, name))
