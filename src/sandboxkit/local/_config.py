"""How one engine is set up: frozen values, checked once, and the way to hand them to another process."""

from __future__ import annotations

import dataclasses
import ipaddress
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from sandboxkit.errors import ConfigurationError

Internet = Literal["deny", "packages", "internet"]
IsolationName = Literal["auto", "bwrap", "gvisor"]
LogLevel = Literal["debug", "info", "warning", "error"]

DAY = 86_400
ENGINE_UID = 90217
"""The user that root's engine becomes: above Debian's and systemd's ranges, below shadow's subordinate uids."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """What an engine is started with. Times are seconds.

    Attributes:
        host: address to listen on; loopback unless said otherwise.
        port: port to listen on; 0 takes a free one.
        env_file: where to write the variables for E2B's SDKs once the engine answers; None writes nothing.
        isolation: what makes the boxes; `auto` is bubblewrap. `gvisor` needs runsc, on the PATH or named by
            SANDBOXKIT_RUNSC.
        zygote: fork agents and interpreters from one loaded process for each template, where that works; otherwise,
            and where it does not, each is started by exec.
        internet: what a sandbox may reach when its creator does not say.
        internet_ceiling: the most that a creator may ask for; None means what `internet` says, and no more.
        state_root: directory for what engines keep while they run; None means `run` beneath `cache_home()`.
        max_sandboxes: sandboxes at once, those being made and being killed included; 429 past that.
        max_memory: bytes that all sandboxes together may be promised, the sum of their memory limits; a create that
            would pass it is a 429. None bounds only their number.
        max_creating: sandboxes made at the same time; further ones wait for their turn.
        default_timeout: the life of a sandbox whose creator names none.
        max_timeout: the longest life that may be asked for; 400 past that.
        create_timeout: the longest that making one sandbox may take, its wait for a turn included; 503 past that.
        warm: boxes of each template in use that are kept ready, with their interpreter, for the next sandboxes; fewer
            where memory is short, 0 for none.
        warm_from_start: keep them of the engine's own templates from the start on, and not from their first use on.
        shutdown_timeout: the longest that an orderly end may take; the process ends then in any case, and the next
            engine removes what was left.
        keep: paused sandboxes and snapshots outlive the engine, and the next one with this `state_root` has them; one
            engine at a time. Else snapshots end with the engine, and so do paused sandboxes.
        keep_bytes: what all kept files together may take on disk.
        volume_bytes: what one volume may take on disk; sandboxes that fill one are ended. Volumes outlive the engine as
            paused sandboxes do.
        keep_for: how long after its pause a sandbox is given back at an engine's start.
        strict: refuse what would lose a sandbox's memory where nobody has said that its files are enough.
        log_level: the least level that is written to standard error.
    """

    host: str = "127.0.0.1"
    port: int = 0
    env_file: str | None = None
    isolation: IsolationName = "auto"
    zygote: bool = True
    internet: Internet = "deny"
    internet_ceiling: Internet | None = None
    state_root: str | None = None
    max_sandboxes: int = 200
    max_memory: int | None = None
    max_creating: int = 4
    default_timeout: int = 300
    max_timeout: int = DAY
    create_timeout: float = 50.0
    warm: int = 2
    warm_from_start: bool = False
    shutdown_timeout: float = 10.0
    keep: bool = False
    keep_bytes: int = 10 * 1024 * 1024 * 1024
    keep_for: float = 30.0 * DAY
    volume_bytes: int = 10 * 1024 * 1024 * 1024
    strict: bool = False
    log_level: LogLevel = "info"

    def __post_init__(self) -> None:
        try:
            ipaddress.ip_address(self.host)
        except ValueError:
            raise ConfigurationError(
                f"The engine listens on an IP address, and {self.host!r} is none; use 127.0.0.1 or ::1."
            ) from None
        if not 0 <= self.port <= 65_535:
            raise ConfigurationError(f"Port {self.port} is not between 0 and 65535.")
        for name, kind in (("isolation", IsolationName), ("internet", Internet), ("log_level", LogLevel)):
            if getattr(self, name) not in get_args(kind):
                raise ConfigurationError(
                    f"{name}={getattr(self, name)!r}: one of {', '.join(get_args(kind))} is needed."
                )
        for name in ("max_sandboxes", "max_creating", "default_timeout", "max_timeout", "create_timeout"):
            if getattr(self, name) <= 0:
                raise ConfigurationError(f"{name}={getattr(self, name)!r}: a positive number is needed.")
        if self.max_memory is not None and self.max_memory <= 0:
            raise ConfigurationError(f"max_memory={self.max_memory!r}: a positive number of bytes is needed.")
        if not 0 <= self.warm <= self.max_sandboxes:
            raise ConfigurationError(
                f"warm={self.warm!r}: a number from 0 to max_sandboxes={self.max_sandboxes} is needed."
            )
        for name in ("keep_bytes", "keep_for", "volume_bytes"):
            if getattr(self, name) <= 0:
                raise ConfigurationError(f"{name}={getattr(self, name)!r}: a positive number is needed.")
        if self.shutdown_timeout <= 0:
            raise ConfigurationError(f"shutdown_timeout={self.shutdown_timeout!r}: a positive number is needed.")
        order = get_args(Internet)
        if self.internet_ceiling is not None and self.internet_ceiling not in order:
            raise ConfigurationError(
                f"internet_ceiling={self.internet_ceiling!r}: one of {', '.join(order)} is needed."
            )
        if order.index(self.ceiling) < order.index(self.internet):
            raise ConfigurationError(
                f"internet={self.internet!r} is more than internet_ceiling={self.internet_ceiling!r} allows."
            )

    @property
    def ceiling(self) -> Internet:
        """The most that a sandbox may be allowed to reach."""
        return self.internet if self.internet_ceiling is None else self.internet_ceiling

    def to_json(self) -> str:
        """Write it as one line of JSON; holds no secret."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> EngineConfig:
        """Read what `to_json` wrote.

        Raises:
            ConfigurationError: not JSON, an unknown name, or a value of the wrong type or out of range.
        """
        try:
            values = json.loads(text)
            return cls(**values)
        except (TypeError, json.JSONDecodeError) as error:
            raise ConfigurationError(f"The engine's configuration is malformed: {error}.") from error


