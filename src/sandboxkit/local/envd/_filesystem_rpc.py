"""The Connect service filesystem.Filesystem: what its messages mean, in terms of the agent's file verbs."""

from __future__ import annotations

import asyncio
import contextlib
import errno
from collections.abc import Mapping
from typing import Final

from sandboxkit.local._sandbox import SandboxSettings
from sandboxkit.local.envd._connect import ConnectError, dump, invalid
from sandboxkit.local.envd._entries import entry_info
from sandboxkit.local.envd._file_agent import FileAgent
from sandboxkit.local.envd._paths import BadPath, resolve
from sandboxkit.local.envd._proto_json import Message
from sandboxkit.local.envd._rpc import Answer, Call, Emit, Method, from_agent
from sandboxkit.local.envd._watchers import EventsLost, UnknownWatcher, Watchers, event_json
from sandboxkit.local.isolation._base import AgentError, AgentLost, Entry, WatchEvent

MAX_DEPTH: Final = 4096
"""No path is deeper: the kernel takes 4,096 bytes of it."""

_AT_ONCE: Final = 1000
"""Entries that are turned into JSON without giving other requests their turn."""


class FilesystemService:
    """Answers the methods of one sandbox's filesystem.Filesystem."""

    def __init__(self, agent: FileAgent, settings: SandboxSettings, watchers: Watchers, *, root: str = "") -> None:
        """Take the agent, or one that keeps to a `root`."""
        self._agent = agent
        self._settings = settings
        self._watchers = watchers
        self._root = root

    def methods(self) -> Mapping[str, Method]:
        """The methods by path."""
        service = "/filesystem.Filesystem"
        return {
            f"{service}/Stat": Method(unary=self._stat),
            f"{service}/MakeDir": Method(unary=self._make_dir),
            f"{service}/Move": Method(unary=self._move),
            f"{service}/ListDir": Method(unary=self._list_dir),
            f"{service}/Remove": Method(unary=self._remove),
            f"{service}/WatchDir": Method(server_stream=self._watch_dir),
            f"{service}/CreateWatcher": Method(unary=self._create_watcher),
            f"{service}/GetWatcherEvents": Method(unary=self._watcher_events),
            f"{service}/RemoveWatcher": Method(unary=self._remove_watcher),
        }

    async def _stat(self, message: Message, call: Call) -> Answer:
        return {"entry": await self._entry(self._path(message, "path"))}

    async def _make_dir(self, message: Message, call: Call) -> Answer:
        path = self._path(message, "path")
        try:
            made = await self._agent.make_dir(path)
        except AgentError as error:
            if error.errno == errno.EEXIST:
                raise invalid(f"path already exists but it is not a directory: {error.path or path}") from None
            if error.errno == errno.ENOTDIR:
                raise from_agent(error, "error getting file info") from None
            raise
        if not made:
            raise ConnectError("already_exists", f"directory already exists: {path}")
        return {"entry": await self._entry(path)}

    async def _move(self, message: Message, call: Call) -> Answer:
        source = self._path(message, "source")
        destination = self._path(message, "destination")
        try:
            await self._agent.rename(source, destination)
        except AgentError as error:
            if error.errno == errno.ENOENT:
                raise ConnectError("not_found", f"source file not found: {error}") from None
            raise from_agent(error, f"error renaming {source} to {destination}") from None
        return {"entry": await self._entry(destination)}

    async def _list_dir(self, message: Message, call: Call) -> Answer:
        path = self._path(message, "path")
        depth = min(message.uint32("depth") or 1, MAX_DEPTH)
        try:
            found = await self._agent.list(path, depth=depth)
        except AgentError as error:
            match error.errno:
                case errno.ENOENT:
                    raise ConnectError("not_found", f"path not found: {error}") from None
                case errno.ENOTDIR:
                    raise invalid(f"path is not a directory: {path}") from None
                case errno.ELOOP:
                    raise ConnectError("failed_precondition", f'cyclic symlink or chain of links at "{path}"') from None
            raise from_agent(error, f"error reading directory {path}") from None
        # envd walks depth first, names in order; components compare as a walk meets them.
        await asyncio.to_thread(found.sort, key=_walk_order)
        parts = []
        for at in range(0, len(found), _AT_ONCE):
            parts += [dump(entry_info(entry)) for entry in found[at : at + _AT_ONCE]]
            await asyncio.sleep(0)
        return b'{"entries":[%b]}' % b",".join(parts)

    async def _remove(self, message: Message, call: Call) -> Answer:
        path = self._path(message, "path")
        try:
            await self._agent.remove(path)
        except AgentError as error:
            raise from_agent(error, "error removing file or directory") from None
        return {}

    async def _watch_dir(self, message: Message, call: Call, emit: Emit) -> None:
        name = await self._begin(message)
        try:
            await emit(dump({"start": {}}))
            while True:
                events = await self._events(name, timeout=call.keepalive)
                if not events:
                    await emit(dump({"keepalive": {}}))
                for event in events:
                    await emit(dump({"filesystem": event_json(event)}))
        finally:
            with contextlib.suppress(UnknownWatcher, AgentError, AgentLost):
                await self._watchers.end(name)

    async def _create_watcher(self, message: Message, call: Call) -> Answer:
        return {"watcherId": await self._begin(message)}

    async def _watcher_events(self, message: Message, call: Call) -> Answer:
        events = await self._events(message.text("watcher_id"))
        return {"events": [event_json(event) for event in events]}

    async def _remove_watcher(self, message: Message, call: Call) -> Answer:
        try:
            await self._watchers.end(message.text("watcher_id"))
        except UnknownWatcher:
            raise _no_watcher(message.text("watcher_id")) from None
        return {}

    async def _begin(self, message: Message) -> str:
        path = self._path(message, "path")
        entries = message.optional_flag("include_entry") or False
        if entries and self._root:
            raise ConnectError("unimplemented", "includeEntry is not supported below a confined root")
        # allow_network_mounts: a sandbox of ours has none, so there is nothing to allow or to refuse.
        message.optional_flag("allow_network_mounts")
        recursive = message.optional_flag("recursive") or False
        try:
            return await self._watchers.begin(path, recursive=recursive, entries=entries, root=self._root)
        except AgentError as error:
            if error.errno == errno.ENOENT:
                raise ConnectError("not_found", f"path {path} not found: {error}") from None
            if error.errno == errno.ENOTDIR:
                raise invalid(f"path {path} not a directory: {error}") from None
            raise from_agent(error, f"error adding path {path} to watcher") from None

    async def _events(self, name: str, *, timeout: float = 0.0) -> list[WatchEvent]:
        try:
            return await self._watchers.events(name, timeout=timeout)
        except UnknownWatcher:
            raise _no_watcher(name) from None
        except EventsLost:
            raise ConnectError(
                "resource_exhausted", "more happened than the watcher could keep: events were lost"
            ) from None

    async def _entry(self, path: str) -> dict[str, object]:
        try:
            return entry_info(await self._agent.stat(path))
        except AgentError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR):
                raise ConnectError("not_found", f"file not found: {error}") from None
            raise from_agent(error, "error getting file info") from None

    def _path(self, message: Message, field: str) -> str:
        settings = self._settings
        try:
            return resolve(message.text(field), home=settings.home, workdir=settings.workdir, user=settings.user)
        except BadPath as problem:
            raise invalid(str(problem)) from None


def _walk_order(entry: Entry) -> list[str]:
    return entry.path.split("/")


def _no_watcher(name: str) -> ConnectError:
    return ConnectError("not_found", f"watcher with id {name} not found")
