"""Asks the tools for the index that they use by default, and each index for the hosts that its files lie on.

Everything blocks; callers use a thread. Answers are the indexes' own, and bounded: they name hosts, nothing else.
"""

from __future__ import annotations

import dataclasses
import html.parser
import importlib.util
import json
import os
import re
import shutil
import ssl
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Any
from urllib.parse import quote, urljoin, urlsplit

from sandboxkit.local.indexes._settings import Settings

TOOL_WITHIN = 20.0
ANSWER_WITHIN = 10.0
LARGEST_ANSWER = 8 * 1024 * 1024
PIECE_OF_A_LIST = 256 * 1024
MOST_HOSTS = 20
SIMPLE = "application/vnd.pypi.simple.v1+json, application/vnd.pypi.simple.v1+html;q=0.2, text/html;q=0.1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Indexes:
    """The indexes, ready to be used from a sandbox."""

    python: str | None = None
    python_extra: tuple[str, ...] = ()
    npm: str | None = None
    npm_scopes: tuple[tuple[str, str], ...] = ()
    trusted_hosts: tuple[str, ...] = ()
    endpoints: frozenset[tuple[str, int]] = frozenset()
    """(host, port) of the indexes, and of where their files lie."""
    left_out: tuple[str, ...] = ()
    is_whole: bool = True
    """False where an index did not answer, so that the hosts of its files are not known."""

    def hosts(self) -> list[str]:
        """The hosts, in order."""
        return sorted({host for host, _port in self.endpoints})

    def variables(self) -> dict[str, str]:
        """What makes pip, uv and npm in a sandbox use these indexes."""
        found: dict[str, str] = {}
        if self.python is not None:
            found |= {"PIP_INDEX_URL": self.python, "UV_DEFAULT_INDEX": self.python}
        if self.python_extra:
            extra = " ".join(self.python_extra)
            found |= {"PIP_EXTRA_INDEX_URL": extra, "UV_INDEX": extra}
        if self.trusted_hosts:
            hosts = " ".join(self.trusted_hosts)
            found |= {"PIP_TRUSTED_HOST": hosts, "UV_INSECURE_HOST": hosts}
        if self.npm is not None:
            found["npm_config_registry"] = self.npm
        for scope, registry in self.npm_scopes:
            found[f"npm_config_{scope}:registry"] = registry
        return found


def with_defaults(settings: Settings) -> Settings:
    """Fill in the indexes that the tools use where nothing is configured: their own help says. Half a second."""
    return dataclasses.replace(
        settings,
        python=settings.python or (default_python_index() if settings.has_python else None),
        npm=settings.npm or default_npm_registry(),
    )


def learn(settings: Settings) -> Indexes:
    """Ask the indexes of settings that have their defaults filled in where their files lie. Takes less than a second
    where they answer, and at most half a minute or so."""
    python, npm = settings.python, settings.npm
    fetch = _Fetch(settings)
    endpoints: set[tuple[str, int]] = set()
    left_out = list(settings.left_out)
    whole = True
    asked: list[tuple[str, Callable[[_Fetch, str], None]]] = [
        *((url, _ask_python_index) for url in (python, *settings.python_extra) if url),
        *((url, _ask_npm_registry) for url in (npm, *(url for _, url in settings.npm_scopes)) if url),
    ]
    for url, ask in asked:
        endpoints |= _endpoint(url)
        fetch.seen.clear()
        try:
            ask(fetch, url)
        except (OSError, ValueError) as error:
            whole = False
            left_out.append(f"where the files of {urlsplit(url).hostname} lie: it did not answer ({_said(error)})")
        for found in list(dict.fromkeys(fetch.seen))[:MOST_HOSTS]:
            endpoints |= _endpoint(found)
    return Indexes(
        python=python,
        python_extra=settings.python_extra,
        npm=npm,
        npm_scopes=settings.npm_scopes,
        trusted_hosts=settings.trusted_hosts,
        endpoints=frozenset(endpoints),
        left_out=tuple(left_out),
        is_whole=whole,
    )


def _endpoint(url: str) -> set[tuple[str, int]]:
    """The host and port of a web address; nothing for what is none, or holds credentials."""
    try:
        parts = urlsplit(url)
        if parts.scheme in ("http", "https") and parts.hostname and parts.username is None:
            return {(parts.hostname.removesuffix("."), parts.port or {"http": 80, "https": 443}[parts.scheme])}
    except ValueError:
        pass
    return set()


def _said(error: Exception) -> str:
    reason = error.reason if isinstance(error, urllib.error.URLError) else error
    return str(reason)[:120] or type(error).__name__


# -- defaults -----------------------------------------------------------------------------------------------------


