"""The HTTP routes over a pool on the real engine: run, look, write, read, be refused, end."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from sandboxkit import AsyncSandboxPool, errors
from sandboxkit._types import Endpoint
from sandboxkit.adapters.asgi import routes

pytestmark = [pytest.mark.anyio, pytest.mark.engine, pytest.mark.slow]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


async def who(request: Any) -> str | None:
    """The principal, as a header says it."""
    return request.headers.get("x-user")


async def test_a_fragment_over_http(engine: Endpoint) -> None:
    """Its result, its files and its log are its owner's; nobody else finds the sandbox, and no path leads out."""
    async with AsyncSandboxPool(endpoint=engine) as pool:
        transport = httpx.ASGITransport(app=routes(pool, authorize=who))
        alice = {"x-user": "alice"}
        async with httpx.AsyncClient(transport=transport, base_url="http://app", headers=alice, timeout=50) as client:
            fragment = {"template": "code-interpreter-v1", "code": "print(1)\n2 + 2"}
            done = await client.post("/api/sandbox", json={"fragment": fragment})
            assert (done.status_code, done.json()["execution"]["stdout"]) == (200, "1\n")
            at = f"/api/sandbox/{done.json()['sandbox_id']}"
            assert [file["name"] for file in (await client.get(f"{at}/files")).json()["files"]] == ["script.py"]
            written = await client.post(f"{at}/files/content", json={"path": "a/b.txt", "content": "hi"})
            assert written.status_code == 200
            read = await client.get(f"{at}/files/content", params={"path": "a/b.txt"})
            assert read.json()["content"] == "hi"
            out = await client.get(f"{at}/files/content", params={"path": "../../etc/passwd"})
            assert (out.status_code, out.json()["error"]["code"]) == (403, "path_escape")
            assert (await client.get(f"{at}/logs")).json()["log"] == ""
            assert (await client.get(f"{at}/logs", headers={"x-user": "bob"})).status_code == 404
            assert (await client.delete(at)).status_code == 204
            assert (await client.get(f"{at}/files")).status_code == 404


async def test_w10_no_link_leads_out(engine: Endpoint) -> None:
    """A link that the code has made is followed to nothing outside: not for reading, not for writing, not in the tree,
    not by the next fragment's files, and not as a directory on the way."""
    code = (
        "import os\nos.symlink('/etc/passwd', 'file')\nos.symlink('/', 'root')\nos.symlink('/tmp/out', 'away')\n"
        "os.mkdir('/tmp/out')"
    )
    async with AsyncSandboxPool(endpoint=engine) as pool:
        transport = httpx.ASGITransport(app=routes(pool, authorize=who))
        alice = {"x-user": "alice"}
        async with httpx.AsyncClient(transport=transport, base_url="http://app", headers=alice, timeout=50) as client:
            done = await client.post(
                "/api/sandbox", json={"fragment": {"template": "code-interpreter-v1", "code": code}}
            )
            assert done.json()["execution"]["error"] is None
            at = f"/api/sandbox/{done.json()['sandbox_id']}/files"
            for path in ("file", "root/etc/passwd", "away/x"):
                for answer in (
                    await client.get(f"{at}/content", params={"path": path}),
                    await client.post(f"{at}/content", json={"path": path, "content": "evil"}),
                ):
                    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "link_escape"), path
            nodes = {node["name"]: node for node in (await client.get(at)).json()["files"]}
            assert all(nodes[name]["children"] == [] for name in ("file", "root", "away"))
            fragment = {"template": "code-interpreter-v1", "files": {"away/x": "evil", "script.py": "1"}}
            assert (await client.post("/api/sandbox", json={"fragment": fragment})).status_code == 403
            fragment = {"template": "code-interpreter-v1", "code": "import os; os.listdir('/tmp/out')"}
            done = await client.post("/api/sandbox", json={"fragment": fragment})
            assert done.json()["execution"]["results"][0]["text"] == "[]"


@pytest.mark.full
@pytest.mark.timeout(300)
async def test_w8_an_app_over_http(engine: Endpoint) -> None:
    """The URL answers when it is told, for a fragment that names no port; the log is there; a second run changes the
    app that runs; one that cannot run is a 422 with the end of its log, and one whose package is missing names it."""
    images = pytest.importorskip("sandboxkit.local.images", reason="the engine is Linux's")
    try:
        images.find("streamlit-developer")
    except errors.TemplateNotBuilt:
        pytest.skip("not built here: sandboxkit templates build streamlit-developer")
    async with AsyncSandboxPool(endpoint=engine) as pool:
        transport = httpx.ASGITransport(app=routes(pool, authorize=who))
        alice = {"x-user": "alice"}
        async with (
            httpx.AsyncClient(transport=transport, base_url="http://app", headers=alice, timeout=120) as client,
            httpx.AsyncClient(timeout=30, trust_env=False) as browser,
        ):

            async def run(code: str) -> httpx.Response:
                fragment = {"template": "streamlit-developer", "code": code, "port": None}
                return await client.post("/api/sandbox", json={"fragment": fragment})

            done = await run("import streamlit as st\nst.title('one')")
            assert done.status_code == 200, done.text
            url = httpx.URL(done.json()["url"])
            assert url.host == f"8501-{done.json()['sandbox_id']}.localhost"
            page = await browser.get(url.copy_with(host="127.0.0.1"), headers={"host": url.netloc.decode()})
            assert (page.status_code, "<title>Streamlit" in page.text) == (200, True)
            at = f"/api/sandbox/{done.json()['sandbox_id']}"
            assert "8501" in (await client.get(f"{at}/logs")).json()["log"]
            again = await run("import streamlit as st\nst.title('two')")
            assert (again.json()["sandbox_id"], again.json()["url"]) == (done.json()["sandbox_id"], done.json()["url"])
            broken = await run("import streamlit as st\nst.title('two'")
            assert (broken.status_code, broken.json()["error"]["code"]) == (422, "app_start_failed")
            assert "SyntaxError" in broken.json()["error"]["log_tail"]
            missing = await run("import streamlit as st\nimport folium")
            assert (missing.status_code, missing.json()["error"]["dependencies"]) == (422, ["folium"])
            page = await browser.get(url.copy_with(host="127.0.0.1"), headers={"host": url.netloc.decode()})
            assert page.status_code == 200, "what ran before goes on"
            assert (await client.delete(at)).status_code == 204
