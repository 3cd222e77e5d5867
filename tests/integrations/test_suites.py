"""The suites that pydantic-ai, LangChain and inspect_ai offer to whoever makes sandboxes, against one engine."""

from __future__ import annotations

import re
import shutil
import tomllib
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path

import pytest
from framework_tools import recipe

pytestmark = [pytest.mark.full, pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(600)]

HERE = Path(__file__).resolve().parent
EXPECTED = tomllib.loads((HERE / "suite-exceptions.toml").read_text(encoding="utf-8"))
"""The suites: how many tests they have, and which of them do not pass, and why."""


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.framework(name)) for name in EXPECTED])
def test_the_suite_passes_but_for_what_is_explained(
    name: str, in_framework: Callable[..., str], tmp_path: Path
) -> None:
    """Each test of the suite passes, but for those that the list of exceptions names, and these do not."""
    suite = tmp_path / f"test_{name.replace('-', '_')}_suite.py"
    shutil.copy(HERE / "suites" / f"{name.replace('-', '_')}.py", suite)
    (tmp_path / "recipe.py").write_text(recipe(name)[0].text, encoding="utf-8")
    (tmp_path / "pytest.ini").write_text("[pytest]\n", encoding="utf-8")
    said = in_framework(
        name, "-m", "pytest", "-q", "--tb=short", "-p", "no:cacheprovider", "--junitxml=out.xml", suite.name, ok=(0, 1)
    )
    outcomes = {}
    for case in ElementTree.parse(tmp_path / "out.xml").getroot().iter("testcase"):
        bad = next((part for part in case if part.tag in ("failure", "error", "skipped")), None)
        outcomes[case.attrib["name"]] = "passed" if bad is None else f"{bad.tag}: {bad.get('message')}"
    rest = {test: outcome for test, outcome in outcomes.items() if outcome != "passed"}
    assert rest.keys() == EXPECTED[name]["exceptions"].keys(), said
    assert len(outcomes) == EXPECTED[name]["tests"]


def test_each_exception_is_explained() -> None:
    """An exception says why, in a sentence."""
    for suite in EXPECTED.values():
        assert all(re.search(r"\w+ \w+ \w+", reason) for reason in suite["exceptions"].values())
