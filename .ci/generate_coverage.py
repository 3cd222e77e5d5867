"""Makes docs/reference/e2b-coverage.md from tests/e2b-coverage.toml: what E2B's SDK can ask for, and what comes of it.

Run it with no argument to check, with `--write` to write.
"""

from __future__ import annotations

import argparse
import ast
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "tests" / "e2b-coverage.toml"
PAGE = ROOT / "docs" / "reference" / "e2b-coverage.md"
REFUSALS = "tests/conformance/test_e2b_refusals.py::test_what_is_refused_is_a_400_that_names_it"

HEAD = """\
# What of E2B works

Every program written for E2B's SDK either works on the engine, or is told by a 400 what does not.
This page is made from `tests/e2b-coverage.toml`, and a test holds it against the installed SDK: each route, each RPC method and each option that reaches a server has its line, and each line the test that shows it.
The supported versions are those of the clients that `tests/clients` runs.
"""  # noqa: E501


@dataclass(frozen=True, slots=True)
class Line:
    """One thing that can be asked for."""

    part: str
    what: str
    test: str
    note: str
    refused: str
    ask: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Part:
    """A table of the page."""

    title: str
    about: str
    lines: tuple[Line, ...]


def read() -> list[Part]:
    """The data, with whole names of tests."""
    data = tomllib.loads(DATA.read_text(encoding="utf-8"))
    files = data.pop("files")
    parts = []
    for name, part in data.items():
        lines = []
        for what, told in part["lines"].items():
            fields = {"test": told} if isinstance(told, str) else dict(told)
            test, note, refused = (fields.pop(key, "") for key in ("test", "note", "refused"))
            if test:
                file, _, function = test.partition(":")
                test = f"{files[file]}::{function}"
            if bool(test) == bool(refused):
                raise ValueError(f"{what}: either `test` or `refused` is needed")
            lines.append(Line(name, what, test, note, refused, fields))
        parts.append(Part(part["title"], part["about"], tuple(lines)))
    return parts


def missing_tests(parts: list[Part]) -> Iterator[str]:
    """Tests that are named and do not exist."""
    known: dict[str, set[str]] = {}
    for test in sorted({line.test for part in parts for line in part.lines if line.test} | {REFUSALS}):
        file, _, function = test.partition("::")
        if file not in known:
            path = ROOT / file
            tree = ast.parse(path.read_text(encoding="utf-8")) if path.is_file() else ast.Module([], [])
            known[file] = {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
        if function not in known[file]:
            yield test


def page(parts: list[Part]) -> str:
    """The whole page."""
    everything = [line for part in parts for line in part.lines]
    works = sum(bool(line.test) for line in everything)
    text = [HEAD, f"\nOf {len(everything)} lines, {works} work, and {len(everything) - works} are refused by name.\n"]
    for part in parts:
        text.append(f"\n## {part.title}\n\n{part.about}\n\n| what | here | shown by |\n|---|---|---|\n")
        for line in part.lines:
            here = f"400, naming `{line.refused}`" if line.refused else "works"
            if line.note:
                here += f"; {line.note}"
            text.append(f"| `{line.what}` | {here} | `{line.test or REFUSALS}` |\n".replace("tests/", "", 1))
    return "".join(text)


def main() -> int:
    """Check, or write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="write the page instead of checking it")
    write = parser.parse_args().write
    parts = read()
    absent = list(missing_tests(parts))
    for test in absent:
        print(f"there is no {test}", file=sys.stderr)
    made = page(parts)
    if write:
        PAGE.write_text(made, encoding="utf-8")
    elif not PAGE.is_file() or PAGE.read_text(encoding="utf-8") != made:
        print(f"{PAGE.relative_to(ROOT)} is not current: python .ci/generate_coverage.py --write", file=sys.stderr)
        return 1
    return bool(absent)


if __name__ == "__main__":
    sys.exit(main())
