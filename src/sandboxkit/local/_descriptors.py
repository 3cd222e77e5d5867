"""The engine's own supply of descriptors: how many it may have, and what an error says that means there are none left.

Who runs out of descriptors cannot accept, open, pipe or fork. The engine must go on serving the sandboxes that it has,
so the things that others may ask for at will stop short of the limit: connections (`MAX_CONNECTIONS_SHARE`), calls to
the outside (`MAX_CALLS_SHARE`) and to previews (`MAX_PREVIEWS_SHARE`), and new sandboxes, which need
`FREE_FOR_SANDBOX` to be left.
"""

from __future__ import annotations

import contextlib
import errno
import os
import resource

WANTED = 65_536
"""What the soft limit is raised to at the engine's start, where the hard one allows it: some sixty a busy sandbox."""

FREE_FOR_SANDBOX = 64
"""Descriptors that must be free when a sandbox is made: a dozen for it, the rest for those that are there already."""

MAX_CONNECTIONS_SHARE = 0.5
"""Part of the limit that clients' connections may take."""

MAX_CALLS_SHARE = 0.25
"""Part of the limit that calls of sandboxes to the outside may take, at two descriptors each."""

MAX_PREVIEWS_SHARE = 0.15
"""Part of the limit that calls to what sandboxes serve may take, at one descriptor each."""

EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE})


def raise_limit() -> None:
    """Raise the soft limit of this process. What it starts inherits it; the agent sets its own for every program."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = WANTED if hard == resource.RLIM_INFINITY else min(hard, WANTED)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def limit() -> int:
    """How many descriptors this process may have, now."""
    soft, _hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return WANTED if soft == resource.RLIM_INFINITY else soft


def are_short(needed: int = FREE_FOR_SANDBOX) -> bool:
    """Whether fewer than `needed` more can be had."""
    try:
        # Linux tells their number since 6.2. To list them is work for each: milliseconds, where there are thousands.
        return limit() - (os.stat("/proc/self/fd").st_size or len(os.listdir("/proc/self/fd"))) < needed
    except OSError as error:
        if error.errno in EXHAUSTED:
            return True
        raise


def means_exhausted(error: BaseException | None) -> bool:
    """Whether an error, or one that it came from, says that there were no descriptors left."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in EXHAUSTED:
            return True
        error = error.__cause__
    return False
