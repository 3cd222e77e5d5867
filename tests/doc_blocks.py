"""The code blocks of the README and the docs, as a reader sees them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

FENCE = re.compile(
    r"(?:^<!-- not run: (?P<why>[^\n]*) -->\n)?^```(?P<language>\w+)\n(?P<text>.*?)^```$"
    r"(?:\n+(?:[^\n`]{1,60}:\n+)?```text\n(?P<shown>.*?)^```$)?",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Block:
    page: str
    line: int
    language: str
    text: str
    shown: str | None
    why_not: str | None


def blocks() -> Iterator[Block]:
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").rglob("*.md"))]
    for page in pages:
        content = page.read_text(encoding="utf-8")
        for match in FENCE.finditer(content):
            if match["language"] == "text":
                continue
            yield Block(
                page=str(page.relative_to(ROOT)),
                line=content.count("\n", 0, match.start("text")),
                language=match["language"],
                text=match["text"],
                shown=match["shown"],
                why_not=match["why"],
            )
