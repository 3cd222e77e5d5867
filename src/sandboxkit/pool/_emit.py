"""Makes the pool's events, with the facts that are the same for all of one pool, session or sandbox."""

from __future__ import annotations

import time
from typing import Any

from sandboxkit.events import Event, EventHandler
from sandboxkit.instrumentation import deliver, is_logged


class Teller:
    """Makes events with the facts in `about`, and hands them to the log and to the handlers."""

    def __init__(self, *handlers: EventHandler | None, **about: Any) -> None:
        self._handlers = tuple(handler for handler in handlers if handler is not None)
        self._about = about

    def about(self, *handlers: EventHandler | None, **more: Any) -> Teller:
        """A teller that says more, and may have more listeners."""
        return Teller(*self._handlers, *handlers, **{**self._about, **more})

    def __call__(self, name: str, /, **data: Any) -> None:
        """Tell one event, where anybody listens."""
        if self._handlers or is_logged(name, data.get("error")):
            self.told(name, **data)

    def told(self, name: str, /, **data: Any) -> Event:
        """Make one event, deliver it, and return it."""
        event = Event(name=name, at=time.time(), data=data, **self._about)
        deliver(event, self._handlers)
        return event
