"""Checks what callers pass to a pool and to `session()`, before anything is asked of anybody; pure."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, get_args

from sandboxkit._confine import confine
from sandboxkit._types import DEFAULT_ROOT, MAX_SECONDS, NetworkMode, NetworkPolicy, OnLoss, TimeoutPolicy
from sandboxkit.errors import ConfigurationError
from sandboxkit.events import EventHandler, listener
from sandboxkit.pool._lifetime import warm_margin
from sandboxkit.pool._moves import Limits, Pairings, Pairs, Spec
from sandboxkit.pool._tags import GENERATION, OWNER, POOL, POOL_ID, PROCESS, RESERVED, SESSION, TEMPLATE
from sandboxkit.provider._base import CreateRequest

MAX_KEY = 256
MAX_VARIABLE = 128 * 1024
"""Bytes of `NAME=value` and its end, by Linux's MAX_ARG_STRLEN."""
MAX_SHOWN = 80
"""Characters of a wrong value that a message repeats."""


GiveUpHandler = Callable[[Exception], object]
"""Is told why a pool has stopped making warm sandboxes; a plain function."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolOptions:
    """The arguments of a pool, checked. `id` is known to this pool alone; `name` is for people."""

    template: str
    limits: Limits
    acquire_timeout: float
    timeouts: TimeoutPolicy
    network: NetworkMode | NetworkPolicy
    on_loss: OnLoss = "fail"
    on_event: EventHandler | None = None
    on_give_up: GiveUpHandler | None = None
    reaps: bool = False
    owner: str
    name: str
    id: uuid.UUID


def pool_options(
    *,
    template: str,
    min_warm: int | Mapping[str, int],
    max_live: int,
    max_per_template: Mapping[str, int] | None,
    max_waiting: int | None,
    max_creating: int | None,
    create_rate: float | None,
    max_uses: int | None,
    idle_timeout: float | None,
    acquire_timeout: float,
    timeouts: TimeoutPolicy,
    network: NetworkMode | NetworkPolicy,
    on_loss: OnLoss,
    on_event: EventHandler | None,
    on_give_up: GiveUpHandler | None,
    give_up_after: float,
    reap: bool,
    owner: str | None,
    name: str | None,
    keeps_idle: bool,
) -> PoolOptions:
    """Check the arguments of a pool.

    Raises:
        ConfigurationError: an argument that cannot work; the message names it and its value.
    """
    if on_loss not in get_args(OnLoss):
        raise ConfigurationError(f'on_loss={on_loss!r}: one of "fail", "recreate", "replay" is needed.')
    if not isinstance(timeouts, TimeoutPolicy):
        raise ConfigurationError(f"timeouts={timeouts!r}: a TimeoutPolicy is needed.")
    if network not in get_args(NetworkMode) and not isinstance(network, NetworkPolicy):
        raise ConfigurationError(f'network={network!r}: one of "deny", "packages", "internet" or a NetworkPolicy.')
    if not isinstance(reap, bool):
        raise ConfigurationError(f"reap={reap!r}: True or False is needed.")
    text("template", template)
    count("max_live", max_live, least=1)
    warm = warm_targets(min_warm, template=template, max_live=max_live, max_per_template=max_per_template)
    if warm and not keeps_idle:
        raise ConfigurationError(f"min_warm={min_warm!r}: a null pool keeps nothing; use SandboxPool.")
    pool_id = uuid.uuid4()
    return PoolOptions(
        template=template,
        limits=Limits(
            max_live=max_live,
            max_waiting=None if max_waiting is None else count("max_waiting", max_waiting, least=0),
            max_per_template=numbers("max_per_template", max_per_template or {}, least=1),
            min_warm=warm,
            max_creating=None if max_creating is None else count("max_creating", max_creating, least=1),
            create_rate=None if create_rate is None else seconds("create_rate", create_rate, unit="creates a second"),
            idle_timeout=None if idle_timeout is None else seconds("idle_timeout", idle_timeout),
            max_uses=None if max_uses is None else count("max_uses", max_uses, least=1),
            floor=timeouts.floor,
            warm_reserve=(timeouts.max_lifetime or 0.0) / 2,
            renew_margin=warm_margin(timeouts),
            keeps_idle=keeps_idle,
            pauses=timeouts.at_end == "pause",
            give_up_after=seconds("give_up_after", give_up_after),
        ),
        acquire_timeout=seconds("acquire_timeout", acquire_timeout),
        timeouts=timeouts,
        network=network,
        on_loss=on_loss,
        on_event=listener(on_event),
        on_give_up=listener(on_give_up, name="on_give_up"),
        reaps=reap,
        owner=pool_id.hex if owner is None else text("owner", owner),
        name=f"pool-{pool_id.hex[:8]}" if name is None else text("name", name),
        id=pool_id,
    )


def numbers(name: str, value: Any, *, least: int) -> Pairings:
    """Check a mapping from templates to whole numbers."""
    if not isinstance(value, Mapping):
        raise ConfigurationError(f"{name}={shortened(value)}: a mapping from template ids to whole numbers is needed.")
    return tuple((text(f"a template of {name}", key), count(name, item, least=least)) for key, item in value.items())


def warm_targets(
    min_warm: Any, *, template: str, max_live: int, max_per_template: Mapping[str, int] | None = None
) -> Pairings:
    """Check how many warm sandboxes are wanted: a number is the pool's own template's.

    Raises:
        ConfigurationError: not a number, or more than there may be.
    """
    if isinstance(min_warm, Mapping):
        wanted = numbers("min_warm", min_warm, least=0)
    else:
        wanted = ((template, count("min_warm", min_warm, least=0)),)
    if sum(number for _, number in wanted) > max_live:
        raise ConfigurationError(f"min_warm={min_warm!r} is more than max_live={max_live}.")
    for name, number in wanted:
        if number > (max_per_template or {}).get(name, number):
            raise ConfigurationError(f"min_warm={min_warm!r} is more than max_per_template allows for {name!r}.")
    return tuple((name, number) for name, number in wanted if number)


def session_files(files: Mapping[str, str | bytes] | None) -> dict[str, bytes]:
    """Check the files that a session is to start with: their contents by absolute path.

    Raises:
        ConfigurationError: no mapping, or a content that is neither text nor bytes; the message never holds it.
        PathError: a path leads out of /home/user, or is none.
    """
    if files is None:
        return {}
    if not isinstance(files, Mapping):
        raise ConfigurationError(f"files={type(files).__name__}: a mapping from paths to contents is needed.")
    checked: dict[str, bytes] = {}
    for path, data in files.items():
        if not isinstance(data, str | bytes):
            raise ConfigurationError(f"files: the content of {path!a} is {type(data).__name__}; text or bytes.")
        target = confine(path)
        if target == DEFAULT_ROOT:
            raise ConfigurationError(f"files: {path!a} is the home directory itself.")
        checked[target] = code_text(f"files: the content of {path!a}", data).encode() if isinstance(data, str) else data
    return checked


def session_spec(
    *, template: str | None, metadata: Mapping[str, str] | None, envs: Mapping[str, str] | None, default_template: str
) -> Spec:
    """Check what a caller asks a session's sandbox to be.

    Raises:
        ConfigurationError: an argument that cannot work; the message names it, never an environment's value.
    """
    checked = pairs("metadata", metadata)
    reserved = [key for key, _ in checked or () if key.startswith(RESERVED)]
    if reserved:
        raise ConfigurationError(f"metadata key {reserved[0]!r}: keys that begin with {RESERVED!r} are the pool's own.")
    return Spec(
        template=default_template if template is None else text("template", template),
        envs=environment(envs),
        metadata=checked,
    )


def session_key(key: str | None) -> str | None:
    """Check a session's key.

    Raises:
        ConfigurationError: it is neither None nor a text of 1 to 256 characters that UTF-8 can encode.
    """
    if key is None:
        return None
    if isinstance(key, str) and len(key) > MAX_KEY:
        raise ConfigurationError(f"key={key[:40]!r}... has {len(key)} characters; at most {MAX_KEY} are possible.")
    return text("key", key)


def create_request(
    options: PoolOptions, *, session: str | None, row: str, generation: int, spec: Spec, process: str
) -> CreateRequest:
    """Say what to ask of the provider for one slot; every sandbox is tagged, for audit and for whoever cleans up.

    `row` names the session in the store, which an anonymous one has a name in too.
    """
    tags = {
        POOL: options.name,
        POOL_ID: options.id.hex,
        OWNER: options.owner,
        SESSION: session or "",
        TEMPLATE: spec.template,
        GENERATION: str(generation),
        PROCESS: process,
    }
    return CreateRequest(
        template=spec.template,
        lifetime=options.timeouts.lifetime,
        idempotency_key=str(uuid.uuid5(options.id, f"{generation}:{row}")),
        metadata={**dict(spec.metadata or ()), **tags},
        envs=dict(spec.envs or ()),
        network=options.network,
        timeout=options.timeouts.create,
        at_end=options.timeouts.at_end,
    )


# -- single values ------------------------------------------------------------------------------------------------


def seconds(name: str, value: Any, *, unit: str = "seconds") -> float:
    """Check a positive, finite number of seconds, or of something else."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
        raise ConfigurationError(f"{name}={value!r}: a positive number of {unit} is needed.")
    if value > MAX_SECONDS:
        raise ConfigurationError(f"{name}={value!r}: at most {MAX_SECONDS:.0f} are possible.")
    return float(value)


