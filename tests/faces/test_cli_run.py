"""`sandboxkit run`, as a process: output, exit codes, arguments, and nothing left after Ctrl-C."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

from sandboxkit.cli._processes import Watch

RUN = [sys.executable, "-m", "sandboxkit.cli", "run"]
Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Run a program's text with options in an empty directory."""

    def run(
        program: str | None, *options: str, args: tuple[str, ...] = (), **more: object
    ) -> subprocess.CompletedProcess[str]:
        if program is not None:
            (tmp_path / "program.py").write_text(program)
        return subprocess.run(
            [*RUN, *options, "program.py", *args],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=50,
            check=False,
            **more,  # type: ignore[call-overload]
        )

    return run


@pytest.mark.engine
@pytest.mark.slow
def test_output_and_exit_code_are_the_programs(run: Run) -> None:
    """What it prints goes where it printed it, and its exit code is ours."""
    done = run("import sys\nprint('out')\nprint('err', file=sys.stderr)\nsys.exit(3)")
    assert (done.stdout, done.stderr, done.returncode) == ("out\n", "err\n", 3)


@pytest.mark.engine
@pytest.mark.slow
def test_an_exception_is_exit_code_1_with_its_traceback(run: Run) -> None:
    """A traceback on standard error that names the program's file and line, and exit code 1."""
    done = run("def f():\n    return 1 / 0\nf()")
    assert done.returncode == 1
    assert done.stdout == ""
    assert 'program.py", line 2, in f' in done.stderr
    assert done.stderr.splitlines()[-1] == "ZeroDivisionError: division by zero"


@pytest.mark.engine
@pytest.mark.slow
def test_arguments_and_variables_arrive_as_they_are(run: Run) -> None:
    """Arguments after "--" and variables reach the program unchanged, whatever a shell would make of them."""
    nasty = ("--flag", "a b", "$HOME", "'\"", "", "*", "\u00e9", "-")
    done = run(
        "import json, os, sys\nprint(json.dumps([sys.argv[1:], os.environ['A'], os.environ['B'], sys.stdin.read()]))",
        "-e",
        "A=1=2",
        "--env",
        "B=$(id) x",
        args=("--", *nasty),
    )
    assert done.stderr == ""
    assert json.loads(done.stdout) == [list(nasty), "1=2", "$(id) x", ""]


