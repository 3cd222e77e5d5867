"""Definitions of builds: read, or refused by name; what a layer's name depends on."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandboxkit.local.images._commands import programs_of, split_apt
from sandboxkit.local.images._steps import (
    BEGINNING,
    BadDefinition,
    Definition,
    expand,
    place_of,
    read_definition,
)

DIGEST = "a" * 64


def read(*steps: dict[str, Any], base: str = "python:3.11", **more: Any) -> Definition:
    """A definition with these steps."""
    return read_definition({"fromImage": base, "steps": list(steps), **more}, python="3.11")


def step(kind: str, *args: str, **more: Any) -> dict[str, Any]:
    """One step as the SDK sends it."""
    return {"type": kind, "args": list(args), "force": False, **more}


def refused(*steps: dict[str, Any], **more: Any) -> BadDefinition:
    """The refusal of such a definition."""
    with pytest.raises(BadDefinition) as caught:
        read(*steps, **more)
    return caught.value


@pytest.mark.parametrize(
    ("image", "kind", "says"),
    [
        ("python:3.11-slim", "python", ""),
        ("python:3", "python", ""),
        ("python", "python", ""),
        ("docker.io/library/python:3.11.9-bookworm", "python", ""),
        ("python:3.13-slim", "python", "not 3.13"),
        ("node:24-slim", "node", ""),
        ("node:24.11.1", "node", ""),
        ("node:lts", "node", ""),
        ("node:22", "node", "not 22"),
        ("e2bdev/base", "python", "this machine's system"),
        ("e2bdev/code-interpreter:latest", "template", ""),
    ],
)
def test_known_bases(image: str, kind: str, says: str) -> None:
    """Bases that this machine has are mapped; where that is not what was asked for, a note says so."""
    base = read(base=image).base
    assert base.kind == kind
    assert says in base.note
    assert bool(base.note) == bool(says)


@pytest.mark.parametrize(
    "image", ["ubuntu:24.04", "python:2.7", "evil/python:3.11", "node:../x", "python:3.11 x", "x" * 9999]
)
def test_other_bases_are_refused_by_name(image: str) -> None:
    """Nothing else stands for an image that is not to be had."""
    found = refused(base=image)
    assert found.step == 0
    assert image[:40] in found.message
    assert "fromImage" in found.option


def test_exactly_one_base_is_needed() -> None:
    """Neither none nor both; a private registry is refused by name."""
    for body in ({}, {"fromImage": "python:3", "fromTemplate": "x"}, {"fromImage": 3}):
        with pytest.raises(BadDefinition, match="Exactly one"):
            read_definition(body, python="3.11")
    assert refused(fromImageRegistry={"type": "registry"}).option == "fromImageRegistry"


def test_steps_have_the_state_of_those_before() -> None:
    """ENV and WORKDIR hold from where they stand; a variable may be made of others."""
    found = read(
        step("ENV", "A", "1", "B", "$A-${A}-$C"),
        step("WORKDIR", "/app"),
        step("RUN", "make"),
        step("WORKDIR", "sub"),
        step("ENV", "A", "2"),
        step("COPY", "x", ".", "", "", filesHash=DIGEST),
    )
    run, copy = found.steps
    assert (run.envs, run.workdir) == ({"A": "1", "B": "1-1-$C"}, "/app")
    assert (copy.target, copy.into, copy.envs["A"]) == ("/app/sub", True, "2")
    assert (found.workdir, found.places) == ("/app/sub", ("/app",))
    assert [one.number for one in found.steps] == [3, 6]


def test_variables_are_made_of_those_that_are_there_from_the_beginning() -> None:
    """`ENV PATH=/app/bin:$PATH`, which many Dockerfiles have, adds to the path; so does the next one."""
    found = read(step("ENV", "PATH", "/app/bin:$PATH", "AT", "${HOME}/x"), step("ENV", "PATH", "/b:$PATH"))
    assert found.envs == {"PATH": f"/b:/app/bin:{BEGINNING['PATH']}", "AT": "/home/user/x"}
    assert read(step("WORKDIR", "$HOME/x")).workdir == "/home/user/x"


def test_apt_must_find_what_it_would_install() -> None:
    """What the SDK makes of apt_install names packages; the rest of such a command runs."""
    (one,) = read(
        step(
            "RUN",
            "apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends a b",
            "root",
        )
    ).steps
    assert (one.packages, one.command) == (("a", "b"), "")
    assert split_apt("apt-get update && apt-get install -y a=1.2 \\\n b && rm -rf /x && echo $A") == (
        ("a", "b"),
        "rm -rf /x && echo $A",
    )
    assert split_apt("echo apt-get install x") == ((), "echo apt-get install x")


def test_root_is_the_one_user_where_that_is_harmless() -> None:
    """sudo is left out, root is accepted, and programs that need root are refused by their names."""
    found = read(step("USER", "root"), step("RUN", "sudo -E pip install x && cd y; sudo make"))
    assert found.steps[0].command == "pip install x && cd y; make"
    assert found.steps[0].root
    assert refused(step("RUN", "true && useradd bob", "root")).option == "useradd"
    assert "bob" in refused(step("USER", "bob")).option
    assert "bob" in refused(step("COPY", "x", "y", "bob:bob", "", filesHash=DIGEST)).option
    assert (
        read(step("USER", "user"), step("COPY", "x", "y", "root:root", "0644", filesHash=DIGEST)).steps[0].mode
        == "0644"
    )


@pytest.mark.parametrize(
    "target", ["/etc/x", "/usr/local/bin/x", "/opt/sandboxkit/agent/x", "/../etc/x", "/proc/1/mem"]
)
def test_system_places_are_refused_by_name(target: str) -> None:
    """A template brings files to its home and to directories of its own, and to nothing of the system's."""
    assert "cannot be written" in refused(step("COPY", "x", target, "", "", filesHash=DIGEST)).message
    assert "cannot be written" in refused(step("WORKDIR", target)).message