def count(name: str, value: Any, *, least: int) -> int:
    """Check a whole number that is not too small."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigurationError(f"{name}={value!r}: a whole number of at least {least} is needed.")
    return value


def a_port(value: Any) -> int:
    """Check a port."""
    if count("port", value, least=1) > 65535:
        raise ConfigurationError(f"port={value!r}: at most 65535 is possible.")
    return int(value)


def text(name: str, value: Any) -> str:
    """Check a text that is not empty and that UTF-8 can encode."""
    if not isinstance(value, str) or not value:
        raise ConfigurationError(f"{name}={value!r}: a text that is not empty is needed.")
    if not _is_encodable(value):
        raise ConfigurationError(f"{name}={value!a}: it has characters that UTF-8 cannot encode, or a NUL.")
    return value


def code_text(name: str, value: Any) -> str:
    """Check a text, which may be empty, that UTF-8 can encode. The message never holds it."""
    if not isinstance(value, str):
        raise ConfigurationError(f"{name} is {type(value).__name__}; a text is needed.")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ConfigurationError(
            f"{name}: the character at position {error.start} is half of a pair (U+{ord(value[error.start]):04X}), "
            "which UTF-8 cannot encode."
        ) from None
    return value


def callback(name: str, value: Any) -> None:
    """Check what is to be called with output or results."""
    if value is not None and not callable(value):
        raise ConfigurationError(f"{name}={shortened(value)}: a function is needed, or None.")


def shortened(value: object) -> str:
    """A value as messages show it, however long it is."""
    shown = repr(value)
    return shown if len(shown) <= MAX_SHOWN else f"{shown[:MAX_SHOWN]}... ({len(shown)} characters)"


def pairs(name: str, mapping: Mapping[str, str] | None) -> Pairs | None:
    """Check a mapping of texts; the message never holds a value."""
    if mapping is None:
        return None
    if not isinstance(mapping, Mapping):
        raise ConfigurationError(f"{name}={type(mapping).__name__}: a mapping of texts is needed.")
    for key, value in mapping.items():
        if not isinstance(key, str) or not key or not _is_encodable(key) or (name != "metadata" and "=" in key):
            raise ConfigurationError(f"{name}: {key!a} cannot be a name.")
        if not isinstance(value, str) or not _is_encodable(value):
            raise ConfigurationError(f"{name}: the value of {key!a} is no text that UTF-8 can encode.")
    return tuple(sorted(mapping.items()))


def environment(envs: Mapping[str, str] | None, *, name: str = "envs") -> Pairs | None:
    """Check environment variables that a program is to be started with; the message never holds a value."""
    checked = pairs(name, envs)
    for key, value in checked or ():
        if (size := len(key.encode()) + len(value.encode()) + 2) > MAX_VARIABLE:
            raise ConfigurationError(
                f"{name}: {key[:40]!a} has {size:,} bytes; Linux starts no program with a variable of more than "
                f"{MAX_VARIABLE:,}. Write what is large into a file of the sandbox (session.files.write)."
            )
    return checked


def _is_encodable(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return "\0" not in value
