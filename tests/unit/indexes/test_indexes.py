"""Which package indexes this machine uses: read from the tools' own settings, and from the indexes' own answers."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from sandboxkit.local.indexes import Indexes, Settings, learn, read_settings


def written(root: Path, files: dict[str, str]) -> tuple[Path, Path]:
    """A machine's root directory, and a home in it."""
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root, root / "home"


PIP = "[global]\nindex-url = https://{0}.example/simple\n"


@pytest.mark.parametrize(
    ("files", "variables", "python", "extra"),
    [
        ({}, {}, None, ()),
        ({"etc/pip.conf": PIP.format("machine")}, {}, "https://machine.example/simple", ()),
        (
            {"etc/pip.conf": PIP.format("machine"), "home/.config/pip/pip.conf": PIP.format("user")},
            {},
            "https://user.example/simple",
            (),
        ),
        (
            {"home/.config/pip/pip.conf": PIP.format("user") + "[install]\nindex-url = https://install.example/\n"},
            {},
            "https://install.example/",
            (),
        ),
        (
            {"home/.pip/pip.conf": "[global]\nextra_index_url =\n  https://a.example/s\n  https://b.example/s\n"},
            {"PIP_INDEX_URL": "https://env.example/s"},
            "https://env.example/s",
            ("https://a.example/s", "https://b.example/s"),
        ),
        ({"home/.config/pip/pip.conf": PIP.format("user")}, {"PIP_CONFIG_FILE": "/dev/null"}, None, ()),
        (
            {"home/.config/uv/uv.toml": '[[index]]\nurl = "https://uv.example/s"\ndefault = true\n'
                                        '[[index]]\nname = "more"\nurl = "https://more.example/s"\n'},
            {},
            "https://uv.example/s",
            ("https://more.example/s",),
        ),
        ({}, {"UV_INDEX": "corp=https://corp.example/s"}, None, ("https://corp.example/s",)),
        (
            {"etc/pip.conf": PIP.format("pip")},
            {"UV_DEFAULT_INDEX": "https://uv.example/s"},
            "https://pip.example/simple",
            ("https://uv.example/s",),
        ),
        ({"home/.config/pip/pip.conf": "not a file of pip's\n"}, {}, None, ()),
    ],
)  # fmt: skip
def test_python_settings(
    tmp_path: Path, files: dict[str, str], variables: dict[str, str], python: str | None, extra: tuple[str, ...]
) -> None:
    """Files and variables are read in the tools' own order."""
    root, home = written(tmp_path, files)
    found = read_settings(variables, home=home, root=root)
    assert (found.python, found.python_extra) == (python, extra)


def test_npm_settings(tmp_path: Path) -> None:
    """The registry, scopes and certificates are read; tokens are not."""
    lines = (
        "registry=https://npm.example/\n@corp:registry = https://corp.example/npm/\ncafile=/etc/corp.pem\n"
        "//npm.example/:_authToken=sekret\n@local:registry=http://localhost:4873\n"
    )
    root, home = written(tmp_path, {"home/.npmrc": lines, "etc/npmrc": "registry=https://machine.example/\n"})
    found = read_settings({}, home=home, root=root)
    assert found.npm == "https://npm.example/"
    assert found.npm_scopes == (("@corp", "https://corp.example/npm/"),)
    assert dict(found.certificates) == {"npm_config_cafile": "/etc/corp.pem"}
    assert "sekret" not in repr(found)
    assert any("loopback" in note for note in found.left_out)
    assert (
        read_settings({"NPM_CONFIG_REGISTRY": "https://env.example"}, home=home, root=root).npm == "https://env.example"
    )


@pytest.mark.parametrize(
    "url", ["https://user:sekret@corp.example/simple", "https://sekret@corp.example/simple", "file:///opt/w", "/opt",
            "http://127.0.0.1:3141/root", "http://localhost:3141", "https://[::1]/", "ftp://corp.example/", "https://[sekret"],
)  # fmt: skip
def test_what_no_sandbox_can_use_is_left_out(tmp_path: Path, url: str) -> None:
    """An index with credentials, on loopback, or that is none, is left out with its reason, and no default steps in."""
    found = read_settings({"PIP_INDEX_URL": url}, home=tmp_path, root=tmp_path)
    assert found.python is None
    assert not found.has_python
    assert len(found.left_out) == 1
    assert "sekret" not in repr(found)


