"""Level `enforced` where the server is not ours: a helper that runs once per operation, in the sandbox, as its user.

It needs nothing but commands. A Python of the sandbox's runs it (`-I -S`, no environment, found by absolute path);
where there is none, `/bin/sh` does what it can. Nothing of it comes from the sandbox: its text is the command. The
answer is believed as far as it parses, up to the bytes that were asked for: a forged one tells us nothing that a forged
file could not. What does not parse is a `BrokenAnswer`.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import re
import secrets
import zlib
from importlib.resources import files
from typing import Final

import anyio

from sandboxkit._types import CommandResult
from sandboxkit.errors import (
    CommandTimeout,
    ConfigurationError,
    EnforcementUnavailable,
    OutputTooLarge,
    ProviderError,
)
from sandboxkit.local.agent import _codec as wire
from sandboxkit.provider._base import ProviderSandbox, RunningCommand
from sandboxkit.provider._confined import BrokenAnswer, FileAnswer, FileCall, decoded, encoded, to_bytes
from sandboxkit.safefs._shell_answer import LINE, shell_answer, shell_arguments

PYTHONS: Final = ("/usr/bin/python3", "/usr/local/bin/python3", "/opt/sandboxkit/python/bin/python3")
INLINE: Final = 64 * 1024
"""Bytes of content that go with the command: an argument has at most 128 KiB, in base64 and with the helper itself."""
WITHIN: Final = 300.0
REFUSING: Final = 10.0
"""Seconds that a helper which does not take the content has to say why."""

_NAMES: Final = ("_removal", "_beneath", "_described", "_confined")
_BOOT: Final = (
    "import sys,types,zlib,base64\n"
    'p=types.ModuleType("sbk");p.__path__=[];sys.modules["sbk"]=p\n'
    'for s in zlib.decompress(base64.b64decode(sys.argv[1])).decode().split("\\0"):\n'
    ' n,s=s.split("\\n",1);m=types.ModuleType("sbk."+n);m.__package__="sbk";sys.modules["sbk."+n]=m;setattr(p,n,m)\n'
    ' exec(compile(s,n,"exec"),m.__dict__)\n'
    "m.main()"
)


class HelperConfined:
    """A `Confined` over the commands of any sandbox."""

    root_adversary = True
    mechanism = "helper"
    can_watch = False

    def __init__(self, sandbox: ProviderSandbox, root: str) -> None:
        self._sandbox = sandbox
        self._root = root

    async def call(self, call: FileCall) -> FileAnswer:
        nonce = secrets.token_hex(16)
        inline = len(call.data) <= INLINE
        command = _command(call, nonce, self._root, inline=inline)
        most = call.max_answer * 4 // 3 + 256 * 1024
        try:
            if inline:
                ran = await self._sandbox.run_command(command, timeout=WITHIN, cwd="/", max_output=most)
            else:
                ran = await self._fed(command, call.data, most)
        except OutputTooLarge as error:
            raise BrokenAnswer("it is longer than was asked for") from error
        except ConfigurationError as error:
            raise EnforcementUnavailable(
                f"Sandbox {self._sandbox.sandbox_id} runs no command as SafeFS needs it ({error}). level='lexical' can "
                "be had.",
                sandbox_id=self._sandbox.sandbox_id,
            ) from error
        return self._answer(call, nonce, ran)

    async def _fed(self, command: str, data: bytes, most: int) -> CommandResult:
        """Run the helper with the content on its standard input."""
        running = await self._sandbox.start_command(command, cwd="/", max_output=most, stdin=True)
        done = False
        try:
            with anyio.move_on_after(WITHIN):
                broke = await _sent(running, data)
                with anyio.move_on_after(WITHIN if broke is None else REFUSING):
                    ran = await running.wait()
                    done = True
                    return ran
                if broke is not None:
                    raise broke
        finally:
            if not done:
                await _killed(running)
        raise CommandTimeout(
            f"The write took longer than {WITHIN:g} s, and was given up; the file is as it was.",
            sandbox_id=self._sandbox.sandbox_id,
            timeout=WITHIN,
        )

    def _answer(self, call: FileCall, nonce: str, ran: CommandResult) -> FileAnswer:
        mark = f"\n@sandboxkit:{nonce}:"
        found = re.search(rf"{mark}begin\n([A-Za-z0-9+/=]*){mark}([0-9a-f]{{64}})\n", ran.stdout)
        if found is not None:
            try:
                raw = base64.b64decode(found[1], validate=True)
            except ValueError:
                raise BrokenAnswer("it is no base64") from None
            if hashlib.sha256(nonce.encode() + raw).hexdigest() != found[2]:
                raise BrokenAnswer("its digest is wrong")
            return decoded(raw)
        lines = re.search(rf"{mark}sh\n(.*?){mark}end\n", ran.stdout, re.DOTALL)
        if lines is not None:
            told = shell_answer(call, lines[1])
            if told is not None:
                return told
            raise EnforcementUnavailable(
                f"Sandbox {self._sandbox.sandbox_id} has no Python 3.8 or newer, without which {call.operation} cannot "
                "be done at level 'enforced'; reading, writing, listing one level, stat and exists can. "
                "SafeFS(..., level='checked') does all, against links that are there, not against a hostile process.",
                sandbox_id=self._sandbox.sandbox_id,
            )
        raise EnforcementUnavailable(
            f"Sandbox {self._sandbox.sandbox_id} has neither Python nor a shell that runs SafeFS's helper (exit code "
            f"{ran.exit_code}), so level 'enforced' cannot be had. SafeFS(..., level='checked') can: it holds against "
            "links that are there, not against a hostile process.",
            sandbox_id=self._sandbox.sandbox_id,
        )


async def _sent(running: RunningCommand, data: bytes) -> ProviderError | None:
    """Send the content. The error where the helper does not listen any more: its answer then says why."""
    try:
        for at in range(0, len(data), LINE):
            await running.send_stdin(base64.b64encode(data[at : at + LINE]).decode() + "\n")
    except ProviderError as error:
        return error
    return None


async def _killed(running: RunningCommand) -> None:
    with anyio.move_on_after(10, shield=True):
        await running.kill()


def _command(call: FileCall, nonce: str, root: str, *, inline: bool) -> str:
    """The shell command of one operation. All that the caller chose is base64 in it."""
    fields = [nonce.encode(), to_bytes(root), b"inline" if inline else b"input", len(call.data)]
    asked = wire.unpack(encoded(call)[4:])
    packed = wire.pack([*fields, *asked])
    token = base64.b64encode(len(packed).to_bytes(4, "big") + packed + (call.data if inline else b"")).decode()
    places = " ".join(PYTHONS)
    shell = " ".join(shell_arguments(call, nonce, root, inline=inline))
    return (
        f"for p in {places}; do "
        f"[ -x $p ] && exec /usr/bin/env -i $p -I -S -c '{_BOOT}' {_modules()} {token}; done; "
        f"exec /usr/bin/env -i PATH=/usr/bin:/bin /bin/sh -c '{_shell()}' sh {shell}"
    )


@functools.cache
def _modules() -> str:
    """The helper's modules, packed."""
    agent = files("sandboxkit").joinpath("local", "agent")
    texts = [(name, agent.joinpath(f"{name}.py").read_text("utf-8")) for name in _NAMES]
    helper = files("sandboxkit").joinpath("safefs", "_sent", "helper.py").read_text("utf-8")
    texts.append(("helper", helper.replace("from sandboxkit.local.agent", "from sbk")))
    return base64.b64encode(zlib.compress("\0".join(f"{name}\n{text}" for name, text in texts).encode(), 9)).decode()


@functools.cache
def _shell() -> str:
    """The helper for sandboxes without Python, as an argument between single quotes."""
    text = files("sandboxkit").joinpath("safefs", "_sent", "helper.sh").read_text("utf-8")
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    return "\n".join(lines).replace("'", "'\\''")
