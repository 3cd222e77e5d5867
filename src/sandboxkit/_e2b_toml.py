"""Reads templates of E2B's older kind, an `e2b.toml` beside a Dockerfile, as far as they say what a registry needs.

Pure but for the two files. `team_id`, `template_id` and the name of the file for E2B's older command line belong to an
account there, and mean nothing here.
"""

from __future__ import annotations

import os
import re
import shlex
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sandboxkit._confine import confine
from sandboxkit.errors import ConfigurationError, PathError, UnsupportedOption

LARGEST = 1024 * 1024
ACCOUNT = frozenset({"team_id", "template_id"})
KNOWN = frozenset({"dockerfile", "template_name", "start_cmd", "ready_cmd", "cpu_count", "memory_mb"}) | ACCOUNT
PORTS = {"streamlit": 8501, "gradio": 7860, "next": 3000, "nuxi": 3000, "nuxt": 3000, "vite": 5173}
GENERATORS = {"create-next-app": ("next", "react", "react-dom"), "nuxi": ("nuxt", "vue"), "create-vue": ("vue", "vite")}


@dataclass(frozen=True, slots=True, kw_only=True)
class OldTemplate:
    """What the two files say; None where they don't."""

    name: str
    language: str
    libraries: tuple[str, ...]
    install: str | None
    start: str | None
    cpu: int | None
    memory_mb: int | None
    port: int | None
    file: str | None


def read_e2b_toml(path: str | os.PathLike[str]) -> OldTemplate:
    """Read both files.

    Raises:
        ConfigurationError: one of them is missing, is not what it should be, or does not give the template a name.
        UnsupportedOption: the file has a field that nobody here knows.
    """
    place = Path(path)
    try:
        fields = tomllib.loads(_text(place))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{place} is not TOML: {error}.") from error
    unknown = sorted(set(fields) - KNOWN)
    if unknown:
        raise UnsupportedOption(f"{place} has the field {unknown[0]!r}, which is not known here.", option=unknown[0])
    named = _string(place, fields, "dockerfile") or "e2b.Dockerfile"
    try:
        dockerfile = place.parent / confine(named, "/folder").removeprefix("/folder").lstrip("/")
    except PathError as error:
        raise ConfigurationError(f"{place}: its dockerfile {named!a} does not lie in its folder.") from error
    name = _string(place, fields, "template_name") or _string(place, fields, "template_id")
    if not name:
        raise ConfigurationError(f"{place} has neither template_name nor template_id: give the template a name.")
    try:
        instructions = list(_instructions(_text(dockerfile)))
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{dockerfile} is not text: {error}.") from error
    bases = [words for keyword, words in instructions if keyword == "FROM"]
    if not bases:
        raise ConfigurationError(f"{dockerfile} has no FROM: it is not a Dockerfile.")
    image = bases[-1].split()[0].rpartition("/")[2] if bases[-1].split() else ""
    is_node = image.startswith("node")
    start = _string(place, fields, "start_cmd")
    return OldTemplate(
        name=name.lower(),
        language="javascript" if is_node else "python",
        libraries=tuple(dict.fromkeys(_libraries(instructions))),
        install="npm install" if is_node else "pip install",
        start=start,
        cpu=_number(place, fields, "cpu_count"),
        memory_mb=_number(place, fields, "memory_mb"),
        port=_port(start or "", instructions),
        file=_file(start or ""),
    )


def _text(path: Path) -> str:
    try:
        if path.stat().st_size > LARGEST:
            raise ConfigurationError(f"{path} is larger than {LARGEST} bytes.")
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}.") from error


def _string(place: Path, fields: Mapping[str, Any], name: str) -> str | None:
    value = fields.get(name)
    if value is not None and not isinstance(value, str):
        raise ConfigurationError(f"{place}: {name} has to be text, and is {value!r}.")
    return value or None


def _number(place: Path, fields: Mapping[str, Any], name: str) -> int | None:
    value = fields.get(name)
    if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
        raise ConfigurationError(f"{place}: {name} has to be a whole number, and is {value!r}.")
    return value


def _instructions(text: str) -> Iterator[tuple[str, str]]:
    """(keyword, rest) of each instruction."""
    lines = (line for line in text.splitlines() if not line.lstrip().startswith("#"))
    for line in re.sub(r"\\\s*\n", " ", "\n".join(lines)).splitlines():
        keyword, _, rest = line.strip().partition(" ")
        if keyword:
            yield keyword.upper(), rest.strip()


def _libraries(instructions: list[tuple[str, str]]) -> Iterator[str]:
    for keyword, command in instructions:
        if keyword != "RUN":
            continue
        for part in re.split(r"&&|;|\|\|", command):
            try:
                words = shlex.split(part)
            except ValueError:
                words = part.split()
            for generator, libraries in GENERATORS.items():
                if any(re.fullmatch(rf"{generator}(@\S+)?", word) for word in words):
                    yield from libraries
            verb = next((at for at, word in enumerate(words) if word in ("install", "i", "add")), None)
            if verb is None or not any(re.fullmatch(r"(.*/)?(pip3?|npm|pnpm|yarn|uv)", word) for word in words[:verb]):
                continue
            yield from _names(words[verb + 1 :])


def _names(words: list[str]) -> Iterator[str]:
    skip = False
    for word in words:
        if skip:
            skip = False
        elif word.startswith("-"):
            skip = word in ("-r", "--requirement", "-c", "--constraint", "-i", "--index-url", "--extra-index-url", "-t")
        elif name := re.match(r"(@[\w.-]+/)?[A-Za-z0-9][\w.-]*", word):
            yield name[0]


def _port(start: str, instructions: list[tuple[str, str]]) -> int | None:
    said = re.search(r"(?:--port|--server\.port|-p)[ =](\d{1,5})\b", start)
    if said is None:
        exposed = [rest for keyword, rest in instructions if keyword == "EXPOSE"]
        said = re.match(r"(\d{1,5})\b", exposed[-1]) if exposed else None
    if said is not None:
        return int(said[1])
    return next((port for program, port in PORTS.items() if re.search(rf"\b{program}\b", start)), None)


def _file(start: str) -> str | None:
    found = re.search(r"(?:^|\s)(?:/home/user/)?([\w][\w./-]*\.py)\b", start)
    if found is not None:
        return found[1]
    if re.search(r"\bnext\b|compile_page", start):
        return "pages/index.tsx"
    return "app.vue" if re.search(r"\bnux[it]\b", start) else None
