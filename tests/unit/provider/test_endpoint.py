"""Which endpoint is meant."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandboxkit import Endpoint
from sandboxkit._settings import Settings, parse_env_file
from sandboxkit.errors import ConfigurationError, MissingApiKey
from sandboxkit.provider._endpoint import choose, open_provider
from sandboxkit.testing import FakeProvider

KEY = Settings(api_key="e2b_k")


@pytest.mark.parametrize(
    ("endpoint", "settings", "kind"),
    [
        ("auto", KEY, "e2b"),
        ("auto", Settings(), "local"),
        ("auto", Settings(endpoint="auto", api_key="e2b_k"), "e2b"),
        ("auto", Settings(endpoint="local", api_key="e2b_k"), "local"),
        ("auto", Settings(endpoint="e2b", api_key="e2b_k"), "e2b"),
        ("local", Settings(endpoint="e2b", api_key="e2b_k"), "local"),
        ("e2b", Settings(endpoint="local", api_key="e2b_k"), "e2b"),
        (Endpoint("k"), Settings(endpoint="local"), "given"),
    ],
)
def test_choice(endpoint: object, settings: Settings, kind: str) -> None:
    """What is said in code wins; "auto" is E2B where a key is set, else the local engine."""
    assert choose(endpoint, settings).kind == kind  # type: ignore[arg-type]


def test_only_nobodys_choice_falls_back() -> None:
    """The local engine is a fallback only where nobody named it."""
    assert choose("auto", Settings()).fell_back
    assert not choose("local", Settings()).fell_back
    assert not choose("auto", Settings(endpoint="local")).fell_back


@pytest.mark.parametrize("settings", [Settings(), Settings(endpoint="e2b")])
def test_e2b_by_name_needs_a_key(settings: Settings) -> None:
    """E2B by name without a key is MissingApiKey, which says where to get one."""
    with pytest.raises(MissingApiKey, match="E2B_API_KEY"):
        choose("auto" if settings.endpoint else "e2b", settings)


def test_environment_file(tmp_path: Path) -> None:
    """SANDBOXKIT_ENDPOINT may be the path of a file that `sandboxkit serve --env-file` wrote."""
    file = tmp_path / "engine.env"
    file.write_text(
        "# comment\nE2B_API_KEY='e2b_1'\nexport E2B_API_URL=\"http://127.0.0.1:9\"\nE2B_SANDBOX_URL=http://[::1]:9\n"
    )
    choice = choose("auto", Settings(endpoint=str(file), api_key="other"))
    assert choice.kind == "given"
    assert choice.endpoint == Endpoint("e2b_1", "http://127.0.0.1:9", "http://[::1]:9")
    file.write_text("E2B_API_URL='http://127.0.0.1:9'\n")
    with pytest.raises(MissingApiKey):
        choose("auto", Settings(endpoint=str(file)))
    with pytest.raises(ConfigurationError, match="none of auto, e2b and local"):
        choose("auto", Settings(endpoint=str(tmp_path / "missing")))


@given(st.text(max_size=200))
def test_environment_file_never_leaks_a_line(text: str) -> None:
    """Whatever stands in the file, it is read or refused by line number, and the message never shows the text."""
    try:
        values = parse_env_file(text)
    except ConfigurationError as refused:
        message = str(refused)
    else:
        assert all(name.isidentifier() for name in values)
        return
    assert message.startswith("Line ")
    assert len(message) < 90


@given(
    st.dictionaries(st.from_regex(r"[A-Z_]{1,10}", fullmatch=True), st.from_regex(r"[ -&(-~]{0,20}", fullmatch=True))
)
def test_environment_file_round_trip(values: dict[str, str]) -> None:
    """Lines of the form NAME='value' give back their values."""
    assert parse_env_file("".join(f"{name}='{value}'\n" for name, value in values.items())) == values


@pytest.mark.parametrize("endpoint", ["cloud", "", 3, None, object()])
def test_anything_else_is_refused(endpoint: object) -> None:
    """What is no endpoint is a ConfigurationError that says what would be one."""
    with pytest.raises(ConfigurationError, match="auto"):
        open_provider(endpoint)  # type: ignore[arg-type]


def test_one_warning_when_nobody_chose(caplog: pytest.LogCaptureFixture) -> None:
    """Falling back to the local engine says so once, as a warning in the log; naming it says nothing."""
    with caplog.at_level(logging.WARNING, "sandboxkit"):
        assert open_provider("auto").name == "local"
        assert [record.levelname for record in caplog.records] == ["WARNING"]
        assert "local engine" in caplog.text
        caplog.clear()
        assert open_provider("local").name == "local"
        assert not caplog.records


def test_a_provider_is_used_as_it_is() -> None:
    """An object with the provider's methods is returned unchanged."""
    fake = FakeProvider()
    assert open_provider(fake) is fake


def test_an_endpoints_key_goes_nowhere_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """What an endpoint leaves open is never filled from the environment with a part of another endpoint."""
    from sandboxkit.provider._e2b._request import connection_options

    monkeypatch.setenv("E2B_API_URL", "http://elsewhere.invalid")
    assert connection_options(Endpoint("k", domain="mine.example"))["api_url"] == "https://api.mine.example"
    monkeypatch.setenv("E2B_SANDBOX_URL", "http://elsewhere.invalid")
    with pytest.raises(ConfigurationError, match="E2B_SANDBOX_URL"):
        connection_options(Endpoint("k", domain="mine.example"))
    assert connection_options(Endpoint("k", "http://a", "http://b"))["debug"] is False
