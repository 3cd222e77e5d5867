"""What the tests of the REST API share."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import datetime
from typing import Any

import pytest


@pytest.fixture
def wait_until() -> Callable[..., None]:
    """Poll with a deadline."""

    def poll(condition: Callable[[], bool], *, seconds: float = 30.0) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, "it did not come about"
            time.sleep(0.005)

    return poll


@pytest.fixture
def life_of() -> Callable[[Any], float]:
    """Seconds from the start to the end that the detail of a sandbox tells."""

    def life(detail: Any) -> float:
        return (datetime.fromisoformat(detail["endAt"]) - datetime.fromisoformat(detail["startedAt"])).total_seconds()

    return life
