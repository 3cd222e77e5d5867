"""Dockerfiles through the SDK's parser, built and run by the real engine."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import e2b
import httpx
import pytest

pytestmark = [pytest.mark.engine, pytest.mark.slow]


@pytest.fixture
def name(sdk: dict[str, str]) -> Iterator[str]:
    """The name of a template that is gone afterwards."""
    made = f"t{uuid.uuid4().hex[:8]}"
    yield made
    httpx.delete(f"{sdk['api_url']}/templates/{made}", headers={"X-API-KEY": sdk["api_key"]}).raise_for_status()


def test_a_dockerfile_is_a_definition(sdk: dict[str, str], name: str, tmp_path: Path) -> None:
    """It begins in "/", as Docker says; its instructions hold in the sandbox, where E2B's defaults come back."""
    (tmp_path / "app.txt").write_text("copied\n")
    dockerfile = r"""
        FROM python:3.11
        ARG VERSION=1.2
        ENV GREETING="hi you" VERSION=$VERSION
        RUN pwd > /home/user/begun && whoami >> /home/user/begun
        COPY app.txt /app/
        RUN cat /app/app.txt \
            && echo $GREETING > /app/made
        """
    template = e2b.Template(file_context_path=str(tmp_path)).from_dockerfile(dockerfile.replace("\n        ", "\n"))
    e2b.Template.build(template, name, **sdk)
    with e2b.Sandbox.create(name, timeout=60, **sdk) as sandbox:
        out = sandbox.commands.run("pwd; cat begun /app/app.txt /app/made; echo $VERSION").stdout
    assert out.split("\n") == ["/home/user", "/", "user", "copied", "hi you", "1.2", ""]
