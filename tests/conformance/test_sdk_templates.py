"""Templates that the SDK defines, built by the real engine: Dockerfiles, and apps that answer the first request."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import e2b
import httpx
import pytest
from e2b_code_interpreter import Sandbox as CodeInterpreter

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
        ENV GREETING="hi you" VERSION=$VERSION PATH=/app/bin:$PATH
        RUN pwd > /home/user/begun && whoami >> /home/user/begun
        COPY app.txt /app/
        RUN mkdir /home/user/brought && cp /app/app.txt /home/user/brought
        RUN cat /app/app.txt \
            && echo $GREETING > /app/made && mkdir /app/bin && ln -s /bin/echo /app/bin/say
        """
    template = e2b.Template(file_context_path=str(tmp_path)).from_dockerfile(dockerfile.replace("\n        ", "\n"))
    e2b.Template.build(template, name, **sdk)
    with e2b.Sandbox.create(name, timeout=60, **sdk) as sandbox:
        out = sandbox.commands.run("pwd; cat begun /app/app.txt /app/made; say $VERSION; type -P python3").stdout
        sandbox.files.rename("brought", "renamed")  # which the kernel does not, in an overlay
        assert [entry.path for entry in sandbox.files.list("renamed")] == ["/home/user/renamed/app.txt"]
    assert out.split("\n") == [
        "/home/user",
        "/",
        "user",
        "copied",
        "hi you",
        "1.2",
        "/opt/sandboxkit/env/bin/python3",
        "",
    ]


def test_a_working_directory_is_there(sdk: dict[str, str], name: str) -> None:
    """WORKDIR makes it, also where no step runs in it; where it cannot be made, that step fails."""
    template = e2b.Template().from_base_image().run_cmd("echo 1 > file")
    with pytest.raises(e2b.BuildException, match="/home/user/file/in could not be made"):
        e2b.Template.build(template.set_workdir("/home/user/file/in"), name, **sdk)
    e2b.Template.build(e2b.Template().from_template("code-interpreter-v1").set_workdir("/home/user/a/b"), name, **sdk)
    with CodeInterpreter.create(name, timeout=60, **sdk) as sandbox:
        assert sandbox.commands.run("pwd").stdout == "/home/user/a/b\n"
        assert sandbox.run_code("1 + 1").text == "2"


@pytest.mark.full
def test_an_app_answers_the_first_request(sdk: dict[str, str], name: str) -> None:
    """A request under a new sandbox's name waits for its app, as slow as that is; other ports are closed after that."""
    start = "sleep 2; exec python3 -m http.server 8123"
    template = e2b.Template().from_base_image().set_start_cmd(start, e2b.wait_for_port(8123))
    e2b.Template.build(template, name, **sdk)
    with e2b.Sandbox.create(name, timeout=60, **sdk) as sandbox, httpx.Client(base_url=sdk["api_url"]) as client:
        for port, status in ((8123, 200), (8124, 502)):
            answer = client.get("/", headers={"host": sandbox.get_host(port)}, timeout=20)
            assert answer.status_code == status
