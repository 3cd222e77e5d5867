"""Whatever a client sends is understood or refused, never an accident."""

from __future__ import annotations

import contextlib
import json
import urllib.parse
from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st

from sandboxkit.local.control import _life_requests as lives
from sandboxkit.local.control import _requests as requests
from sandboxkit.local.control._refusals import Refused

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
FIELDS = [
    "templateID", "timeout", "metadata", "envVars", "network", "allow_internet_access", "autoPause", "autoPauseMemory",
    "autoResume", "count", "name", "iam", "mcp", "volumeMounts", "secure", "memory", "duration", "allowOut", "denyOut",
]  # fmt: skip
BODIES = st.dictionaries(st.sampled_from(FIELDS) | st.text(), JSON, max_size=6)


@given(body=BODIES, headers=st.dictionaries(st.sampled_from(["idempotency-key", "package_version"]), st.text()))
@example(body={"templateID": "base", "timeout": 10**400}, headers={})
@example(body={"templateID": "base", "metadata": {"\ud800": ""}}, headers={})
def test_any_object_is_understood_or_refused(body: dict[str, Any], headers: dict[str, str]) -> None:
    """Every reader of bodies gives a value within its bounds, or a 400; and never anything else."""
    for dialect in ("v1", "v2"):
        with contextlib.suppress(Refused):
            found = requests.read_create(body, headers, dialect=dialect, default_timeout=300, max_timeout=1000)  # type: ignore[arg-type]
            assert 1 <= found.timeout <= 1000
            assert all(isinstance(value, str) for value in [*found.metadata.values(), *found.envs.values()])
            assert found.network.internet in (None, False, True)
            assert not (found.network.overridden and found.network.internet)
    with contextlib.suppress(Refused):
        assert 1 <= lives.read_connect(body, default_timeout=300, max_timeout=1000).timeout <= 1000
    with contextlib.suppress(Refused):
        assert 1 <= requests.read_resume(body, max_timeout=1000) <= 1000
    with contextlib.suppress(Refused):
        assert lives.read_pause(body).memory in (True, False)
    with contextlib.suppress(Refused):
        assert 1 <= lives.read_fork(body, max_timeout=1000).count <= 20
    with contextlib.suppress(Refused):
        lives.read_snapshot(body)
    with contextlib.suppress(Refused):
        assert 0 <= requests.read_set_timeout(body, max_timeout=1000) <= 1000
    with contextlib.suppress(Refused):
        assert 0 <= requests.read_refresh(body) <= requests.REFRESH_MAX
    with contextlib.suppress(Refused):
        assert requests.read_network_update(body).overridden is False


@given(body=st.binary())
def test_any_bytes_are_an_object_or_refused(body: bytes) -> None:
    """What is read from a body is an object."""
    with contextlib.suppress(Refused):
        assert isinstance(requests.read_object(body), dict)


@given(
    query=st.dictionaries(
        st.sampled_from(["metadata", "state", "template", "startedAfter", "order", "limit", "nextToken"]), st.text()
    )
)
@example(query={"startedAfter": "0001-01-01T00:00:00+23:59"})
@example(query={"startedAfter": "9999-12-31T23:59:59-23:59"})
@example(query={"limit": "٣"})
def test_any_query_is_understood_or_refused(query: dict[str, str]) -> None:
    """Filters come out in their bounds, or are refused."""
    with contextlib.suppress(Refused):
        assert 1 <= requests.read_query(query).limit <= requests.PAGE_LIMIT


@given(metadata=st.dictionaries(st.text(min_size=1), st.text(), max_size=5))
def test_metadata_filters_survive_their_encodings(metadata: dict[str, str]) -> None:
    """What E2B's clients encode (quoted, then as a query string) is read as what it was."""
    with contextlib.suppress(UnicodeEncodeError):  # no client can encode a lone surrogate
        encoded = urllib.parse.urlencode({urllib.parse.quote(k): urllib.parse.quote(v) for k, v in metadata.items()})
        assert requests.read_metadata_filter(encoded) == metadata


def test_the_fingerprint_is_of_the_request_not_of_its_spelling() -> None:
    """The order of fields does not make two requests of one; another value does."""
    base = {"templateID": "base", "metadata": {"a": "1", "b": "2"}}
    turned = json.loads(json.dumps(dict(reversed(base.items()))))

    def fingerprint(value: dict[str, Any]) -> str:
        return requests.read_create(value, {}, dialect="v2", default_timeout=1, max_timeout=9).fingerprint

    assert fingerprint(base) == fingerprint(turned)
    assert fingerprint(base) != fingerprint({**base, "timeout": 5})
