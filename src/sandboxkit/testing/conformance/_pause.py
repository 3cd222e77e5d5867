"""How sandboxes are paused, go on, and are described without being woken."""

from __future__ import annotations

import uuid

import anyio

from sandboxkit._types import CODE_INTERPRETER
from sandboxkit.errors import SandboxLost, SandboxNotFound
from sandboxkit.provider._base import Provider
from sandboxkit.testing.conformance._check import CHECK_TAG, LIFETIME, check, must, raises, running


@check
async def pause_keeps_everything(provider: Provider, *, template: str = CODE_INTERPRETER) -> None:
    """A paused sandbox answers nobody, does not run, and goes on with its variables and files when it is extended."""
    async with running(provider, template) as sandbox:
        await sandbox.run_code("x = 7")
        await sandbox.files.write("/home/user/kept.txt", b"kept")
        await sandbox.pause()
        await sandbox.pause()
        must(not await sandbox.is_running(), "A paused sandbox does not run.")
        await raises(SandboxLost, lambda: sandbox.run_code("x", timeout=20), "A paused sandbox answers nobody.")
        end_at = await sandbox.extend(LIFETIME)
        must(sandbox.end_at == end_at, "It has an end again.")
        must(await sandbox.is_running(), "It runs again.")
        must((await sandbox.run_code("x")).text == "7", "Its variables stay.")
        must(await sandbox.files.read("/home/user/kept.txt") == b"kept", "Its files stay.")
        await sandbox.pause()
        again = await provider.connect(sandbox.sandbox_id, lifetime=LIFETIME)
        must((await again.run_code("x")).text == "7", "connect() lets it go on, too.")
        await sandbox.pause()
        must(await provider.kill(sandbox.sandbox_id) is True, "A paused one can be killed.")
        await raises(SandboxNotFound, sandbox.pause, "One that is gone cannot be paused.")


@check
async def a_command_outlives_a_pause(provider: Provider, *, template: str = CODE_INTERPRETER) -> None:
    """A background command stands still while its sandbox is paused; who waits again after that hears its end."""
    async with running(provider, template) as sandbox:
        command = await sandbox.start_command("echo before; sleep 1.5; echo after")
        with anyio.move_on_after(0.5):
            await command.wait()
        await sandbox.pause()
        await raises(SandboxLost, command.wait, "A pause cuts off who waits.")
        await raises(SandboxLost, command.wait, "While it lasts, nobody is told anything.")
        await sandbox.extend(LIFETIME)
        result = await command.wait()
        must((result.exit_code, result.stdout) == (0, "before\nafter\n"), str(result))
        must(await command.wait() == result, "It stays known.")


@check
async def info_wakes_nobody(provider: Provider, *, template: str = CODE_INTERPRETER) -> None:
    """info() tells template, state, times and metadata, of a paused one too, and changes nothing."""
    tag = {CHECK_TAG: uuid.uuid4().hex}
    async with running(provider, template, metadata=tag) as sandbox:
        first = await provider.info(sandbox.sandbox_id)
        must((first.sandbox_id, first.template, first.state) == (sandbox.sandbox_id, template, "running"), str(first))
        must(first.metadata[CHECK_TAG] == tag[CHECK_TAG], "Metadata are told.")
        must((await provider.info(sandbox.sandbox_id)).end_at == first.end_at, "Asking prolongs nothing.")
        await sandbox.pause()
        must((await provider.info(sandbox.sandbox_id)).state == "paused", "A paused one is told as such.")
        must((await provider.info(sandbox.sandbox_id)).state == "paused", "Asking wakes nobody.")
    await raises(SandboxNotFound, lambda: provider.info(sandbox.sandbox_id), "One that is gone is not found.")
    await raises(SandboxNotFound, lambda: provider.info("nosuchsandbox"), "Nor is one that never was.")


@check
async def a_life_can_end_in_a_pause(provider: Provider, *, template: str = CODE_INTERPRETER) -> None:
    """With at_end="pause" the end of the lifetime loses nothing."""
    async with running(provider, template, lifetime=2.0, at_end="pause") as sandbox:
        await sandbox.run_code("x = 7")
        with anyio.fail_after(40):
            while (await provider.info(sandbox.sandbox_id)).state != "paused":  # noqa: ASYNC110
                await anyio.sleep(0.1)
        await sandbox.extend(LIFETIME)
        must((await sandbox.run_code("x")).text == "7", "It goes on where it was.")
