"""E2B's REST API as a Starlette application: every route that an E2B client knows is answered on purpose."""

from __future__ import annotations

import hmac
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, Literal

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from sandboxkit.errors import TemplateNotBuilt
from sandboxkit.local import _answers as answers
from sandboxkit.local._config import EngineConfig
from sandboxkit.local._log import log
from sandboxkit.local._sandbox import ENVD_VERSION
from sandboxkit.local.control import _requests as requests
from sandboxkit.local.control._kept import Snapshot
from sandboxkit.local.control._life_routes import LifeRoutes, about_pause, memory_headers
from sandboxkit.local.control._network import Network
from sandboxkit.local.control._parts import Recipe, Sample
from sandboxkit.local.control._recipes import Recipes, recipe_of
from sandboxkit.local.control._refusals import Refused, bad_request, unsupported
from sandboxkit.local.control._registry import SHOWN_AS, Query, Sandbox, Wanted
from sandboxkit.local.control._sandboxes import Sandboxes
from sandboxkit.local.control._snapshots import Snapshots
from sandboxkit.local.control._template_routes import TemplateRoutes
from sandboxkit.local.control._templates import Templates
from sandboxkit.local.control.volumes._routes import VolumeRoutes
from sandboxkit.local.images import OWN, BuiltTemplate
from sandboxkit.local.isolation._base import LimitInForce, Limits

BODY_LIMIT = 1024 * 1024
CLIENT_ID = "local"
MIB = 1024 * 1024

PLAIN = frozenset({"bad_request", "sandbox_not_found"})

Handler = Callable[[Request], Awaitable[Response]]
JSON = dict[str, Any]

UNSUPPORTED: dict[tuple[str, str], str] = {
    ("GET", "/default-templates"): "listing templates",
    ("PATCH", "/templates/{id}"): "updating templates",
    ("PATCH", "/v2/templates/{id}"): "updating templates",
    ("GET", "/templates/{id}/tags/groups"): "template tags",
    ("GET", "/templates/{id}/tags/{tag}/assignments"): "template tags",
    ("GET", "/secrets"): "secrets",
    ("POST", "/secrets"): "secrets",
    ("GET", "/secrets/{id}"): "secrets",
    ("POST", "/secrets/{id}"): "secrets",
    ("DELETE", "/secrets/{id}"): "secrets",
}
"""What E2B's clients can ask for and this engine does not do yet; each is answered by a 400 that names it."""


