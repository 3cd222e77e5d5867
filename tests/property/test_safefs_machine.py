"""17, 18: a state machine in which an attacker builds and exchanges what lies below the root while files are read and
written there, with the kernel as judge; and guards with a known mistake, each of which that machine has to catch."""

from __future__ import annotations

import os
import shutil
import stat
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.errors import Flaky
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

if sys.platform != "linux":
    pytest.skip("the resolver is Linux's", allow_module_level=True)

sys.path.insert(0, str(Path(__file__).parents[1]))

from beneath_mutants import MUTANTS, QUICK, Subject
from beneath_tools import MARKER, World, attacked, exchange

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

CONTENTS = (b"one", b"two", b"three")
NAMES = st.sampled_from([b"a", b"b", b"d", b" a", b"a ", b"%61", b"l", b"secret"])
PATHS = st.lists(NAMES, min_size=1, max_size=3).map(b"/".join)
"""Few names, so that what the attacker makes and what is asked for meet."""
TEXTS = st.one_of(
    PATHS,
    st.sampled_from(
        [b"../outside", b"../outside/secret", b"OUT", b"OUT/secret", b"../rootx", b"ROOTx/secret", b"..", b"ROOT", b"/"]
    ),
    st.sampled_from([b"ROOT/a", b"d/../a", b"a/..", b"../root/a", b"nothing", b"a/", b"d/.", b"/proc/self/root"]),
    st.lists(st.one_of(NAMES, st.just(b"..")), min_size=2, max_size=4).map(b"/".join),
)
DATA = st.sampled_from(CONTENTS)
BAITS = st.sampled_from(
    [
        b"../outside",
        b"../outside/secret",
        b"OUT/secret",
        b"../rootx",
        b"ROOTx/secret",
        b"..",
        b"/",
        b"../root/d/secret",
        b"nothing",
    ]
)
"""What leads out, and what would be there."""


