"""kill -9 of an engine that keeps sandboxes: at any moment of a copy or a restoration, the next one gives back what was
persisted, and nothing else is left."""

from __future__ import annotations

import time
from typing import Any

import e2b
import pytest

pytestmark = [pytest.mark.engine, pytest.mark.slow]


def slowly(name: str, *, late: bool) -> str:
    """An engine's program in which one step of copying says that it is there, and then takes long."""
    wait = "print('HERE', file=sys.stderr, flush=True); time.sleep(600)"
    return (
        "import sys, time\n"
        "from sandboxkit.local.isolation import _copying\n"
        f"original = _copying.{name}\n"
        "def slowly(*arguments, **more):\n"
        f"    {'pass' if late else wait}\n"
        "    result = original(*arguments, **more)\n"
        f"    {wait if late else 'pass'}\n"
        "    return result\n"
        f"_copying.{name} = slowly\n"
        "from sandboxkit.local.__main__ import main\n"
        "sys.exit(main())\n"
    )


def kill(run: Any, tools: Any) -> None:
    """kill -9 of the engine and its supervisor, and see all end."""
    everything = run.all_pids()
    run.kill(*dict.fromkeys([run.process.pid, run.pid]))
    tools.wait_until(lambda: not tools.alive(everything), what="processes outlived their engine")


def info(client: Any, sandbox_id: str) -> Any:
    answer = client.get(f"/sandboxes/{sandbox_id}")
    return answer.json() if answer.status_code == 200 else None


def paused(run: Any, client: Any, tools: Any, *, persisted: bool = True) -> str:
    """A paused sandbox with a file in it."""
    made = run.create(client, metadata={"a": "b"}, envVars={"A": "x"}, timeout=100)
    run.run(client, made, "echo here > kept; mkdir d; ln -s /etc/passwd d/link; mkfifo d/pipe")
    sandbox_id = str(made["sandboxID"])
    assert client.post(f"/sandboxes/{sandbox_id}/pause").status_code == 204
    if persisted:
        tools.wait_until(lambda: info(client, sandbox_id)["persisted"])
    return sandbox_id


def comes_back(run: Any, client: Any, sandbox_id: str) -> None:
    """It is listed as paused, and connecting brings its files back, and says what is lost."""
    told = info(client, sandbox_id)
    assert (told["state"], told["persisted"], told["metadata"]) == ("paused", True, {"a": "b"})
    answer = client.post(f"/v2/sandboxes/{sandbox_id}/connect", json={"timeout": 60})
    assert (answer.status_code, answer.headers["x-sandboxkit-memory"]) == (201, "lost")
    sandbox = e2b.Sandbox.connect(sandbox_id, **run.sdk)
    assert sandbox.commands.run("cat kept; readlink d/link; ls d; echo $A").stdout == "here\n/etc/passwd\nlink\nx\n"


def test_what_was_persisted_comes_back(start: Any, tools: Any, who: str) -> None:
    """After kill -9 the next engine gives it back; once it runs again, and is killed, nothing of it is kept."""
    first = start(who=who, keep=True)
    with first.client() as client:
        sandbox_id = paused(first, client, tools)
        running = str(first.create(client)["sandboxID"])
    kill(first, tools)
    second = start(who=who, keep=True)
    with second.client() as client:
        assert info(client, running) is None
        comes_back(second, client, sandbox_id)
        assert second.kept() == []
        assert client.delete(f"/sandboxes/{sandbox_id}").status_code == 204
    kill(second, tools)
    third = start(who=who, keep=True)
    with third.client() as client:
        assert client.get("/v2/sandboxes").json() == []
    assert third.kept() == []
    tools.no_tracebacks(third)


@pytest.mark.parametrize("late", [False, True], ids=["before", "after"])
def test_killed_during_the_copy(start: Any, tools: Any, late: bool) -> None:
    """A copy that was not finished counts for nothing, and nothing of it is left; snapshots neither."""
    first = start(wrapper=slowly("pack", late=late), keep=True)
    with first.client() as client:
        sandbox_id = paused(first, client, tools, persisted=False)
        tools.wait_until(lambda: "HERE" in first.log())
        assert info(client, sandbox_id)["persisted"] is False
    kill(first, tools)
    assert first.kept() != []
    second = start(keep=True)
    with second.client() as client:
        assert info(client, sandbox_id) is None
        assert client.get("/snapshots").json() == []
    assert second.kept() == []


