"""Fragments that become apps, in real boxes: a template of this test's own, whose server is plain Python."""

from __future__ import annotations

import textwrap
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from sandboxkit import Edit, Endpoint, Event, Fragment, SandboxPool, Session, Template, TimeoutPolicy
from sandboxkit.errors import AppNotReady, AppStartFailed, DependencyError, FragmentError, UnsupportedOption

pytestmark = [pytest.mark.slow, pytest.mark.engine]

PORT = 8123

SERVER = '''
import importlib, os, sys, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        status, body = page()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())

def page():
    """Loads the page anew where it has changed, as development servers do."""
    scope = {}
    with open("/home/user/page.py") as file:
        exec(file.read(), scope)
    return scope.get("STATUS", 200), scope["TEXT"]

print("serving", os.getpid(), flush=True)
import config
ThreadingHTTPServer((config.ADDRESS, config.PORT), Handler).serve_forever()
'''


def register() -> Template:
    """The template: the box of `base`, and the server that a fragment brings."""
    return Template(
        "base", file="page.py", port=PORT, start="python3 -u server.py", ready="/", install="python3 -m installer"
    )


CONFIG = f"ADDRESS, PORT = '127.0.0.1', {PORT}"


def fragment(page: str = "TEXT = 'one'", **more: Any) -> Fragment:
    """An app that shows a page."""
    files = {"server.py": SERVER, "config.py": CONFIG, "page.py": page, **more.pop("files", {})}
    return Fragment(template="base", files=files, **more)


def get(url: str) -> tuple[int, str]:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=20) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


@pytest.fixture(scope="module")
def pool(engine: Endpoint) -> Iterator[SandboxPool]:
    from sandboxkit.template import _registered

    register().register()
    limits = TimeoutPolicy(ready=6, install=20)
    with SandboxPool(endpoint=engine, template="base", timeouts=limits) as pool:
        yield pool
    del _registered()["base"]


@pytest.fixture
def session(pool: SandboxPool) -> Iterator[Session]:
    with pool.session(None) as session:
        yield session


def processes(session: Session) -> str:
    """The command lines of what runs inside, but for what asks."""
    return session.run_command("cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' ' '").stdout


def test_w8_a_fragment_becomes_a_url_that_answers(session: Session) -> None:
    """The result's URL answers at once; the log, a stop and a restart work, and the steps are told."""
    events: list[Event] = []
    result = session.run(fragment(), on_event=events.append)
    assert result.app is not None
    assert get(result.app.url) == (200, "one")
    assert result.execution is None
    assert result.app.port == PORT
    assert result.app.browser_url == f"http://{session.sandbox.get_host(PORT)}"
    steps = [event.data["step"] for event in events if event.name == "fragment.step"]
    assert steps == ["write", "write", "write", "check", "start", "wait"]
    assert "serving" in result.app.log()
    result.app.stop()
    assert get(result.app.url)[0] == 502
    assert "server.py" not in processes(session)
    result.app.stop()
    result.app.restart()
    assert get(result.app.url) == (200, "one")


def test_running_again_loads_what_changed_and_starts_nothing(session: Session) -> None:
    """The second run finds the app running, writes only what is new, and its server loads it."""
    first = session.run(fragment())
    assert first.app is not None
    pid = first.app.log()
    session.run_command("touch -d 2001-01-01 server.py page.py")
    second = session.run(fragment("TEXT = 'two'"))
    assert second.app is not None
    assert second.app.url == first.app.url
    assert get(second.app.url) == (200, "two")
    assert second.app.log().splitlines()[0] == pid.splitlines()[0]
    dates = session.run_command("date -r server.py +%Y; date -r page.py +%Y").stdout.split()
    assert dates[0] == "2001"
    assert dates[1] != "2001"


def test_edits_change_files_that_are_there(session: Session) -> None:
    """An edit alone changes the page; one whose passage is not there, or is there twice, changes nothing."""
    session.run(fragment("TEXT = 'one and one'"))
    edit = Edit(path="page.py", search="TEXT = 'one", replace="TEXT = 'two")
    done = session.run(Fragment(template="base", edits=(edit,)))
    assert done.app is not None
    assert get(done.app.url) == (200, "two and one")
    for search in ("three", "o"):
        wrong = (edit.model_copy(update={"search": "two"}), edit.model_copy(update={"search": search}))
        with pytest.raises(FragmentError, match=r"Edit 2 of /home/user/page\.py"):
            session.run(Fragment(template="base", edits=wrong))
    assert get(done.app.url) == (200, "two and one")