@pytest.mark.engine
@pytest.mark.slow
def test_the_program_can_come_from_standard_input(tmp_path: Path) -> None:
    """FILE "-" runs what comes in."""
    done = subprocess.run(
        [*RUN, "-", "x"],
        cwd=tmp_path,
        input="import sys\nprint(sys.argv[1:])",
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert (done.stdout, done.stderr, done.returncode) == ("['x']\n", "", 0)


@pytest.mark.engine
@pytest.mark.slow
def test_a_time_limit_is_exit_code_124(run: Run) -> None:
    """A program that runs too long ends with 124, after what it had printed; the message names the limit."""
    started = time.monotonic()
    done = run("import time\nprint('begun')\ntime.sleep(60)", "--timeout", "4")
    assert done.returncode == 124
    assert done.stdout == "begun\n"
    assert done.stderr.startswith("error: ")
    assert time.monotonic() - started < 50


@pytest.mark.engine
@pytest.mark.slow
def test_a_signal_is_128_and_its_number(run: Run) -> None:
    """A program that is killed ends as a shell says it."""
    assert run("import os\nos.kill(os.getpid(), 9)").returncode == 137


@pytest.mark.engine
@pytest.mark.slow
def test_json(run: Run) -> None:
    """With --json there is one object with everything, and nothing else, and the exit code is the program's."""
    done = run("import sys\nprint('out')\nprint('err', file=sys.stderr)\nsys.exit(4)", "--json")
    assert (done.returncode, done.stderr) == (4, "")
    summary = json.loads(done.stdout)
    assert summary.pop("sandbox_id")
    assert summary.pop("duration") > 0
    assert summary == {"exit_code": 4, "stdout": "out\n", "stderr": "err\n", "error": None}


@pytest.mark.engine
@pytest.mark.slow
def test_json_says_what_failed(run: Run) -> None:
    """A timeout under --json has its code, its error, and what was printed before."""
    done = run("import time\nprint('begun')\ntime.sleep(60)", "--json", "--timeout", "4")
    summary = json.loads(done.stdout)
    assert (done.returncode, done.stderr) == (124, "")
    assert (summary["exit_code"], summary["error"]["code"], summary["stdout"]) == (124, "command_timeout", "begun\n")


@pytest.mark.engine
@pytest.mark.slow
def test_ctrl_c_kills_the_sandbox(tmp_path: Path) -> None:
    """Output comes while the program runs; Ctrl-C then ends with 130, and no process of it is left."""
    (tmp_path / "program.py").write_text("import time\nprint('begun')\ntime.sleep(60)")
    watch = Watch()
    with subprocess.Popen(
        [*RUN, "program.py"], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        assert watch.look() > 2
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=50)
    assert (output, process.returncode) == ("", 130)
    assert "Traceback" not in errors
    assert watch.left() == ()


@pytest.mark.engine
@pytest.mark.slow
def test_an_unknown_template_is_exit_code_125(run: Run) -> None:
    """A failure of ours says what was wrong in one line, and never with a traceback."""
    done = run("print(1)", "--template", "nope")
    assert (done.returncode, done.stdout) == (125, "")
    assert "nope" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["missing.py"], "missing.py"),
        (["."], "directory"),
        (["app.js"], "'.js'"),
        (["--session", "s", "program.py"], "--session"),
        (["-e", "A", "program.py"], "NAME=VALUE"),
        (["-e", "=1", "program.py"], "NAME=VALUE"),
        (["--timeout", "0", "program.py"], "--timeout"),
        (["--engine", "docker", "program.py"], "docker"),
        (["--unknown", "program.py"], "--unknown"),
        (["--endpoint", "e2b", "program.py"], "E2B_API_KEY"),
        ([], "FILE"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_usage_is_a_failure_of_ours(tmp_path: Path, options: list[str], says: str) -> None:
    """What cannot be started ends with 125, which no program of the user is likely to mean, and says why."""
    (tmp_path / "program.py").write_text("")
    done = subprocess.run([*RUN, *options], cwd=tmp_path, capture_output=True, text=True, timeout=50, check=False)
    assert done.returncode == 125
    assert says in done.stderr
    assert "Traceback" not in done.stderr


def test_help_does_not_wait_for_the_sdk() -> None:
    """`run --help` imports no SDK, so it is quick."""
    code = (
        "import sys\nfrom sandboxkit.cli import main\n"
        "try: main(['run', '--help'])\nexcept SystemExit: pass\n"
        "sys.exit('e2b' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=50, check=False)
    assert done.returncode == 0
    assert "130 on" in " ".join(done.stdout.split())


def test_watch_sees_a_process_until_it_ends() -> None:
    """The check that nothing is left does see what is: a child is left until it ends, and then not."""
    watch = Watch()
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        assert watch.look() == 1
        assert watch.left(patience=0) == (child.pid,)
        assert child.stdin is not None
        child.stdin.close()
        child.wait(timeout=40)
    assert watch.left() == ()


def test_watch_sees_a_process_that_lost_its_parent() -> None:
    """A grandchild that outlives its parent is still known."""
    watch = Watch()
    code = (
        "import subprocess, sys\n"
        "p = subprocess.Popen([sys.executable, '-c', 'input()'], stdin=0)\n"
        "print(p.pid, flush=True)\ninput()"
    )
    read, write = os.pipe()
    with subprocess.Popen([sys.executable, "-c", code], stdin=read, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        grandchild = int(child.stdout.readline())
        os.close(read)
        assert watch.look() == 2
        child.kill()
        child.wait(timeout=40)
    assert watch.left(patience=0) == (grandchild,)
    os.close(write)
    assert watch.left() == ()


@pytest.mark.engine
@pytest.mark.slow
def test_a_fragment_runs_as_its_code(tmp_path: Path) -> None:
    """A fragment for the interpreter: its steps on standard error, its output and its last value on standard output,
    and exit code 1 where it raises."""
    fragment = {"template": "code-interpreter-v1", "code": "print('hi')\n6 * 7"}
    (tmp_path / "f.json").write_text(json.dumps(fragment))
    done = subprocess.run([*RUN, "f.json"], cwd=tmp_path, capture_output=True, text=True, timeout=50, check=False)
    assert (done.returncode, done.stdout) == (0, "hi\n42\n")
    assert "write" in done.stderr
    assert "/home/user/script.py" in done.stderr
    (tmp_path / "f.json").write_text(json.dumps(fragment | {"code": "1 / 0"}))
    done = subprocess.run([*RUN, "f.json"], cwd=tmp_path, capture_output=True, text=True, timeout=50, check=False)
    assert done.returncode == 1
    assert "ZeroDivisionError" in done.stderr
    done = subprocess.run(
        [*RUN, "f.json", "arg"], cwd=tmp_path, capture_output=True, text=True, timeout=50, check=False
    )
    assert done.returncode == 125
    assert "ARGS" in done.stderr


APP = """
import sys
from sandboxkit import Template
Template("base", file="app.py", port=8123, start="python3 -u app.py").register()
from sandboxkit.cli import main
main(["run", "fragment.json", "--endpoint", "local", *sys.argv[1:]])
"""
SERVER = """
import http.server, sys
class Handler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        print('asked', self.path, flush=True)
print('serving', flush=True)
http.server.ThreadingHTTPServer(('', 8123), Handler).serve_forever()
"""


@pytest.mark.engine
@pytest.mark.slow
def test_an_app_prints_its_url_and_its_log_and_stops(tmp_path: Path) -> None:
    """The URL is what standard output has; the log follows; Ctrl-C ends with 130, and nothing is left."""
    (tmp_path / "fragment.json").write_text(json.dumps({"template": "base", "code": SERVER}))
    watch = Watch()
    with subprocess.Popen(
        [sys.executable, "-c", APP], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        url = process.stdout.readline().strip()
        assert url.startswith("http://8123-")
        assert ".localhost:" in url
        seen: list[str] = []
        while not any(line.startswith("asked /") for line in seen):
            seen.append(process.stderr.readline())
            assert seen[-1], seen
        assert watch.look() > 2
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=30)
    assert (output, process.returncode) == ("", 130)
    assert "Traceback" not in errors
    assert any("http://127.0.0.1:" in line for line in seen)
    assert watch.left() == ()


@pytest.mark.engine
@pytest.mark.slow
def test_an_app_that_does_not_start_says_why(tmp_path: Path) -> None:
    """Exit code 125 with the log's end and one line that says what happened."""
    code = "print('on its way', flush=True)\nraise ValueError('no good')"
    (tmp_path / "fragment.json").write_text(json.dumps({"template": "base", "code": code}))
    done = subprocess.run(
        [sys.executable, "-c", APP], cwd=tmp_path, capture_output=True, text=True, timeout=50, check=False
    )
    assert (done.returncode, done.stdout) == (125, "")
    assert "on its way" in done.stderr
    assert "no good" in done.stderr.splitlines()[-1]


PROJECTS = {
    "next": {
        "package.json": '{"dependencies": {"next": "latest", "react": "latest", "react-dom": "latest"}}',
        "pages/index.jsx": "export default function Home() { return <h1>From a folder</h1> }",
        "pages/_app.jsx": "export default ({ Component, pageProps }) => <Component {...pageProps} />",
    },
    "next with the app router": {
        "package.json": '{"dependencies": {"next": "latest", "react": "latest", "react-dom": "latest"}}',
        "app/page.jsx": "export default function Page() { return <h1>From a folder</h1> }",
        "app/layout.jsx": "export default function L({ children }) { return <html><body>{children}</body></html> }",
    },
    "nuxt": {
        "package.json": '{"dependencies": {"nuxt": "^4.0.0", "vue": "latest"}}',
        "nuxt.config.ts": "export default defineNuxtConfig({ telemetry: false })",
        "app.vue": "<template><NuxtPage /></template>",
        "pages/index.vue": "<template><h1>From a folder</h1></template>",
    },
    "streamlit": {
        "streamlit_app.py": "import streamlit as st\nfrom helper import text\nst.title(text)",
        "helper.py": "text = 'x'",
    },
}


@pytest.mark.full
@pytest.mark.engine
@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("kind", PROJECTS)
def test_a_folder_is_shown_and_not_the_templates_own_app(tmp_path: Path, kind: str) -> None:
    """A project as people have it, of the least that it can be: its page is served; Ctrl-C leaves nothing."""
    for name, text in PROJECTS[kind].items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    watch = Watch()
    with subprocess.Popen(
        [*RUN, ".", "--endpoint", "local"], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        url = process.stdout.readline().strip()
        line = ""
        while not line.startswith("For programs: "):
            line = process.stderr.readline()
            assert line, "it ended"
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(line.removeprefix("For programs: ").strip(), timeout=60) as answer:
            page = answer.read().decode()
        assert ("<title>Streamlit" if kind == "streamlit" else "From a folder") in page
        assert watch.look() > 2
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
    assert url.startswith("http://")
    assert (process.returncode, "Traceback" in errors) == (130, False)
    assert watch.left() == ()
