"""Reads templates of E2B's older kind, an `e2b.toml` beside a Dockerfile, as far as they say what a registry needs.

Pure but for the files: those two, and what they name beside them, which is the start command where it is a script, and
the lists of packages that are installed (requirements.txt, package.json). `team_id`, `template_id` and the name of the
file for E2B's older command line belong to an account there, and mean nothing here.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sandboxkit._confine import confine
from sandboxkit.errors import ConfigurationError, PathError, UnsupportedOption

LARGEST = 1024 * 1024
ACCOUNT = frozenset({"team_id", "template_id"})
KNOWN = frozenset({"dockerfile", "template_name", "start_cmd", "ready_cmd", "cpu_count", "memory_mb"}) | ACCOUNT
PORTS = {
    "streamlit": 8501,
    "gradio": 7860,
    "next": 3000,
    "nuxi": 3000,
    "nuxt": 3000,
    "vite": 5173,
    "uvicorn": 8000,
    "gunicorn": 8000,
    "flask": 5000,
}
"""Where each listens unless it is told, by the program's name in a start command."""
GENERATORS = {
    "create-next-app": ("next", "react", "react-dom"),
    "nuxi": ("nuxt", "vue"),
    "create-nuxt": ("nuxt", "vue"),
    "create-vue": ("vue", "vite"),
    "create-vite": ("vite",),
}
INTERPRETER = re.compile(r"(^|/)\.jupyter/start-up\.sh\b")
"""How E2B's own interpreter was started in every template that was built on it; here it needs no command."""
_IN_READY = re.compile(r"https?://(?:localhost|127\.0\.0\.1|0\.0\.0\.0)(?::(\d{1,5}))?(/[\w./~%-]*)?")
_IN_START = re.compile(r"(?:--port|--server\.port|-p|\bPORT)[ =](\d{1,5})\b|(?:--bind|-b)[ =]?[\w.]*:(\d{1,5})\b")
_MODULE = re.compile(
    r"\b(?:uvicorn|gunicorn|hypercorn)\b[^&|;]*?\s([A-Za-z_][\w.]*):[A-Za-z_]\w*|\bflask\s+--app[ =]([A-Za-z_][\w.]*)"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class OldTemplate:
    """What the two files say; None where they don't."""

    name: str
    language: str
    libraries: tuple[str, ...]
    install: str | None
    start: str | None
    ready: str | None
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
    pip, npm = _libraries(instructions, dockerfile.parent)
    is_node = image.startswith("node") or (bool(npm) and not pip and not image.startswith(("python", "code-interp")))
    start = _string(place, fields, "start_cmd")
    if start is not None and INTERPRETER.search(start):
        start = None
    # What a script of the template's own does is said there.
    said = "" if start is None else f"{start}\n{_script(start, dockerfile.parent)}"
    ready = _IN_READY.search(_string(place, fields, "ready_cmd") or "")
    libraries = tuple(dict.fromkeys((*pip, *npm)))
    return OldTemplate(
        name=name.lower(),
        language="javascript" if is_node else "python",
        libraries=libraries,
        install="npm install" if is_node else "pip install",
        start=start,
        ready=ready[2] if ready else None,
        cpu=_number(place, fields, "cpu_count"),
        memory_mb=_number(place, fields, "memory_mb"),
        port=None if start is None else _port(said, ready, instructions),
        file=None if start is None else _file(said, instructions),
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


def _libraries(instructions: list[tuple[str, str]], folder: Path) -> tuple[list[str], list[str]]:
    """What pip and npm install, in order."""
    pip: list[str] = []
    npm: list[str] = []
    for keyword, command in instructions:
        if keyword != "RUN":
            continue
        for words in _commands(command):
            for generator, libraries in GENERATORS.items():
                if any(re.fullmatch(rf"{generator}(@\S+)?", word) for word in words):
                    npm += libraries
            verb = next((at for at, word in enumerate(words) if word in ("install", "i", "add", "ci")), None)
            tools = [] if verb is None else [word.rpartition("/")[2] for word in words[:verb]]
            if verb is None:
                continue
            if any(re.fullmatch(r"pip[0-9.]*|uv", tool) for tool in tools):
                pip += _python_names(words[verb + 1 :], folder)
            elif any(tool in ("npm", "pnpm", "yarn", "bun") for tool in tools):
                npm += _node_names(words[verb + 1 :], folder)
    return pip, npm


def _commands(command: str) -> Iterator[list[str]]:
    """The words of each command that a RUN has."""
    if command.startswith("["):
        try:
            words = json.loads(command)
        except ValueError:
            words = []
        if words and all(isinstance(word, str) for word in words):
            yield from _commands(words[-1]) if words[0].endswith("sh") else [words]
            return
    for part in re.split(r"&&|;|\|\|", command):
        try:
            yield shlex.split(part)
        except ValueError:
            yield part.split()


def _python_names(words: list[str], folder: Path) -> Iterator[str]:
    takes, listed = False, False
    for word in words:
        if listed:
            yield from _requirements(folder, word)
        elif not takes and not word.startswith("-") and (name := re.match(r"[A-Za-z0-9][\w.-]*", word)):
            yield name[0]
        elif match := re.match(r"--requirement=(.*)|-r(.+)", word):
            yield from _requirements(folder, match[1] or match[2])
        listed = not listed and word in ("-r", "--requirement")
        takes = not takes and word in ("-c", "--constraint", "-i", "--index-url", "--extra-index-url", "-t", "--target")


def _requirements(folder: Path, name: str) -> Iterator[str]:
    """The packages of a list beside the Dockerfile; it was copied from there, to wherever."""
    for line in _beside(folder, name).splitlines():
        if found := re.match(r"\s*([A-Za-z0-9][\w.-]*)\s*(?![\w./:-])", line):
            yield found[1]


def _node_names(words: list[str], folder: Path) -> Iterator[str]:
    if {"-g", "--global"} & set(words):
        return  # a tool, not a library
    named = [found[0] for word in words if (found := re.match(r"(@[\w.-]+/)?[A-Za-z0-9][\w.-]*", word))]
    yield from named
    if named:
        return
    try:
        package = json.loads(_beside(folder, "package.json") or "{}")
        for group in ("dependencies", "devDependencies"):
            yield from (str(name) for name in package.get(group) or {})
    except (ValueError, AttributeError, TypeError):
        return  # npm would have failed, too


def _script(start: str, folder: Path) -> str:
    """What the start command does, where it is a script: a file beside the Dockerfile, or one of package.json's."""
    for word in start.split():
        if word.endswith(".sh") and (text := _beside(folder, word)):
            return text
    if (named := re.search(r"\b(?:npm|pnpm|yarn|bun)\s+(?:run\s+)?([\w:-]+)", start)) is not None:
        with suppress(ValueError, AttributeError):
            return str(json.loads(_beside(folder, "package.json") or "{}").get("scripts", {}).get(named[1], ""))
    return ""


def _beside(folder: Path, name: str) -> str:
    """The text of a file of the template's folder, by its last name; empty where there is none."""
    path = folder / name.rpartition("/")[2]
    try:
        return path.read_text(encoding="utf-8") if path.is_file() and path.stat().st_size <= LARGEST else ""
    except (OSError, UnicodeDecodeError):
        return ""


def _port(said: str, ready: re.Match[str] | None, instructions: list[tuple[str, str]]) -> int | None:
    """The port that the start command names, or the ready command, or EXPOSE, or else the program's usual one."""
    if (told := _IN_START.search(said)) is not None:
        return int(told[1] or told[2])
    if ready is not None and ready[1]:
        return int(ready[1])
    exposed = [rest for keyword, rest in instructions if keyword == "EXPOSE"]
    if exposed and (told := re.match(r"(\d{1,5})\b", exposed[-1])) is not None:
        return int(told[1])
    if (url := _IN_READY.search(said)) is not None and url[1]:
        return int(url[1])  # of a script that waits for its own server
    return next((port for program, port in PORTS.items() if re.search(rf"(?<![\w./-]){program}\b", said)), None)


def _file(said: str, instructions: list[tuple[str, str]]) -> str | None:
    found = re.search(r"(?:^|\s)(?:/home/user/)?([\w][\w./-]*\.py)\b", said)
    if found is not None:
        return found[1]
    if (module := _MODULE.search(said)) is not None:
        return (module[1] or module[2]).removesuffix(".py").replace(".", "/") + ".py"
    made = next((rest for keyword, rest in instructions if keyword == "RUN" and "create-next-app" in rest), None)
    if made is not None or re.search(r"\bnext\b", said):
        router = "app/page.tsx" if re.search(r"--app\b", made or "") else "pages/index.tsx"
        return f"src/{router}" if re.search(r"--src-dir\b", made or "") else router
    return "app.vue" if re.search(r"\bnux[it]\b", said) else None
