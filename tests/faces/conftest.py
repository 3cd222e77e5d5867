"""Scripts in processes of their own, with a limit: what hazards are tried in."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest


class Script:
    """A Python program that runs, and its output so far."""

    def __init__(self, source: str, *, cwd: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-X", "faulthandler", "-c", textwrap.dedent(source)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=cwd,
        )
        self.lines: list[str] = []
        self._grown = threading.Condition()
        self._readers = [
            threading.Thread(target=self._read, args=(stream,))
            for stream in (self._process.stdout, self._process.stderr)
        ]
        for reader in self._readers:
            reader.start()

    def _read(self, stream: Iterator[str]) -> None:
        for line in stream:
            with self._grown:
                self.lines.append(line.rstrip("\n"))
                self._grown.notify_all()

    @property
    def output(self) -> str:
        return "\n".join(self.lines)

    def wait_for(self, text: str, seconds: float = 40) -> None:
        """Wait until a line with this text was printed."""
        with self._grown:
            there = self._grown.wait_for(lambda: text in self.output, seconds)
        assert there, f"{text!r} was not printed within {seconds} s:\n{self.output}"

    def interrupt(self) -> None:
        """What Ctrl-C does."""
        self._process.send_signal(signal.SIGINT)

    def ended(self, seconds: float) -> int:
        """Wait for its end, and return the exit code; fails past the limit."""
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            self._process.send_signal(signal.SIGABRT)  # faulthandler then shows where each thread is
            self._process.wait(5)
            raise AssertionError(f"still running after {seconds} s:\n{self.output}") from None
        finally:
            for reader in self._readers:
                reader.join(5)

    def close(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        for reader in self._readers:
            reader.join(5)
        for stream in (self._process.stdout, self._process.stderr):
            assert stream is not None
            stream.close()


@pytest.fixture
def script(tmp_path: Path) -> Iterator[Callable[[str], Script]]:
    """Start a program; it is killed at the test's end if it still runs."""
    started: list[Script] = []

    def start(source: str) -> Script:
        started.append(Script(source, cwd=tmp_path))
        return started[-1]

    yield start
    for program in started:
        program.close()
