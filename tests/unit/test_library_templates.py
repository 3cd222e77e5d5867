"""The folders of the library's templates: whole, pinned, and free of the traps met while they were measured."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from e2b import Template as Builder

from sandboxkit.local.images._steps import Definition, read_definition
from sandboxkit.template import Template, folders

APPS = ("gradio-developer", "nextjs-developer", "streamlit-developer", "vue-developer")
NODE = ("nextjs-developer", "vue-developer")
PYTHON = ("gradio-developer", "streamlit-developer")


@pytest.fixture
def place(repository: Path) -> Path:
    """Where the folders are."""
    return repository / "sandbox-templates"


def definition_of(folder: Path) -> tuple[dict[str, Any], Definition]:
    """What its template.py defines, as it is sent and as the engine understands it."""
    names: dict[str, Any] = {"__file__": str(folder / "template.py"), "__name__": "template"}
    exec(compile((folder / "template.py").read_text(), str(folder / "template.py"), "exec"), names)
    sent = json.loads(Builder.to_json(names["template"]))
    return sent, read_definition(sent, python="3.11")


def test_the_library_has_five(place: Path) -> None:
    """All five are registered, each from its own folder."""
    assert set(folders()) == {*APPS, "code-interpreter-v1"}
    for name in folders():
        files = {path.name for path in (place / name).iterdir()}
        assert files >= {"template.py", "build_dev.py", "build_prod.py", "Makefile", "README.md", "template.json"}


@pytest.mark.parametrize("name", APPS)
def test_w14_the_definition_and_the_registry_agree(place: Path, name: str) -> None:
    """The engine can build it, and the start command, port and readiness are those that the registry tells."""
    entry = Template.get(name)
    sent, found = definition_of(place / name)
    assert sent["startCmd"] == entry.start == found.start
    assert f"localhost:{entry.port}{entry.ready}".rstrip("/") in sent["readyCmd"]
    assert (place / name / "skeleton" / entry.file).is_file()
    assert found.workdir == "/home/user"
    assert found.base.kind == ("node" if name in NODE else "python")
    assert {package for step in found.steps for package in step.packages} == {"curl", "iproute2", "procps"}
    for kind, suffix in (("dev", "-dev"), ("prod", "")):
        text = (place / name / f"build_{kind}.py").read_text()
        assert f'"{name}{suffix}"' in text
        assert f"cpu_count={entry.cpu}" in text
        assert f"memory_mb={entry.memory_mb}" in text


@pytest.mark.parametrize("name", APPS)
def test_ready_means_an_answer(place: Path, name: str) -> None:
    """Every server listens seconds before it answers: a listening port is not enough."""
    sent, _ = definition_of(place / name)
    assert "curl" in sent["readyCmd"]
    assert "http_code" in sent["readyCmd"]


@pytest.mark.parametrize("name", NODE)
def test_w14_manifests_are_exact(place: Path, name: str) -> None:
    """Every version is pinned; there is no lock file, which would lack other platforms' binaries; Next's has no
    `type`, with which Turbopack answers 500 for ever."""
    skeleton = place / name / "skeleton"
    manifest = json.loads((skeleton / "package.json").read_text())
    versions = [*manifest["dependencies"].values(), *manifest["devDependencies"].values()]
    assert all(re.fullmatch(r"\d+\.\d+\.\d+", version) for version in versions)
    assert manifest["private"] is True
    assert manifest.get("type") != "commonjs"
    if name == "nextjs-developer":
        assert "type" not in manifest
    assert not list(skeleton.glob("*lock*"))
    assert not (skeleton / "node_modules").exists()
    libraries = manifest["dependencies"] | manifest["devDependencies"]
    assert set(Template.get(name).libraries) <= set(libraries)


@pytest.mark.parametrize("name", PYTHON)
def test_requirements_are_exact(place: Path, name: str) -> None:
    """Every distribution is pinned, and what the registry lists is among them: it is `requests`, not `request`."""
    lines = (place / name / "requirements.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if not line.startswith("#"))
    assert all(re.fullmatch(r"[\w.]+", version) for version in pins.values())
    asked = {line for line in (place / name / "requirements.in").read_text().split() if line.isalpha()}
    assert set(Template.get(name).libraries) <= set(pins)
    assert set(Template.get(name).libraries) <= asked


def test_previews_are_let_in(place: Path) -> None:
    """The hosts of E2B's and of the engine's previews are named, where a server checks them."""
    following = (place / "nextjs-developer/skeleton/next.config.ts").read_text()
    assert all(f'"*{domain}"' in following for domain in (".e2b.app", ".e2b.dev", ".localhost"))
    nuxt = (place / "vue-developer/skeleton/nuxt.config.ts").read_text()
    assert '[".e2b.app", ".e2b.dev", ".localhost"]' in nuxt


@pytest.mark.parametrize("name", APPS)
def test_servers_listen_on_all_addresses(place: Path, name: str) -> None:
    """Some listen on 127.0.0.1 unless they are told; all are told."""
    sent, found = definition_of(place / name)
    assert "0.0.0.0" in sent["startCmd"] or found.envs.get("GRADIO_SERVER_NAME") == "0.0.0.0"


@pytest.mark.parametrize("name", APPS)
def test_nothing_calls_home(place: Path, name: str) -> None:
    """Telemetry is off, where a framework has some."""
    _, found = definition_of(place / name)
    off = {
        "nextjs-developer": found.envs.get("NEXT_TELEMETRY_DISABLED") == "1",
        "vue-developer": found.envs.get("NUXT_TELEMETRY_DISABLED") == "1",
        "gradio-developer": found.envs.get("GRADIO_ANALYTICS_ENABLED") == "False",
        "streamlit-developer": "gatherUsageStats = false"
        in (place / "streamlit-developer/skeleton/.streamlit/config.toml").read_text(),
    }
    assert off[name]
