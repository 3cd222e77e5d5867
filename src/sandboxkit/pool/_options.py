"""Checks what callers pass to a pool and to `session()`, before anything is asked of anybody; pure."""

from __future__ import annotations

import shlex
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from sandboxkit._types import MAX_SECONDS, NetworkMode, NetworkPolicy, OnLoss, TimeoutPolicy
from sandboxkit.errors import ConfigurationError, UnsupportedOption
from sandboxkit.events import EventHandler, listener
from sandboxkit.pool._moves import Pairs, Spec
from sandboxkit.provider._base import CreateRequest

RESERVED = "sandboxkit."
"""Metadata keys that begin so are ours."""

MAX_KEY = 256
MAX_VARIABLE = 128 * 1024
"""Bytes of `NAME=value` and its end, by Linux's MAX_ARG_STRLEN."""
MAX_SHOWN = 80
"""Characters of a wrong value that a message repeats."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolOptions:
    """The arguments of a pool, checked. `id` is known to this pool alone; `name` is for people."""

    template: str
    max_live: int
    max_waiting: int | None
    acquire_timeout: float
    timeouts: TimeoutPolicy
    network: NetworkMode | NetworkPolicy
    on_event: EventHandler | None
    name: str
    id: uuid.UUID


def pool_options(
    *,
    template: str,
    min_warm: int,
    max_live: int,
    max_waiting: int | None,
    acquire_timeout: float,
    timeouts: TimeoutPolicy,
    network: NetworkMode | NetworkPolicy,
    on_loss: OnLoss,
    on_event: EventHandler | None,
    name: str | None,
) -> PoolOptions:
    """Check the arguments of a pool.

    Raises:
        ConfigurationError: an argument that cannot work; the message names it and its value.
        UnsupportedOption: one that is right, and not supported yet.
    """
    if on_loss not in get_args(OnLoss):
        raise ConfigurationError(f'on_loss={on_loss!r}: one of "fail", "recreate", "replay" is needed.')
    if on_loss != "fail":
        raise _unsupported("on_loss", on_loss, 'only "fail", which raises a typed error, is')
    if not isinstance(timeouts, TimeoutPolicy):
        raise ConfigurationError(f"timeouts={timeouts!r}: a TimeoutPolicy is needed.")
    if timeouts.renew == "heartbeat":
        raise _unsupported("timeouts.renew", "heartbeat", '"on_use" and "never" are')
    if timeouts.renew not in ("on_use", "never"):
        raise ConfigurationError(f'timeouts.renew={timeouts.renew!r}: one of "on_use", "heartbeat", "never" is needed.')
    if timeouts.max_lifetime is not None:
        raise _unsupported("timeouts.max_lifetime", timeouts.max_lifetime, "None is")
    if timeouts.at_end not in ("kill", "pause"):
        raise ConfigurationError(f'timeouts.at_end={timeouts.at_end!r}: "kill" or "pause" is needed.')
    if timeouts.at_end != "kill":
        raise _unsupported("timeouts.at_end", timeouts.at_end, '"kill" is')
    if network not in get_args(NetworkMode) and not isinstance(network, NetworkPolicy):
        raise ConfigurationError(f'network={network!r}: one of "deny", "packages", "internet" or a NetworkPolicy.')
    count("min_warm", min_warm, least=0)
    refuse_warm(min_warm)
    pool_id = uuid.uuid4()
    return PoolOptions(
        template=text("template", template),
        max_live=count("max_live", max_live, least=1),
        max_waiting=None if max_waiting is None else count("max_waiting", max_waiting, least=0),
        acquire_timeout=seconds("acquire_timeout", acquire_timeout),
        timeouts=timeouts,
        network=network,
        on_event=listener(on_event),
        name=f"pool-{pool_id.hex[:8]}" if name is None else text("name", name),
        id=pool_id,
    )


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
    options: PoolOptions, *, session: str | None, row: str, generation: int, spec: Spec
) -> CreateRequest:
    """Say what to ask of the provider for one slot; every sandbox is tagged, for audit and for whoever cleans up.

    `row` names the session in the store, which an anonymous one has a name in too.
    """
    tags = {
        f"{RESERVED}pool": options.name,
        f"{RESERVED}owner": options.id.hex,
        f"{RESERVED}session": session or "",
        f"{RESERVED}template": spec.template,
        f"{RESERVED}gen": str(generation),
    }
    return CreateRequest(
        template=spec.template,
        lifetime=options.timeouts.lifetime,
        idempotency_key=str(uuid.uuid5(options.id, f"{generation}:{row}")),
        metadata={**dict(spec.metadata or ()), **tags},
        envs=dict(spec.envs or ()),
        network=options.network,
        timeout=options.timeouts.create,
    )


def owned(metadata: Mapping[str, str]) -> dict[str, str]:
    """The tags of a request that no other request has."""
    return {name: metadata[name] for name in (f"{RESERVED}owner", f"{RESERVED}gen")}


# -- single values ------------------------------------------------------------------------------------------------


def seconds(name: str, value: Any) -> float:
    """Check a positive, finite number of seconds."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
        raise ConfigurationError(f"{name}={value!r}: a positive number of seconds is needed.")
    if value > MAX_SECONDS:
        raise ConfigurationError(f"{name}={value!r}: at most {MAX_SECONDS:.0f} seconds are possible.")
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


def refuse_warm(min_warm: int) -> None:
    """Refuse warm sandboxes, which are not supported yet."""
    if min_warm:
        raise _unsupported("min_warm", min_warm, "0 is; every sandbox is created when it is asked for")


def _unsupported(option: str, value: object, instead: str) -> UnsupportedOption:
    return UnsupportedOption(f"{option}={value!r} is not supported yet; {instead}.", option=option)


def pairs(name: str, mapping: Mapping[str, str] | None) -> Pairs | None:
    """Check a mapping of texts; the message never holds a value."""
    if mapping is None:
        return None
    if not isinstance(mapping, Mapping):
        raise ConfigurationError(f"{name}={type(mapping).__name__}: a mapping of texts is needed.")
    for key, value in mapping.items():
        if not isinstance(key, str) or not key or not _is_encodable(key) or (name == "envs" and "=" in key):
            raise ConfigurationError(f"{name}: {key!a} cannot be a name.")
        if not isinstance(value, str) or not _is_encodable(value):
            raise ConfigurationError(f"{name}: the value of {key!a} is no text that UTF-8 can encode.")
    return tuple(sorted(mapping.items()))


def environment(envs: Mapping[str, str] | None) -> Pairs | None:
    """Check environment variables that a program is to be started with; the message never holds a value."""
    checked = pairs("envs", envs)
    for key, value in checked or ():
        if (size := len(key.encode()) + len(value.encode()) + 2) > MAX_VARIABLE:
            raise ConfigurationError(
                f"envs: {key[:40]!a} has {size:,} bytes; Linux starts no program with a variable of more than "
                f"{MAX_VARIABLE:,}. Write what is large into a file of the sandbox (session.files.write)."
            )
    return checked


def _is_encodable(value: str) -> bool:
    return "\0" not in value and not any("\ud800" <= char <= "\udfff" for char in value)


def command_line(cmd: str | Sequence[str]) -> str:
    """The line for a shell that runs a command; a sequence of arguments is no shell's to interpret."""
    if isinstance(cmd, str):
        return cmd
    if not isinstance(cmd, Sequence) or not cmd or not all(isinstance(word, str) for word in cmd):
        raise ConfigurationError(f"cmd={cmd!r}: a text, or a sequence of texts that is not empty, is needed.")
    return shlex.join(cmd)
