"""A web template in a pool's stock: whoever takes a warm sandbox finds its server running."""

from __future__ import annotations

import urllib.request

import pytest

from sandboxkit import Endpoint, Fragment, SandboxPool, Template, TimeoutPolicy
from sandboxkit.runner._inside import needle

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.full, pytest.mark.timeout(600)]

SOURCE = "import streamlit as st\nst.write('a page of my own')\n"


def test_a_warm_app_answers_at_once(web_engine: Endpoint) -> None:
    """The pool is ready when the server answers; a fragment's run in the sandbox that is handed over starts none."""
    name = "streamlit-developer"
    template = Template.get(name)
    assert template.start is not None
    with SandboxPool(endpoint=web_engine, min_warm={name: 1}, timeouts=TimeoutPolicy(ready=90)) as pool:
        pool.wait_ready(timeout=90)
        with pool.session("a", template=name) as session:
            assert pool.stats()["from_warm"] == 1
            app = session.run(Fragment(template=name, code=SOURCE)).app
            assert app is not None
            opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
            with opener.open(f"{app.url}{template.ready}", timeout=20) as answer:
                assert answer.status == 200
            listed = session.run_command("for one in /proc/[0-9]*; do tr '\\0' ' ' <$one/cmdline; echo; done").stdout
            servers = [line for line in listed.splitlines() if needle(template.start) in line and "bash" not in line]
            assert len(servers) == 1, listed
            assert app.log().count("You can now view") == 1
