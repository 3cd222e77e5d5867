"""The agent's verbs of level `enforced` (BENEATH...) and of watching (WATCH...), kept out of its loop."""

from __future__ import annotations

import os

from . import _confined, _watch
from ._beneath import Root
from ._codec import BENEATH_LONG, BENEATH_OPEN, OK, WATCH, WATCH_END, WATCH_NEXT, number

TYPE_CHECKING = False  # the module of that name takes longer to import than all of this
if TYPE_CHECKING:
    from ._loop import Agent


class Verbs:
    """Carries them out for one agent."""

    def __init__(self, agent: Agent) -> None:
        self.agent = agent
        self.watches = _watch.Watches(agent)

    def handle(self, request: int, kind: int, args: list[bytes]) -> None:
        """Carry out one request. OSError is told to the engine by the loop."""
        if kind == BENEATH_OPEN:
            self.open(request, args)
        elif kind == WATCH:
            self.agent.send(request, OK, [self.watches.add(*args)])
        elif kind == WATCH_NEXT:
            self.watches.next(request, number(args[0]), args[1] == b"1")
        elif kind == WATCH_END:
            self.watches.remove(number(args[0]))
            self.agent.send(request, OK, [])
        else:
            job = _confined.operate(args[0], args[1], args[2], args[3:])
            if kind == BENEATH_LONG:
                self.agent.jobs[request] = job
                return
            try:
                while True:
                    next(job)
            except StopIteration as done:
                self.agent.send(request, OK, done.value)

    def open(self, request: int, args: list[bytes]) -> None:
        """Pass a file on: `read` one, `stage` a new one beside it, or `write` in place."""
        how, path, identity, name = args[:4]
        with Root(path, identity, make=how == b"stage") as root:
            if how == b"read":
                fd = _confined.opened(root, name)
                info = os.fstat(fd)
                fields: list[bytes | int] = [info.st_size, _confined.version_of(info)]
            elif how == b"stage":
                fd, part = _confined.stage(root, name)
                fields = [part]
            else:
                fd = _confined.in_place(root, name, number(args[4]), number(args[5]))
                fields = []
            fields.insert(0, root.identity)
            try:
                self.agent.send(request, OK, fields, (fd,))
            finally:
                os.close(fd)
