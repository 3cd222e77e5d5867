"""Reads which indexes pip, uv and npm are configured for: from their variables and files, in their own order."""

from __future__ import annotations

import configparser
import os
import re
import sys
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

LARGEST_FILE = 1024 * 1024
CA_VARIABLES = ("PIP_CERT", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "NODE_EXTRA_CA_CERTS")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What is configured. An index of None is not configured: the tool then has a default of its own."""

    python: str | None = None
    python_extra: tuple[str, ...] = ()
    npm: str | None = None
    npm_scopes: tuple[tuple[str, str], ...] = ()
    """(scope with its @, registry)"""
    trusted_hosts: tuple[str, ...] = ()
    """Hosts whose certificates pip is told not to check."""
    certificates: tuple[tuple[str, str], ...] = ()
    """(variable, path of a file of CA certificates) as the tools are told here."""
    has_python: bool = True
    """False where pip is told to use no index."""
    left_out: tuple[str, ...] = ()
    """What sandboxes cannot use, and why; without anything secret."""


def read_settings(
    environ: Mapping[str, str] | None = None, *, home: Path | None = None, root: Path = Path("/")
) -> Settings:
    """Read the settings of the user who runs this process. A few small files; what cannot be read counts as empty."""
    variables = os.environ if environ is None else environ
    place = Path(variables.get("HOME", "/nonexistent")) if home is None else home
    left_out: list[str] = []
    pip = _pip(variables, place, root, left_out)
    uv = _uv(variables, place, root, left_out)
    npm = _npm(variables, place, root)
    usable = _Usable(left_out)
    python_urls = [*_words(pip.get("index-url")), *uv[0]][:1]
    extra = [*_words(pip.get("extra-index-url")), *uv[1]]
    # Where uv has a default of its own besides pip's, it is one more index.
    extra += [url for url in uv[0] if python_urls and url != python_urls[0]]
    certificates = {name: variables[name] for name in CA_VARIABLES if variables.get(name)}
    if pip.get("cert"):
        certificates["PIP_CERT"] = pip["cert"]
    if npm.get("cafile") and npm["cafile"] != "null":
        certificates["npm_config_cafile"] = npm["cafile"]
    python = next(usable(python_urls), None)
    return Settings(
        python=python,
        python_extra=tuple(url for url in dict.fromkeys(usable(extra)) if url != python),
        npm=next(usable(_words(npm.get("registry"))), None),
        npm_scopes=tuple(
            (name.removesuffix(":registry"), url)
            for name, value in sorted(npm.items())
            if name.startswith("@") and name.endswith(":registry")
            for url in usable([value])
        ),
        trusted_hosts=tuple(_words(pip.get("trusted-host"))),
        certificates=tuple(sorted(certificates.items())),
        # Configured, but of no use inside, is not the same as not configured: a default must not step in.
        has_python=not _is_true(pip.get("no-index", "")) and bool(python or not python_urls),
        left_out=tuple(dict.fromkeys(left_out)),
    )


class _Usable:
    """Passes on the URLs that a sandbox can be given, and notes the others."""

    def __init__(self, left_out: list[str]) -> None:
        self._left_out = left_out

    def __call__(self, urls: Sequence[str]) -> Iterator[str]:
        for url in urls:
            try:
                parts = urlsplit(url)
                host, _port = parts.hostname, parts.port
            except ValueError:
                self._left_out.append("an index whose URL is malformed")
                continue
            if parts.scheme not in ("http", "https") or not host:
                self._left_out.append(f"an index that is no web address ({parts.scheme or 'a path'}:)")
            elif parts.username is not None or parts.password is not None or "${" in url:
                self._left_out.append(f"the index at {host}: its URL holds credentials, which no sandbox may see")
            elif host == "localhost" or host.startswith("127.") or host == "::1":
                self._left_out.append(f"the index at {host}: sandboxes cannot reach this machine's loopback")
            else:
                yield url


def _words(value: str | None) -> list[str]:
    return (value or "").split()


def _is_true(value: str) -> bool:
    return value.strip().lower() in ("1", "true", "yes", "on", "y", "t")


def _text(path: Path) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read(LARGEST_FILE)
    except OSError:
        return ""


# -- pip ----------------------------------------------------------------------------------------------------------


def _pip(variables: Mapping[str, str], home: Path, root: Path, left_out: list[str]) -> dict[str, str]:
    """pip's options by name, as `pip install` would see them."""
    found: dict[str, str] = {}
    for path in _pip_files(variables, home, root):
        parser = configparser.RawConfigParser()
        try:
            parser.read_string(_text(path))
        except configparser.Error:
            left_out.append("a configuration file of pip's that cannot be read")
            continue
        for section in ("global", "install"):
            if parser.has_section(section):
                found |= {name.replace("_", "-"): value for name, value in parser.items(section)}
    found |= {
        name[4:].lower().replace("_", "-"): value
        for name, value in variables.items()
        if name.startswith("PIP_") and value
    }
    return found


