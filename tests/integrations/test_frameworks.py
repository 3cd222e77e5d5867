"""The E2B classes that agent frameworks ship, unmodified and without a model, against one engine."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = [pytest.mark.full, pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(300)]

PROGRAMS = Path(__file__).resolve().parent / "programs"

RUNS = [
    ("smolagents", "try_smolagents"),
    ("haystack", "try_haystack"),
    ("google-adk", "try_google_adk"),
    ("crewai", "try_crewai"),
    ("crewai-pins", "try_old_sdk"),
    ("agno", "try_agno"),
    ("openai-agents", "try_openai_agents"),
    ("openai-agents-newest-sdk", "try_openai_agents"),
    ("pydantic-ai", "try_pydantic_ai"),
    ("langchain", "try_langchain"),
]
"""Environments and the programs that run in them."""


@pytest.mark.parametrize(
    ("environment", "program"),
    [pytest.param(*run, marks=pytest.mark.framework(run[0]), id=run[0]) for run in RUNS],
)
def test_the_frameworks_classes_notice_no_difference(
    environment: str, program: str, in_framework: Callable[..., str]
) -> None:
    """Code, commands, files, failures, limits and clean-up are what the framework makes of E2B's own."""
    assert in_framework(environment, str(PROGRAMS / f"{program}.py")).splitlines()[-1] == "all"