def test_the_root_is_a_place_to_stand_and_not_to_write() -> None:
    """Every Dockerfile begins in "/", by the SDK: that is no place of the template's, and nothing is copied there."""
    found = read(step("WORKDIR", "/"), step("RUN", "true"), step("WORKDIR", "app"))
    assert [one.workdir for one in found.steps] == ["/"]
    assert (found.workdir, found.places) == ("/app", ("/app",))
    assert read(step("WORKDIR", "/")).places == ()
    for before, target in (([], "/"), ([step("WORKDIR", "/")], ".")):
        copy = step("COPY", "x", target, "", "", filesHash=DIGEST)
        assert "/ cannot be written" in refused(*before, copy).message


@pytest.mark.parametrize(
    "one",
    [
        step("COPY", "../x", "y", "", "", filesHash=DIGEST),
        step("COPY", "/etc/passwd", "y", "", "", filesHash=DIGEST),
        step("COPY", "x", "y", "", "", filesHash="../../etc/passwd"),
        step("COPY", "x", "y", "", "9", filesHash=DIGEST),
        step("COPY", "x"),
        step("ENV", "A"),
        step("ENV", "A-B", "1"),
        step("ENV", "A", "\x00"),
        step("RUN"),
        step("RUN", " "),
        step("WORKDIR"),
        step("USER", "user", "more"),
        step("VOLUME", "/x"),
        {"type": "RUN", "args": "x"},
        {"type": "RUN", "args": ["x"], "new": 1},
        {"type": "RUN", "args": ["\ud800"]},
        {"type": "RUN", "args": [1]},
        "RUN x",
    ],
)
def test_malformed_steps_are_refused_with_their_number(one: Any) -> None:
    """The step that is wrong is named, as the client counts."""
    assert refused(step("RUN", "true"), one).step == 2


def test_unknown_fields_are_refused() -> None:
    """A newer client that relies on something must not believe that it works."""
    assert "novel" in refused(novel=1).option


def test_what_a_layers_name_depends_on() -> None:
    """On the layers below, on the step, and on the state that it runs in; not on its number."""

    def key(*steps: dict[str, Any], below: str = "b") -> str:
        return read(*steps).steps[-1].key(below)

    plain = key(step("RUN", "make"))
    assert plain == key(step("USER", "root"), step("RUN", "make"))
    others = [
        key(step("RUN", "make"), below="c"),
        key(step("RUN", "make x")),
        key(step("ENV", "A", "1"), step("RUN", "make")),
        key(step("WORKDIR", "x"), step("RUN", "make")),
        key(step("COPY", "x", "y", "", "", filesHash=DIGEST)),
        key(step("COPY", "x", "y/", "", "", filesHash=DIGEST)),
        key(step("COPY", "x", "y", "", "", filesHash="b" * 64)),
    ]
    assert len({plain, *others}) == len(others) + 1


@given(st.text(), st.dictionaries(st.text(), st.text()))
def test_any_text_is_read(text: str, envs: dict[str, str]) -> None:
    """Reading commands and variables never fails, whatever is in them."""
    expand(text, envs)
    list(programs_of(text))
    split_apt(text)
    place_of("/" + text)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda one: st.lists(one) | st.dictionaries(st.text(), one),
    )
)
def test_any_json_is_read_or_refused(value: Any) -> None:
    """Whatever a client sends for its steps, it is understood or refused, and nothing else happens."""
    for body in (
        {"fromImage": "python:3", "steps": value},
        {"fromImage": "python:3", "steps": [value]},
        {"fromImage": value},
    ):
        with contextlib.suppress(BadDefinition):
            read_definition(body, python="3.11")
