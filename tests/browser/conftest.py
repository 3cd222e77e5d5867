"""A real browser, headless: the machine's Chromium, driven by Playwright."""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Building the templates, and a framework's first answers, take their time."""
    for item in items:
        if "tests/browser/" in item.nodeid:
            for mark in (pytest.mark.engine, pytest.mark.slow, pytest.mark.full, pytest.mark.timeout(1800)):
                item.add_marker(mark)


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """Playwright knows asyncio alone."""
    return "asyncio"


@pytest.fixture(scope="session")
async def browser() -> AsyncIterator[Any]:
    """A browser, without the machine's proxy: what it opens is on this machine."""
    api = pytest.importorskip("playwright.async_api", reason="needs Playwright: pip install playwright")
    if CHROMIUM is None:
        pytest.skip("needs Chromium: apt-get install chromium")
    options = ["--no-proxy-server", "--disable-dev-shm-usage"]
    if os.getuid() == 0:
        options.append("--no-sandbox")  # Chromium's own sandbox refuses root
    async with api.async_playwright() as playwright:
        started = await playwright.chromium.launch(executable_path=CHROMIUM, args=options)
        try:
            yield started
        finally:
            await started.close()