def test_a_server_that_was_started_otherwise_is_found(session: Session) -> None:
    """What the template's start command has started is waited for, not started again; stop() ends it."""
    for name, text in (fragment().files or {}).items():
        session.files.write(name, text)
    session.run_command("sleep 1; exec python3 -u server.py", background=True)
    result = session.run(fragment("TEXT = 'found'"))
    assert result.app is not None
    assert get(result.app.url) == (200, "found")
    assert processes(session).count("server.py") <= 2  # it, and the shell that started it
    result.app.stop()
    assert "-u server.py" not in processes(session)


# -- broken fragments ---------------------------------------------------------------------------------------------

Broken = Callable[[], Fragment]

BROKEN: dict[str, tuple[Broken, type[Exception], str, str]] = {
    "a syntax error": (
        lambda: fragment("TEXT = 'one"),
        AppStartFailed,
        "no Python that can be read",
        "SyntaxError",
    ),
    "a missing dependency": (
        lambda: fragment("import not_there_at_all\nTEXT = ''"),
        DependencyError,
        "not_there_at_all",
        "page.py, line 1",
    ),
    "a server that dies": (
        lambda: fragment(files={"config.py": "import sys\nprint('on its way', flush=True)\nsys.exit(7)"}),
        AppStartFailed,
        "exit code 7",
        "on its way",
    ),
    "a server that raises": (
        lambda: fragment(files={"config.py": "raise ValueError('no good')"}),
        AppStartFailed,
        "ValueError: no good",
        "Traceback",
    ),
    "another port": (
        lambda: fragment(files={"config.py": "ADDRESS, PORT = '127.0.0.1', 8124"}),
        AppNotReady,
        "127.0.0.1:8124",
        "serving",
    ),
    "another address": (
        lambda: fragment(files={"config.py": f"ADDRESS, PORT = '127.0.0.2', {PORT}"}),
        AppNotReady,
        "has to listen on 127.0.0.1",
        "serving",
    ),
    "it answers 500": (lambda: fragment("STATUS, TEXT = 500, 'oops'"), AppNotReady, "the status 500", "serving"),
    "no answer to http": (
        lambda: fragment(
            files={
                "server.py": f"import socket\ns = socket.create_server(('', {PORT}))\nprint('mute', flush=True)\n"
                "held = []\nwhile True: held.append(s.accept()[0]); held[-1].sendall(b'hello\\n'); held[-1].close()"
            }
        ),
        AppNotReady,
        "gives no answer to HTTP",
        "mute",
    ),
    "an installer that fails": (
        lambda: fragment(
            dependencies=["numpy"],
            files={"installer.py": "import sys\nprint('not found:', sys.argv[1:], flush=True)\nsys.exit(3)"},
        ),
        DependencyError,
        "exit code 3.*no package index",
        "not found: ['numpy']",
    ),
}


SLOW = {"a server that raises", "another address", "it answers 500", "no answer to http"}
"""Kinds that wait for a limit, or that another kind stands for: they run in the full tier."""


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=[pytest.mark.full] if kind in SLOW else []) for kind in BROKEN]
)
def test_a_broken_fragment_says_what_is_wrong_and_leaves_nothing(session: Session, kind: str) -> None:
    """Each kind has its error, with the log's tail; no process of it is left, and the session goes on."""
    make, error, says, logged = BROKEN[kind]
    with pytest.raises(error, match=f"(?s){says}") as caught:
        session.run(make())
    assert logged in caught.value.log_tail  # type: ignore[attr-defined]
    assert "server.py" not in processes(session)
    done = session.run(fragment("TEXT = 'better'"))
    assert done.app is not None
    assert get(done.app.url) == (200, "better")