def default_python_index() -> str | None:
    """The index that pip, else uv, uses where nothing is configured, as its own help says."""
    asked: list[tuple[list[str], str]] = []
    for python in dict.fromkeys((sys.executable, getattr(sys, "_base_executable", None) or sys.executable)):
        asked.append(([python, "-I", "-m", "pip", "install", "--help"], r"--index-url.*?\(default\s+(\S+?)\)"))
    uv = shutil.which("uv")
    command = [uv] if uv else [sys.executable, "-I", "-m", "uv"] if importlib.util.find_spec("uv") else []
    if command:
        asked.append(([*command, "pip", "install", "--help"], r"--default-index.*?\(by\s+default:\s+<?([^\s>)]+)"))
    return next(_answers(asked), None)


def default_npm_registry() -> str | None:
    """The registry that npm uses where nothing is configured; None where there is no npm."""
    npm = shutil.which("npm")
    if npm is None:
        return None
    nobody = ["--userconfig", os.devnull, "--globalconfig", f"{os.devnull}/none"]
    return next(_answers([([npm, "config", "get", "registry", *nobody], r"^(https?://\S+)")]), None)


def _answers(asked: Sequence[tuple[list[str], str]]) -> Iterator[str]:
    """What the tools say, as far as they can be had. They see no settings of anybody's."""
    for command, pattern in asked:
        try:
            told = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=TOOL_WITHIN,
                check=False,
                cwd="/",
                env={"PATH": os.environ.get("PATH", os.defpath), "PIP_CONFIG_FILE": os.devnull, "HOME": "/nonexistent"},
            ).stdout
        except (OSError, subprocess.TimeoutExpired):
            continue
        found = re.search(pattern, told, re.DOTALL | re.MULTILINE)
        if found and _endpoint(found[1]):
            yield found[1]


# -- asking an index ----------------------------------------------------------------------------------------------


class _Fetch(urllib.request.HTTPRedirectHandler):
    """Fetches pages with the machine's certificates, and notes the addresses that they come from and name."""

    def __init__(self, settings: Settings) -> None:
        self.seen: list[str] = []
        context = ssl.create_default_context()
        for _name, path in settings.certificates:
            try:
                context.load_verify_locations(path)
            except (OSError, ssl.SSLError):
                continue  # the tools would not trust more for it
        self._open = urllib.request.build_opener(urllib.request.HTTPSHandler(context=context), self).open

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        self.seen.append(newurl)
        return super().redirect_request(req, fp, code, msg, headers, newurl)

    def __call__(self, url: str, *, accept: str, most: int = LARGEST_ANSWER) -> tuple[str, str, bytes]:
        """The address it came from in the end, its type, and its beginning."""
        request = urllib.request.Request(url, headers={"Accept": accept, "User-Agent": "sandboxkit"})
        with self._open(request, timeout=ANSWER_WITHIN) as answer:
            return answer.geturl(), answer.headers.get_content_type(), answer.read(most)


def _ask_python_index(fetch: _Fetch, url: str) -> None:
    """Look at one project's page: where its files are, those of others are."""
    base = url if url.endswith("/") else f"{url}/"
    try:
        fetch.seen += _links(*fetch(f"{base}pip/", accept=SIMPLE))
    except urllib.error.HTTPError as error:
        error.close()
        if error.code != 404:
            raise
        # An index of somebody's own projects only.
        projects = _links(*fetch(base, accept="text/html", most=PIECE_OF_A_LIST))
        if projects:
            fetch.seen += _links(*fetch(projects[0], accept=SIMPLE))


def _ask_npm_registry(fetch: _Fetch, url: str) -> None:
    """Look at one package's newest version, which says where its archive is."""
    base = url if url.endswith("/") else f"{url}/"
    try:
        _url, _kind, body = fetch(f"{base}{quote('npm')}/latest", accept="application/json")
    except urllib.error.HTTPError as error:
        error.close()
        if error.code != 404:
            raise
        return
    value = json.loads(body)
    archive = value.get("dist", {}).get("tarball") if isinstance(value, Mapping) else None
    if isinstance(archive, str):
        fetch.seen.append(archive)


class _Anchors(html.parser.HTMLParser):
    """Collects the links of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.base = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        href = dict(attrs).get("href")
        if href and tag == "base":
            self.base = href
        elif href and tag == "a":
            self.found.append(href)


def _links(url: str, kind: str, body: bytes) -> list[str]:
    """One address for each host that a page of an index links to."""
    if kind.endswith("json"):
        value = json.loads(body)
        files = value.get("files") if isinstance(value, Mapping) else None
        found = [str(file.get("url")) for file in files or [] if isinstance(file, Mapping)]
        base = url
    else:
        anchors = _Anchors()
        anchors.feed(body.decode("utf-8", "replace"))
        found, base = anchors.found, urljoin(url, anchors.base)
    by_host: dict[tuple[str, int], str] = {}
    for link in found:
        try:
            whole = urljoin(base, link)
        except ValueError:
            continue  # an address that is none, among many that are
        for endpoint in _endpoint(whole):
            by_host.setdefault(endpoint, whole)
    return list(by_host.values())
