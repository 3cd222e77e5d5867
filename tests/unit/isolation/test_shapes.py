"""What answers of level `enforced` look like, and what they must not."""

from __future__ import annotations

import pytest

from sandboxkit.local.isolation.link._shapes import check_beneath, check_opened

ROOT = b"7:7"
ENTRY = [b"f", b"/x/f", b"33188", b"1", b"0", b"0", b"-5", b"", b"", b"0"]
LINK = [*ENTRY[:7], b"g", b"33188", b"0"]
ARGS: dict[str, list[bytes | int]] = {"read": [b"/x/f", 0, 10, b"", b""]}

RIGHT: dict[str, list[list[bytes]]] = {
    "read": [[ROOT, b"5", b"1:2:-3:5", b"12345"], [ROOT, b"0", b"", b""]],
    "stat": [[ROOT, *ENTRY], [ROOT, *LINK]],
    "list": [[ROOT], [ROOT, *ENTRY, *LINK]],
    "exists": [[ROOT, b"0"], [ROOT, b"1"]],
    "make_dir": [[ROOT, b"1"]],
    "write": [[ROOT]],
}
WRONG: dict[str, list[list[bytes]]] = {
    "read": [
        [],
        [ROOT],
        [ROOT, b"5", b"v"],
        [ROOT, b"many", b"v", b""],
        [ROOT, b"-1", b"v", b""],
        [ROOT, b"9" * 21, b"v", b""],
        [ROOT, b"99", b"v" * 999, b""],
        [ROOT, b"99", b"v", b"x" * 11],
    ],
    "stat": [[], [ROOT], [ROOT, b"f"], [ROOT, *ENTRY, *ENTRY], [ROOT, *ENTRY[:-1], b"3"]],
    "list": [
        [],
        [b"root"],
        [ROOT, *ENTRY[:-1]],
        [ROOT, *ENTRY[:3], b"big", *ENTRY[4:]],
        [ROOT, *ENTRY[:2], b"1099511627776", *ENTRY[3:]],
        [ROOT, *ENTRY[:3], b"9" * 20, *ENTRY[4:]],
        [ROOT, *ENTRY[:8], b"1099511627776", b"0"],
        [ROOT, *ENTRY[:8], b"x", b"0"],
    ],
    "exists": [[], [ROOT], [ROOT, b"2"]],
    "make_dir": [[], [ROOT, b"yes"]],
    "rename": [[], [b"7:7:7"], [ROOT, b"1"]],
    "nonesuch": [[ROOT]],
}


@pytest.mark.parametrize(("operation", "fields"), [(name, one) for name, many in RIGHT.items() for one in many])
def test_what_agents_say(operation: str, fields: list[bytes]) -> None:
    """The shapes that `agent/_confined.py` gives are let through."""
    check_beneath(operation, ARGS.get(operation, []), fields)


@pytest.mark.parametrize(("operation", "fields"), [(name, one) for name, many in WRONG.items() for one in many])
def test_what_no_agent_says(operation: str, fields: list[bytes]) -> None:
    """Any other is refused before somebody takes fields by number."""
    with pytest.raises(ValueError, match=r"\w"):
        check_beneath(operation, ARGS.get(operation, []), fields)


def test_files_that_were_opened() -> None:
    """So is what comes with an open file; the name of a staged one names nothing elsewhere."""
    check_opened("read", [ROOT, b"5", b"1:2:3:5"])
    check_opened("stage", [ROOT, b".sandboxkit-0123456789abcdef01234567.part"])
    check_opened("write", [ROOT])
    for how, fields in (
        ("read", [ROOT]),
        ("read", [ROOT, b"x", b"v"]),
        ("stage", [ROOT]),
        ("stage", [ROOT, b"../x"]),
        ("write", []),
        ("write", [ROOT, b"1"]),
    ):
        with pytest.raises(ValueError, match=r"\w"):
            check_opened(how, fields)