class Machine(RuleBasedStateMachine):
    """The attacker's rules and those of SafeFS, on one tree."""

    make_subject = Subject

    def __init__(self) -> None:
        super().__init__()
        place = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
        self.folder = os.path.realpath(tempfile.mkdtemp(prefix="sandboxkit-machine-", dir=place))
        self.made = World(Path(self.folder, "world"))
        os.mkdir(self.made.base + b"/limbo")
        Path(os.fsdecode(self.made.base), "shared").write_bytes(CONTENTS[0])
        self.subject = self.make_subject(self.made)
        self.before = self.outside()
        self.pair: tuple[bytes, bytes] | None = None

    def teardown(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def outside(self) -> Any:
        """What was outside at the beginning, without the number of names and what the attacker has put into limbo."""
        limbo = self.made.base + b"/limbo"
        return [each[:3] + each[4:] for each in self.made.digest() if not each[0].startswith(limbo)]

    def full(self, path: bytes) -> bytes:
        return self.made.root + b"/" + path

    # -- the attacker ----------------------------------------------------------------------------------------------

    @rule(path=PATHS, data=DATA)
    def creates(self, path: bytes, data: bytes) -> None:
        self.try_to(lambda: self.put(path, data))

    @rule(path=PATHS)
    def makes_directory(self, path: bytes) -> None:
        self.try_to(lambda: os.makedirs(self.full(path)) if self.is_inside(os.path.dirname(path)) else None)

    @rule(path=PATHS, text=TEXTS)
    def links(self, path: bytes, text: bytes) -> None:
        self.try_to(lambda: self.place(path, lambda full: os.symlink(self.made.meant(text), full)))

    @rule(path=PATHS)
    def makes_pipe(self, path: bytes) -> None:
        self.try_to(lambda: self.place(path, os.mkfifo))

    @rule(path=PATHS)
    def hard_links(self, path: bytes) -> None:
        self.try_to(lambda: self.place(path, lambda full: os.link(self.made.base + b"/shared", full)))

    @rule(path=PATHS)
    def unlinks(self, path: bytes) -> None:
        self.try_to(lambda: self.place(path, os.unlink))

    @rule(source=PATHS, to=PATHS)
    def renames(self, source: bytes, to: bytes) -> None:
        if self.is_inside(os.path.dirname(source)) and self.is_inside(os.path.dirname(to)):
            self.try_to(lambda: os.rename(self.full(source), self.full(to)))

    @rule(source=PATHS)
    def moves_out(self, source: bytes) -> None:
        if self.is_inside(os.path.dirname(source)):
            self.try_to(lambda: os.rename(self.full(source), self.made.base + b"/limbo/moved"))

    @rule(to=PATHS)
    def moves_back(self, to: bytes) -> None:
        if self.is_inside(os.path.dirname(to)):
            self.try_to(lambda: os.rename(self.made.base + b"/limbo/moved", self.full(to)))

    @rule(one=PATHS, two=PATHS)
    def will_exchange(self, one: bytes, two: bytes) -> None:
        """From now on the two are exchanged while SafeFS works."""
        if self.is_inside(os.path.dirname(one)) and self.is_inside(os.path.dirname(two)) and one != two:
            self.pair = self.full(one), self.full(two)
            self.try_to(lambda: exchange(*self.pair) if self.pair else None)

    @precondition(lambda self: self.pair is not None)
    @rule()
    def rests(self) -> None:
        self.pair = None

    # -- SafeFS ----------------------------------------------------------------------------------------------------

    @rule(path=PATHS)
    def read(self, path: bytes) -> None:
        for told in self.done("read", path, 0, 100, b"", b""):
            assert isinstance(told, str) or told[2] in self.readable(), told
            if self.pair is None:
                self.judge(path, told)

    @rule(path=PATHS, data=DATA)
    def write(self, path: bytes, data: bytes) -> None:
        leads_nowhere = os.path.islink(self.full(path)) and not os.path.exists(self.full(path))
        for told in self.done("write", path, data):
            assert told != [] or not leads_nowhere or self.pair is not None
            if self.pair is None and told == []:
                assert os.path.isfile(self.full(path))
                with open(self.full(path), "rb") as file:  # the kernel finds it under that name, byte for byte
                    assert file.read() == data
                assert not os.path.islink(self.full(path)) or self.is_inside(path)

    @rule(path=PATHS, data=DATA)
    def append(self, path: bytes, data: bytes) -> None:
        self.done("append", path, 100, data)

    @rule(path=PATHS, to=PATHS)
    def copy(self, path: bytes, to: bytes) -> None:
        self.done("copy", path, self.full(to), 100)

    @rule(path=PATHS, to=PATHS)
    def rename(self, path: bytes, to: bytes) -> None:
        self.done("rename", path, self.full(to))

    @rule(path=PATHS)
    def remove(self, path: bytes) -> None:
        for told in self.done("remove", path):
            assert self.pair is not None or told != [] or not os.path.lexists(self.full(path))

    @rule(path=PATHS, what=st.sampled_from(["stat", "exists", "make_dir"]))
    def look(self, path: bytes, what: str) -> None:
        for told in self.done(what, path):
            if what == "stat" and self.pair is None and not isinstance(told, str):
                info = os.lstat(self.full(path))  # a link is itself
                assert told[2:4] == [info.st_mode, info.st_size]

    @rule(path=st.one_of(PATHS, st.just(b"")))
    def list(self, path: bytes) -> None:
        self.done("list", path, 3, 1000)

    # -- both, at once ---------------------------------------------------------------------------------------------

    @rule(name=NAMES, text=BAITS, data=DATA, to=PATHS)
    def takes_a_bait(self, name: bytes, text: bytes, data: bytes, to: bytes) -> None:
        """A link that leads out, and everything that may be done with it."""
        self.clear(name)
        self.links(name, text)
        for path in (name, name + b"/secret"):
            self.write(path, data)
            self.read(path)
            self.look(path, "stat")
            self.look(path, "exists")
            self.append(path, data)
            self.copy(path, to)
        self.list(name)
        self.look(name + b"/new", "make_dir")
        self.remove(name)

    @rule(name=NAMES, data=DATA)
    def meets_a_pipe(self, name: bytes, data: bytes) -> None:
        self.clear(name)
        self.makes_pipe(name)
        self.read(name)
        self.append(name, data)
        for told in self.done("write", name, data):
            assert told == "EMEDIUMTYPE" or self.pair is not None

    @rule(data=DATA, bait=st.sampled_from([b"OUT", b"pipe", b"limbo"]), deep=st.booleans())
    def is_raced(self, data: bytes, bait: bytes, deep: bool) -> None:
        """A file, or the directory that it is in, is exchanged for something else while it is used."""
        for name in (b"x", b"y"):
            self.clear(name)
        path = b"x/secret" if deep else b"x"
        if deep:
            os.mkdir(self.full(b"x"))
        self.put(path, data)
        one, two = self.full(b"x"), self.full(b"y")
        if bait == b"OUT":
            os.symlink(self.made.out + (b"" if deep else b"/secret"), two)
        elif bait == b"pipe":
            os.mkfifo(two)
        else:
            two = self.made.base + b"/limbo/y"
            with suppress(OSError):
                os.mkdir(two)
        self.pair = one, two
        self.read(path)
        self.write(path, data)
        self.look(path, "stat")
        self.list(b"")
        self.remove(path)
        self.pair = None

    def clear(self, name: bytes) -> None:
        full = self.full(name)
        shutil.rmtree(full) if os.path.isdir(full) and not os.path.islink(full) else self.try_to(
            lambda: os.unlink(full)
        )

    # -- what must hold --------------------------------------------------------------------------------------------

    @invariant()
    def nothing_outside_has_changed(self) -> None:
        """12."""
        assert self.outside() == self.before

    @invariant()
    def the_root_is_there(self) -> None:
        """15."""
        assert os.path.isdir(self.made.root)

    def done(self, operation: str, path: bytes, *args: Any) -> list[Any]:
        """What an operation came to; many times, while the attacker exchanges something, or once. 14: none tells
        anything of what is outside; each comes back."""
        told = []
        if self.pair is None:
            told.append(self.once(operation, path, args))
        else:
            with attacked(*self.pair):
                for _ in range(25):
                    told.append(self.once(operation, path, args))
        return told

    def once(self, operation: str, path: bytes, args: tuple[Any, ...]) -> Any:
        began = time.monotonic()
        told = self.subject.do(operation, path, *args)
        assert time.monotonic() - began < 10
        assert MARKER not in repr(told).encode()
        return told

    def judge(self, path: bytes, told: Any) -> None:
        """9: what was read is what the kernel opens there, and lies inside; what was refused as missing is missing."""
        try:
            real = os.path.realpath(self.full(path), strict=True)
        except OSError:
            assert isinstance(told, str)
            return
        kinds = {stat.S_IFDIR: "EISDIR", stat.S_IFIFO: "EMEDIUMTYPE"}
        kind = kinds.get(stat.S_IFMT(os.stat(real).st_mode))
        assert kind is None or told in (kind, "EXDEV")  # the latter where a link on the way leaves and returns
        if not isinstance(told, str):
            assert real.startswith(self.made.root + b"/")
            assert os.stat(real).st_ino == int(told[1].split(b":")[1])
        else:
            assert told != "ENOENT"

    def readable(self) -> set[bytes]:
        """Any content that was ever inside: what was written, and what was added to it."""
        return _Joined()

    def is_inside(self, path: bytes) -> bool:
        real = os.path.realpath(self.full(path))
        return real == self.made.root or real.startswith(self.made.root + b"/")

    def put(self, path: bytes, data: bytes) -> None:
        def write(full: bytes) -> None:
            fd = os.open(full, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o644)
            os.write(fd, data)
            os.close(fd)

        self.place(path, write)

    def place(self, path: bytes, make: Any) -> None:
        """The attacker works inside: what he could do outside, he could do anyway."""
        if self.is_inside(os.path.dirname(path)):
            make(self.full(path))

    @staticmethod
    def try_to(work: Any) -> None:
        with suppress(OSError):
            work()


class _Joined(set[bytes]):
    """All that CONTENTS can be put together to, and nothing."""

    def __contains__(self, data: object) -> bool:
        assert isinstance(data, bytes)
        left = data
        if not left:
            return False  # nobody writes nothing
        while left:
            found = [content for content in CONTENTS if left.startswith(content)]
            if not found:
                return False
            left = left[len(found[0]) :]
        return True


def run(subject: Any, *, examples: int, steps: int = 25, search: bool = False) -> None:
    """The machine on one guard; a search for a mistake is always the same, and does not polish what it finds."""
    options: dict[str, Any] = {}
    if search:
        options = {"derandomize": True, "database": None, "phases": [Phase.generate], "print_blob": False}
    machine = type("Run", (Machine,), {"make_subject": staticmethod(subject)})
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            report_multiple_bugs=False,
            **options,
        ),
    )


@pytest.mark.parametrize("way", ["openat2", "walk"])
def test_the_machine(way: str) -> None:
    """Whatever the attacker builds and whenever he exchanges it, nothing outside is read, named or changed."""
    run(lambda made: Subject(made, way=way), examples=min(settings.default.max_examples // 16, 120))


@pytest.mark.parametrize(
    "mutant", [name if name in QUICK else pytest.param(name, marks=pytest.mark.full) for name in MUTANTS]
)
def test_the_machine_catches(mutant: str) -> None:
    """Each guard with one known mistake breaks what must hold, in the same machine. A race that was won once is not won
    again when Hypothesis tries the same steps: it then says so, by Flaky."""
    with pytest.raises((AssertionError, ExceptionGroup, Flaky)):
        run(MUTANTS[mutant], examples=300, search=True)
