"""How sandboxes live on, end, and are found."""

from __future__ import annotations

import uuid
from datetime import timedelta

import anyio

from sandboxkit._types import CODE_INTERPRETER
from sandboxkit.errors import (
    SandboxLost,
    SandboxNotFound,
)
from sandboxkit.provider._base import Provider
from sandboxkit.testing.conformance._check import (
    CHECK_TAG,
    LIFETIME,
    check,
    listed,
    make_request,
    must,
    raises,
    running,
)


@check
async def extend_never_shortens(provider: Provider, *, template: str = CODE_INTERPRETER) -> None:
    """extend() moves the end later, never earlier, and returns it."""
    async with running(provider, template) as sandbox:
        first = sandbox.end_at
        assert first is not None
        must(await sandbox.extend(10) >= first, "A short extension does not shorten.")
        later = await sandbox.extend(LIFETIME + 100)
        must(later >= first + timedelta(seconds=90), "A longer one moves the end.")
        must(sandbox.end_at == later, "end_at is what was answered.")
        again = await provider.connect(sandbox.sandbox_id, lifetime=10)
        assert again.end_at is not None
        must(again.end_at >= later - timedelta(seconds=5), "connect() does not shorten either.")
        must(again.sandbox_id == sandbox.sandbox_id, "connect() takes up the same sandbox.")
        must(again.template == template, "connect() knows the template.")
        must((await again.run_code("1 + 1")).text == "2", "A connected sandbox can be used.")


@check
async def sandboxes_expire(provider: Provider, *, template: str = CODE_INTERPRETER) -> None:
    """A sandbox ends with its lifetime; what runs then raises SandboxLost."""
    async with running(provider, template, lifetime=2.0) as sandbox:
        with anyio.fail_after(30):
            await raises(
                SandboxLost,
                lambda: sandbox.run_code("while True:\n    pass", timeout=25),
                "A sandbox ends with its lifetime.",
            )
        must(not await sandbox.is_running(), "It does not run any more.")


@check
async def kill_is_told_once(provider: Provider, *, template: str = CODE_INTERPRETER) -> None:
    """kill() returns True, then False; a killed sandbox is not listed, not running, and SandboxNotFound."""
    tag = {CHECK_TAG: uuid.uuid4().hex}
    sandbox = await provider.create(make_request(template, metadata=tag))
    must(await sandbox.kill() is True, "kill() kills.")
    must(await sandbox.kill() is False, "A second kill() is no error.")
    must(await provider.kill(sandbox.sandbox_id) is False, "Nor is one by id.")
    must(await provider.kill("nosuchsandbox") is False, "Nor is one of a sandbox that never was.")
    must(not await sandbox.is_running(), "A killed sandbox does not run.")
    must(not await listed(provider, tag), "A killed sandbox is not listed.")
    await raises(SandboxNotFound, lambda: sandbox.extend(10), "It cannot be extended.")
    await raises(
        SandboxNotFound, lambda: provider.connect(sandbox.sandbox_id, lifetime=10), "It cannot be connected to."
    )
    await raises(SandboxNotFound, lambda: sandbox.files.read("/etc/hostname"), "Its files are gone.")


@check
async def list_goes_over_all(provider: Provider, *, template: str = CODE_INTERPRETER) -> None:
    """list() yields every sandbox, with its template, state, times and metadata."""
    tag = {CHECK_TAG: uuid.uuid4().hex}
    async with (
        running(provider, template, metadata=tag) as one,
        running(provider, template, metadata=tag | {"which": "two"}) as two,
    ):
        infos = {info.sandbox_id: info async for info in provider.list(metadata=tag)}
        must(set(infos) == {one.sandbox_id, two.sandbox_id}, "All are listed.")
        info = infos[two.sandbox_id]
        must(info.state == "running" and info.template == template, f"State and template are told: {info}.")
        must(info.metadata["which"] == "two", "Metadata are told.")
        must(info.started_at < info.end_at, "Times are told.")
        everything = {info.sandbox_id async for info in provider.list()}
        must(set(infos) <= everything, "Without a filter, all are listed.")


@check
async def ports_have_urls(provider: Provider, *, template: str = CODE_INTERPRETER) -> None:
    """host() names the port and the sandbox, also of one that is gone; browser_url() is that with a scheme. url() is
    for programs, and may have to be asked for."""
    async with running(provider, template) as sandbox:
        schemes = {f"{scheme}://{sandbox.host(3000)}" for scheme in ("http", "https")}
        url = await sandbox.url(3000)
        must(url in schemes or url.startswith("http://127.0.0.1:"), "url() is the name's, or a loopback port's.")
        must(await sandbox.url(3000) == url, "url() stays the same.")
        must(await sandbox.http_status(3000) is None, "Where nobody listens there is no status.")
        await sandbox.kill()
        must(sandbox.host(3000).startswith(f"3000-{sandbox.sandbox_id}."), "host() names port and sandbox.")
        must(sandbox.browser_url(3000) in schemes, "browser_url() is host() with the endpoint's scheme.")
        await raises(SandboxNotFound, lambda: sandbox.http_status(3000), "A sandbox that is gone has no status.")
        if url not in schemes:
            await raises(SandboxNotFound, lambda: sandbox.url(3000), "A port of a sandbox that is gone is not opened.")


@check
async def aclose_kills_no_sandbox(provider: Provider, *, template: str = CODE_INTERPRETER) -> None:
    """aclose() kills no sandbox, and may be called again."""
    async with running(provider, template) as sandbox:
        await provider.aclose()
        await provider.aclose()
        must(await sandbox.is_running(), "aclose() kills no sandbox.")
