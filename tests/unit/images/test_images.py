"""Templates on this machine: which there are, and what is said where one is not built."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest

from sandboxkit.errors import TemplateNotBuilt, TemplateNotFound
from sandboxkit.local import images
from sandboxkit.local.images import _environment, _manifest
from sandboxkit.local.images._definition import definition


@pytest.fixture(autouse=True)
def empty_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A cache in which nothing was built."""
    monkeypatch.setenv("SANDBOXKIT_HOME", str(tmp_path))


def fill_layer(root: Path, *_: object, **__: object) -> None:
    """Put into a layer what looks like an environment."""
    package = root / "lib" / "python3.11" / "site-packages" / "IPython"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("x = 1\n")
    (package / "extra.py").write_text("y = 2\n")
    (root / "bin").mkdir()
    (root / "bin" / "python3").symlink_to("/nowhere/on/this/host")
    (root / "pyvenv.cfg").touch()


def make_layer(root: Path) -> Path:
    """Make a layer as a build would."""
    root.mkdir(parents=True)
    fill_layer(root)
    _manifest.write(root)
    return root


@pytest.fixture
def damaged(tmp_path: Path) -> Path:
    """A built template that is to be damaged by the test."""
    found = definition("code-interpreter-v1")
    assert found is not None
    return make_layer(tmp_path / "layers" / found.layer_name)


KEY_FILES = ["bin/python3", "pyvenv.cfg", ".manifest.json", "lib/python3.11/site-packages/IPython/__init__.py"]


@pytest.mark.parametrize("name", KEY_FILES)
def test_a_layer_without_a_key_file_is_not_used(damaged: Path, name: str) -> None:
    """What nothing works without is looked for at each look; the message says what is missing and what to run."""
    (damaged / name).unlink()
    with pytest.raises(TemplateNotBuilt, match="sandboxkit templates build code-interpreter-v1 --force") as caught:
        images.find("code-interpreter-v1")
    assert name in str(caught.value)
    assert caught.value.is_damaged


def change_size(path: Path) -> None:
    path.write_text("y = 20\n")


def change_name(path: Path) -> None:
    path.rename(path.with_name("other.py"))


def test_authorities_that_a_machine_adds_are_no_damage(damaged: Path) -> None:
    """A bundle of certificates may grow in place; that it is there still counts."""
    bundle = damaged / "lib/python3.11/site-packages/IPython/cacert.pem"
    bundle.write_text("one\n")
    _manifest.write(damaged)
    bundle.write_text("one\ntwo\n")
    assert images.damage(images.find("code-interpreter-v1")) is None
    bundle.unlink()
    assert images.damage(images.find("code-interpreter-v1")) is not None


@pytest.mark.parametrize("change", [Path.unlink, change_size, change_name], ids=["gone", "size", "name"])
def test_other_damage_is_seen_by_the_check_and_repaired_by_a_build(
    damaged: Path, change: Callable[[Path], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that is missing, cut short or renamed is found; a build makes the template anew, and the next does not."""
    assert images.damage(images.find("code-interpreter-v1")) is None
    change(damaged / "lib/python3.11/site-packages/IPython/extra.py")
    built = images.find("code-interpreter-v1")
    assert images.damage(built) is not None
    # The package index is no part of this test: what the real one installs is in test_environment.py.
    monkeypatch.setattr(_environment, "make_environment", fill_layer)
    lines: list[str] = []
    again = images.build("code-interpreter-v1", on_line=lines.append)
    assert any("damaged" in line for line in lines)
    assert again == images.find("code-interpreter-v1") != built
    assert images.damage(again) is None
    assert images.build("code-interpreter-v1") == again


def test_a_forced_build_leaves_what_is_held_until_it_is_let_go(damaged: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While somebody holds a template, a forced build puts another one beside it; later ones remove it."""
    monkeypatch.setattr(_environment, "make_environment", fill_layer)
    with images.hold(images.find("code-interpreter-v1")):
        images.build("code-interpreter-v1", force=True)
        assert damaged.is_dir()
        new = Path(images.find("code-interpreter-v1").layers[0].source)
        assert new.name == f"{damaged.name}.1"
    images.prune(keep_bytes=2**40)
    assert not damaged.exists()
    assert Path(images.find("code-interpreter-v1").layers[0].source) == new


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
    assert caught.value.known[:2] == ("base", "code-interpreter-v1")  # type: ignore[attr-defined]


def test_a_template_that_is_not_built_names_the_command(tmp_path: Path) -> None:
    """Looking never builds, and makes nothing."""
    with pytest.raises(TemplateNotBuilt, match="sandboxkit templates build code-interpreter-v1"):
        images.find("code-interpreter-v1")
    assert list(tmp_path.iterdir()) == []


def test_a_built_template_is_found_with_its_resources(tmp_path: Path) -> None:
    """The layer is seen where the box's interpreter looks for it; the resources are the template's."""
    found = definition("code-interpreter-v1")
    assert found is not None
    layer = make_layer(tmp_path / "layers" / found.layer_name)
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
