"""IPython's shell without a terminal and without ZMQ: what it shows goes out as results, what fails as errors."""

from __future__ import annotations

import builtins
import getpass
import os
import signal
import subprocess
from typing import Any, NoReturn, Protocol

from IPython.core.displayhook import DisplayHook
from IPython.core.displaypub import DisplayPublisher
from IPython.core.error import StdinNotImplementedError
from IPython.core.interactiveshell import InteractiveShell
from traitlets import Type
from traitlets.config import Config

from .kernel_formats import install

HERE = os.path.dirname(os.path.abspath(__file__)) + os.sep


class Sink(Protocol):
    """Where a shell's results and errors go."""

    def result(self, bundle: dict[str, Any], *, is_main: bool) -> None:
        """A displayed value; the main one is the value of the cell."""

    def error(self, name: str, value: str, traceback: str) -> None:
        """An exception that ended the cell."""

    def exit_after_cell(self) -> None:
        """The user asked the interpreter to end."""


class Publisher(DisplayPublisher):
    """`display(...)`. Updates of what was displayed are left out, as E2B does: its stream has no place for them."""

    def publish(self, data: Any, metadata: Any = None, *_: Any, update: bool = False, **__: Any) -> None:
        if not update:
            self.shell.sink.result(data, is_main=False)

    def clear_output(self, wait: bool = False) -> None:
        pass


class Hook(DisplayHook):
    """The value of a cell's last expression."""

    def write_output_prompt(self) -> None:
        pass

    def write_format_data(self, format_dict: Any, md_dict: Any = None) -> None:
        self.shell.sink.result(format_dict, is_main=True)  # type: ignore[union-attr]

    def finish_displayhook(self) -> None:
        self._is_active = False

    def log_output(self, format_dict: Any) -> None:
        """Not kept: a sandbox that shows many pictures would hold them all."""


class Shell(InteractiveShell):
    """One context's shell."""

    displayhook_class = Type(Hook)
    display_pub_class = Type(Publisher)
    sink: Sink

    def init_ipython_dir(self, ipython_dir: Any) -> None:
        """None: it would be made in the user's home, for a history that is not kept."""

    def init_profile_dir(self, profile_dir: Any) -> None:
        """None, for the same reason."""

    def init_virtualenv(self) -> None:
        """Nothing to do: this interpreter is the environment's own."""

    def enable_gui(self, gui: str | None = None) -> None:
        """There is no display, so only "none" and "inline" can be had."""
        if gui not in (None, "inline", "none"):
            raise ValueError(f"There is no display here for the {gui!r} event loop.")

    def ask_exit(self) -> None:
        """`exit` and `quit`: the interpreter ends after the cell, and a fresh one takes its place."""
        self.sink.exit_after_cell()

    def _get_exc_info(self, exc_tuple: Any = None) -> Any:
        kind, value, trace = super()._get_exc_info(exc_tuple)  # type: ignore[no-untyped-call]
        # From our code on, a traceback tells of the kernel and not of the cell: cut it there.
        last = trace
        while last is not None and last.tb_next is not None:
            if last.tb_next.tb_frame.f_code.co_filename.startswith(HERE):
                last.tb_next = None
            last = last.tb_next
        return kind, value, trace

    def _showtraceback(self, etype: type[BaseException], evalue: BaseException, stb: list[str]) -> None:
        self.sink.error(etype.__name__, str(evalue), "\n".join(stb))

    def system(self, cmd: str) -> None:
        """`!cmd`: its output is the cell's; an interrupt ends the command and the cell."""
        line = self.var_expand(cmd, depth=1)  # type: ignore[no-untyped-call]
        shell = "/bin/bash" if os.path.exists("/bin/bash") else None
        child = subprocess.Popen(line, shell=True, executable=shell, process_group=0)
        try:
            # Not `child.wait()`: that waits for a terminal to interrupt the child as well, and there is none.
            os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        except KeyboardInterrupt:
            os.killpg(child.pid, signal.SIGINT)
            try:
                child.wait(0.5)
            except subprocess.TimeoutExpired:
                os.killpg(child.pid, signal.SIGKILL)
                child.wait()
            raise
        code = child.wait()
        self.user_ns["_exit_code"] = code

    system_piped = system_raw = system


SHOWN_BY = {b"MPLBACKEND": b"module://matplotlib_inline.backend_inline"}
"""What libraries ask the environment about where they show things."""


def make_shell() -> Shell:
    """Make the process's shell; its `sink` is to be set before code is run."""
    config = Config()
    config.HistoryManager.enabled = False
    config.HistoryManager.hist_file = ":memory:"
    config.InteractiveShell.colors = "nocolor"
    config.InteractiveShell.banner1 = ""
    config.Completer.use_jedi = False
    for name, value in SHOWN_BY.items():
        os.environb.setdefault(name, value)
    shell: Shell = Shell.instance(config=config)
    # What `%cd` and `%bookmark` remember; on disk it would outlive the context.
    shell.db = {}
    install(shell)
    builtins.input = getpass.getpass = _no_input
    return shell


def _no_input(prompt: object = "", stream: object = None, **options: object) -> NoReturn:
    raise StdinNotImplementedError("raw_input was called, but this frontend does not support input requests.")