def cache_home(environment: Mapping[str, str] = os.environ) -> Path:
    """Return the directory of everything that we keep: `$SANDBOXKIT_HOME`, else `$XDG_CACHE_HOME/sandboxkit`, else
    `~/.cache/sandboxkit`."""
    if own := environment.get("SANDBOXKIT_HOME"):
        return Path(own).expanduser().absolute()
    # The XDG specification: a relative path there is to be ignored.
    base = environment.get("XDG_CACHE_HOME", "")
    try:
        return (Path(base) if base.startswith("/") else Path("~/.cache").expanduser()) / "sandboxkit"
    except RuntimeError as error:
        raise ConfigurationError(
            "There is no home directory to keep the cache in: set SANDBOXKIT_HOME to a directory."
        ) from error


def state_root(config: EngineConfig) -> Path:
    """Return the directory beneath which each engine keeps its own while it runs."""
    return Path(config.state_root) if config.state_root else cache_home() / "run"


def strict_where_told(config: EngineConfig, environment: Mapping[str, str] = os.environ) -> EngineConfig:
    """Return the same values, strict where SANDBOXKIT_STRICT is 1. ConfigurationError where it is neither 0 nor 1."""
    told = environment.get("SANDBOXKIT_STRICT", "")
    if told not in ("", "0", "1"):
        raise ConfigurationError(f"SANDBOXKIT_STRICT={told!r}: 0 or 1 is needed.")
    return dataclasses.replace(config, strict=True) if told == "1" else config


def engine_uid() -> int:
    """The user that an engine started by this process runs as: this one, or the reserved one where this is root.

    Raises:
        ConfigurationError: SANDBOXKIT_UID is not a uid.
    """
    if os.geteuid() != 0:
        return os.geteuid()
    text = os.environ.get("SANDBOXKIT_UID", "")
    if not text:
        return ENGINE_UID
    if not text.isascii() or not text.isdigit() or not 0 < int(text) < 2**32 - 1:
        raise ConfigurationError(f"SANDBOXKIT_UID={text!r}: the number of an unprivileged user is needed.")
    return int(text)
