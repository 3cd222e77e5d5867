"""The confined base path: the file API once more, below one root, resolved inside by the agent (level `enforced`).

`/confined/<root>` with the root's path in base64url serves, for the holder of the sandbox's token:

- E2B's own file API (`/files`, filesystem.Filesystem), so that an unmodified SDK may be pointed at it by `sandbox_url`.
  Relative paths and `~` count from the root. Signatures are refused: they sign no root.
- `/health`: 204 with the header `X-Sandboxkit-Confined`. Servers without it answer 404, so a client fails closed.
- `/call`: one operation of SafeFS's, with the same bytes as the helper that it sends to other sandboxes.

Nothing else is under it: no process, no other port.
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
import errno
import os
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Final

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from sandboxkit._confine import confine
from sandboxkit.errors import PathError, PathEscape
from sandboxkit.local import _answers
from sandboxkit.local._sandbox import SandboxSettings
from sandboxkit.local.envd._access import Signer
from sandboxkit.local.envd._calls import Calls
from sandboxkit.local.envd._files import Files
from sandboxkit.local.envd._filesystem_rpc import FilesystemService
from sandboxkit.local.envd._rpc import Dispatcher
from sandboxkit.local.envd._watchers import Watchers
from sandboxkit.local.isolation._base import Agent, AgentError, Entry, File
from sandboxkit.local.isolation.link._link import Entries, entries_of

PREFIX: Final = "/confined/"
HEADER: Final = "X-Sandboxkit-Confined"
MAX_ROOTS: Final = 64
"""Roots whose services are kept for the next request."""
_MAX_ENTRIES: Final = 100_000


def root_of(path: str) -> tuple[str, str] | None:
    """The root and the rest of a request's path below the prefix; None where it names none."""
    name, slash, rest = path.removeprefix(PREFIX).partition("/")
    try:
        root = base64.urlsafe_b64decode(name.encode("ascii") + b"=" * (-len(name) % 4)).decode(
            "utf-8", "surrogateescape"
        )
        if not slash or confine(root, root) != root:
            return None
    except (ValueError, binascii.Error):
        return None
    return root, "/" + rest


class ConfinedFiles:
    """The confined base path of one sandbox, with all its roots."""

    def __init__(
        self,
        agent: Agent,
        settings: SandboxSettings,
        watchers: Watchers,
        *,
        signer: Signer,
        lost: Callable[[], Response],
        lost_message: str,
        check_user: Callable[[str | None], None],
    ) -> None:
        self._agent = agent
        self._settings = settings
        self._watchers = watchers
        self._signer = signer
        self._lost = lost
        self._lost_message = lost_message
        self._check_user = check_user
        self._roots: OrderedDict[str, _Root] = OrderedDict()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, whose token has been checked."""
        found = root_of(scope["path"])
        if found is None:
            await _answers.error(404, "the confined base path names no root")(scope, receive, send)
            return
        root, rest = found
        await self._of(root)({**scope, "path": rest}, receive, send)

    async def aclose(self) -> None:
        """End every transfer. Idempotent."""
        for root in list(self._roots.values()):
            await root.aclose()

    def _of(self, path: str) -> _Root:
        root = self._roots.get(path)
        if root is None:
            root = self._roots[path] = self._made(path)
            if len(self._roots) > MAX_ROOTS:
                idle = [other for other, each in self._roots.items() if not each.is_busy() and other != path]
                if idle:
                    del self._roots[idle[0]]
        self._roots.move_to_end(path)
        return root

    def _made(self, path: str) -> _Root:
        agent = ConfinedAgent(self._agent, path)
        settings = dataclasses.replace(self._settings, home=path, workdir=path)
        return _Root(
            files=Files(agent, settings, signer=self._signer, lost=self._lost),
            calls=Calls(self._agent, settings, self._watchers, path, signer=self._signer, lost=self._lost),
            dispatcher=Dispatcher(
                FilesystemService(agent, settings, self._watchers, root=path).methods(),
                check_user=self._check_user,
                lost=self._lost,
                lost_message=self._lost_message,
            ),
        )


@dataclasses.dataclass(slots=True)
class _Root:
    """What is served below one root."""

    files: Files
    calls: Calls
    dispatcher: Dispatcher

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        match scope["path"]:
            case "/health":
                await Response(status_code=204, headers={HEADER: "1", "Cache-Control": "no-store"})(
                    scope, receive, send
                )
            case "/files":
                await self.files(scope, receive, send)
            case "/call":
                await self.calls(scope, receive, send)
            case _:
                await self.dispatcher(scope, receive, send)

    def is_busy(self) -> bool:
        return self.files.is_busy() or self.calls.is_busy()

    async def aclose(self) -> None:
        await self.files.aclose()
        await self.calls.aclose()


class ConfinedAgent:
    """The file verbs of an agent, kept to one root. What the guard or the agent refuses is EXDEV."""

    def __init__(self, agent: Agent, root: str) -> None:
        self._agent = agent
        self._root = root

    async def open_file(self, path: str, flags: int, mode: int = 0o644) -> File:
        how = "read" if flags & os.O_ACCMODE == os.O_RDONLY else "write"
        try:
            file, _ = await self._agent.open_beneath(how, self._root, b"", self._path(path), flags, mode)  # type: ignore[arg-type]
        except AgentError as error:
            raise _told(error, path) from None
        return file

    async def stat(self, path: str) -> Entry:
        return entries_of(await self._do("stat", path))[0]

    async def list(self, path: str, *, depth: int = 1) -> Entries:
        return entries_of(await self._do("list", path, depth, _MAX_ENTRIES))

    async def make_dir(self, path: str) -> bool:
        return await self._do("make_dir", path) == [b"1"]

    async def rename(self, source: str, target: str) -> None:
        await self._do("rename", source, self._path(target).encode("utf-8", "surrogateescape"))

    async def remove(self, path: str) -> bool:
        try:
            await self._do("remove", path)
        except AgentError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR):
                return False
            raise
        return True

    async def set_xattrs(self, path: str, values: Mapping[str, str]) -> None:
        if values:
            raise AgentError(errno.EOPNOTSUPP, "metadata is not supported below a confined root", path)

    async def _do(self, operation: str, path: str, *args: bytes | int) -> builtins_list[bytes]:
        name = self._path(path).encode("utf-8", "surrogateescape")
        try:
            return (await self._agent.beneath(operation, self._root, b"", [name, *args]))[1:]
        except AgentError as error:
            raise _told(error, path) from None

    def _path(self, path: str) -> str:
        try:
            return confine(path, self._root)
        except PathEscape:
            raise AgentError(errno.EXDEV, "the path leads out of the root", path) from None
        except PathError:
            raise AgentError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG), path) from None


builtins_list = list  # `list` is a method above


def _told(error: AgentError, path: str) -> AgentError:
    """The error in the words that E2B's routes have for it."""
    if error.errno in (errno.EXDEV, errno.EBUSY):
        return AgentError(errno.EXDEV, "a link or a mount on the way leads out of the root", path)
    if error.errno == errno.EMEDIUMTYPE:
        return AgentError(errno.EINVAL, os.strerror(errno.EINVAL), path)
    return AgentError(error.errno, error.message, path)
