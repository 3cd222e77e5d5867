"""The templates of the library, built for real and started: each answers, lists what it has, and reacts to an edit."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from sandboxkit import Endpoint
from sandboxkit.local import images
from sandboxkit.local.images._installed import versions
from sandboxkit.template import Template

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.full, pytest.mark.timeout(1800)]
APPS = ("gradio-developer", "nextjs-developer", "streamlit-developer", "vue-developer")
NODE = ("nextjs-developer", "vue-developer")
EDITS = {
    "gradio-developer": (
        "import gradio as gr\nwith gr.Blocks() as demo:\n    gr.Markdown('after the edit')\ndemo.launch()\n"
    ),
    "nextjs-developer": "export default function Page() { return <p>after the edit</p>; }\n",
    "vue-developer": "<template><p>after the edit</p></template>\n",
}


@pytest.fixture(scope="module")
def options(web_engine: Endpoint) -> dict[str, Any]:
    """The SDK's options for an engine that has all templates."""
    return {"api_key": web_engine.api_key, "api_url": web_engine.api_url, "sandbox_url": web_engine.sandbox_url}


@pytest.fixture(params=APPS)
def running(request: pytest.FixtureRequest, options: dict[str, Any]) -> Iterator[tuple[Template, Any]]:
    """A sandbox of each template, and its registry entry."""
    from e2b import Sandbox

    with Sandbox.create(request.param, timeout=900, **options) as sandbox:
        yield Template.get(request.param), sandbox


def get(sandbox: Any, template: Template, path: str, *, host: str = "localhost") -> tuple[int, str]:
    """The status and the body of a page, asked for inside; 0 where nobody answers."""
    ask = f"curl -s -o /tmp/page -w '%{{http_code}}' -H 'Host: {host}' http://127.0.0.1:{template.port}{path} || true"
    done = sandbox.commands.run(f"{ask}; echo; cat /tmp/page || true", timeout=120)
    status, _, body = done.stdout.partition("\n")
    return int(status or 0), body


def until_it_says(sandbox: Any, template: Template, path: str, text: str, *, seconds: float = 240.0) -> str:
    """Ask until a page holds a text."""
    deadline = time.monotonic() + seconds
    while True:
        status, body = get(sandbox, template, path)
        if status == 200 and text in body:
            return body
        log = sandbox.commands.run("tail -n 30 /tmp/.sandboxkit/app.log || true").stdout
        assert time.monotonic() < deadline, (status, body[:2000], log)
        time.sleep(0.5)


def test_it_answers_and_shows_an_edit(running: tuple[Template, Any]) -> None:
    """The start command's server answers at the ready path, under every host name of a preview, on all addresses; an
    edit of the main file shows without a restart."""
    template, sandbox = running
    assert template.ready is not None
    until_it_says(sandbox, template, template.ready, "")
    for host in (
        "localhost",
        f"{template.port}-abc.e2b.app",
        f"{template.port}-abc.e2b.dev",
        f"{template.port}-abc.localhost:99",
    ):
        assert get(sandbox, template, "/", host=host)[0] == 200, host
    listening = sandbox.commands.run(f"ss -Hltn 'sport = :{template.port}'").stdout
    assert any(address in listening for address in ("0.0.0.0:", "*:", "[::]:")), listening
    used = sandbox.get_metrics()[-1].disk_used
    assert used < 200_000_000, "what the template brings is shared, not copied"
    if (edit := EDITS.get(template.id)) is None:
        return  # what a Streamlit page shows comes over its WebSocket
    until_it_says(sandbox, template, "/", template.file if template.id != "gradio-developer" else "app.py")
    sandbox.files.write(template.file, edit)
    until_it_says(sandbox, template, "/", "after the edit")


def test_gradio_shows_what_was_written_last(options: dict[str, Any]) -> None:
    """Also what is written while it starts, or while it loads the one before; its ready path answers once that is
    loaded, with the traceback where it cannot be."""
    from e2b import Sandbox

    template = Template.get("gradio-developer")
    assert template.ready is not None
    edit = EDITS[template.id]
    with Sandbox.create(template.id, timeout=900, **options) as sandbox:
        sandbox.commands.run("sleep 1")
        assert get(sandbox, template, "/")[0] == 0, "it does not answer yet"
        sandbox.files.write(template.file, edit)
        until_it_says(sandbox, template, template.ready, "loaded")
        assert "after the edit" in get(sandbox, template, "/")[1]
        slow = "import time\ntime.sleep(2)\n" + edit.replace("after the edit", "in between")
        sandbox.files.write(template.file, slow)
        sandbox.commands.run("sleep 1")
        sandbox.files.write(template.file, edit.replace("after the edit", "at last"))
        assert get(sandbox, template, template.ready) == (200, "loaded")
        assert "at last" in get(sandbox, template, "/")[1]
        sandbox.files.write(template.file, "1 / 0")
        status, body = get(sandbox, template, template.ready)
        assert (status, body.strip().splitlines()[-1]) == (500, "ZeroDivisionError: division by zero")
        sandbox.files.write(template.file, edit)
        assert get(sandbox, template, template.ready) == (200, "loaded")


