"""What the helper seems to say, when the sandbox says it: any answer is a value or a typed error."""

from __future__ import annotations

import base64
import hashlib
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from sandboxkit._types import CommandResult, FileInfo
from sandboxkit.errors import SafeFSError
from sandboxkit.local.agent import _codec as wire
from sandboxkit.safefs import AsyncSafeFS

sys.path.insert(0, str(Path(__file__).parents[2]))

from safefs_tools import HostSandbox

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

FIELD = st.one_of(
    st.sampled_from([b"ok", b"fail", b"1:1", b"0:0", b"", b"2", b"18", b"999", b"-1", b"1" * 30, b"x\0y", b"\xff"]),
    st.binary(max_size=12),
)
LINE = st.one_of(
    st.sampled_from(["ok", "fail", "refused", "1:1", "", "2", "-1", "1e3", "9" * 5000, "81a4 1 0 0 1 YQ== ", "zz"]),
    st.text(max_size=20),
    st.lists(st.sampled_from(["81a4", "a1ff", "-1", "x", "YQ==", "Li4=", "L2V0Yw==", "", "1" * 30]), max_size=8).map(
        " ".join
    ),
)


def framed(nonce: str, raw: bytes, digest: str | None) -> str:
    told = hashlib.sha256(nonce.encode() + raw).hexdigest() if digest is None else digest
    mark = f"\n@sandboxkit:{nonce}:"
    return f"{mark}begin\n{base64.b64encode(raw).decode()}{mark}{told}\n"


ANSWERS = st.one_of(
    st.builds(
        lambda fields, data, digest: (
            lambda nonce: framed(nonce, len(wire.pack(fields)).to_bytes(4, "big") + wire.pack(fields) + data, digest)
        ),
        st.lists(FIELD, max_size=14),
        st.binary(max_size=20),
        st.sampled_from([None, None, None, "0" * 64, "x"]),
    ),
    st.builds(lambda raw: lambda nonce: framed(nonce, raw, None), st.binary(max_size=40)),
    st.builds(
        lambda lines: lambda nonce: "\n".join(["", f"@sandboxkit:{nonce}:sh", *lines, f"@sandboxkit:{nonce}:end", ""]),
        st.lists(LINE, max_size=6),
    ),
    st.builds(lambda text: lambda nonce: text, st.text(max_size=60)),
)


class Lying(HostSandbox):
    """A sandbox that answers what it likes, and knows the nonce, as every process of the user's does."""

    def __init__(self) -> None:
        super().__init__("python")
        self.say: Any = None

    async def run_command(self, cmd: str, **options: Any) -> CommandResult:
        nonce = re.findall(r" sh ([0-9a-f]{32}) ", cmd)[-1]
        return CommandResult(exit_code=0, stdout=self.say(nonce)[: options["max_output"]], stderr="")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(say=ANSWERS)
@example(say=lambda nonce: framed(nonce, b"\xff\xff\xff\xff", None))
@example(say=lambda nonce: framed(nonce, b"\0\0\0\0", None) * 3)
async def test_any_answer_is_a_value_or_a_typed_error(say: Any) -> None:
    """Whatever comes, nothing but a SafeFSError is raised, its text is ASCII, and no more bytes are taken than were
    asked for; a listing holds nothing that cannot lie in its directory."""
    sandbox = Lying()
    sandbox.say = say
    files = AsyncSafeFS(sandbox, root="/r")
    for work in (
        files.read_bytes("a", max_bytes=5), files.read_range("a", 3, 5), files.write("a", "b"), files.append("a", "b"),
        files.list("d"), files.stat("d/a"), files.exists("a"), files.make_dir("a"), files.remove("a"),
        files.rename("a", "b"), files.copy("a", "b"),
    ):  # fmt: skip
        try:
            value = await work
        except SafeFSError as error:
            assert str(error).isascii()  # noqa: PT017  (any class of ours will do)
            continue
        assert not isinstance(value, bytes) or len(value) <= 5
        if isinstance(value, FileInfo):
            assert value.path == "/r/d/a"
        if isinstance(value, list):
            assert all(entry.path.startswith("/r/d/") for entry in value)
