"""What the fragments of one sandbox have left for those that follow."""

from __future__ import annotations

from dataclasses import dataclass, field

import anyio

from sandboxkit.runner._inside import Job


@dataclass(eq=False)
class Workshop:
    """One per sandbox, shared by all who hold it.

    Attributes:
        lock: held while a fragment is carried out: two at once would write and start the same things.
        installed: requirements and commands that were carried out.
        app: the app that was started here; None for one that runs by the template's own start command.
    """

    lock: anyio.Lock = field(default_factory=anyio.Lock)
    installed: set[str] = field(default_factory=set)
    app: Job | None = None