class Index(BaseHTTPRequestHandler):
    """An index of PEP 503 or 691, or a registry of npm's."""

    def do_GET(self) -> None:
        pages: dict[str, tuple[str, str]] = self.server.pages  # type: ignore[attr-defined]
        if self.path not in pages:
            self.send_error(404)
            return
        kind, text = pages[self.path]
        self.send_response(302 if kind == "to" else 200)
        self.send_header("Location" if kind == "to" else "Content-Type", text if kind == "to" else kind)
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, format: str, *args: object) -> None:
        return None


@pytest.fixture
def index() -> Iterator[Any]:
    """A server whose pages a test sets; `url` is where it is."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Index) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        server.url = f"http://127.0.0.1:{server.server_address[1]}"  # type: ignore[attr-defined]
        yield server
        server.shutdown()
        thread.join()


PAGES = {
    "html": {"/s/pip/": ("text/html", '<a href="https://files.example/a.whl#sha256=1">a</a><a href="../b.whl">b</a>')},
    "base": {"/s/pip/": ("text/html", '<base href="https://files.example/x/"><a href="a.whl">a</a>')},
    "json": {"/s/pip/": ("application/vnd.pypi.simple.v1+json", '{"files": [{"url": "https://files.example/a"}]}')},
    "own projects only": {
        "/s/": ("text/html", '<a href="/s/ours/">ours</a>'),
        "/s/ours/": ("text/html", '<a href="https://files.example/a">a</a>'),
    },
    "redirect": {
        "/s/pip/": ("to", "/other/pip/"),
        "/other/pip/": ("text/html", '<a href="https://files.example/a">a</a>'),
    },
    "hostile": {
        "/s/pip/": ("text/html", '<a href="https://u:p@evil.example/a"><a href="file:///etc"><a href="https://[x"></a>'
                                 '<a href="https://files.example/a">a</a>')
    },
}  # fmt: skip


@pytest.mark.parametrize("kind", PAGES)
def test_file_hosts_are_learnt(index: Any, kind: str) -> None:
    """The hosts of an index's files are those that its pages name, of whatever form they are."""
    index.pages = PAGES[kind]
    found = learn(Settings(python=f"{index.url}/s", has_python=True))
    assert ("files.example", 443) in found.endpoints
    assert ("127.0.0.1", index.server_address[1]) in found.endpoints
    assert len(found.endpoints) == 2
    assert found.is_whole


def test_archives_of_npm_are_learnt(index: Any) -> None:
    """Where npm's archives lie, its registry says."""
    told = json.dumps({"dist": {"tarball": "https://tarballs.example:8443/npm.tgz"}})
    index.pages = {"/npm/latest": ("application/json", told)}
    assert ("tarballs.example", 8443) in learn(Settings(npm=index.url)).endpoints


def test_an_index_that_does_not_answer(index: Any) -> None:
    """It stays allowed itself, and the result says that more is missing."""
    index.pages = {"/npm/latest": ("application/json", "no JSON")}
    found = learn(Settings(npm=index.url))
    assert not found.is_whole
    assert len(found.endpoints) == 1
    assert any("did not answer" in note for note in found.left_out)


def test_variables() -> None:
    """pip, uv and npm inside are told the same indexes."""
    found = Indexes(
        python="https://i.example/s",
        python_extra=("https://j.example/s",),
        npm="https://n.example/",
        npm_scopes=(("@corp", "https://c.example/"),),
        trusted_hosts=("i.example",),
    )
    assert found.variables() == {
        "PIP_INDEX_URL": "https://i.example/s",
        "UV_DEFAULT_INDEX": "https://i.example/s",
        "PIP_EXTRA_INDEX_URL": "https://j.example/s",
        "UV_INDEX": "https://j.example/s",
        "PIP_TRUSTED_HOST": "i.example",
        "UV_INSECURE_HOST": "i.example",
        "npm_config_registry": "https://n.example/",
        "npm_config_@corp:registry": "https://c.example/",
    }
