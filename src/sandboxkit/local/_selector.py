"""Waits for descriptors by epoll, and by poll for those that epoll has no room for.

The kernel bounds how many descriptors all epolls of a user watch together, and a sandbox's programs have the engine's
user: one that takes all the room must not keep the engine from hearing of anything, its own end included.
"""

from __future__ import annotations

import errno
import selectors
from collections import ChainMap
from collections.abc import Mapping
from typing import Any


class Selector(selectors.BaseSelector):
    """See above; for asyncio's loop."""

    def __init__(self) -> None:
        self._epoll = selectors.EpollSelector()
        self._poll = selectors.PollSelector()
        self._polled: set[int] = set()
        self._keys: Mapping[Any, selectors.SelectorKey] = ChainMap(self._epoll.get_map(), self._poll.get_map())  # type: ignore[arg-type]

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        """Wait for one more. KeyError where it is waited for already."""
        if self._polled and fileobj in self._poll.get_map():
            raise KeyError(f"{fileobj!r} is already registered")
        try:
            return self._epoll.register(fileobj, events, data)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
        if not self._polled:
            self._poll.register(self._epoll.fileno(), selectors.EVENT_READ)
        key = self._poll.register(fileobj, events, data)
        self._polled.add(key.fd)
        return key

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        """Wait for it no more."""
        key = self._of(fileobj).unregister(fileobj)
        if key.fd in self._polled:
            self._polled.discard(key.fd)
            if not self._polled:
                self._poll.unregister(self._epoll.fileno())
        return key

    def modify(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        """Wait for something else of it."""
        return self._of(fileobj).modify(fileobj, events, data)

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """Wait, and tell which are ready."""
        if not self._polled:
            return self._epoll.select(timeout)
        ready = [(key, events) for key, events in self._poll.select(timeout) if key.fd in self._polled]
        return ready + self._epoll.select(0)

    def close(self) -> None:
        """Let go of all."""
        self._epoll.close()
        self._poll.close()

    def get_map(self) -> Mapping[Any, selectors.SelectorKey]:
        """All that are waited for, by descriptor."""
        return self._keys

    def get_key(self, fileobj: Any) -> selectors.SelectorKey:
        """What one is waited for with. KeyError where it is not. asyncio asks before each change."""
        return self._of(fileobj).get_key(fileobj)

    def _of(self, fileobj: Any) -> selectors.EpollSelector | selectors.PollSelector:
        return self._poll if self._polled and fileobj in self._poll.get_map() else self._epoll