@pytest.mark.parametrize("late", [False, True], ids=["before", "after"])
def test_killed_during_the_restoration(start: Any, tools: Any, late: bool) -> None:
    """What is being restored when its engine is killed is given back by the next one."""
    first = start(keep=True)
    with first.client() as client:
        sandbox_id = paused(first, client, tools)
    kill(first, tools)
    second = start(wrapper=slowly("unpack", late=late), keep=True)
    with second.client(timeout=0.5) as client, pytest.raises(Exception, match="timed out"):
        client.post(f"/v2/sandboxes/{sandbox_id}/connect", json={})
    tools.wait_until(lambda: "HERE" in second.log())
    kill(second, tools)
    third = start(keep=True)
    with third.client() as client:
        comes_back(third, client, sandbox_id)
    assert third.kept() == []


def test_snapshots_come_back(start: Any, tools: Any, who: str) -> None:
    """A snapshot is there after kill -9, and sandboxes start from it."""
    first = start(who=who, keep=True)
    with first.client() as client:
        made = first.create(client)
        first.run(client, made, "echo here > kept")
        taken = client.post(f"/sandboxes/{made['sandboxID']}/snapshots", json={"name": "mine"})
        assert taken.status_code == 201
    kill(first, tools)
    second = start(who=who, keep=True)
    sandbox = e2b.Sandbox.create("mine", **second.sdk)
    assert sandbox.files.read("kept") == "here\n"
    assert sandbox.delete_snapshot("mine", **second.sdk)
    assert sandbox.files.read("kept") == "here\n"
    assert second.kept() == []


def test_an_orderly_end_keeps_too(start: Any, tools: Any) -> None:
    """A pause right before SIGTERM is given back: the engine waits for its copy."""
    first = start(keep=True)
    with first.client() as client:
        sandbox_id = paused(first, client, tools, persisted=False)
    assert first.stop() == 0
    second = start(keep=True)
    with second.client() as client:
        comes_back(second, client, sandbox_id)


def test_two_engines_do_not_share(start: Any, tools: Any) -> None:
    """While one engine has the store, another starts without, and what it keeps ends with it."""
    first = start(keep=True)
    with first.client() as client:
        sandbox_id = paused(first, client, tools)
    second = start(keep=True)
    assert "kept.taken" in second.log()
    with second.client() as client:
        assert client.get("/v2/sandboxes").json() == []
        made = second.create(client)["sandboxID"]
        assert client.post(f"/sandboxes/{made}/pause", json={"memory": False}).status_code == 204
        assert info(client, made)["persisted"] is False
        assert client.post(f"/sandboxes/{made}/connect", json={}).status_code == 201
    with first.client() as client:
        assert info(client, sandbox_id)["persisted"] is True
        assert client.delete(f"/sandboxes/{sandbox_id}").status_code == 204


@pytest.mark.full
@pytest.mark.timeout(240)
def test_killed_at_any_moment(start: Any, tools: Any) -> None:
    """Engines are killed at random moments of pauses and resumptions of a large sandbox: what the next one lists can be
    restored with all its files, what it does not list has left nothing."""
    for attempt in range(8):
        first = start(keep=True)
        with first.client() as client:
            made = first.create(client, metadata={"a": "b"}, envVars={"A": "x"}, timeout=100)
            sandbox_id = made["sandboxID"]
            fill = "mkdir d; ln -s /etc/passwd d/link; head -c 60000000 /dev/urandom > big; sha256sum big > sum"
            first.run(client, made, f"{fill}; echo here > kept")
            client.post(f"/sandboxes/{sandbox_id}/pause")
            time.sleep(0.05 * attempt)
        kill(first, tools)
        second = start(keep=True)
        with second.client() as client:
            if info(client, sandbox_id) is not None:
                comes_back(second, client, sandbox_id)
                sandbox = e2b.Sandbox.connect(sandbox_id, **second.sdk)
                assert sandbox.commands.run("sha256sum -c sum").exit_code == 0
            assert client.get("/v2/sandboxes?state=paused").json() == []
        assert second.kept() == []
        kill(second, tools)
    start(keep=True)  # which takes away what the last of them has left