class RestApi:
    """The REST API over the engine's sandboxes. `domain` is what `get_host()` appends; `more` are routes of ours."""

    def __init__(
        self,
        *,
        config: EngineConfig,
        api_key: str,
        domain: str,
        sandboxes: Sandboxes,
        snapshots: Snapshots,
        templates: Templates,
        recipes: Recipes,
        template_routes: TemplateRoutes,
        more: Sequence[tuple[str, str, Handler]] = (),
    ) -> None:
        self._config = config
        self._template_routes = template_routes
        self._api_key = api_key.encode()
        self._domain = domain
        self._sandboxes = sandboxes
        self._snapshots = snapshots
        self._templates = templates
        self._recipes = recipes
        self._more = more

    def application(self) -> Starlette:
        """Make the ASGI application."""
        lives = LifeRoutes(
            config=self._config,
            sandboxes=self._sandboxes,
            snapshots=self._snapshots,
            template_routes=self._template_routes,
            created=self._created,
            read=_body,
        )
        volumes = VolumeRoutes(self._recipes.volumes, read=_body)
        routes: list[tuple[str, str, Handler]] = [
            ("POST", "/v2/sandboxes", self._creator("v2")),
            ("POST", "/sandboxes", self._creator("v1")),
            ("GET", "/v2/sandboxes", self._list),
            ("GET", "/sandboxes", self._list_v1),
            ("GET", "/sandboxes/metrics", self._all_metrics),
            ("GET", "/sandboxes/{id}", self._get),
            ("DELETE", "/sandboxes/{id}", self._kill),
            ("POST", "/sandboxes/{id}/timeout", self._set_timeout),
            ("POST", "/sandboxes/{id}/refreshes", self._refresh),
            ("GET", "/sandboxes/{id}/metrics", self._metrics),
            ("PUT", "/sandboxes/{id}/network", self._set_network),
            *self._more,
            *self._template_routes.guarded(),
            *volumes.guarded(),
            *((method, path, _refuser(what)) for (method, path), what in UNSUPPORTED.items()),
            *lives.routes(),
        ]
        application = Starlette(
            routes=[
                Route("/health", _health, methods=["GET"]),
                *(Route(path, self._guarded(handler), methods=[method]) for method, path, handler in routes),
                *(
                    Route(path, handler, methods=[method])
                    for method, path, handler in (*self._template_routes.open(), *volumes.open())
                ),
            ],
            exception_handlers={HTTPException: _unknown_route, Refused: _refused},
        )
        application.router.redirect_slashes = False
        return application

    def expect_all(self) -> None:
        """Keep blank boxes of the engine's own templates that are built; those of others come with their first use."""
        for name in OWN:
            try:
                template = self._templates.find(name)
            except TemplateNotBuilt:
                continue
            plain = requests.read_create({"templateID": name}, {}, dialect="v2", default_timeout=1, max_timeout=1)
            self._sandboxes.expect(*_as_wanted(template, plain, Network()))

    # -- sandboxes ------------------------------------------------------------------------------------------------

    def _creator(self, dialect: Literal["v1", "v2"]) -> Handler:
        async def create(request: Request) -> Response:
            wish = requests.read_create(
                requests.read_object(await _body(request)),
                request.headers,
                dialect=dialect,
                default_timeout=self._config.default_timeout,
                max_timeout=self._config.max_timeout,
            )
            name = requests.template_name(wish.template)
            snapshot = None if name in self._templates.known() else self._snapshots.find(wish.template)
            template = self._recipes.template(wish.template if snapshot is None else snapshot.built_from)
            volumes = self._recipes.volumes.wanted(wish.volumes)
            wanted, recipe = _as_wanted(template, wish, await self._recipes.network(wish.network))
            wanted, recipe = replace(wanted, volumes=volumes), await self._recipes.with_volumes(recipe, volumes)
            if snapshot is not None:
                wanted, recipe = _from_snapshot(wanted, snapshot), self._snapshots.recipe(snapshot, recipe)
            sandbox = await self._sandboxes.create(wanted, recipe)
            if wish.network.overridden:
                log(
                    logging.INFO,
                    "sandbox.internet_by_default",
                    sandbox_id=sandbox.sandbox_id,
                    setting=self._config.internet,
                )
            headers = memory_headers(snapshot is not None and snapshot.memory_lost)
            return JSONResponse(self._created(sandbox), status_code=201, headers=headers)

        return create

    async def _list(self, request: Request) -> Response:
        page = self._sandboxes.page(requests.read_query(request.query_params))
        headers = {"x-next-token": page.next_token} if page.next_token else None
        return JSONResponse([_listed(sandbox) for sandbox in page.sandboxes], headers=headers)

    async def _list_v1(self, request: Request) -> Response:
        metadata = requests.read_metadata_filter(request.query_params.get("metadata", ""))
        found = self._sandboxes.page(
            Query(metadata=metadata, states=frozenset({"running"}), limit=self._config.max_sandboxes)
        )
        return JSONResponse([_listed(sandbox) for sandbox in found.sandboxes])

    async def _get(self, request: Request) -> Response:
        sandbox = self._sandboxes.get(_sandbox_id(request))
        detail = _listed(sandbox) | {
            "envdAccessToken": sandbox.access_token,
            "domain": self._domain,
            "allowInternetAccess": sandbox.wanted.network.internet,
            "lifecycle": {
                "onTimeout": "pause" if sandbox.wanted.auto_pause else "kill",
                "autoResume": sandbox.wanted.auto_resume,
            },
        }
        detail |= about_pause(sandbox)
        live = self._sandboxes.live(sandbox.sandbox_id)
        if live is not None:
            detail["limits"] = [_limit(limit) for limit in live.box.limits]
        if notes := self._template_routes.notes(sandbox.wanted.template_id):
            detail["templateNotes"] = notes
        network = _ingress(sandbox) | dict(sandbox.wanted.network.shown or {})
        if network:
            detail["network"] = network
        return JSONResponse(detail)

    async def _kill(self, request: Request) -> Response:
        await self._sandboxes.kill(_sandbox_id(request))
        return Response(status_code=204)

    async def _set_timeout(self, request: Request) -> Response:
        body = requests.read_object(await _body(request))
        seconds = requests.read_set_timeout(body, max_timeout=self._config.max_timeout)
        await self._sandboxes.set_timeout(_sandbox_id(request), seconds)
        return Response(status_code=204)

    async def _refresh(self, request: Request) -> Response:
        seconds = requests.read_refresh(requests.read_object(await _body(request)))
        self._sandboxes.extend(_sandbox_id(request), seconds)
        return Response(status_code=204)

    async def _set_network(self, request: Request) -> Response:
        update = requests.read_network_update(requests.read_object(await _body(request)))
        self._sandboxes.get(_sandbox_id(request))
        await self._sandboxes.set_network(_sandbox_id(request), await self._recipes.network(update))
        return Response(status_code=204)

    # -- metrics --------------------------------------------------------------------------------------------------

    async def _metrics(self, request: Request) -> Response:
        start = requests.read_seconds("start", request.query_params.get("start"))
        end = requests.read_seconds("end", request.query_params.get("end"))
        sandbox = self._sandboxes.get(_sandbox_id(request))
        samples = await self._sandboxes.measure(sandbox.sandbox_id)
        return JSONResponse(
            [
                _metric(sandbox, sample)
                for sample in samples
                if (start is None or int(sample.at) >= start) and (end is None or int(sample.at) <= end)
            ]
        )

    async def _all_metrics(self, request: Request) -> Response:
        ids = [part for part in request.query_params.get("sandbox_ids", "").split(",") if part]
        if not 1 <= len(ids) <= 100:
            raise bad_request("sandbox_ids: 1 to 100 ids, separated by commas, are needed")
        found = {}
        for sandbox_id in ids:
            try:
                sandbox = self._sandboxes.get(sandbox_id)
                if samples := await self._sandboxes.measure(sandbox_id):
                    found[sandbox_id] = _metric(sandbox, samples[-1])
            except Refused:
                continue  # those that are gone are left out, as E2B does
        return JSONResponse({"sandboxes": found})

    # -- templates ------------------------------------------------------------------------------------------------

    # -- all of them ----------------------------------------------------------------------------------------------

    def _guarded(self, handler: Handler) -> Handler:
        async def guarded(request: Request) -> Response:
            key = request.headers.get("x-api-key", "")
            if not hmac.compare_digest(key.encode(), self._api_key):
                return answers.error(
                    401,
                    "The API key (header X-API-KEY) is missing or is not this engine's; it has a new one at each start",
                    error_code="unauthorized",
                )
            return await handler(request)

        return guarded

    def _created(self, sandbox: Sandbox) -> JSON:
        return {
            **({} if sandbox.traffic_token is None else {"trafficAccessToken": sandbox.traffic_token}),
            "templateID": sandbox.wanted.template_id,
            "alias": sandbox.wanted.alias,
            "sandboxID": sandbox.sandbox_id,
            "clientID": CLIENT_ID,
            "envdVersion": ENVD_VERSION,
            "envdAccessToken": sandbox.access_token,
            "domain": self._domain,
        }