@pytest.mark.parametrize("running", ["nextjs-developer"], indirect=True)
def test_assets_pass_the_host_check(running: tuple[Template, Any]) -> None:
    """Next refuses its assets to pages of other origins that its configuration does not name; ours are named."""
    template, sandbox = running
    page = until_it_says(sandbox, template, "/", "pages/index.tsx")
    asset = next(part.split('"')[0] for part in page.split('src="')[1:] if part.startswith("/_next/"))
    for origin in (f"https://{template.port}-abc.e2b.app", f"http://{template.port}-abc.localhost:8000"):
        ask = f"curl -s -o /dev/null -w '%{{http_code}}' -H 'Referer: {origin}/' -H 'Sec-Fetch-Site: cross-site' "
        ask += f"-H 'Sec-Fetch-Mode: no-cors' 'http://127.0.0.1:{template.port}{asset}'"
        assert sandbox.commands.run(ask).stdout == "200", origin


def test_more_can_be_installed(running: tuple[Template, Any], options: dict[str, Any]) -> None:
    """The install command of the registry works beside what the template brings, with the package indexes open."""
    template, sandbox = running
    assert template.install is not None
    hosts = sandbox.commands.run("env | grep -i -E '^(pip|npm|uv)' || true").stdout
    assert "index" not in hosts.lower(), "a sandbox without a network has no indexes"
    assert sandbox.commands.run(f"{template.install} --help > /dev/null").exit_code == 0


@pytest.mark.parametrize("name", APPS)
def test_w14_what_the_registry_lists_is_installed(name: str, options: dict[str, Any]) -> None:
    """Each library of template.json is in the built template, at the version that the template pins."""
    template = Template.get(name)
    found = versions(images.find(name), template.libraries)
    assert None not in found.values(), found
    if name in NODE:
        root = Path(__file__).parents[2] / "sandbox-templates" / name / "skeleton" / "package.json"
        manifest = json.loads(root.read_text())
        pinned = manifest["dependencies"] | manifest["devDependencies"]
        assert {library: pinned[library] for library in template.libraries} == found


def test_the_interpreter_can_be_built_upon(options: dict[str, Any]) -> None:
    """The commonest template of E2B's users: the interpreter, and some packages more; its cells see them."""
    from e2b import Template as Builder
    from e2b_code_interpreter import Sandbox

    template = (
        Builder()
        .from_template("code-interpreter-v1")
        .pip_install(["colorama==0.4.6", "et-xmlfile==1.1.0"])
        .set_envs({"FLAVOUR": "own"})
        .run_cmd("echo data > data.txt")
    )
    Builder.build(template, "sandboxkit-test-interpreter", **options)
    with Sandbox.create("sandboxkit-test-interpreter", timeout=120, **options) as sandbox:
        code = "import colorama, et_xmlfile, pandas, os; print(colorama.__version__, et_xmlfile.__version__)"
        ran = sandbox.run_code(f"{code}; print(open('data.txt').read(), os.environ['FLAVOUR'])")
        assert ran.error is None, ran.error
        assert "".join(ran.logs.stdout).split() == ["0.4.6", "1.1.0", "data", "own"]
        assert sandbox.run_code("pandas.DataFrame({'a': [1]})").results[0].html
    with Sandbox.create("code-interpreter-v1", timeout=120, **options) as sandbox:
        assert sandbox.run_code("import colorama").error is not None
    key = {"X-API-KEY": options["api_key"]}
    gone = httpx.delete(f"{options['api_url']}/templates/sandboxkit-test-interpreter", headers=key)
    assert gone.status_code == 204


@pytest.mark.parametrize("name", NODE)
def test_node_is_new_enough(name: str, options: dict[str, Any]) -> None:
    """Node is 24, or the machine's own from 22.19 on, and npm goes with it."""
    from e2b import Sandbox

    with Sandbox.create(name, timeout=120, **options) as sandbox:
        version = sandbox.commands.run("node --version && npm --version").stdout.split()[0]
    assert tuple(int(part) for part in version[1:].split(".")[:2]) >= (22, 19)


def test_w14_a_wrong_registry_entry_is_refused(tmp_path: Path, options: dict[str, Any]) -> None:
    """A library that is listed and not installed fails the build's check, by name."""
    from sandboxkit.cli._build import check_libraries
    from sandboxkit.errors import TemplateBuildFailed

    entry = Template("streamlit-developer", file="app.py", libraries=("streamlit", "request"))
    with pytest.raises(TemplateBuildFailed, match="request"):
        check_libraries("streamlit-developer", entry)


def test_a_template_of_ones_own_is_made_and_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`templates init` writes files that build and answer; `ls` then lists it."""
    home = tmp_path / "home"
    home.mkdir()
    home.chmod(0o755)
    monkeypatch.setenv("SANDBOXKIT_HOME", str(home))

    def command(*words: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "sandboxkit.cli", *words], capture_output=True, text=True, timeout=300, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    folder = tmp_path / "mine"
    command("templates", "init", "mine", str(folder))
    assert "mine is ready" in command("templates", "build", str(folder))
    assert "mine" in command("templates", "ls")
    shutil.rmtree(folder)
