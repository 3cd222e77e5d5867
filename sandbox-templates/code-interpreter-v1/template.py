"""The template as E2B's builder knows it: E2B's own interpreter with the libraries of `template.json`, pinned."""

import json
from collections.abc import Iterator
from pathlib import Path

from e2b import Template

HERE = Path(__file__).parent
LIBRARIES = set(json.loads((HERE / "template.json").read_text())["libraries"])


def pins() -> Iterator[str]:
    """The libraries only: the kernel, and what it stands on, is E2B's own there."""
    for line in (HERE / "requirements.txt").read_text().splitlines():
        pin, _, marker = line.partition(" ; ")
        # A library that is pinned twice has one line for older Pythons; E2B's interpreter runs 3.13.
        if pin.split("==")[0] in LIBRARIES and "<" not in marker:
            yield pin


template = Template().from_template("code-interpreter-v1").pip_install(list(pins()))
