"""Blank boxes on an engine of empty boxes: claimed once, made anew, and gone when the engine is."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from sandboxkit.errors import ConfigurationError
from sandboxkit.local._config import EngineConfig


@pytest.fixture
def warm(start_hollow: Callable[..., Any], wait_until: Callable[..., None]) -> Any:
    """An engine that has two blanks of the template `code-interpreter-v1`, whose first sandbox is gone."""
    hollow = start_hollow(warm=2)
    made = hollow.create("code-interpreter-v1")
    assert hollow.client.delete(f"/sandboxes/{made['sandboxID']}").status_code == 204
    wait_until(lambda: len(hollow.isolation.boxes) == 2)
    return hollow


def test_a_sandbox_gets_a_blank_and_the_next_is_made(warm: Any) -> None:
    """A create takes a box that is there, under the id that the box has had from the start, and another is made."""
    blanks = set(warm.isolation.boxes)
    warm.isolation.failure = RuntimeError("no box can be made now")
    first = warm.create("code-interpreter-v1", envVars={"A": "b"})["sandboxID"]
    assert first in blanks
    warm.isolation.failure = None
    second = warm.create("code-interpreter-v1")["sandboxID"]
    assert {first, second} == blanks
    assert warm.client.get(f"/sandboxes/{first}").json()["state"] == "running"


def test_a_blank_is_nobodys_until_it_is_claimed(warm: Any) -> None:
    """A blank is not listed, not found, and takes no request."""
    assert warm.client.get("/v2/sandboxes").json() == []
    for blank in list(warm.isolation.boxes):
        assert warm.client.get(f"/sandboxes/{blank}").status_code == 404
        assert warm.client.delete(f"/sandboxes/{blank}").status_code == 404
        headers = {"e2b-sandbox-id": blank, "e2b-sandbox-port": "49999"}
        assert warm.client.post("/execute", headers=headers, json={"code": "1"}).status_code == 502


def test_two_never_get_the_same(warm: Any) -> None:
    """However many ask at once, each gets a sandbox of its own, and a killed one's box is not used again."""
    with ThreadPoolExecutor(8) as threads:
        made = list(threads.map(lambda _: warm.create("code-interpreter-v1")["sandboxID"], range(24)))
    assert len(set(made)) == 24
    for sandbox_id in made:
        warm.client.delete(f"/sandboxes/{sandbox_id}")
    assert warm.create("code-interpreter-v1")["sandboxID"] not in made


def test_another_template_gets_none_of_them(warm: Any) -> None:
    """A blank serves sandboxes of its own template only."""
    blanks = set(warm.isolation.boxes)
    assert warm.create("base")["sandboxID"] not in blanks


def test_a_blank_that_died_is_not_handed_out(warm: Any) -> None:
    """A blank whose agent does not answer is ended, and the sandbox gets a box made for it."""
    made = warm.isolation.made
    for box in list(warm.isolation.boxes.values()):
        box.is_silent = True
    sandbox = warm.create("code-interpreter-v1")["sandboxID"]
    assert warm.isolation.made > made
    assert not warm.isolation.boxes[sandbox].is_silent


def test_a_repeated_request_takes_no_second_blank(warm: Any) -> None:
    """A create that is repeated under its key is answered with the first one's sandbox."""
    body = {"templateID": "code-interpreter-v1"}
    answers = [
        warm.client.post("/v2/sandboxes", json=body, headers={"Idempotency-Key": "once"}).json()["sandboxID"]
        for _ in range(2)
    ]
    assert answers[0] == answers[1]
    assert len(warm.client.get("/v2/sandboxes").json()) == 1


def test_blanks_make_room_for_sandboxes(start_hollow: Callable[..., Any], wait_until: Callable[..., None]) -> None:
    """Sandboxes and blanks together are never more than the engine's cap."""
    hollow = start_hollow(warm=2, max_sandboxes=3)
    for _ in range(3):
        hollow.create("base")
        assert len(hollow.isolation.boxes) <= 3 + 1  # one may be on its way out
    wait_until(lambda: len(hollow.isolation.boxes) == 3)
    assert hollow.client.post("/v2/sandboxes", json={"templateID": "base"}).status_code == 429


def test_templates_are_stocked_from_the_start_where_asked(
    start_hollow: Callable[..., Any], wait_until: Callable[..., None]
) -> None:
    """With `warm_from_start` the first sandbox of each built template finds a blank already."""
    hollow = start_hollow(warm=1, warm_from_start=True)
    wait_until(lambda: len(hollow.isolation.boxes) == 2)
    blanks = set(hollow.isolation.boxes)
    assert {hollow.create(name)["sandboxID"] for name in ("base", "code-interpreter-v1")} == blanks


def test_nothing_of_them_is_left_at_the_end(warm: Any) -> None:
    """An engine that ends takes its blanks with it."""
    warm.stop()
    assert warm.isolation.boxes == {}
    assert warm.isolation.made == warm.isolation.killed


@pytest.mark.parametrize("warm", [-1, 201])
def test_an_impossible_number_is_refused(warm: int) -> None:
    """`warm` is from 0 to the engine's cap."""
    with pytest.raises(ConfigurationError, match="warm"):
        EngineConfig(warm=warm, max_sandboxes=200)
