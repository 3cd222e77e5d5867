"""`packages`, with this machine's own indexes: pip, uv and npm install inside, and nothing else is reached."""

from __future__ import annotations

import shutil
from typing import Any

import pytest

from sandboxkit import Fragment, SandboxPool

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def session() -> Any:
    """A session that may reach the package indexes."""
    with SandboxPool(endpoint="local", network="packages") as pool, pool.session(None) as session:
        yield session


def command(session: Any, text: str) -> Any:
    """Run a command to its end."""
    return session.run_command(text, timeout=200)


def test_pip(session: Any) -> None:
    """`pip install` needs no option, is seen by a kernel that runs already, and can be undone."""
    assert session.run_code("1").text == "1"
    done = command(session, "pip install -q colorama==0.4.6")
    assert done.exit_code == 0, done.stderr
    assert session.run_code("import colorama; colorama.__version__").text == "0.4.6"
    assert command(session, "python -c 'import colorama'").exit_code == 0
    assert command(session, "pip uninstall -q -y colorama").exit_code == 0
    assert command(session, "python -c 'import colorama'").exit_code == 1


@pytest.mark.full
def test_pip_magic_and_what_the_template_brought(session: Any) -> None:
    """`%pip` works within one cell; another version of a package of the template goes before it."""
    ran = session.run_code("%pip install -q toolz\nimport toolz\nprint(toolz.__file__)")
    assert "/home/user/.local/" in ran.stdout
    assert command(session, "pip install -q 'et-xmlfile<2'").exit_code == 0
    assert command(session, "python -c 'import et_xmlfile; print(et_xmlfile.__version__)'").stdout.startswith("1.")
    assert command(session, "pip uninstall -q -y et-xmlfile").exit_code == 0
    assert command(session, "python -c 'import et_xmlfile; print(et_xmlfile.__version__)'").stdout.startswith("2.")


@pytest.mark.full
def test_uv(session: Any) -> None:
    """uv, installed by pip, makes an environment and installs into it."""
    done = command(
        session,
        "pip install -q uv && uv venv -q /home/user/made && "
        "VIRTUAL_ENV=/home/user/made uv pip install -q colorama && made/bin/python -c 'import colorama'",
    )
    assert done.exit_code == 0, done.stderr


@pytest.mark.full
@pytest.mark.skipif(shutil.which("npm", path="/usr/bin:/usr/local/bin") is None, reason="no npm in /usr here")
def test_npm(session: Any) -> None:
    """npm installs from the registry that is configured here."""
    done = command(session, "mkdir -p p && cd p && npm install --silent is-odd && node -e \"require('is-odd')\"")
    assert done.exit_code == 0, done.stderr


def test_nothing_else(session: Any) -> None:
    """Another host is refused in plain words."""
    ran = session.run_code("import requests; print(requests.get('http://example.com/').text)")
    assert "is not among what this sandbox may reach" in ran.stdout


def test_dependencies_of_a_fragment(session: Any) -> None:
    """A fragment for the interpreter gets its packages before its code runs, in a kernel that runs already."""
    assert session.run_code("1").text == "1"
    code = "import iniconfig; iniconfig.__name__"
    fragment = Fragment(template=session.template, code=code, dependencies=["iniconfig"])
    logs = [event.data["text"] for event in session.stream(fragment) if event.name == "fragment.log"]
    assert "iniconfig" in "".join(logs)
    result = session.run(fragment)
    assert result.execution.text == "iniconfig"
