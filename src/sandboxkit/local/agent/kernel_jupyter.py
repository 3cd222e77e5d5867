"""A Jupyter kernel of any language behind the engine's wire: starts it, and passes cells on over its own sockets.

Runs inside the box as `python3 kernel.py LANGUAGE`; the wire is described in the engine's
`interpreter/_frames.py`. Which kernel a language has is Jupyter's own business: a directory `kernels/NAME` in one of
its places, in the template or on the machine. The kernel is in this process's group and ends with it.
"""

from __future__ import annotations

import importlib.util
import json
import os
import queue
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any, NoReturn

import zmq
from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.connect import write_connection_file
from jupyter_client.kernelspec import KernelSpec, KernelSpecManager, NoSuchKernel

from .agent import prctl
from .kernel_mime import encode, fields
from .kernel_wire import MAX_BODY, Wire

NO_KERNEL = 69
"""As `kernel.py` has it."""

NAMES = {"r": ("ir",), "java": ("java", "rapaio-jupyter-kernel")}
"""What the kernels of a language are called, where they are not called like it."""

STREAMS = {"stdout": 1, "stderr": 2}
POLL = 500
PR_SET_PDEATHSIG = 1

WITHOUT_BOUND = """
import runpy, sys, zmq
from ipykernel.kernelapp import IPKernelApp as App
init_iopub = App.init_iopub
def without_bound(self, context):
    context.setsockopt(zmq.SNDHWM, 0)
    init_iopub(self, context)
App.init_iopub = without_bound
sys.argv = sys.argv[1:]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""
"""Starts a kernel that is written in Python, whose publisher would else throw away what comes after 1,000 messages
that wait (ZeroMQ's ZMQ_SNDHWM): they wait in the box's own memory instead, as they do at the other end."""

Setter = Callable[[str, str | None], str]
"""The code that sets an environment variable in a running kernel, or takes it away."""


def _bash(name: str, value: str | None) -> str:
    return f"unset {name}" if value is None else f"export {name}={shlex.quote(value)}"


def _r(name: str, value: str | None) -> str:
    return f"Sys.unsetenv({json.dumps(name)})" if value is None else f"Sys.setenv(`{name}` = {json.dumps(value)})"


def _deno(name: str, value: str | None) -> str:
    shown = json.dumps(name)
    return f"Deno.env.delete({shown});" if value is None else f"Deno.env.set({shown}, {json.dumps(value)});"


SETTERS: dict[str, Setter] = {"bash": _bash, "r": _r, "deno": _deno}


class Bridge:
    """One kernel, its client, and the wire."""

    def __init__(self, descriptor: int, language: str) -> None:
        self._language = language
        self._spec = _find(language)
        self._directory = tempfile.mkdtemp(prefix="sandboxkit-kernel-")
        self._connection = os.path.join(self._directory, "connection.json")
        self._process = self._start()
        self._client = BlockingKernelClient(connection_file=self._connection)
        self._client.load_connection_file()
        # What a kernel publishes is never dropped on its way: it waits here, in the box's own memory.
        self._client.context.setsockopt(zmq.RCVHWM, 0)
        self._client.start_channels(stdin=False, hb=False)
        self._wire = Wire(descriptor)
        self._poller = zmq.Poller()
        self._cell: int | None = None

    def _start(self) -> subprocess.Popen[bytes]:
        write_connection_file(self._connection, ip="127.0.0.1", kernel_name=self._language)
        replaced = {"{connection_file}": self._connection, "{resource_dir}": self._spec.resource_dir}
        argv = []
        for word in self._spec.argv:
            for name, value in replaced.items():
                word = word.replace(name, value)
            argv.append(word)
        if os.path.basename(argv[0]).startswith("python"):
            argv[0] = sys.executable if argv[0] in ("python", "python3") else argv[0]
            if argv[1:2] == ["-m"]:
                argv[1:2] = ["-c", WITHOUT_BOUND]
        # Kernels in Python look after their parent by this; the others are told by the kernel of the machine.
        environment = {**os.environ, **self._spec.env, "JPY_PARENT_PID": str(os.getpid()), "NO_COLOR": "1"}
        return subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, env=environment, preexec_fn=_end_with_parent
        )

    # -- serving --------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Serve until the engine goes, or the kernel ends."""
        self._wait_until_ready()
        signal.signal(signal.SIGINT, self._on_interrupt)
        self._poller.register(self._wire.fileno(), zmq.POLLIN)
        self._wire.send({"op": "ready"})
        while True:
            if self._poller.poll(POLL):
                frames = self._wire.receive()
                if frames is None:
                    return
                for head, body in frames:
                    if head["op"] == "execute":
                        self._run_cell(head["cell"], json.loads(body))
            self._check()

    def _wait_until_ready(self) -> None:
        """Ask until both channels have said something: what is published before a subscription is lost."""
        has_answered = has_published = False
        while not (has_answered and has_published):
            self._client.kernel_info()
            for channel in (self._client.shell_channel, self._client.iopub_channel):
                try:
                    channel.get_msg(timeout=0.5)
                except queue.Empty:
                    break
                has_answered = has_answered or channel is self._client.shell_channel
                has_published = has_published or channel is self._client.iopub_channel
            self._check()

    def _check(self) -> None:
        if self._process.poll() is not None:
            raise KernelEnded(self._process.returncode)

    def _on_interrupt(self, signum: int, frame: object) -> None:
        if self._cell is None:
            return
        if self._spec.interrupt_mode == "message":
            message = self._client.session.msg("interrupt_request", content={})
            self._client.control_channel.send(message)
        else:
            self._process.send_signal(signal.SIGINT)

    def stop(self) -> None:
        """End the kernel, if it has not ended."""
        self._process.kill()
        self._process.wait()
        for name in os.listdir(self._directory):
            os.unlink(os.path.join(self._directory, name))
        os.rmdir(self._directory)

    # -- one cell -------------------------------------------------------------------------------------------------

    def _run_cell(self, cell: int, request: dict[str, Any]) -> None:
        setter = SETTERS.get(self._language)
        envs: dict[str, str] = request["envs"] if setter is not None else {}
        self._cell = cell
        if setter is not None and envs:
            self._execute("\n".join(setter(name, value) for name, value in envs.items()), silent=True)
        self._execute(request["code"], silent=False)
        if setter is not None and envs:
            self._execute("\n".join(setter(name, os.environ.get(name)) for name in envs), silent=True)
        self._cell = None
        self._wire.send({"op": "ended", "cell": cell, "exiting": False})

    def _execute(self, code: str, *, silent: bool) -> None:
        client = self._client
        number = client.execute(code, silent=silent, store_history=not silent, allow_stdin=False)
        cell = Cell(self._wire, self._cell, is_silent=silent, on_terminal=self._language == "bash")
        poller = zmq.Poller()
        for channel in (client.iopub_channel, client.shell_channel):
            poller.register(channel.socket, zmq.POLLIN)
        while not cell.is_over:
            if not poller.poll(POLL):
                self._check()
            for channel in (client.iopub_channel, client.shell_channel):
                while (message := client.session.recv(channel.socket, zmq.NOBLOCK)[1]) is not None:
                    if message["parent_header"].get("msg_id") == number:
                        cell.take(message["header"]["msg_type"], message["content"])


class Cell:
    """Turns the messages of one request into frames and output."""

    def __init__(self, wire: Any, number: int | None, *, is_silent: bool, on_terminal: bool) -> None:
        self._wire = wire
        self._on_terminal = on_terminal
        self._held = ""
        self._number = number
        self._is_silent = is_silent
        self._has_begun = self._has_failed = self._is_idle = self._is_answered = False

    @property
    def is_over(self) -> bool:
        """Whether the kernel has said its last word on it, on both of its channels."""
        return self._is_idle and self._is_answered

    def take(self, kind: str, content: dict[str, Any]) -> None:
        """Take the next message."""
        if kind == "status":
            self._is_idle = self._is_idle or content.get("execution_state") == "idle"
            if self._is_idle and self._held:
                _write(1, b"\r")
        elif kind == "execute_reply":
            self._is_answered = True
            if not self._is_silent:
                self._begin(content)
                if content.get("status") != "ok":
                    self._error(content)
        elif self._is_silent:
            return
        elif kind == "execute_input":
            self._begin(content)
        elif kind == "stream":
            self._print(STREAMS.get(content.get("name", ""), 1), str(content.get("text", "")))
        elif kind in ("execute_result", "display_data"):
            self._result(content.get("data") or {}, is_main=kind == "execute_result")
        elif kind == "error":
            self._error(content)

    def _begin(self, content: dict[str, Any]) -> None:
        count = content.get("execution_count")
        if not self._has_begun:
            self._has_begun = True
            self._wire.send({"op": "began", "cell": self._number, "count": count if isinstance(count, int) else 0})

    def _print(self, descriptor: int, text: str) -> None:
        if self._on_terminal and descriptor == 1:
            # bash_kernel reads a terminal, and where a line's end comes in two pieces it passes on the first as it is.
            text = (self._held + text).replace("\r\n", "\n")
            self._held = "\r" if text.endswith("\r") else ""
            text = text.removesuffix("\r")
        _write(descriptor, text.encode("utf-8", "replace"))

    def _result(self, bundle: dict[str, Any], *, is_main: bool) -> None:
        if not bundle:
            return
        body = encode(fields(bundle) | {"is_main_result": is_main})
        if len(body) > MAX_BODY:
            size, limit = len(body) >> 20, MAX_BODY >> 20
            self._error(
                {"ename": "ResultTooLarge", "evalue": f"This result is {size} MiB long; the limit is {limit} MiB."}
            )
            return
        self._wire.send({"op": "result", "cell": self._number}, body)

    def _error(self, content: dict[str, Any]) -> None:
        if self._has_failed:
            return
        self._has_failed = True
        trace = content.get("traceback") or []
        shown = {
            "name": str(content.get("ename") or ""),
            "value": str(content.get("evalue") or "")[: 1 << 22],
            "traceback": "\n".join(map(str, trace))[-(1 << 22) :],
        }
        self._wire.send({"op": "error", "cell": self._number}, encode(shown))


class KernelEnded(Exception):
    """The kernel's process has ended by itself."""

    def __init__(self, code: int) -> None:
        super().__init__(f"The kernel ended with {code}.")
        self.code = code


def _find(language: str) -> Any:
    """The specification of the language's kernel; ends this process where there is none."""
    manager = KernelSpecManager()
    for name in NAMES.get(language, (language,)):
        try:
            return manager.get_kernel_spec(name)
        except NoSuchKernel:
            continue
    if language == "bash" and importlib.util.find_spec("bash_kernel") is not None:
        # Its wheel brings no such directory: its own installer, which is not run here, would write it.
        argv = [sys.executable, "-m", "bash_kernel", "-f", "{connection_file}"]
        return KernelSpec(argv=argv, language="bash", display_name="Bash", env={"PS1": "$"})
    names = " or ".join(map(repr, NAMES.get(language, (language,))))
    others = ", ".join(sorted(manager.find_kernel_specs())) or "none"
    return _refuse(f"no Jupyter kernel called {names} is installed in this sandbox (installed: {others})")


def _refuse(why: str) -> NoReturn:
    print(why, file=sys.stderr, flush=True)
    raise SystemExit(NO_KERNEL)


def _end_with_parent() -> None:
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _write(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(descriptor, view) :]
        except BlockingIOError:
            time.sleep(0.001)


def serve(descriptor: int, language: str) -> None:
    """Serve cells that come over `descriptor` until the engine closes it, or the kernel ends."""
    # Jupyter keeps nothing in the user's home.
    os.environ.setdefault("JUPYTER_RUNTIME_DIR", tempfile.gettempdir())
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    bridge = Bridge(descriptor, language)
    code = 0
    try:
        bridge.run()
    except KernelEnded as ended:
        code = ended.code if ended.code >= 0 else 128 - ended.code
    finally:
        bridge.stop()
    # Not by way of ZeroMQ's own end, which waits for peers that are gone.
    os._exit(code)
