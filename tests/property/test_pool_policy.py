"""Laws of the pool's small pure decisions: what fits a session, when a life is prolonged, what a create asks for."""

from __future__ import annotations

import re
import uuid
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import assume, given

from sandboxkit._types import TimeoutPolicy
from sandboxkit.errors import ConfigurationError
from sandboxkit.pool._lifetime import renewal
from sandboxkit.pool._moves import Limits, Spec
from sandboxkit.pool._options import PoolOptions, create_request, session_key, session_spec

SECONDS = st.floats(0.01, 1e6)
NAMES = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0="), min_size=1, max_size=20)
PAIRS = st.none() | st.dictionaries(NAMES.filter(lambda k: not k.startswith("sandboxkit.")), NAMES, max_size=4)


def options(**more: Any) -> PoolOptions:
    defaults: dict[str, Any] = {
        "template": "t",
        "limits": Limits(max_live=1),
        "owner": "o",
        "acquire_timeout": 1.0,
        "timeouts": TimeoutPolicy(),
        "network": "deny",
        "name": "p",
        "id": uuid.UUID(int=7),
    }
    return PoolOptions(**{**defaults, **more})


@given(lifetime=SECONDS, floor=SECONDS, remaining=st.none() | st.floats(-1e6, 1e6), work=st.floats(0, 1e6))
def test_a_renewal_never_shortens_and_keeps_the_floor(
    lifetime: float, floor: float, remaining: float | None, work: float
) -> None:
    """After the decision, at least the floor and the work's limit remain, and never less than before."""
    assume(floor <= lifetime)
    policy = TimeoutPolicy(lifetime=lifetime, floor=floor)
    wanted = renewal(policy, remaining=remaining, work=work)
    after = wanted if wanted is not None else remaining
    assert after is not None
    assert after >= max(floor, work)
    assert remaining is None or after >= remaining


@given(lifetime=st.floats(1, 1e6), work=st.floats(0, 1e6))
def test_a_renewal_is_not_repeated_at_once(lifetime: float, work: float) -> None:
    """Right after a renewal the same use asks for none, so that a busy session makes no request each time."""
    policy = TimeoutPolicy(lifetime=lifetime, floor=min(60.0, lifetime))
    wanted = renewal(policy, remaining=None, work=work)
    assert wanted is not None
    assert renewal(policy, remaining=wanted, work=work) is None


@given(remaining=st.none() | st.floats(-1e6, 1e6), work=SECONDS)
def test_never_means_never(remaining: float | None, work: float) -> None:
    """With renew="never" no use prolongs anything, so that a sandbox ends when it was said to."""
    assert renewal(TimeoutPolicy(renew="never"), remaining=remaining, work=work) is None


@given(template=NAMES, metadata=PAIRS, envs=PAIRS)
def test_a_sandbox_fits_the_call_that_made_it(template: str, metadata: Any, envs: Any) -> None:
    """The same question again is met by the sandbox that it made; so is one that leaves envs and metadata open."""
    asked = session_spec(template=template, metadata=metadata, envs=envs, default_template="other")
    made = Spec(asked.template, asked.envs or (), asked.metadata or ())
    assert asked.is_met_by(made)
    assert Spec(template).is_met_by(made)
    assert not Spec(template + "x").is_met_by(made)
    if envs:
        assert not Spec(template, ()).is_met_by(made)
    if metadata:
        assert not Spec(template, None, ()).is_met_by(made)


@given(session=st.none() | NAMES, generation=st.integers(1, 10**9), metadata=PAIRS, envs=PAIRS)
def test_every_create_is_tagged_and_repeatable(session: str | None, generation: int, metadata: Any, envs: Any) -> None:
    """A request has our tags, the caller's own pairs untouched, and an idempotency key that E2B accepts."""
    spec = session_spec(template=None, metadata=metadata, envs=envs, default_template="t")
    request = create_request(
        options(), session=session, row=session or "row", generation=generation, spec=spec, process="h:1:2"
    )
    again = create_request(
        options(), session=session, row=session or "row", generation=generation, spec=spec, process="h:1:2"
    )
    later = create_request(
        options(), session=session, row=session or "row", generation=generation + 1, spec=spec, process="h:1:2"
    )
    assert request == again
    assert request.idempotency_key != later.idempotency_key
    assert re.fullmatch(r"[a-z0-9-]{1,255}", request.idempotency_key)
    ours = {k: v for k, v in request.metadata.items() if k.startswith("sandboxkit.")}
    assert ours == {
        "sandboxkit.pool": "p",
        "sandboxkit.id": uuid.UUID(int=7).hex,
        "sandboxkit.owner": "o",
        "sandboxkit.process": "h:1:2",
        "sandboxkit.session": session or "",
        "sandboxkit.template": "t",
        "sandboxkit.gen": str(generation),
    }
    assert {k: v for k, v in request.metadata.items() if k not in ours} == (metadata or {})
    assert request.envs == (envs or {})


def test_two_pools_never_share_a_create() -> None:
    """The idempotency key depends on the pool: another pool's session of the same name is another sandbox."""
    keys = {
        create_request(
            options(id=uuid.uuid4()), session="a", row="a", generation=1, spec=Spec("t"), process="h:1:2"
        ).idempotency_key
        for _ in range(10)
    }
    assert len(keys) == 10


@pytest.mark.parametrize("key", ["", "a" * 257, "a\0b", "\ud800", 5, b"a"])
def test_keys_that_cannot_be_names_are_refused(key: Any) -> None:
    """A session key is a text that metadata and logs can carry; anything else is refused by name."""
    with pytest.raises(ConfigurationError, match=r"^key="):
        session_key(key)


@pytest.mark.parametrize("metadata", [{"sandboxkit.owner": "me"}, {"sandboxkit.": "x"}])
def test_our_metadata_keys_are_refused(metadata: dict[str, str]) -> None:
    """A caller cannot set or forge the tags that say whose a sandbox is."""
    with pytest.raises(ConfigurationError, match=r"sandboxkit\."):
        session_spec(template=None, metadata=metadata, envs=None, default_template="t")


def test_the_value_of_a_variable_is_not_told() -> None:
    """An error about an environment variable names it, and never shows its value."""
    with pytest.raises(ConfigurationError) as caught:
        session_spec(template=None, metadata=None, envs={"TOKEN": "secret\0"}, default_template="t")
    assert "TOKEN" in str(caught.value)
    assert "secret" not in str(caught.value)
