"""Which endpoint is meant: E2B, the local engine, or one that was given."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from sandboxkit._settings import Settings, read_env_file
from sandboxkit._types import Endpoint, EndpointName
from sandboxkit.errors import ConfigurationError, MissingApiKey

if TYPE_CHECKING:
    from sandboxkit.provider._base import Provider

_logger = logging.getLogger("sandboxkit.endpoint")


@dataclass(frozen=True, slots=True)
class Choice:
    """What was chosen. `endpoint` is None for the local engine, which has none until it runs."""

    kind: Literal["e2b", "local", "given"]
    endpoint: Endpoint | None = None
    fell_back: bool = False
    """Whether the local engine was nobody's choice: no key is set."""


def choose(endpoint: EndpointName | Endpoint, settings: Settings) -> Choice:
    """Decide by what the caller said and, where that is "auto", by the environment. Asks nobody.

    Raises:
        MissingApiKey: E2B was asked for by name, and no key is set.
        ConfigurationError: there is no such endpoint, or its environment file cannot be used.
    """
    if isinstance(endpoint, Endpoint):
        return Choice("given", endpoint)
    if endpoint not in ("auto", "e2b", "local"):
        raise ConfigurationError(f'endpoint={endpoint!r}: one of "auto", "e2b", "local", or an Endpoint(...).')
    if endpoint == "local":
        return Choice("local")
    if endpoint == "auto" and settings.endpoint not in (None, "auto"):
        if settings.endpoint == "local":
            return Choice("local")
        if settings.endpoint != "e2b":
            return _from_file(str(settings.endpoint))
        endpoint = "e2b"
    if settings.api_key is not None:
        return Choice("e2b", _endpoint_of(settings, settings.api_key))
    if endpoint == "e2b":
        raise MissingApiKey(
            "E2B was asked for, but E2B_API_KEY is not set. Get a key at https://e2b.dev/dashboard, or use "
            'endpoint="local", which needs none.'
        )
    return Choice("local", fell_back=True)


def _from_file(path: str) -> Choice:
    settings = read_env_file(path)
    if settings.api_key is None:
        raise MissingApiKey(f"{path} (SANDBOXKIT_ENDPOINT) has no E2B_API_KEY.")
    return Choice("given", _endpoint_of(settings, settings.api_key))


def _endpoint_of(settings: Settings, api_key: str) -> Endpoint:
    return Endpoint(api_key, settings.api_url, settings.sandbox_url, settings.domain)


def open_provider(endpoint: EndpointName | Endpoint | Provider = "auto") -> Provider:
    """Make the provider for an endpoint. Makes no request: the local engine, too, is started by the first create.

    A provider of somebody's own, the fake of the tests for instance, is returned as it is.

    Raises:
        MissingApiKey: E2B was asked for by name, and no key is set.
        ConfigurationError: there is no such endpoint, or its environment file cannot be used.
    """
    if not isinstance(endpoint, str | Endpoint):
        if all(
            callable(getattr(endpoint, verb, None)) for verb in ("create", "connect", "list", "info", "kill", "aclose")
        ):
            return endpoint
        raise ConfigurationError(
            f'endpoint={endpoint!r}: one of "auto", "e2b", "local", an Endpoint(...), or a provider.'
        )
    choice = choose(endpoint, Settings.read())
    from sandboxkit.provider._e2b import E2BProvider  # late: it imports the SDK

    if choice.fell_back:
        _logger.warning(
            "E2B_API_KEY is not set: sandboxes come from the local engine on this machine "
            '(endpoint="local" says so without this warning).'
        )
    return E2BProvider(choice.endpoint, choice.kind)
