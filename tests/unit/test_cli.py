"""The command line: what it says, how it fails, and how little it imports to say so."""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from sandboxkit import cli
from sandboxkit.cli import main
from sandboxkit.cli._templates import progress

COMMANDS = sorted(cli._COMMANDS)


def run_command(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the real command in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "sandboxkit.cli", *arguments],
        env=os.environ | environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )


def test_version_is_the_distribution_s() -> None:
    """`--version` prints the installed version, found by the distribution's name and not by the import's."""
    from importlib.metadata import version

    result = CliRunner().invoke(main, ["--version"])
    assert result.output == f"sandboxkit {version('e2b-sandboxkit')}\n"


@pytest.mark.parametrize("name", COMMANDS)
def test_the_list_of_commands_says_what_each_says_itself(name: str) -> None:
    """The text in `sandboxkit --help`, written without importing the command, is the command's own first line."""
    module, text = cli._COMMANDS[name]
    command = getattr(importlib.import_module(module), name)
    assert command.name == name
    said = re.sub(r' \("-".*?\)', "", (command.help or "").partition("\n\n")[0]).replace("\n", " ")
    assert said.startswith(text.rstrip("."))


@pytest.mark.parametrize("arguments", [["--help"], ["serve", "--help"], ["doctor", "--help"], ["templates", "--help"]])
def test_help_imports_little(arguments: list[str]) -> None:
    """Help answers without the SDK, a server, an event loop or a model library."""
    code = (
        "import sys\n"
        "from sandboxkit.cli import main\n"
        f"main({arguments!r}, standalone_mode=False)\n"
        "heavy = {'e2b', 'e2b_code_interpreter', 'starlette', 'uvicorn', 'asyncio', 'anyio', 'pydantic', 'rich'}\n"
        "print('heavy:', sorted(heavy & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=50, check=True)
    assert done.stdout.splitlines()[-1] == "heavy: []"


def test_serve_on_gvisor_without_it(tmp_path: Path) -> None:
    """gVisor where there is none is refused with how to get it, in one line, with our exit code and no traceback."""
    done = run_command("serve", "--isolation", "gvisor", SANDBOXKIT_RUNSC="/nonexistent/runsc")
    assert done.returncode == cli.FAILED
    assert done.stderr.startswith("error: ")
    assert "apt-get install runsc" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert done.stdout == ""


def test_debug_shows_the_traceback() -> None:
    """SANDBOXKIT_DEBUG=1 shows where an error comes from."""
    done = run_command("serve", "--isolation", "gvisor", SANDBOXKIT_RUNSC="/nonexistent/runsc", SANDBOXKIT_DEBUG="1")
    assert "Traceback" in done.stderr
    assert "IsolationUnavailable" in done.stderr


def test_an_unknown_template_is_named(tmp_path: Path) -> None:
    """Building what is not there names it and what there is."""
    done = run_command("templates", "build", "no-such-thing", SANDBOXKIT_HOME=str(tmp_path))
    assert done.returncode == cli.FAILED
    assert "no-such-thing" in done.stderr
    assert "code-interpreter-v1" in done.stderr


def test_an_unknown_command_is_a_usage_error() -> None:
    """click's own usage errors keep their exit code."""
    assert run_command("frobnicate").returncode == 2


def test_templates_ls_tells_what_is_built(tmp_path: Path) -> None:
    """In an empty cache the interpreter's template is listed as not built; `base` needs no building."""
    done = run_command("templates", "ls", SANDBOXKIT_HOME=str(tmp_path))
    assert done.returncode == 0
    lines = {line.split()[0]: line for line in done.stdout.splitlines()}
    assert "not built" in lines["code-interpreter-v1"]
    assert "ready" in lines["base"]
    assert not list(tmp_path.iterdir()), "looking must not write"


def test_pruning_an_empty_cache_frees_nothing(tmp_path: Path) -> None:
    """`cache prune` on a cache that does not exist yet says that it freed nothing."""
    done = run_command("cache", "prune", SANDBOXKIT_HOME=str(tmp_path / "none"))
    assert done.returncode == 0
    assert done.stdout.startswith("freed 0.0 MiB")


def test_progress_is_plain_lines_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    """Away from a terminal each line of a long step is a line on stderr, and stdout stays clean."""
    with progress("building x") as tell:
        tell("one")
        tell("two")
    captured = capsys.readouterr()
    assert captured.err == "building x ...\n  one\n  two\n"
    assert captured.out == ""


@pytest.mark.skipif(sys.platform != "linux", reason="needs a pseudo-terminal")
@pytest.mark.slow
def test_progress_on_a_terminal_shows_the_tail_of_a_failure() -> None:
    """On a terminal, where lines pass by in place, a failure leaves the last ones standing."""
    import pty

    master, slave = pty.openpty()
    code = (
        "from sandboxkit.cli._templates import progress\n"
        "with progress('building x', tail_lines=2) as tell:\n"
        "    for line in ('one', 'two', 'three'): tell(line)\n"
        "    raise SystemExit(3)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stderr=slave, stdin=subprocess.DEVNULL) as process:
        os.close(slave)
        shown = b""
        try:
            while piece := os.read(master, 4096):
                shown += piece
        except OSError:
            pass  # a pseudo-terminal says EIO at its end
        assert process.wait(20) == 3
    os.close(master)
    assert shown.decode().replace("\r", "").rstrip().endswith("  two\n  three")


# -- doctor -------------------------------------------------------------------------------------------------------


def examine(**environment: str) -> tuple[int, dict[str, dict[str, str]]]:
    """Run `doctor --json` and return its exit code and its lines by name."""
    done = run_command("doctor", "--json", **environment)
    assert done.stdout.startswith("["), done.stderr
    return done.returncode, {line["name"]: line for line in json.loads(done.stdout)}


def pretend_installed(folder: Path, name: str, version: str) -> str:
    """Make a distribution that metadata can see; returns the PYTHONPATH for it."""
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    return str(folder)


@pytest.mark.slow
def test_doctor_has_a_status_for_every_line_and_a_fix_for_every_fault(tmp_path: Path) -> None:
    """Each line has a name, a status and a detail; a warning or failure has a fix."""
    _, lines = examine(SANDBOXKIT_HOME=str(tmp_path))
    assert {"python", "e2b", "e2b-code-interpreter", "name clash", "endpoint"} <= set(lines)
    for line in lines.values():
        assert line["status"] in {"ok", "info", "warn", "fail"}
        assert line["detail"]
        assert line["status"] in {"ok", "info"} or line["fix"], line


@pytest.mark.skipif(sys.platform != "linux", reason="the engine runs on Linux")
@pytest.mark.slow
def test_doctor_names_the_command_that_builds(tmp_path: Path) -> None:
    """An unbuilt template is a warning with the command to run."""
    _, lines = examine(SANDBOXKIT_HOME=str(tmp_path))
    assert lines["code-interpreter-v1"]["status"] == "warn"
    assert lines["code-interpreter-v1"]["fix"] == "sandboxkit templates build code-interpreter-v1"


@pytest.mark.skipif(sys.platform != "linux", reason="the engine runs on Linux")
@pytest.mark.slow
@pytest.mark.parametrize("at_a_glance", [True, False])
def test_doctor_sees_a_damaged_template(tmp_path: Path, at_a_glance: bool) -> None:
    """A template that is not as it was built is a failure, with the command that builds it again."""
    from sandboxkit.local.images import _manifest
    from sandboxkit.local.images._definition import definition

    found = definition("code-interpreter-v1")
    assert found is not None
    layer = tmp_path / "layers" / found.layer_name
    packages = layer / "lib" / "python3.11" / "site-packages"
    for path in (packages / "IPython" / "__init__.py", packages / "more.py", layer / "bin" / "python3"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (layer / "pyvenv.cfg").touch()
    _manifest.write(layer)
    assert examine(SANDBOXKIT_HOME=str(tmp_path))[1]["code-interpreter-v1"]["status"] == "ok"
    (packages / ("IPython/__init__.py" if at_a_glance else "more.py")).unlink()
    code, lines = examine(SANDBOXKIT_HOME=str(tmp_path))
    assert code == 1
    assert lines["code-interpreter-v1"]["status"] == "fail"
    assert "damaged" in lines["code-interpreter-v1"]["detail"]
    assert lines["code-interpreter-v1"]["fix"] == "sandboxkit templates build code-interpreter-v1 --force"
    assert "damaged" in run_command("templates", "ls", SANDBOXKIT_HOME=str(tmp_path)).stdout


@pytest.mark.slow
def test_doctor_finds_the_package_with_our_name(tmp_path: Path) -> None:
    """The unrelated distribution `sandboxkit`, which overwrites our files, is a failure."""
    code, lines = examine(PYTHONPATH=pretend_installed(tmp_path, "sandboxkit", "0.1.0"))
    assert code == 1
    assert lines["name clash"]["status"] == "fail"
    assert "uninstall sandboxkit" in lines["name clash"]["fix"]


@pytest.mark.slow
def test_doctor_warns_of_an_untested_sdk(tmp_path: Path) -> None:
    """An SDK outside the range that the tests run with is a warning."""
    _, lines = examine(PYTHONPATH=pretend_installed(tmp_path, "e2b", "3.0.0"))
    assert lines["e2b"]["status"] == "warn"
    assert ">=2.61,<3" in lines["e2b"]["fix"]


@pytest.mark.slow
def test_doctor_never_prints_the_key() -> None:
    """The report says that a key is set, and never what it is."""
    done = run_command("doctor", E2B_API_KEY="e2b_secret0123456789")
    assert "E2B_API_KEY is set" in done.stdout
    assert "secret" not in done.stdout + done.stderr
