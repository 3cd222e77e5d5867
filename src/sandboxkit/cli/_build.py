"""Builds a template's folder by an engine of this command's own, through the SDK, as anybody would."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sandboxkit._types import CODE_INTERPRETER
from sandboxkit.errors import ConfigurationError, TemplateBuildFailed
from sandboxkit.template import Template, folder, folders, read_template

TAIL = 40


@dataclass(frozen=True, slots=True)
class Folder:
    """A folder to be built. `template` is its registry entry, where it has one."""

    path: Path
    name: str
    template: Template | None


def find_folder(name: str) -> Folder:
    """The folder of a template that comes with the library, or any other that has a `template.py`.

    Raises:
        ConfigurationError: there is no such folder, or no `template.py` in it.
    """
    own = folder(name)
    path = own if own is not None else Path(name)
    if not (path / "template.py").is_file():
        raise ConfigurationError(
            f"{name!r} is neither a template of the library nor a folder with a template.py. "
            f"Those of the library: {', '.join((CODE_INTERPRETER, *others()))}. `sandboxkit templates init NAME DIR` "
            "makes a folder of your own."
        )
    path = path.resolve()
    entry = read_template(path / "template.json") if (path / "template.json").is_file() else None
    return Folder(path, entry.id if entry is not None else path.name.lower(), entry)


def build_folder(
    found: Folder,
    *,
    name: str | None = None,
    cpu: int | None = None,
    memory_mb: int | None = None,
    force: bool = False,
    on_line: Callable[[str], object],
) -> dict[str, str]:
    """Build it, and check that what its registry entry lists is installed; returns the versions of that.

    Raises:
        TemplateBuildFailed: a step failed, or a library is not there; `log_tail` has the last lines.
        EngineUnavailable, IsolationUnavailable: see there.
    """
    from sandboxkit.local._child import start_engine, stop_engines
    from sandboxkit.local._config import EngineConfig

    entry = found.template
    wish = {
        "folder": str(found.path),
        "name": name or found.name,
        "cpu": cpu or (entry.cpu if entry is not None else 2),
        "memory_mb": memory_mb or (entry.memory_mb if entry is not None else 1024),
        "force": force,
    }
    engine = start_engine(EngineConfig(log_level="warning", warm=0))
    try:
        environment = {
            **os.environ,
            "E2B_API_KEY": engine.endpoint.api_key,
            "E2B_API_URL": engine.endpoint.api_url or "",
            "E2B_SANDBOX_URL": engine.endpoint.sandbox_url or "",
        }
        environment.pop("E2B_DEBUG", None)
        _run(wish, environment, on_line)
    finally:
        stop_engines()
    return check_libraries(found.name, entry) if entry is not None and name is None else {}


def check_libraries(name: str, entry: Template) -> dict[str, str]:
    """The versions of a registry entry's libraries in the built template. TemplateBuildFailed where one is missing."""
    from sandboxkit.local import images
    from sandboxkit.local.images._installed import versions

    found = versions(images.find(name), entry.libraries)
    missing = [library for library, version in found.items() if version is None]
    if missing:
        raise TemplateBuildFailed(
            f"Template {name!r} was built, but its template.json lists what is not installed in it: "
            f"{', '.join(missing)}. Correct the list, or install them in template.py.",
            log_tail="",
        )
    return {library: version for library, version in found.items() if version is not None}


def _run(wish: dict[str, Any], environment: dict[str, str], on_line: Callable[[str], object]) -> None:
    tail: deque[str] = deque(maxlen=TAIL)
    error: dict[str, str] | None = None
    built = False
    command = [sys.executable, "-m", "sandboxkit.provider._e2b._build", json.dumps(wish)]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True, cwd=wish["folder"])
    try:
        assert process.stdout is not None
        for line in process.stdout:
            said = json.loads(line)
            if "message" in said:
                for part in str(said["message"]).splitlines():
                    tail.append(part)
                    on_line(part)
            error = said.get("error", error)
            built = built or "built" in said
        process.wait()
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()
    if error is not None or not built:
        message = error["message"] if error is not None else f"its program ended with status {process.returncode}"
        raise TemplateBuildFailed(f"Template {wish['name']!r} could not be built: {message}", log_tail="\n".join(tail))


def others() -> tuple[str, ...]:
    """The library's templates beside the one that the engine has of itself."""
    return tuple(name for name in folders() if name != CODE_INTERPRETER)


FILES = {
    "template.py": '''"""What the template is made of. Names of methods are those of E2B's template builder."""

from e2b import Template, wait_for_url

template = (
    Template()
    .from_python_image("3.13")
    .set_workdir("/home/user")
    .copy("skeleton", ".")
    .set_start_cmd("python3 -m http.server 8000 --bind 0.0.0.0", wait_for_url("http://localhost:8000"))
)
''',
    "build_dev.py": '''"""Build the template under its development name, where E2B_API_KEY and E2B_API_URL say."""

from e2b import Template, default_build_logger
from template import template

if __name__ == "__main__":
    Template.build(template, "{name}-dev", cpu_count=2, memory_mb=1024, on_build_logs=default_build_logger())
''',
    "build_prod.py": '''"""Build the template under its name, where E2B_API_KEY and E2B_API_URL say."""

from e2b import Template, default_build_logger
from template import template

if __name__ == "__main__":
    Template.build(template, "{name}", cpu_count=2, memory_mb=1024, on_build_logs=default_build_logger())
''',
    "Makefile": (
        ".PHONY: e2b\\:build\\:dev e2b\\:build\\:prod local\n\n"
        "e2b\\:build\\:dev:\n\tpython build_dev.py\n\n"
        "e2b\\:build\\:prod:\n\tpython build_prod.py\n\n"
        "local:\n\tsandboxkit templates build .\n"
    ),
    "README.md": """# {name}

Build it on this machine: `sandboxkit templates build .`
Build it at E2B, with `E2B_API_KEY` set: `make e2b:build:prod`
""",
    "template.json": """{{
  "id": "{name}",
  "name": "{name}",
  "description": "",
  "language": "html",
  "libraries": [],
  "file": "index.html",
  "instructions": "A static page.",
  "port": 8000,
  "install": null,
  "start": "python3 -m http.server 8000 --bind 0.0.0.0",
  "ready": "/",
  "cpu": 2,
  "memory_mb": 1024
}}
""",
    "skeleton/index.html": "<!doctype html>\n<title>{name}</title>\n<p>This page is index.html.</p>\n",
}
"""What `sandboxkit templates init` writes: a template that builds and answers, to be changed."""


def write_new(name: str, place: Path) -> list[Path]:
    """Write the files of a new template. ConfigurationError where one of them is there already."""
    files = {place / path: text.format(name=name) if "{" in text else text for path, text in FILES.items()}
    there = [path for path in files if path.exists()]
    if there:
        raise ConfigurationError(f"{there[0]} is there already; name an empty folder.")
    for path, text in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return list(files)
