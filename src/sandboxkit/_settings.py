"""The environment variables that sandboxkit reads, as one frozen value."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field

from sandboxkit.errors import ConfigurationError

ENV_FILE_LIMIT = 64 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What the environment says about where sandboxes come from. An empty variable counts as unset."""

    endpoint: str | None = None
    """SANDBOXKIT_ENDPOINT: auto, e2b, local, or the path of an environment file."""
    api_key: str | None = field(default=None, repr=False)
    """E2B_API_KEY"""
    api_url: str | None = None
    """E2B_API_URL"""
    sandbox_url: str | None = None
    """E2B_SANDBOX_URL"""
    domain: str | None = None
    """E2B_DOMAIN"""

    @classmethod
    def read(cls, environ: Mapping[str, str] | None = None) -> Settings:
        """Read the variables, of this process unless told otherwise."""
        values = os.environ if environ is None else environ
        return cls(
            endpoint=values.get("SANDBOXKIT_ENDPOINT") or None,
            api_key=values.get("E2B_API_KEY") or None,
            api_url=values.get("E2B_API_URL") or None,
            sandbox_url=values.get("E2B_SANDBOX_URL") or None,
            domain=values.get("E2B_DOMAIN") or None,
        )


def read_env_file(path: str) -> Settings:
    """Read a file of `NAME='value'` lines, as `sandboxkit serve --env-file` writes it.

    Raises:
        ConfigurationError: there is no such file, or it is not of this form.
    """
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read(ENV_FILE_LIMIT)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(
            f"SANDBOXKIT_ENDPOINT={path!r} is none of auto, e2b and local, and cannot be read as an environment file: "
            f"{error}"
        ) from error
    return Settings.read(parse_env_file(text, path))


def parse_env_file(text: str, path: str = "the environment file") -> dict[str, str]:
    """Take the lines apart: blank ones and comments aside, a name, `=`, and a value that may be quoted.

    Raises:
        ConfigurationError: a line is of another form; the message has its number and not its text, which may be a key.
    """
    values: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), 1):
        line = line.strip().removeprefix("export ").strip()
        if not line or line.startswith("#"):
            continue
        name, equals, value = line.partition("=")
        quoted = len(value) > 1 and value[0] == value[-1] and value[0] in "'\""
        if not equals or not name.isidentifier() or (not quoted and value[:1] in {"'", '"'}):
            raise ConfigurationError(f"Line {number} of {path} is not of the form NAME='value'.")
        values[name] = value[1:-1] if quoted else value
    return values
