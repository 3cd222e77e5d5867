"""The engine's package indexes: learnt when they are first needed, kept, and asked for again where one did not answer.

The settings are read before the engine enters its namespace, where the files of the user who started it (root's, say)
may be out of reach; certificates are copied then, for the same reason.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from urllib.parse import urlsplit

from sandboxkit.local._log import log
from sandboxkit.local.indexes._learn import Indexes, learn, with_defaults
from sandboxkit.local.indexes._settings import Settings, read_settings

ASK_AGAIN_AFTER = 60.0
LARGEST_BUNDLE = 8 * 1024 * 1024
PLACE = "ssl/sandboxkit"
"""Beneath /etc inside."""


class KnownIndexes:
    """One per engine.

    Args:
        settings: what is configured; read from this process's environment if None.
        complete, ask: how the rest is learnt; both block.
    """

    def __init__(
        self,
        settings: Settings | None = None,
        *,
        complete: Callable[[Settings], Settings] = with_defaults,
        ask: Callable[[Settings], Indexes] = learn,
    ) -> None:
        self._settings = read_settings() if settings is None else settings
        self._bundles = _read_bundles(self._settings)
        self._variables: dict[str, str] = {}
        self._complete = complete
        self._is_complete = False
        self._ask = ask
        self._asking = asyncio.Lock()
        self._found: Indexes | None = None
        self._found_at = 0.0

    def place_certificates(self, etc: Path) -> None:
        """Write the copies of the configured CA certificates where boxes see them. OSError where there is no room."""
        place = etc / PLACE
        place.mkdir(parents=True, exist_ok=True)
        paths: dict[bytes, Path] = {}
        for variable, content in self._bundles.items():
            if content not in paths:
                paths[content] = place / f"ca-{len(paths) + 1}.crt"
                paths[content].write_bytes(content)
            self._variables[variable] = f"/etc/{PLACE}/{paths[content].name}"
        own = tuple((variable, str(paths[content])) for variable, content in self._bundles.items())
        self._settings = dataclasses.replace(self._settings, certificates=own)

    def certificate_variables(self) -> Mapping[str, str]:
        """What tells programs inside to trust the certificates that are configured here."""
        return self._variables

    async def hosts(self) -> set[str]:
        """The hosts of the indexes themselves. The first call may take half a second; it asks nobody else."""
        async with self._asking:
            settings = await self._completed()
        urls = (settings.python, *settings.python_extra, settings.npm, *(url for _, url in settings.npm_scopes))
        return {urlsplit(url).hostname or "" for url in urls if url}

    def variables(self) -> Mapping[str, str]:
        """What makes pip, uv and npm inside use the indexes; nothing before they are learnt."""
        return self._found.variables() if self._found is not None else {}

    async def get(self) -> Indexes:
        """The indexes. The first call takes about a second."""
        async with self._asking:
            found = self._found
            if found is None or (not found.is_whole and time.monotonic() > self._found_at + ASK_AGAIN_AFTER):
                started = time.monotonic()
                found = await asyncio.to_thread(self._ask, await self._completed())
                self._found, self._found_at = found, time.monotonic()
                log(
                    logging.INFO if found.is_whole else logging.WARNING,
                    "engine.indexes",
                    hosts=" ".join(found.hosts()),
                    left_out="; ".join(found.left_out) or None,
                    duration=self._found_at - started,
                )
            return found

    async def _completed(self) -> Settings:
        if not self._is_complete:
            self._settings = await asyncio.to_thread(self._complete, self._settings)
            self._is_complete = True
        return self._settings


def _read_bundles(settings: Settings) -> dict[str, bytes]:
    found = {}
    for variable, path in settings.certificates:
        try:
            with open(path, "rb") as file:
                content = file.read(LARGEST_BUNDLE)
        except OSError:
            continue  # the tools here do without it, too
        if b"PRIVATE KEY" not in content:
            found[variable] = content
    return found
