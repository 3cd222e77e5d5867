"""One sandbox's envd as an ASGI application: who may ask, and which part answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from starlette.datastructures import Headers
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from sandboxkit.local import _answers
from sandboxkit.local._sandbox import SandboxSettings
from sandboxkit.local.envd._access import Signer, refused_user
from sandboxkit.local.envd._confined import PREFIX, ConfinedFiles
from sandboxkit.local.envd._connect import ConnectError
from sandboxkit.local.envd._files import Files
from sandboxkit.local.envd._filesystem_rpc import FilesystemService
from sandboxkit.local.envd._process_rpc import ProcessService
from sandboxkit.local.envd._processes import Processes
from sandboxkit.local.envd._rpc import Dispatcher
from sandboxkit.local.envd._watchers import Watchers
from sandboxkit.local.isolation._base import Agent

TOKEN_HEADER: Final = "x-access-token"

# What needs no token: a signature is checked by /files itself.
_OPEN: Final = frozenset({("GET", "/health"), ("GET", "/files"), ("HEAD", "/files"), ("POST", "/files")})


class EnvdService:
    """envd for one sandbox.

    An ASGI application for HTTP requests: the Connect services process.Process and filesystem.Filesystem, `/files`,
    `/health`, `/envs`, and the confined base path. Everything but `/health` and signed `/files` requests needs the
    sandbox's access token.
    """

    def __init__(self, agent: Agent, settings: SandboxSettings) -> None:
        self._settings = settings
        self._gone = False
        self._signer = Signer(settings.access_token)
        self._processes = Processes(agent, settings)
        self._files = Files(agent, settings, signer=self._signer, lost=self._lost)
        watchers = Watchers(agent)
        lost_message = f"the connection to sandbox {settings.sandbox_id} ended before the stream completed"
        self._confined = ConfinedFiles(
            agent,
            settings,
            watchers,
            signer=self._signer,
            lost=self._lost,
            lost_message=lost_message,
            check_user=self._check_user,
        )
        methods = dict(ProcessService(self._processes, settings).methods())
        methods.update(FilesystemService(agent, settings, watchers).methods())
        self._dispatcher = Dispatcher(
            methods,
            check_user=self._check_user,
            lost=self._lost,
            lost_message=lost_message,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one HTTP request."""
        await self._answer(scope)(scope, receive, send)

    def _answer(self, scope: Scope) -> Response | Files | Dispatcher | ConfinedFiles:
        if self._gone:
            return self._lost()
        method, path = scope["method"], scope["path"]
        if (method, path) not in _OPEN and not self._signer.is_token(Headers(scope=scope).get(TOKEN_HEADER)):
            return _answers.error(
                401, "unauthorized access, please provide a valid access token or method signing if supported"
            )
        if path.startswith(PREFIX):
            return self._confined
        match path:
            case "/health":
                return Response(status_code=204, headers={"Cache-Control": "no-store"})
            case "/files":
                return self._files
            case "/envs":
                return JSONResponse(dict(self._settings.envs), headers={"Cache-Control": "no-store"})
            case "/metrics" | "/files/compose":
                # envd has them, and no SDK calls them.
                return _answers.error(400, f"{method} {path} is not supported here.")
        return self._dispatcher

    def owns(self, query: Mapping[str, str]) -> bool:
        """Whether a `/files` request that names no sandbox was signed with this one's token, expired or not."""
        return self._signer.signed(query, "read") or self._signer.signed(query, "write")

    async def aclose(self) -> None:
        """End every stream as lost, and answer from now on that the sandbox was not found. Idempotent."""
        self._gone = True
        await self._processes.aclose()
        await self._files.aclose()
        await self._confined.aclose()

    def _lost(self) -> Response:
        return _answers.sandbox_not_found(self._settings.sandbox_id)

    def _check_user(self, user: str | None) -> None:
        reason = refused_user(user, self._settings.user)
        if reason is not None:
            raise ConnectError("unauthenticated", f"invalid username: '{user}'{reason}")