def _as_wanted(template: BuiltTemplate, wish: requests.CreateRequest, network: Network) -> tuple[Wanted, Recipe]:
    """A request for a sandbox of a template, as the registry and the isolation need it."""
    wanted = Wanted(
        template_id=template.id,
        alias=template.id,
        timeout=wish.timeout,
        fingerprint=wish.fingerprint,
        idempotency_key=wish.idempotency_key,
        limits=Limits(
            cpus=template.cpus, memory=template.memory, disk=template.disk, shared_memory=template.shared_memory
        ),
        has_interpreter=template.has_interpreter,
        metadata=wish.metadata,
        envs=wish.envs,
        auto_pause=wish.auto_pause,
        auto_pause_memory=wish.auto_pause_memory,
        auto_resume=wish.auto_resume,
        network=network,
        public_traffic=wish.public_traffic,
        mask_host=wish.mask_host,
    )
    return wanted, recipe_of(template)


def _from_snapshot(wanted: Wanted, snapshot: Snapshot) -> Wanted:
    """The same for a sandbox that starts with a snapshot's files."""
    return replace(
        wanted,
        template_id=snapshot.key,
        alias=snapshot.name,
        built_from=snapshot.built_from,
        limits=snapshot.limits,
        has_interpreter=snapshot.has_interpreter,
        from_files=snapshot.memory_lost,
    )


