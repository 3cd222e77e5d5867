"""The engine's process from start to end: takes the port, isolates, answers, and leaves nothing.

The order of the start is forced: the port is taken while the process may still take any; then the process enters its
namespace and gives up root; then the event loop starts, for a process with threads could not enter. Only when
requests are answered is the env-file written and the starter told.

The end is bounded: sandboxes first, then open connections. What is left past the bound dies with the process (boxes
die with their parent), and the next engine removes the directories.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import math
import os
import secrets
import signal
import socket
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from sandboxkit import template
from sandboxkit._types import Endpoint
from sandboxkit.errors import EngineUnavailable
from sandboxkit.local import _log
from sandboxkit.local._config import EngineConfig, cache_home, engine_uid, state_root, strict_where_told
from sandboxkit.local._descriptors import limit, means_exhausted, raise_limit
from sandboxkit.local._env_file import EnvFile
from sandboxkit.local._log import log
from sandboxkit.local._selector import Selector
from sandboxkit.local.control._builds import Builds
from sandboxkit.local.control._parts import Services, WayOut
from sandboxkit.local.control._recipes import Recipes
from sandboxkit.local.control._registry import Registry
from sandboxkit.local.control._rest import RestApi
from sandboxkit.local.control._sandboxes import Sandboxes
from sandboxkit.local.control._snapshots import Snapshots
from sandboxkit.local.control._store import Store as KeptStore
from sandboxkit.local.control._store import open_store
from sandboxkit.local.control._template_routes import TemplateRoutes
from sandboxkit.local.control._templates import BuiltTemplates, Templates
from sandboxkit.local.control.volumes._volumes import Volumes
from sandboxkit.local.control.volumes._watch import watch
from sandboxkit.local.gateway._gateway import Gateway, by_host
from sandboxkit.local.gateway._listener import Server, bind, listen_too, server
from sandboxkit.local.gateway.egress._dialler import Dialler
from sandboxkit.local.gateway.egress._proxy import Egress
from sandboxkit.local.gateway.egress._rules import Policy
from sandboxkit.local.gateway.preview._previews import Previews
from sandboxkit.local.images._build_box import Network as BuildNetwork
from sandboxkit.local.images._builder import Builder
from sandboxkit.local.images._store import Store, give_store
from sandboxkit.local.indexes import KnownIndexes
from sandboxkit.local.isolation._base import Box, Isolation

ID_ALPHABET = "abcdefghijklmnopqrstuvwxyz0123456789"
PARENT_POLL = 2.0
"""Seconds between looks at who the parent is: a second net beneath the pipe, should a copy of it live on somewhere."""

COPIES_SHARE = 0.4
"""How much of the time for its end an engine waits for copies of paused sandboxes."""

ALARM_AFTER = 2
"""Seconds past `shutdown_timeout` after which the process is ended without further ado."""

OnReady = Callable[[Endpoint], None]


def serve(config: EngineConfig, *, on_ready: OnReady | None = None, parent_pipe: int | None = None) -> int:
    """Be the engine until SIGINT, SIGTERM or the end-of-file of `parent_pipe`; 0 for an orderly end.

    Raises:
        ConfigurationError: the port is in use, or the env-file cannot be written.
        EngineUnavailable, IsolationUnavailable: see the message; nothing is left.
    """
    # Imported here: where bubblewrap cannot be had, the command line must still be able to say so.
    from sandboxkit.local.envd import EnvdService
    from sandboxkit.local.interpreter import InterpreterService
    from sandboxkit.local.isolation import BubblewrapIsolation, GvisorIsolation, enter, find_runsc, release

    config = strict_where_told(config)
    _log.configure(config.log_level)
    raise_limit()
    listener = bind(config.host, config.port)
    env_file: EnvFile | None = None
    home, state_dir = cache_home(), state_root(config).absolute() / f"engine-{os.getpid()}"
    os.environ["SANDBOXKIT_HOME"] = str(home)  # the uid that is dropped to may have no home to find it by

    def ready(endpoint: Endpoint) -> None:
        if env_file is not None:
            env_file.write(endpoint)
        if on_ready is not None:
            on_ready(endpoint)

    try:
        if config.env_file is not None:
            env_file = EnvFile(config.env_file, state_dir=state_dir, not_for_writer=(listener.fileno(),))
        indexes = KnownIndexes()
        with _naming_what_is_full():
            home.mkdir(parents=True, exist_ok=True)
            give_store(home, engine_uid())
            runsc = find_runsc() if config.isolation == "gvisor" else None
            # In a checkout the templates lie beside `src`, and only `src` is on Python's path.
            readable = [str(home), *map(str, template.roots()), *([runsc] if runsc else [])]
            namespace = enter(state_dir, readable=readable, keeps=config.keep)
            indexes.place_certificates(namespace.runtime / "etc")
        isolation = (
            GvisorIsolation(namespace, runsc)
            if runsc
            else BubblewrapIsolation(namespace, zygote="auto" if config.zygote else "off")
        )
        store = Store(home)
        templates = BuiltTemplates(store)
        services = Services(envd=EnvdService, interpreter=InterpreterService)
        kept = open_store(config, namespace.kept, state_dir)
        engine = Engine(
            config,
            listener,
            isolation=isolation,
            services=services,
            templates=templates,
            kept=kept,
            indexes=indexes,
            store=store,
        )
        try:
            with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(Selector())) as runner:
                runner.run(_run_until_told(engine, ready, parent_pipe))
        finally:
            templates.close()
            kept.close()
            if env_file is not None:
                env_file.close()
            release(namespace)
            signal.alarm(0)
    finally:
        if env_file is not None:
            env_file.close()
        listener.close()
    return 0


@contextlib.contextmanager
def _naming_what_is_full() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise EngineUnavailable(
            f"The engine cannot keep its files: {error}. Make room or change the rights there, or let SANDBOXKIT_HOME "
            "name another directory."
        ) from error


class Engine:
    """The rooms put together, around one listening socket."""

    def __init__(
        self,
        config: EngineConfig,
        listener: socket.socket,
        *,
        isolation: Isolation,
        services: Services,
        templates: Templates,
        store: Store,
        kept: KeptStore,
        indexes: KnownIndexes | None = None,
    ) -> None:
        self._config = config
        self._indexes = KnownIndexes() if indexes is None else indexes
        self._listener = listener
        self._isolation = isolation
        self._services = services
        self._templates = templates
        self._store = store
        self._kept = kept
        self._end = asyncio.Event()

    async def run(self, *, on_ready: OnReady) -> None:
        """Start, call `on_ready` once requests are answered, answer until told to end, end."""
        started = time.monotonic()
        await self._isolation.start()
        volumes = Volumes(self._kept.volumes, most=self._config.volume_bytes, new_id=_new_id, new_token=_new_token)
        recipes = Recipes(config=self._config, templates=self._templates, indexes=self._indexes, volumes=volumes)
        closed_ports = {self._listener.getsockname()[1]}
        way_out = WayOut(Dialler(closed_ports=closed_ports), self._indexes)
        sandboxes = Sandboxes(
            registry=Registry(
                max_sandboxes=self._config.max_sandboxes,
                max_memory=self._config.max_memory,
                new_id=_new_id,
                new_token=_new_token,
            ),
            isolation=self._isolation,
            services=self._services,
            max_creating=self._config.max_creating,
            create_timeout=self._config.create_timeout,
            warm=self._config.warm,
            store=self._kept,
            recipes=recipes,
            copies_within=COPIES_SHARE * self._config.shutdown_timeout,
            way_out=way_out,
        )
        snapshots = Snapshots(
            sandboxes, store=self._kept, recipes=recipes, new_key=_new_id, is_strict=self._config.strict
        )
        builds = self._builds(way_out)
        endpoint, domain = _addresses(self._config, self._listener)
        previews = Previews(sandboxes=sandboxes, domain=domain, closed_ports=closed_ports)
        rest = RestApi(
            config=self._config,
            api_key=endpoint.api_key,
            domain=domain,
            sandboxes=sandboxes,
            snapshots=snapshots,
            templates=self._templates,
            recipes=recipes,
            more=previews.routes(),
            template_routes=TemplateRoutes(builds=builds, store=self._store, templates=self._templates),
        )
        gateway = partial(Gateway, rest=rest.application(), sandboxes=sandboxes, previews=previews)
        http = server(gateway(router=by_host(any_address=not _is_loopback(self._config.host))))
        previews.serve_by(lambda router, listener: listen_too(gateway(router=router), listener, http.server_state))
        serving = asyncio.create_task(http.serve(sockets=[self._listener]), name="http")
        watching = asyncio.create_task(
            watch(volumes, sandboxes, most_sandboxes=self._config.max_sandboxes), name="volumes"
        )
        try:
            volumes.start()
            snapshots.start()
            sandboxes.start()
            if self._config.warm_from_start:
                rest.expect_all()
            await _answering(http, serving)
            log(
                logging.INFO,
                "engine.ready",
                url=endpoint.api_url,
                isolation=self._isolation.name,
                duration=time.monotonic() - started,
            )
            on_ready(endpoint)
            ending = asyncio.create_task(self._end.wait(), name="end")
            await asyncio.wait([ending, serving], return_when=asyncio.FIRST_COMPLETED)
            ending.cancel()
        finally:
            watching.cancel()
            await self._shut_down(sandboxes, snapshots, builds, http, serving)
            serving.cancel()

    def _builds(self, way_out: WayOut) -> Builds:
        """What builds templates. A build's boxes reach the package indexes, whatever sandboxes may reach."""

        async def connect(box: Box) -> BuildNetwork:
            endpoints = (await self._indexes.get()).endpoints
            egress = Egress(box.agent, way_out.dialler)
            await egress.set_policy(Policy(packages=endpoints))
            return BuildNetwork(way_out.variables(egress), egress.aclose)

        builder = Builder(self._store, self._isolation, connect)
        return Builds(store=self._store, templates=self._templates, builder=builder)

    @property
    def shutdown_timeout(self) -> float:
        """The longest that its end may take."""
        return self._config.shutdown_timeout

    def end(self) -> None:
        """Let it end, in order. Safe to call again."""
        self._end.set()

    async def _shut_down(
        self, sandboxes: Sandboxes, snapshots: Snapshots, builds: Builds, http: Server, serving: asyncio.Task[None]
    ) -> None:
        started = time.monotonic()
        in_time = True
        try:
            async with asyncio.timeout(self._config.shutdown_timeout):
                await builds.aclose()
                await sandboxes.aclose()
                await snapshots.aclose()
                http.end()
                await serving
        except TimeoutError:
            in_time = False
        log(
            logging.INFO if in_time else logging.ERROR,
            "engine.ended",
            in_time=in_time,
            duration=time.monotonic() - started,
        )


