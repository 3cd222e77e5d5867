"""What `sandboxkit run` was given: a program, a web app in a file or a folder, or a fragment."""

from __future__ import annotations

import ast
import json
import os
import re
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import ValidationError

from sandboxkit._types import CODE_INTERPRETER
from sandboxkit.errors import ConfigurationError, UnsupportedOption
from sandboxkit.fragment import Fragment
from sandboxkit.template import Template

BY_IMPORT = {"streamlit": "streamlit-developer", "gradio": "gradio-developer"}
BY_PACKAGE = {"nuxt": "vue-developer", "next": "nextjs-developer"}
ENTRIES = ("app.py", "streamlit_app.py", "main.py")
"""What the app of a folder is called, usually first."""
PYTHON = ("", ".py", ".pyw")
LEFT_OUT = frozenset(("node_modules", "__pycache__", "dist", "build", "venv"))
"""Directories of a folder that are not taken along, besides those whose names begin with a dot."""
MOST_FILES = 2000
MOST_BYTES = 64 * 1024 * 1024
_VERSION = re.compile(r"[\^~]?[0-9][A-Za-z0-9.+-]*|latest")


@dataclass(frozen=True, slots=True)
class Given:
    """What is to be carried out.

    Attributes:
        fragment: the part of it that a fragment can say.
        files: what is written before it, byte for byte.
        replaces: what of the template's own app has no place beside it: a file or a directory each.
        beside: modules that lie beside a file, and are not taken along.
    """

    fragment: Fragment
    files: dict[str, bytes] = field(default_factory=dict)
    replaces: tuple[str, ...] = ()
    beside: frozenset[str] = frozenset()


def recognise(file: str, template: str | None) -> Given | None:
    """Say what a path holds; None for a plain program.

    Args:
        file: a file, a folder, or "-".
        template: what the user named; it decides whatever the code looks like.

    Raises:
        ConfigurationError: a folder or a fragment that cannot be read, or is none.
        UnsupportedOption: a folder of a kind that is not known.
    """
    path = Path(file)
    if file == "-":
        return None
    if path.is_dir():
        return _folder(path, template)
    if path.suffix == ".json":
        return Given(_fragment(path, template))
    if path.suffix not in PYTHON or not path.is_file():
        return None
    return _python_app(path, template)


def _fragment(path: Path, template: str | None) -> Fragment:
    try:
        fragment = Fragment.model_validate_json(_bytes(path))
    except ValidationError as error:
        if path.name == "package.json":
            raise ConfigurationError(f"{path} is a project's, and no fragment: name its folder.") from error
        problems = error.errors()
        where = ".".join(map(str, problems[0]["loc"])) or "the whole"
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise ConfigurationError(f"{path} is no fragment: {where}: {problems[0]['msg']}{more}.") from error
    if template is not None and template != fragment.template:
        raise ConfigurationError(f"{path} is for the template {fragment.template!r}, and --template says {template!r}.")
    return fragment


def _python_app(path: Path, template: str | None) -> Given | None:
    text = _text(path)
    chosen = template or next((BY_IMPORT[name] for name in _imports(text) if name in BY_IMPORT), CODE_INTERPRETER)
    if template == CODE_INTERPRETER or chosen not in {one.id for one in Template.all()}:
        return None
    if Template.get(chosen).runs_cells:
        return None
    beside = {one.stem for one in path.parent.iterdir() if one.suffix == ".py" or one.is_dir()}
    return Given(Fragment(template=chosen, code=text), beside=frozenset(beside))


def _folder(path: Path, template: str | None) -> Given:
    files = dict(_walk(path))
    package = _package(path / "package.json") if "package.json" in files else {}
    chosen = template or next((BY_PACKAGE[name] for name in BY_PACKAGE if name in package), None)
    entry, by_entry = _entry(files)
    chosen = chosen or by_entry
    if chosen is None:
        raise UnsupportedOption(
            f"{path} is a directory, and neither a Next.js or Nuxt project (package.json) nor has it an app.py, "
            "streamlit_app.py or main.py that imports streamlit or gradio. Name the file to run, or the --template.",
            option="FILE",
        )
    known = Template.get(chosen)
    # What the template has is there already, in its own version.
    missing = tuple(f"{name}@{version}" for name, version in package.items() if name not in known.libraries)
    if by_entry == chosen and entry is not None and entry != known.file:
        files[known.file] = files.pop(entry)
    main = next((name for name in ("package.json", known.file) if name in files), next(iter(files), None))
    if main is None:
        raise ConfigurationError(f"{path} is an empty directory.")
    try:
        text = files.pop(main).decode()
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{path / main} is no text.") from error
    replaces = _replaced(chosen, files) if package else ()
    return Given(Fragment(template=chosen, files={main: text}, dependencies=missing), files, replaces)


def _entry(files: dict[str, bytes]) -> tuple[str | None, str | None]:
    """The file of a folder that is an app of Python's, and the template that it is for."""
    for name in ENTRIES:
        if name in files:
            imported = _imports(files[name].decode("utf-8", "replace"))
            found = next((BY_IMPORT[one] for one in imported if one in BY_IMPORT), None)
            if found is not None or name == "app.py":
                return name, found
    return None, None


def _replaced(template: str, files: dict[str, bytes]) -> tuple[str, ...]:
    """What of the template's own app would stand in the way of a project's: Next refuses two pages of one name, and
    Nuxt looks into `app` alone where it is there."""
    tops = {name.partition("/")[0] for name in files}
    if template == BY_PACKAGE["next"]:
        return ("pages",)
    if template == BY_PACKAGE["nuxt"]:
        is_configured = any(name.startswith("nuxt.config.") for name in tops)
        if is_configured or "app" not in tops:
            # The template's own configuration names a style sheet below `app`.
            return ("app",) if is_configured else ("app", "nuxt.config.ts")
    return ()


def _walk(root: Path) -> list[tuple[str, bytes]]:
    """The files of a folder by relative path; links and hidden ones are left out."""
    found: list[tuple[str, bytes]] = []
    size = 0
    for place, folders, names in os.walk(root):
        folders[:] = sorted(one for one in folders if not one.startswith(".") and one not in LEFT_OUT)
        for name in sorted(names):
            path = Path(place, name)
            if name.startswith(".") or path.is_symlink() or not path.is_file():
                continue
            found.append((path.relative_to(root).as_posix(), _bytes(path)))
            size += len(found[-1][1])
            if len(found) > MOST_FILES or size > MOST_BYTES:
                raise ConfigurationError(
                    f"{root} is too large to be taken along: at most {MOST_FILES} files and {MOST_BYTES >> 20} MiB."
                )
    return found


def _package(path: Path) -> dict[str, str]:
    """The dependencies that a package.json names, with versions that npm takes as an argument."""
    try:
        told = json.loads(_bytes(path))
        groups = [told.get(name) or {} for name in ("dependencies", "devDependencies")]
        named = {str(name): str(version) for group in groups for name, version in group.items()}
    except (ValueError, AttributeError) as error:
        raise ConfigurationError(f"{path} cannot be read: {error}.") from error
    return {name: version if _VERSION.fullmatch(version) else "latest" for name, version in named.items()}


def _imports(text: str) -> list[str]:
    """The names of what a program imports at its top, in order; nothing where it is no Python."""
    try:
        body = ast.parse(text).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return []
    names: list[str] = []
    for node in body:
        if isinstance(node, ast.Import):
            names += [alias.name.partition(".")[0] for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.append(node.module.partition(".")[0])
    return names


def _text(path: Path) -> str:
    return _bytes(path).decode("utf-8", "replace")


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}.") from error
