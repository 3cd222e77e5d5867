"""The pages on agent frameworks: their code runs in the framework's environment, with the versions that they name."""

from __future__ import annotations

import doctest
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
from doc_blocks import ROOT, Block, blocks
from framework_tools import THIS_CHECKOUT, recipe, requirements

PAGES = sorted(path.stem for path in (ROOT / "docs" / "how-to" / "frameworks").glob("*.md"))
RECIPES = [
    pytest.param(name, block, marks=pytest.mark.framework(name), id=f"{name}:{block.line}")
    for name in PAGES
    for block in recipe(name)
]
FOR_TESTS = ("pytest", "langchain-tests")


@pytest.mark.full
@pytest.mark.engine
@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize(("name", "block"), RECIPES)
def test_a_recipe_prints_what_is_shown(
    name: str, block: Block, in_framework: Callable[..., str], tmp_path: Path
) -> None:
    """A recipe, pasted as it is, ends well beside a running engine, and prints what the page shows."""
    (tmp_path / "block.py").write_text(block.text, encoding="utf-8")
    printed = in_framework(name, "block.py")
    assert block.shown is not None
    assert doctest.OutputChecker().check_output(block.shown, printed, doctest.ELLIPSIS), printed


@pytest.mark.parametrize("name", PAGES)
def test_a_page_installs_what_its_recipes_ran_with(name: str) -> None:
    """The page's command names the versions that the tests use, and all of them."""
    page = f"docs/how-to/frameworks/{name}.md"
    (command,) = [block.text for block in blocks() if block.page == page and block.language == "sh"]
    given = command.partition(" install ")[2].replace("-e '.[local]'", shlex.quote(THIS_CHECKOUT))
    wanted = [line for line in requirements(name) if not line.startswith(FOR_TESTS)]
    assert shlex.split(given) == wanted


def test_each_framework_has_a_page_and_an_entry() -> None:
    """The overview and the table of contents name each page."""
    overview = (ROOT / "docs" / "how-to" / "agent-frameworks.md").read_text(encoding="utf-8")
    contents = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    assert [name for name in PAGES if f"frameworks/{name}.md)" not in overview] == []
    assert [name for name in PAGES if f"how-to/frameworks/{name}.md" not in contents] == []