def _ingress(sandbox: Sandbox) -> JSON:
    """What the info says about traffic to it, where that is not the usual."""
    shown: JSON = {} if sandbox.wanted.public_traffic else {"allowPublicTraffic": False}
    if sandbox.wanted.mask_host is not None:
        shown["maskRequestHost"] = sandbox.wanted.mask_host
    return shown


def _listed(sandbox: Sandbox) -> JSON:
    wanted = sandbox.wanted
    volumes = {"volumeMounts": [{"name": one.name, "path": one.path} for one in wanted.volumes]}
    return {
        **(volumes if wanted.volumes else {}),
        "templateID": wanted.template_id,
        "alias": wanted.alias,
        "sandboxID": sandbox.sandbox_id,
        "clientID": CLIENT_ID,
        "startedAt": _moment(sandbox.started_at),
        "endAt": _moment(sandbox.end_at),
        "envdVersion": ENVD_VERSION,
        "cpuCount": _whole(wanted.limits.cpus),
        "memoryMB": wanted.limits.memory // MIB,
        "diskSizeMB": wanted.limits.disk // MIB,
        "state": SHOWN_AS[sandbox.state],
        "metadata": dict(wanted.metadata),
    }


def _metric(sandbox: Sandbox, sample: Sample) -> JSON:
    limits = sandbox.wanted.limits
    return {
        "timestamp": _moment(datetime.fromtimestamp(sample.at, UTC)),
        "timestampUnix": int(sample.at),
        "cpuCount": _whole(limits.cpus),
        "cpuUsedPct": round(sample.cpu_percent, 2),
        "memUsed": sample.usage.memory,
        "memTotal": limits.memory,
        "memCache": sample.usage.cache,
        "diskUsed": sample.usage.disk,
        "diskTotal": limits.disk,
    }


def _limit(limit: LimitInForce) -> JSON:
    """How one limit is held; a field of ours beyond E2B's."""
    return {"resource": limit.resource, "value": limit.value, "heldBy": limit.by, "note": limit.note}


def _whole(cpus: float) -> int:
    return max(1, round(cpus))


def _moment(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def _sandbox_id(request: Request) -> str:
    return str(request.path_params["id"])


async def _body(request: Request) -> bytes:
    """Read the body, up to the limit, whatever length the client announced."""
    too_long = Refused(413, f"The request's body is longer than {BODY_LIMIT} bytes", error_code="body_too_long")
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced) > BODY_LIMIT:
        raise too_long
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > BODY_LIMIT:
            raise too_long
    return bytes(body)


async def _health(request: Request) -> Response:
    return JSONResponse({"status": "ok"})


def _refuser(what: str) -> Handler:
    async def refuse(request: Request) -> Response:
        raise unsupported(what, "it comes with a later version")

    return refuse


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refused)
    headers = None if error.retry is None else {"Should-Retry": "true" if error.retry else "false"}
    # The SDKs pass nothing of an answer on but its message, so that is where their callers find the code. Where the
    # status says it all, or E2B's own words matter, there is none.
    message = error.message if error.error_code in PLAIN else f"{error.message} [{error.error_code}]"
    return answers.error(error.status, message, error_code=error.error_code, headers=headers)


async def _unknown_route(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    message = f"{error.detail}: {request.method} {request.url.path[:256]}"
    return answers.error(error.status_code, message, headers=dict(error.headers or {}))
