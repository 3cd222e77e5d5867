"""Pages of sandboxes stay what they are while everything changes between them."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandboxkit.local.control._refusals import Refused
from sandboxkit.local.control._registry import Now, Query, Registry, State, Wanted

START = datetime(2026, 1, 1, tzinfo=UTC)


@given(data=st.data(), order=st.sampled_from(["asc", "desc"]), limit=st.integers(min_value=1, max_value=4))
def test_whatever_changes_between_pages(data: st.DataObject, order: str, limit: int) -> None:
    """Between two pages sandboxes come, go, pause, are stored and resumed: each that is there throughout is listed
    once, in the order of its start, and none twice."""
    numbers = itertools.count()
    registry = Registry(max_sandboxes=100, new_id=lambda: f"i{next(numbers)}", new_token=lambda: "t")
    now = Now(0.0, START)

    def add() -> str:
        return registry.made(
            registry.create(Wanted(template_id="base", timeout=30, fingerprint="x"), now).sandbox.sandbox_id, now
        ).sandbox_id

    def change(one: str) -> None:
        state = registry.get(one, now).state
        if state is State.LIVE:
            registry.pause(one, now)
        elif state is State.PAUSED and data.draw(st.booleans()):
            registry.stored(one, persisted=True)
        elif state is State.STORED:
            registry.restoring(one)
        else:
            registry.resumed(one, 30, now)

    staying = [add() for _ in range(data.draw(st.integers(min_value=1, max_value=8)))]
    leaving = [add() for _ in range(data.draw(st.integers(min_value=0, max_value=4)))]
    seen: list[str] = []
    token = None
    while True:
        page = registry.page(Query(order="asc" if order == "asc" else "desc", limit=limit, token=token), now)
        seen += [one.sandbox_id for one in page.sandboxes]
        token = page.next_token
        if token is None:
            break
        for _ in range(data.draw(st.integers(min_value=0, max_value=3))):
            move = data.draw(st.sampled_from(["add", "leave", "change"]))
            if move == "add" and len(seen) < 50:
                add()
            elif move == "leave" and leaving:
                registry.end(leaving.pop())
            elif move == "change":
                change(data.draw(st.sampled_from(staying)))
        if len(seen) > 60:
            break
    assert len(seen) == len(set(seen))
    if token is None:
        assert [one for one in seen if one in staying] == (staying if order == "asc" else staying[::-1])


@pytest.mark.parametrize(
    "token", ["", "x", "ZGVzYzo=", "YXNjOjE=", "é", "ZGVzYzotMQ==", "ZGVzYzoxMDAwMDAwMDAwMDAwMDAwMDAwMDA="]
)
def test_a_token_that_was_not_given_is_refused(token: str) -> None:
    """A token that is malformed or of the other order is refused by E2B's own words."""
    registry = Registry(max_sandboxes=1, new_id=lambda: "i", new_token=lambda: "t")
    with pytest.raises(Refused, match="Invalid next token") as refusal:
        registry.page(Query(order="desc", token=token), Now(0.0, START))
    assert refusal.value.status == 400
