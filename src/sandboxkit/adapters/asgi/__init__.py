"""The routes of a web app that runs fragments, on Starlette: `app = routes(pool, authorize=who)`.

    pool = AsyncSandboxPool()  # opened and closed by the outer application's lifespan
    app = Starlette(routes=[Mount("/", routes(pool, authorize=who))], lifespan=lifespan)

The extra `server` has what this needs.
"""

from __future__ import annotations

from sandboxkit.adapters.asgi._bodies import (
    Failure,
    FileContent,
    FileTree,
    FileWritten,
    Logs,
    RunRequest,
    RunResult,
)
from sandboxkit.adapters.asgi._openapi import openapi
from sandboxkit.adapters.asgi._routes import Authorize, routes

__all__ = [
    "Authorize",
    "Failure",
    "FileContent",
    "FileTree",
    "FileWritten",
    "Logs",
    "RunRequest",
    "RunResult",
    "openapi",
    "routes",
]
