"""Templates on this machine: which there are, and what is said where one is not built."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from sandboxkit.errors import TemplateNotBuilt, TemplateNotFound
from sandboxkit.local import images
from sandboxkit.local.images._definition import definition


@pytest.fixture(autouse=True)
def empty_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A cache in which nothing was built."""
    monkeypatch.setenv("SANDBOXKIT_HOME", str(tmp_path))


def test_base_needs_no_build() -> None:
    """`base` is the system and Python: no layer, no interpreter."""
    assert images.find("base") == images.build("base")
    assert images.find("base").layers == ()
    assert not images.find("base").has_interpreter


@pytest.mark.parametrize("look", [images.find, images.build])
@pytest.mark.parametrize("template_id", ["nothing", "", "../code-interpreter-v1", "code-interpreter-v1/../base"])
def test_an_unknown_template_is_not_found(look: object, template_id: str) -> None:
    """The error lists the templates that there are."""
    assert callable(look)
    with pytest.raises(TemplateNotFound, match="code-interpreter-v1") as caught:
        look(template_id)
    assert caught.value.known == ("base", "code-interpreter-v1")  # type: ignore[attr-defined]


def test_a_template_that_is_not_built_names_the_command(tmp_path: Path) -> None:
    """Looking never builds, and makes nothing."""
    with pytest.raises(TemplateNotBuilt, match="sandboxkit templates build code-interpreter-v1"):
        images.find("code-interpreter-v1")
    assert list(tmp_path.iterdir()) == []


def test_a_built_template_is_found_with_its_resources(tmp_path: Path) -> None:
    """The layer is seen where the box's interpreter looks for it; the resources are the template's."""
    found = definition("code-interpreter-v1")
    assert found is not None
    layer = tmp_path / "layers" / found.layer_name
    layer.mkdir(parents=True)
    built = images.find("code-interpreter-v1")
    assert [(made.source, made.target) for made in built.layers] == [(str(layer), "/opt/sandboxkit/env")]
    assert built.has_interpreter
    assert (built.cpus, built.memory) == (2.0, 2048 * 2**20)
    assert images.build("code-interpreter-v1") == built


def test_the_name_of_a_layer_follows_its_contents(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other requirements or another interpreter are another layer."""
    import sysconfig

    found = definition("code-interpreter-v1")
    assert found is not None
    other = dataclasses.replace(found, requirements=found.requirements + b"six==1.17.0\n")
    names = {found.layer_name, other.layer_name}
    config = sysconfig.get_config_var
    monkeypatch.setattr(sysconfig, "get_config_var", lambda name: "cpython-399" if name == "SOABI" else config(name))
    names.add(found.layer_name)
    assert len(names) == 3


def test_every_pin_is_exact() -> None:
    """A build today and one next year hold the same versions."""
    found = definition("code-interpreter-v1")
    assert found is not None
    lines = [line for line in found.requirements.decode().splitlines() if not line.startswith("#")]
    assert lines
    assert all("==" in line.split(";")[0] for line in lines)
