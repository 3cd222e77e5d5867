"""Layers of builds: whole or not at all, also where nobody waits for them any more."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from pathlib import Path

import pytest

from sandboxkit.local.images import _manifest
from sandboxkit.local.images._store import Store, give_store

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="builds need Linux")

NAME = "a" * 32


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """An empty one."""
    (tmp_path / "built").mkdir()
    give_store(tmp_path, os.geteuid())
    return Store(tmp_path, uid=os.geteuid())


async def fill(working: Path) -> None:
    """Make a layer of many files."""
    for number in range(2000):
        (working / f"file{number}").write_text("x")


def test_a_maker_that_is_cancelled_at_the_end(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """While its layer is written down: that is finished, and what has the layer's name is whole."""
    writing, go_on = threading.Event(), threading.Event()
    sync = os.sync

    def slowly() -> None:
        sync()
        writing.set()
        go_on.wait(10)

    async def cancel() -> None:
        making = asyncio.create_task(store.make(NAME, fill))
        assert await asyncio.to_thread(writing.wait, 10)
        making.cancel()
        await asyncio.sleep(0.01)
        go_on.set()
        await asyncio.wait([making])
        assert making.cancelled()

    monkeypatch.setattr(os, "sync", slowly)
    asyncio.run(cancel())
    layer = store.layer(NAME)
    assert layer is None or _manifest.layer_damage(layer) is None
    assert [name for name in os.listdir(store.root / "layers") if name.startswith(".making-")] == []