def test_the_end_of_an_earlier_server_is_not_that_of_the_next(session: Session) -> None:
    """A server whose shell is slow to start is not taken for the one that ended before it."""
    make, error, says, _ = BROKEN["a server that dies"]
    with pytest.raises(error, match=says):
        session.run(make())
    session.files.write(".bash_profile", "case $BASH_EXECUTION_STRING in *'echo $?'*) sleep 1;; esac\n")
    done = session.run(fragment("TEXT = 'late'"))
    assert done.app is not None
    assert get(done.app.url) == (200, "late")


def test_w7_an_installation_that_never_ends_is_stopped(engine: Endpoint, pool: SandboxPool) -> None:
    """TimeoutPolicy.install holds; its processes are gone, and the error has what it said."""
    endless = "import time, sys\nprint('looking', flush=True)\ntime.sleep(1000)"
    with (
        SandboxPool(endpoint=engine, template="base", timeouts=TimeoutPolicy(install=2)) as hasty,
        hasty.session(None) as session,
    ):
        with pytest.raises(DependencyError, match=r"TimeoutPolicy\.install") as caught:
            session.run(fragment(dependencies=["numpy"], files={"installer.py": endless}))
        assert "looking" in caught.value.log_tail
        assert caught.value.dependencies == ("numpy",)
        assert "installer" not in processes(session)


def test_w7_an_installation_streams_its_log_and_happens_once(session: Session) -> None:
    """Lines come while it runs, in order; the arguments are the requirements; a second run installs nothing."""
    installer = "import sys, time\nfor word in sys.argv[1:]:\n    print('got', word, flush=True)\n    time.sleep(0.4)"
    wanted = fragment(dependencies=["numpy>=1", "a; python_version<'4'"], files={"installer.py": installer})
    logs: list[str] = []
    result = None
    for event in session.stream(wanted):
        if event.name == "fragment.log":
            assert event.data["step"] == "install"
            logs.append(event.data["text"])
        result = event.data.get("result")
    assert "".join(logs) == "got numpy>=1\ngot a; python_version<'4'\n"
    assert len(logs) > 1
    assert result is not None
    assert get(result.app.url) == (200, "one")
    again = [event.name for event in session.stream(wanted)]
    assert "fragment.log" not in again


def test_leaving_a_stream_ends_the_installation(session: Session) -> None:
    """A caller that goes away in the middle leaves no installer and no app behind."""
    endless = "import time\nprint('looking', flush=True)\ntime.sleep(1000)"
    events = session.stream(fragment(dependencies=["numpy"], files={"installer.py": endless}))
    for event in events:
        if event.name == "fragment.log":
            break
    events.close()
    deadline = time.monotonic() + 20
    while "installer" in processes(session):
        assert time.monotonic() < deadline
    assert "server.py" not in processes(session)


def test_w7_a_command_of_the_fragments_own_needs_permission(session: Session) -> None:
    """Without it nothing is written; with it the line runs, by a shell."""
    wanted = Fragment.model_validate(
        {
            "template": "base",
            "files": fragment().files,
            "install_dependencies_command": "echo $((6 * 7)) > made && echo done",
        }
    )
    with pytest.raises(DependencyError, match="allow_install_command"):
        session.run(wanted)
    assert session.files.list() == []
    session.run(wanted, allow_install_command=True)
    assert session.files.read_text("made") == "42\n"


def test_what_cannot_be_installed_is_said_before_anything_is_written(session: Session) -> None:
    """A template without an installer refuses dependencies."""
    bare = Template("bare-app", file="page.py", port=PORT, start="true").register()
    assert bare.install is None
    from sandboxkit.runner import plan

    with pytest.raises(DependencyError, match=r"Template\.install"):
        plan(Fragment(template="bare-app", code="1", dependencies=("numpy",)), bare)


def test_text_of_the_error_is_one_line(session: Session) -> None:
    """Messages stay short; what is long is in the attributes."""
    with pytest.raises(AppStartFailed) as caught:
        session.run(fragment(files={"config.py": "print('x' * 100_000)\nraise ValueError('y' * 5000)"}))
    assert len(str(caught.value)) < 600
    assert len(caught.value.log_tail) <= 8192
    assert textwrap.shorten(str(caught.value), 10_000)
    assert not isinstance(caught.value, UnsupportedOption)
