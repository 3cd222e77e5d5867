"""Previews for tests: a server of a test's own in the place of what runs in a sandbox."""

from __future__ import annotations

import contextlib
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import preview_tools as tools

Serve = Callable[[Any, socket.socket], None]
Open = Callable[..., "contextlib.AbstractContextManager[Any]"]


@pytest.fixture
def preview(shared_hollow: Any) -> Open:
    """Serve something in a new sandbox: `with preview(serve) as there`."""

    @contextlib.contextmanager
    def open_one(serve: Serve | bytes, **fields: Any) -> Iterator[Any]:
        with tools.upstream(tools.answers(serve) if isinstance(serve, bytes) else serve) as server:
            shared_hollow.isolation.ports[tools.PORT] = server.port
            sandbox = shared_hollow.create(**fields)
            try:
                yield tools.Preview(shared_hollow, sandbox, server)
            finally:
                shared_hollow.client.delete(f"/sandboxes/{sandbox['sandboxID']}")
                shared_hollow.isolation.ports.clear()

    return open_one
