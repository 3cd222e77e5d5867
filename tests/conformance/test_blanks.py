"""Sandboxes that were booted before they were asked for, on the real engine, through the unmodified SDK."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from e2b_code_interpreter import Sandbox

from sandboxkit.local._child import start_engine
from sandboxkit.local._config import EngineConfig

pytestmark = [pytest.mark.engine, pytest.mark.slow]

TEMPLATE = "code-interpreter-v1"


def _wait_for_blanks(log: Path, count: int) -> None:
    """Wait until the engine has said so often that a blank is made."""
    deadline = time.monotonic() + 30
    while log.read_text().count("blank.made") < count:
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.02)


@pytest.fixture(scope="module")
def warm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[dict[str, Any], Path]]:
    """SDK options for an engine with blanks, and its log."""
    root = tmp_path_factory.mktemp("warm")
    log = root / "log"
    config = EngineConfig(
        isolation=os.environ["SANDBOXKIT_ISOLATION"],
        state_root=str(root / "run"),
        warm=2,
        log_level="debug",
    )
    saved = os.dup(2)
    with log.open("w") as file:
        os.dup2(file.fileno(), 2)
        try:
            engine = start_engine(config)
        finally:
            os.dup2(saved, 2)
            os.close(saved)
    endpoint = engine.endpoint
    options = {"api_key": endpoint.api_key, "api_url": endpoint.api_url, "sandbox_url": endpoint.sandbox_url}
    Sandbox.create(template=TEMPLATE, **options).kill()
    yield options, log
    engine.stop()


def _claimed(warm: tuple[dict[str, Any], Path], **values: Any) -> Sandbox:
    """A sandbox that was made from a blank."""
    options, log = warm
    _wait_for_blanks(log, log.read_text().count("from_blank=True") + 1)
    before = log.read_text().count("from_blank=True")
    sandbox = Sandbox.create(template=TEMPLATE, timeout=120, **options, **values)
    assert log.read_text().count("from_blank=True") == before + 1
    return sandbox


def test_a_claimed_sandbox_is_like_any_other(warm: tuple[dict[str, Any], Path]) -> None:
    """Its id, its environment and its counters are as if it had been made for its owner; nothing of a warm-up shows."""
    with _claimed(warm, envs={"MINE": "ü=1", "PATH_LIKE": "a:b"}) as sandbox:
        first = sandbox.run_code("import os; [os.environ['MINE'], os.environ['E2B_SANDBOX_ID'], _, len(In), Out]")
        assert first.text == f"['ü=1', '{sandbox.sandbox_id}', '', 2, {{}}]"
        assert first.execution_count == 1
        assert sandbox.run_code("!echo $MINE").logs.stdout == ["ü=1\n"]
        assert sandbox.commands.run("echo $MINE $E2B_SANDBOX_ID").stdout == f"ü=1 {sandbox.sandbox_id}\n"
        context = sandbox.create_code_context()
        assert sandbox.run_code("import os; os.environ['MINE']", context=context).text == "ü=1"
        sandbox.restart_code_context(sandbox.list_code_contexts()[0].id)
        assert sandbox.run_code("import os; os.environ['MINE']").text == "ü=1"


def test_what_an_interpreter_reads_at_its_start_holds_too(warm: tuple[dict[str, Any], Path]) -> None:
    """Variables that a running Python no longer heeds have their effect in a claimed sandbox as well."""
    with _claimed(warm, envs={"PYTHONPATH": "/tmp/mine", "TZ": "Asia/Tokyo"}) as sandbox:
        told = sandbox.run_code("import sys, time; ('/tmp/mine' in sys.path, time.tzname[0])").text
        assert told == "(True, 'JST')"


def test_claimed_sandboxes_share_nothing(warm: tuple[dict[str, Any], Path]) -> None:
    """What one leaves behind, in files or in memory, is not in the next, and random numbers differ."""
    seen = set()
    for _ in range(3):
        with _claimed(warm) as sandbox:
            code = "import os, random; (os.listdir('/home/user'), os.listdir('/tmp'), 'x' in dir(), random.random())"
            text = sandbox.run_code(code).text
            assert text is not None
            assert text.startswith("([], [], False")
            seen.add(text)
            sandbox.run_code("x = 1; open('/tmp/left', 'w'); open('/home/user/left', 'w')")
    assert len(seen) == 3
