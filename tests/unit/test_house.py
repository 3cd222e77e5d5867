"""The rules of the house that no linter knows."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

LIMIT = 450
GENERATED = "src/sandboxkit/_sync.py"
LINUX_ONLY = ("fcntl", "pty", "resource", "termios")

KERNEL_NEEDS = {"IPython", "e2b_charts", "matplotlib", "orjson", "pandas", "traitlets"}
KERNEL_NEEDS |= {"jupyter_client", "zmq"}  # for the kernels of other languages

# Spelt so that this file does not name what it forbids.
INDEX_HOSTS = tuple(".".join(parts) for parts in (("pypi", "org"), ("pythonhosted", "org"), ("npmjs", "org")))
MACHINE_PATHS = tuple("/" + path for path in ("work/main", "work/shared", "tmp/v/", "root/", "opt/pypi", "opt/wheels"))


def tracked(repository: Path) -> Iterator[Path]:
    """The files of the repository: by git, or all that is not ignored where this is an unpacked archive."""
    listed = subprocess.run(
        ["git", "-c", "safe.directory=*", "ls-files", "-z"], cwd=repository, capture_output=True, check=False
    )
    if listed.returncode == 0 and listed.stdout:
        names = [repository / name for name in listed.stdout.decode().split("\0") if name]
    else:
        folders = ("src", "tests", "docs", "sandbox-templates", "changelog.d", ".ci")
        names = [path for folder in folders for path in (repository / folder).rglob("*")]
        names += [path for path in repository.iterdir() if not path.name.startswith(".")]
        names = [path for path in names if "__pycache__" not in path.parts and path.suffix != ".pyc"]
    return (path for path in names if path.is_file() and not path.is_symlink())


def texts(repository: Path) -> Iterator[tuple[Path, str]]:
    for path in tracked(repository):
        try:
            yield path.relative_to(repository), path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # pictures and archives


def modules(repository: Path) -> Iterator[tuple[Path, ast.Module]]:
    for path in sorted((repository / "src" / "sandboxkit").rglob("*.py")):
        yield path.relative_to(repository), ast.parse(path.read_text(encoding="utf-8"))


def test_no_index_host_and_no_machine_path(repository: Path) -> None:
    """No tracked file names a package index's host or a path of somebody's machine."""
    forbidden = INDEX_HOSTS + MACHINE_PATHS
    found = [
        f"{name}: {word}"
        for name, text in texts(repository)
        for word in forbidden
        if re.search(rf"(?<![\w.$~-]){re.escape(word)}", text)
    ]
    assert not found


def test_nobody_is_told_to_install_the_other_sandboxkit(repository: Path) -> None:
    """`pip install sandboxkit` would fetch an unrelated project, so no tracked file says it as advice."""
    advice = re.compile(r"(?:pip3?|pipx|uv add|uvx|uv pip|uv tool) (?:install |run )?['\"]?sandboxkit\b(?!\s*@)")
    found = [f"{name}: {match[0]}" for name, text in texts(repository) for match in advice.finditer(text)]
    assert not [line for line in found if not line.startswith(("tests/unit/test_house.py", "README.md: never "))], found


def test_no_file_has_grown_a_second_room(repository: Path) -> None:
    """No source or test file is longer than 450 lines, but for the one that is generated."""
    lengths = {str(name): text.count("\n") for name, text in texts(repository) if name.suffix == ".py"}
    assert lengths.pop(GENERATED), "no file was looked at"
    assert {name: length for name, length in lengths.items() if length > LIMIT} == {}


def test_each_module_says_what_it_is(repository: Path) -> None:
    """Each module of the library has a docstring whose first line is a sentence."""
    found = list(modules(repository))
    assert found, "no module was looked at"
    silent = [str(name) for name, tree in found if not (ast.get_docstring(tree) or "").strip()]
    assert not silent


def test_the_agent_imports_the_standard_library_only(repository: Path) -> None:
    """What runs inside a sandbox imports the standard library, itself, and nothing of ours or anybody's; only the
    kernel needs IPython."""
    allowed = set(sys.stdlib_module_names)
    folder = repository / "src" / "sandboxkit" / "local" / "agent"
    siblings = {path.stem for path in folder.glob("*.py")}
    strange = {}
    for path in sorted(folder.glob("*.py")):
        more = KERNEL_NEEDS if "kernel" in path.stem else set()
        names = set(imported(ast.parse(path.read_text(encoding="utf-8"))))
        rest = {name for name in names if name.partition(".")[0] not in allowed | siblings | more}
        rest -= {name for name in rest if name.startswith("sandboxkit.local.agent")}
        if rest:
            strange[path.name] = rest
    assert not strange


def imported(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module


@pytest.mark.slow
def test_importing_works_without_what_only_linux_has() -> None:
    """`import sandboxkit`, every public name and every command import where fcntl, pty, resource and termios are
    missing, as on Windows."""
    code = (
        "import sys\n"
        f"for name in {LINUX_ONLY!r}: sys.modules[name] = None\n"
        "import sandboxkit\n"
        "for name in sandboxkit.__all__: getattr(sandboxkit, name)\n"
        "from sandboxkit import cli\n"
        "import importlib\n"
        "for module, _ in cli._COMMANDS.values(): importlib.import_module(module)\n"
        "print(len(sandboxkit.__all__))\n"
    )
    # asyncio of a POSIX Python imports nothing of these at the top; subprocess does take fcntl when it is there.
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=50, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 20


def test_importing_is_light() -> None:
    """`import sandboxkit` imports no SDK, server, event loop, model library or thread pool."""
    code = (
        "import sys\n"
        "before = set(sys.modules)\n"
        "import sandboxkit\n"
        "new = set(sys.modules) - before\n"
        "heavy = {'e2b', 'e2b_code_interpreter', 'starlette', 'uvicorn', 'asyncio', 'anyio', 'pydantic', 'rich',\n"
        "         'click', 'opentelemetry', 'concurrent.futures', 'IPython'}\n"
        "print(sorted(new & heavy), len(new))\n"
    )
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, timeout=50, check=True)
    heavy, _, count = done.stdout.strip().rpartition(" ")
    assert heavy == "[]"
    assert int(count) < 30


def test_doctor_and_pyproject_agree_on_the_sdk(repository: Path) -> None:
    """The SDK range that `doctor` checks is the one that the package requires."""
    from sandboxkit.cli._doctor import TESTED

    project = tomllib.loads((repository / "pyproject.toml").read_text())["project"]
    said = {
        f"{name}>={'.'.join(map(str, least))},<{'.'.join(map(str, below))}" for name, (least, below) in TESTED.items()
    }
    assert said <= set(project["dependencies"])


def test_the_distribution_is_not_called_sandboxkit(repository: Path) -> None:
    """The distribution has a name of its own, and the command line finds its version by that name."""
    from sandboxkit.cli import DISTRIBUTION

    project = tomllib.loads((repository / "pyproject.toml").read_text())["project"]
    assert project["name"] == DISTRIBUTION == "e2b-sandboxkit"


def test_ci_runs_the_command_of_the_readme(repository: Path) -> None:
    """`.ci/run` ends with the README's second command for plain venv and pip, so that neither can rot alone."""
    readme = (repository / "README.md").read_text()
    (command,) = re.findall(r"^python3 -m venv .venv && .*pytest$", readme, re.MULTILINE)
    last = (repository / ".ci" / "run").read_text().rstrip().splitlines()[-1]
    assert last.replace(" --quiet", "").replace('"$python"', "python3") == command


def test_security_promises_name_tests_that_exist(repository: Path) -> None:
    """Each test that SECURITY.md names as the trial of a promise is there, and each promise names one."""
    text = (repository / "SECURITY.md").read_text()
    rows = text.partition("| promise |")[2].partition("\n\n")[0].splitlines()[2:]
    assert len(rows) > 10
    for row in rows:
        named = re.findall(r"`(tests/[\w/.]+)`", row.rstrip(" |").rpartition("|")[2])
        assert named, row
        for name in named:
            assert (repository / name).exists(), name


def test_each_weakness_of_what_this_replaces_has_its_test(repository: Path) -> None:
    """W1 to W16, the defects of the application that this library replaces: each is in the name of a test at least."""
    names = re.compile(r"^(?:async )?def test_((?:w\d+_)+)", re.MULTILINE)
    found = {
        int(one[1:])
        for name, text in texts(repository)
        if name.parts[0] == "tests"
        for match in names.finditer(text)
        for one in match[1].rstrip("_").split("_")
    }
    assert found == set(range(1, 17))
