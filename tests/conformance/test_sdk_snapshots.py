"""Snapshots and forks through the unmodified SDK, sync and async, on the real engine."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from typing import Any

import e2b
import pytest

pytestmark = pytest.mark.engine

Options = dict[str, str]


@pytest.fixture
def name() -> str:
    """A name that no other test gives."""
    return f"snap-{uuid.uuid4().hex}"


@pytest.fixture
def cleanly(colour: Any, sdk: Options) -> Iterator[list[Any]]:
    """A list for ids of snapshots and for sandboxes that are to go at the end."""
    made: list[Any] = []
    yield made
    kind: Any = e2b.Sandbox if colour.name == "sync" else e2b.AsyncSandbox
    for one in made:
        if isinstance(one, str):
            colour.do(kind.delete_snapshot(one, **sdk))
        else:
            colour.do(one.kill())


def kind_of(colour: Any) -> Any:
    return e2b.Sandbox if colour.name == "sync" else e2b.AsyncSandbox


def all_of(colour: Any, paginator: Any) -> list[str]:
    found = []
    while paginator.has_next:
        found += [one.snapshot_id for one in colour.do(paginator.next_items())]
    return found


def test_a_snapshots_life(colour: Any, sdk: Options, name: str, cleanly: list[Any]) -> None:
    """Taken, listed, started from, deleted; the sandbox it was taken from runs on with its processes."""
    kind = kind_of(colour)
    box = colour.create()
    colour.do(box.files.write("dir/f", "before"))
    command = colour.do(box.commands.run("sleep 100", background=True))
    taken = colour.do(box.create_snapshot(name))
    cleanly.append(taken.snapshot_id)
    assert taken.names == [taken.snapshot_id]
    assert name in taken.snapshot_id
    colour.do(box.files.write("dir/f", "after"))
    assert command.pid in [process.pid for process in colour.do(box.commands.list())]
    for called in (taken.snapshot_id, name):
        new = colour.do(kind.create(called, timeout=60, **sdk))
        cleanly.append(new)
        assert colour.do(new.files.read("dir/f")) == "before"
        assert colour.do(new.commands.run("pgrep -c sleep || true")).stdout == "0\n"
        assert colour.do(new.get_info()).name == name
    unnamed = colour.do(box.create_snapshot(mode="filesystem"))
    cleanly.append(unnamed.snapshot_id)
    assert unnamed.names == []
    assert all_of(colour, box.list_snapshots(limit=1)) == [unnamed.snapshot_id, taken.snapshot_id]
    assert all_of(colour, kind.list_snapshots(name=name, **sdk)) == [taken.snapshot_id]
    assert unnamed.snapshot_id in all_of(colour, kind.list_snapshots(**sdk))
    assert colour.do(kind.delete_snapshot(taken.snapshot_id, **sdk)) is True
    assert colour.do(kind.delete_snapshot(taken.snapshot_id, **sdk)) is False
    assert colour.do(new.files.read("dir/f")) == "before"
    with pytest.raises(e2b.SandboxException, match="template_not_found"):
        colour.do(kind.create(name, **sdk))


def test_forks(colour: Any, cleanly: list[Any]) -> None:
    """Each fork is a running sandbox of its own with the parent's files and environment, and goes its own way."""
    box = colour.create(envs={"A": "b"})
    colour.do(box.commands.run("mkdir d; echo one > d/f; ln d/f d/g; ln -s f d/h; chmod 700 d/f; mkfifo d/p"))
    before = colour.do(box.get_info())
    forks = colour.do(box.fork(timeout=60, count=2))
    cleanly += forks
    assert len({box.sandbox_id, *(one.sandbox_id for one in forks)}) == 3
    for number, one in enumerate(forks):
        said = colour.do(one.commands.run("cat d/g d/h; stat -c '%a %h' d/f; ls d; echo $A $E2B_SANDBOX_ID")).stdout
        assert said == f"one\none\n700 2\nf\ng\nh\nb {one.sandbox_id}\n"
        colour.do(one.files.write("mine", str(number)))
    assert [colour.do(one.files.read("mine")) for one in forks] == ["0", "1"]
    assert not colour.do(box.files.exists("mine"))
    assert colour.do(box.get_info()).end_at == before.end_at
    with pytest.raises(e2b.NotFoundException):
        colour.do(kind_of(colour).fork("inosuch", **colour.options))


def test_both_wait_for_nobody(colour: Any, cleanly: list[Any], name: str) -> None:
    """A stream that is open while its sandbox is copied goes on: nothing of it is lost."""
    box = colour.create()
    got: list[str] = []

    def run() -> Any:
        return box.commands.run(
            "for i in $(seq 50); do echo $i; sleep 0.01; done",
            background=True,
            **({"on_stdout": got.append} if colour.name == "async" else {}),
        )

    command = colour.do(run())
    cleanly.append(colour.do(box.create_snapshot(name)).snapshot_id)
    wait: Callable[..., Any] = command.wait
    assert colour.do(wait()).stdout == "".join(f"{number}\n" for number in range(1, 51))
