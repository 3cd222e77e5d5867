"""The stock of blank boxes against its promises, in virtual time."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from sandboxkit.local.control._stock import (
    BLANK_NEEDS,
    FAILED_PAUSE,
    IDLE_AFTER,
    LOOK_EVERY,
    NEW_PAUSE,
    PATIENCE,
    QUIET,
    Plan,
    Stock,
)

EACH = 2
RESERVE = 1000
PLENTY = RESERVE + 10 * BLANK_NEEDS
KINDS = ["base", "python"]


class StockLives(RuleBasedStateMachine):
    """Whatever happens in whatever order: no blank is given twice, and there are never more than are allowed."""

    def __init__(self) -> None:
        super().__init__()
        self.stock: Stock[str] = Stock(each_kind=EACH, reserve=RESERVE)
        self.now = 0.0
        self.numbers = itertools.count()
        self.blanks: dict[str, str] = {}
        self.making: list[str] = []
        self.used: dict[str, float] = {}

    @rule(seconds=st.floats(min_value=0, max_value=2) | st.just(IDLE_AFTER))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule(kind=st.sampled_from(KINDS))
    def claim(self, kind: str) -> None:
        self.stock.used(kind, self.now)
        self.used[kind] = self.now
        blank = self.stock.next(kind)
        if blank is None:
            assert kind not in self.blanks.values()
        else:
            assert self.blanks.pop(blank) == kind
            assert self.stock.gone(blank)
            assert not self.stock.gone(blank)

    @rule(free=st.sampled_from([0, RESERVE + BLANK_NEEDS - 1, PLENTY]), room=st.integers(min_value=0, max_value=9))
    def act(self, free: int, room: int) -> None:
        plan = self.stock.plan(self.now, free=free, room=room)
        for blank in plan.drop:
            del self.blanks[blank]
        if plan.make is not None:
            assert free - BLANK_NEEDS >= RESERVE
            assert len(self.blanks) + len(self.making) < room
            assert self.now < self.used[plan.make] + IDLE_AFTER
            self.stock.making(plan.make)
            self.making.append(plan.make)
        elif not plan.drop:
            assert plan.look_at is None or plan.look_at > self.now
            assert plan.look_at is not None or not self.blanks

    @rule(works=st.booleans())
    def making_ends(self, works: bool) -> None:
        if self.making:
            kind = self.making.pop(0)
            if works:
                name = f"b{next(self.numbers)}"
                self.stock.made(kind, name)
                self.blanks[name] = kind
            else:
                self.stock.failed(kind, self.now)

    @rule(data=st.data())
    def blank_dies(self, data: st.DataObject) -> None:
        if self.blanks:
            blank = data.draw(st.sampled_from(sorted(self.blanks)))
            assert self.stock.gone(blank)
            del self.blanks[blank]

    @invariant()
    def never_too_many(self) -> None:
        assert sorted(self.stock.blanks()) == sorted(self.blanks)
        for kind in KINDS:
            assert list(self.blanks.values()).count(kind) + self.making.count(kind) <= EACH


TestStockLives = StockLives.TestCase
TestStockLives.settings = settings(stateful_step_count=40, suppress_health_check=[HealthCheck.too_slow])


@pytest.fixture
def stocked() -> Stock[str]:
    """A stock with two blanks of one kind, last used at 0."""
    stock: Stock[str] = Stock(each_kind=EACH, reserve=RESERVE)
    stock.used("python", 0.0)
    for name in ("one", "two"):
        stock.making("python")
        stock.made("python", name)
    return stock


def _claim(stock: Stock[str], now: float) -> str:
    stock.used("python", now)
    blank = stock.next("python")
    assert blank is not None
    stock.gone(blank)
    return blank


def test_a_claim_is_made_good_once_it_is_quiet(stocked: Stock[str]) -> None:
    """The next blank is not made in the moment after a claim, when its owner wants the machine, but soon."""
    assert _claim(stocked, 10.0) == "one"
    assert stocked.plan(10.0, free=PLENTY, room=9) == Plan((), None, 10.0 + QUIET)
    assert stocked.plan(10.0 + QUIET, free=PLENTY, room=9).make == "python"


def test_the_first_sandbox_of_a_kind_has_the_machine_for_itself() -> None:
    """Blanks of a kind that was never used before are begun a while after its first use, unless they were expected."""
    stock: Stock[str] = Stock(each_kind=EACH, reserve=RESERVE)
    stock.used("python", 5.0)
    assert stock.plan(5.0 + QUIET, free=PLENTY, room=9) == Plan((), None, 5.0 + NEW_PAUSE)
    assert stock.plan(5.0 + NEW_PAUSE, free=PLENTY, room=9).make == "python"
    stock.expect("base", 5.0)
    assert stock.plan(5.0 + QUIET, free=PLENTY, room=9).make == "base"


def test_an_endless_burst_is_not_waited_for(stocked: Stock[str]) -> None:
    """Where claims never pause, a blank is made all the same after a while."""
    _claim(stocked, 10.0)
    made_at = None
    for step in range(100):
        now = 10.0 + step * QUIET / 2
        if stocked.plan(now, free=PLENTY, room=9).make is not None:
            made_at = now
            break
        stocked.used("python", now)
    assert made_at == pytest.approx(10.0 + PATIENCE, abs=QUIET)


def test_short_memory_gives_blanks_back_one_by_one(stocked: Stock[str]) -> None:
    """Where less than the reserve is free, blanks go, the newest first, and none is made until there is enough."""
    assert stocked.plan(1.0, free=RESERVE - 1, room=9).drop == ("two",)
    assert stocked.plan(1.0, free=RESERVE - 1, room=9).drop == ("one",)
    assert stocked.plan(1.0, free=RESERVE - 1, room=9) == Plan((), None, 1.0 + LOOK_EVERY)
    assert stocked.plan(2.0, free=PLENTY, room=9).make == "python"


def test_the_cap_counts_blanks(stocked: Stock[str]) -> None:
    """Where sandboxes need the room, blanks give way."""
    assert stocked.plan(1.0, free=PLENTY, room=1).drop == ("two",)
    assert stocked.plan(1.0, free=PLENTY, room=1) == Plan((), None, 1.0 + LOOK_EVERY)


def test_what_nobody_uses_is_not_kept(stocked: Stock[str]) -> None:
    """A kind that has not been used for a long time has no blanks, and nothing is left to look after."""
    assert set(stocked.plan(IDLE_AFTER, free=PLENTY, room=9).drop) == {"one", "two"}
    assert stocked.plan(IDLE_AFTER, free=PLENTY, room=9) == Plan((), None, None)
    stocked.used("python", IDLE_AFTER + 1)
    assert stocked.plan(IDLE_AFTER + 1 + QUIET, free=PLENTY, room=9).make == "python"


def test_a_failure_is_not_repeated_at_once(stocked: Stock[str]) -> None:
    """A kind whose blank could not be made is tried again later."""
    _claim(stocked, 1.0)
    assert stocked.plan(2.0, free=PLENTY, room=9).make == "python"
    stocked.making("python")
    stocked.failed("python", 2.0)
    assert stocked.plan(2.0 + FAILED_PAUSE - 1, free=PLENTY, room=9).make is None
    assert stocked.plan(2.0 + FAILED_PAUSE, free=PLENTY, room=9).make == "python"
