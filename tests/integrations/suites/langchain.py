"""The sandbox suite of langchain-tests, through langchain-e2b."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from deepagents.backends.protocol import SandboxBackendProtocol
from e2b import Sandbox
from langchain_e2b import E2BSandbox
from langchain_tests.integration_tests import SandboxIntegrationTests


@pytest.mark.asyncio
class TestE2BSandbox(SandboxIntegrationTests):
    """All that the suite asks, in both colours."""

    @pytest.fixture(scope="class")
    def sandbox(self) -> Iterator[SandboxBackendProtocol]:
        with Sandbox.create(timeout=600) as sandbox:
            yield E2BSandbox(sandbox=sandbox)
