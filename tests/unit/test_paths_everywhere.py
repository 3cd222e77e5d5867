"""Every place that takes a path asks the same guard: what leads out is refused there, before anything is asked of a
sandbox. Files of a sandbox themselves are tried in `safefs/`, routes in `adapters/test_asgi.py` as well."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from pydantic import ValidationError

from sandboxkit import AsyncSandboxPool, Fragment, SandboxPool, Template
from sandboxkit.cli import main
from sandboxkit.errors import ConfigurationError, PathError
from sandboxkit.fragment import Edit
from sandboxkit.local.images._steps import BadDefinition, read_definition
from sandboxkit.testing import FakeProvider

ESCAPES = ("../../etc/passwd", "/etc/passwd", "/home/user2/x", "a/../../user/x", "x\0", "x" * 256, "..")
CODE = "code-interpreter-v1"

MADE: dict[str, Callable[[str], object]] = {
    "a fragment's files": lambda path: Fragment(template=CODE, files={path: "x"}),
    "a fragment's main file": lambda path: Fragment(template=CODE, code="1", file=path),
    "a fragment's edits": lambda path: Fragment(template=CODE, edits=[Edit(path=path, search="a", replace="b")]),
    "a template's main file": lambda path: Template("x", file=path),
}
"""What cannot even be made."""


@pytest.mark.parametrize("path", ESCAPES, ids=ascii)
@pytest.mark.parametrize("make", MADE.values(), ids=MADE.keys())
def test_what_is_made_with_a_path(make: Callable[[str], object], path: str) -> None:
    """A fragment or a template with such a path is malformed."""
    with pytest.raises(ValidationError):
        make(path)


@pytest.mark.anyio
@pytest.mark.parametrize("path", ESCAPES, ids=ascii)
async def test_files_that_a_session_starts_with(path: str) -> None:
    """No sandbox is made for them."""
    fake = FakeProvider()
    async with AsyncSandboxPool(endpoint=fake) as pool:
        with pytest.raises((PathError, ConfigurationError)):
            await pool.session("a", files={path: "x"})
    assert fake.created == 0


class Nasty:
    """What is no path, and does not want to be shown."""

    def __repr__(self) -> str:
        raise ZeroDivisionError


@pytest.mark.anyio
async def test_a_refusal_is_told_whatever_was_named() -> None:
    """The event shows a bounded text of what was named, and asks nothing of it."""
    told: list[Any] = []
    async with AsyncSandboxPool(endpoint=FakeProvider(), on_event=told.append) as pool, pool.session("a") as session:
        for path in (Nasty(), "../" * 1000):
            with pytest.raises(PathError):
                await session.files.read_bytes(path)  # type: ignore[arg-type]
    shown = [event.data["path"] for event in told if event.name == "path.refused"]
    assert len(shown) == 2
    assert shown[0] == "<Nasty>"
    assert len(shown[1]) < 300


@pytest.mark.parametrize("path", ESCAPES, ids=ascii)
def test_the_command_line(tmp_path: Path, path: str) -> None:
    """`sandboxkit run` refuses a fragment with such a path, and starts nothing."""
    file = tmp_path / "fragment.json"
    file.write_text(json.dumps({"template": CODE, "files": {path: "print(1)"}}))
    done = CliRunner().invoke(main, ["run", str(file)])
    assert done.exit_code not in (0, 1), done.output


@pytest.mark.parametrize("path", ESCAPES, ids=ascii)
def test_fsspec(path: str) -> None:
    """A path within a session does not leave it."""
    pytest.importorskip("fsspec")
    from sandboxkit.adapters.fsspec import SandboxFileSystem

    with SandboxPool(endpoint=FakeProvider()) as pool:  # type: ignore[arg-type]
        files = SandboxFileSystem(pool=pool, skip_instance_cache=True)
        for work in (files.cat_file, files.info, files.rm_file, files.ls):
            with pytest.raises(PathError):
                work(f"alice/{path}" if not path.startswith("/") else f"alice/..{path}")
        files.close()


@pytest.mark.parametrize("source", [*ESCAPES, "a/../../b", "./../x", "\ud800"], ids=ascii)
def test_sources_of_copy(source: str) -> None:
    """A COPY takes from the template's folder alone."""
    step = {"type": "COPY", "args": [source, "y", "", ""], "filesHash": "a" * 64, "force": False}
    body: dict[str, Any] = {"fromImage": "python:3.11", "steps": [step]}
    with pytest.raises(BadDefinition):
        read_definition(body, python="3.11")


@pytest.mark.parametrize("path", ["../Dockerfile", "/etc/passwd", "a/../../x", "x" * 256])
def test_the_dockerfile_of_an_older_template(tmp_path: Path, path: str) -> None:
    """It lies in the folder of its e2b.toml."""
    (tmp_path / "Dockerfile").write_text("FROM python:3.11\n")
    folder = tmp_path / "template"
    folder.mkdir()
    (folder / "e2b.toml").write_text(f'template_name = "x"\ndockerfile = "{path}"\n')
    with pytest.raises(ConfigurationError, match="folder"):
        Template.from_e2b_toml(folder / "e2b.toml")