async def _run_until_told(engine: Engine, on_ready: OnReady, parent_pipe: int | None) -> None:
    asyncio.get_running_loop().set_exception_handler(_on_loop_error)

    def end() -> None:
        # The last resort: SIGALRM ends the process, whatever hangs. Its boxes die with it.
        signal.alarm(math.ceil(engine.shutdown_timeout) + ALARM_AFTER)
        engine.end()

    with _called_by_signals(end), _called_by_parent(end, parent_pipe):
        await engine.run(on_ready=on_ready)
        signal.alarm(math.ceil(engine.shutdown_timeout) + ALARM_AFTER)


def _on_loop_error(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """asyncio's own report, but for one that is no bug: without descriptors it stops accepting for a second."""
    if means_exhausted(context.get("exception")) and context.get("socket") is not None:
        log(logging.ERROR, "engine.no_descriptors", limit=limit())
    else:
        loop.default_exception_handler(context)


@contextlib.contextmanager
def _called_by_signals(end: Callable[[], None]) -> Iterator[None]:
    loop = asyncio.get_running_loop()
    signals = (signal.SIGINT, signal.SIGTERM)
    for number in signals:
        loop.add_signal_handler(number, end)
    try:
        yield
    finally:
        for number in signals:
            loop.remove_signal_handler(number)


@contextlib.contextmanager
def _called_by_parent(end: Callable[[], None], pipe: int | None) -> Iterator[None]:
    if pipe is None:
        yield
        return
    loop = asyncio.get_running_loop()
    parent = os.getppid()
    os.set_blocking(pipe, False)

    def read() -> None:
        with contextlib.suppress(BlockingIOError):
            if not os.read(pipe, 4096):
                loop.remove_reader(pipe)
                end()

    async def watch_parent() -> None:
        while True:
            await asyncio.sleep(PARENT_POLL)
            if os.getppid() != parent:
                return end()

    loop.add_reader(pipe, read)
    watcher = asyncio.create_task(watch_parent(), name="parent")
    try:
        yield
    finally:
        watcher.cancel()
        loop.remove_reader(pipe)


async def _answering(http: Server, serving: asyncio.Task[None]) -> None:
    while not http.started:
        if serving.done():
            await serving
        await asyncio.sleep(0.005)


def _addresses(config: EngineConfig, listener: socket.socket) -> tuple[Endpoint, str]:
    """Make a key, and say where clients on this machine find the engine and what `get_host()` appends."""
    port = listener.getsockname()[1]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(config.host, config.host)
    url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    return Endpoint(api_key=f"e2b_{secrets.token_hex(20)}", api_url=url, sandbox_url=url), f"localhost:{port}"


def _is_loopback(host: str) -> bool:
    return ipaddress.ip_address(host).is_loopback


def _new_id() -> str:
    return "i" + "".join(secrets.choice(ID_ALPHABET) for _ in range(19))


def _new_token() -> str:
    return secrets.token_hex(20)