def _pip_files(variables: Mapping[str, str], home: Path, root: Path) -> Iterator[Path]:
    """In pip's order: machine, user, environment, PIP_CONFIG_FILE; a later one wins."""
    given = variables.get("PIP_CONFIG_FILE")
    if given == os.devnull:
        return
    for place in (variables.get("XDG_CONFIG_DIRS") or str(root / "etc/xdg")).split(":"):
        yield Path(place, "pip/pip.conf")
    yield root / "etc/pip.conf"
    if not given:
        yield home / ".pip/pip.conf"
        yield Path(variables.get("XDG_CONFIG_HOME") or home / ".config") / "pip/pip.conf"
        yield home / "Library/Application Support/pip/pip.conf"
        if variables.get("APPDATA"):
            yield Path(variables["APPDATA"], "pip/pip.ini")
    yield Path(sys.prefix, "pip.conf")
    if given:
        yield Path(given)


# -- uv -----------------------------------------------------------------------------------------------------------


def _uv(variables: Mapping[str, str], home: Path, root: Path, left_out: list[str]) -> tuple[list[str], list[str]]:
    """uv's default index (none or one), and its further ones."""
    default, extra = [], []
    for path in _uv_files(variables, home, root):
        try:
            values = tomllib.loads(_text(path))
        except tomllib.TOMLDecodeError:
            left_out.append("a configuration file of uv's that cannot be read")
            continue
        tables = [table for table in _list(values.get("index")) if isinstance(table, dict)]
        extra += [str(table.get("url")) for table in tables if table.get("url") and not table.get("default")]
        default += [str(table.get("url")) for table in tables if table.get("url") and table.get("default")]
        for part in (values, values.get("pip")):
            if isinstance(part, dict):
                extra += [str(url) for url in _list(part.get("extra-index-url"))]
                default += [str(part["index-url"])] if part.get("index-url") else []
    extra += [re.sub(r"^[\w.-]+=", "", word) for word in _words(variables.get("UV_INDEX"))]
    extra += _words(variables.get("UV_EXTRA_INDEX_URL"))
    said = variables.get("UV_DEFAULT_INDEX") or variables.get("UV_INDEX_URL")
    return ([re.sub(r"^[\w.-]+=", "", said)] if said else default[:1]), extra


def _uv_files(variables: Mapping[str, str], home: Path, root: Path) -> Iterator[Path]:
    if variables.get("UV_NO_CONFIG"):
        return
    if variables.get("UV_CONFIG_FILE"):
        yield Path(variables["UV_CONFIG_FILE"])
        return
    yield Path(variables.get("XDG_CONFIG_HOME") or home / ".config") / "uv/uv.toml"
    for place in (variables.get("XDG_CONFIG_DIRS") or str(root / "etc/xdg")).split(":"):
        yield Path(place, "uv/uv.toml")
    yield root / "etc/uv/uv.toml"


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


# -- npm ----------------------------------------------------------------------------------------------------------


def _npm(variables: Mapping[str, str], home: Path, root: Path) -> dict[str, str]:
    """npm's options by name: the machine's file, the user's, variables."""
    own = {name.lower(): value for name, value in variables.items() if name.lower().startswith("npm_config_")}
    expand: Callable[[re.Match[str]], str] = lambda match: variables.get(match[1], match[0])  # noqa: E731
    files = [root / place for place in ("usr/etc/npmrc", "usr/local/etc/npmrc", "etc/npmrc")]
    if own.get("npm_config_globalconfig"):
        files = [Path(own["npm_config_globalconfig"])]
    files.append(Path(own.get("npm_config_userconfig") or home / ".npmrc"))
    found: dict[str, str] = {}
    for path in files:
        for line in _text(path).splitlines():
            name, equals, value = line.strip().partition("=")
            if equals and not name.startswith(("#", ";", "[")):
                found[name.strip()] = re.sub(r"\$\{([^}]+)\}", expand, value.strip().strip("\"'"))
    # `npm_config_//host/:_authToken` and its kind are no business of ours.
    return found | {name[11:].replace("_", "-"): value for name, value in own.items() if value}
