"""The watchers of one sandbox: names for its clients, and what has happened, in envd's words."""

from __future__ import annotations

import asyncio
import errno
import secrets
import time
from dataclasses import dataclass, field
from typing import Final

from sandboxkit.local.envd._entries import entry_info, text
from sandboxkit.local.isolation._base import Agent, AgentError, WatchEvent

IDLE: Final = 300.0
"""Seconds after which a watcher that nobody asks gives its place to a new one."""

_TYPES: Final = {
    "create": "EVENT_TYPE_CREATE",
    "write": "EVENT_TYPE_WRITE",
    "remove": "EVENT_TYPE_REMOVE",
    "rename": "EVENT_TYPE_RENAME",
    "chmod": "EVENT_TYPE_CHMOD",
}


class UnknownWatcher(Exception):
    """There is no such watcher (any more)."""


class EventsLost(Exception):
    """More happened than could be told; the watcher is over."""


@dataclass(slots=True)
class _Watcher:
    number: int
    used_at: float
    asking: asyncio.Lock = field(default_factory=asyncio.Lock)


class Watchers:
    """Begins, asks and ends watchers. Errors of the sandbox's are AgentError and AgentLost."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent
        self._watchers: dict[str, _Watcher] = {}

    async def begin(
        self, path: str, *, recursive: bool, entries: bool = False, root: str = "", terms: bytes = b""
    ) -> str:
        """Watch a directory (below `root`, on its terms); the name is for the calls below."""
        try:
            number = await self._agent.watch(path, root=root, identity=terms, recursive=recursive, entries=entries)
        except AgentError as error:
            if error.errno != errno.EMFILE or not await self._end_idle():
                raise
            number = await self._agent.watch(path, root=root, identity=terms, recursive=recursive, entries=entries)
        name = secrets.token_hex(8)
        self._watchers[name] = _Watcher(number, time.monotonic())
        return name

    async def events(self, name: str, *, timeout: float = 0.0) -> list[WatchEvent]:
        """What has happened since the last call. With a `timeout` (seconds) it waits for something to happen; nothing
        is lost when it is cancelled.

        Raises:
            UnknownWatcher, EventsLost: the watcher is no more.
        """
        watcher = self._watchers.get(name)
        if watcher is None:
            raise UnknownWatcher
        async with watcher.asking:
            watcher.used_at = time.monotonic()
            found = await self._agent.watch_next(watcher.number, waits=False)
            if not found and timeout > 0:
                found = await self._waited(watcher.number, timeout)
            watcher.used_at = time.monotonic()
        if found and found[-1].kind == "lost":
            await self.end(name)
            raise EventsLost
        return found

    async def _waited(self, number: int, timeout: float) -> list[WatchEvent]:
        waiting = asyncio.ensure_future(self._agent.watch_next(number, waits=True))
        try:
            await asyncio.wait({waiting}, timeout=timeout)
        finally:
            # Cancelled, the request is given up, and what comes in the same turn stays for nobody: so it is ended
            # from the other side, where the events are, and its answer is awaited.
            if not waiting.done():
                waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
        return [] if waiting.cancelled() else waiting.result()

    async def end(self, name: str) -> None:
        """End a watcher. UnknownWatcher where there is none."""
        watcher = self._watchers.pop(name, None)
        if watcher is None:
            raise UnknownWatcher
        await self._agent.unwatch(watcher.number)

    async def _end_idle(self) -> bool:
        """End the watcher that was asked longest ago, if that is long."""
        oldest = min(self._watchers.items(), key=lambda item: item[1].used_at, default=None)
        if oldest is None or time.monotonic() - oldest[1].used_at < IDLE:
            return False
        await self.end(oldest[0])
        return True


def event_json(event: WatchEvent) -> dict[str, object]:
    """One event as envd's FilesystemEvent."""
    shown: dict[str, object] = {"name": text(event.name), "type": _TYPES[event.kind]}
    if event.entry is not None:
        shown["entry"] = entry_info(event.entry)
    return shown
