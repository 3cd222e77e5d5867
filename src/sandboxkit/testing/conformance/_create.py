"""What `Provider.create` must do."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime

import anyio

from sandboxkit._types import CODE_INTERPRETER, NetworkPolicy
from sandboxkit.errors import (
    TemplateNotFound,
    UnsupportedOption,
)
from sandboxkit.provider._base import Provider
from sandboxkit.testing.conformance._check import (
    CHECK_TAG,
    LIFETIME,
    check,
    listed,
    make_request,
    must,
    raises,
    running,
)


@check
async def create_makes_a_running_sandbox(provider: Provider, *, template: str = CODE_INTERPRETER) -> None:
    """A created sandbox runs, knows its template, and ends about `lifetime` seconds from now."""
    before = datetime.now(UTC)
    async with running(provider, template) as sandbox:
        must(await sandbox.is_running(), "A created sandbox runs.")
        must(sandbox.sandbox_id, "A sandbox has an id.")
        must(sandbox.template == template, "A sandbox knows its template.")
        must(sandbox.end_at is not None, "The end of a created sandbox is known.")
        assert sandbox.end_at is not None
        must(sandbox.end_at.tzinfo is not None, "end_at is UTC, and says so.")
        late = abs((sandbox.end_at - before).total_seconds() - LIFETIME)
        must(late < 30, f"end_at is about `lifetime` from now; it is {late:.0f} s off.")


@check
async def create_twice_with_one_key_makes_one(provider: Provider, *, template: str = CODE_INTERPRETER) -> None:
    """A repeated request with the same idempotency key returns the same sandbox."""
    request = make_request(template)
    first = await provider.create(request)
    try:
        second = await provider.create(request)
        must(first.sandbox_id == second.sandbox_id, "One idempotency key stands for one sandbox.")
        must(await listed(provider, dict(request.metadata)) == {first.sandbox_id}, "No second one was made.")
    finally:
        await provider.kill(first.sandbox_id)


@check
async def create_refuses_an_unknown_template(provider: Provider, *, template: str = CODE_INTERPRETER) -> None:
    """An unknown template is TemplateNotFound, with its id."""
    error = await raises(
        TemplateNotFound,
        lambda: provider.create(make_request("no-such-template")),
        "A template that nobody knows is refused.",
    )
    must(error.template == "no-such-template", "TemplateNotFound names the template.")


@check
async def create_refuses_what_it_cannot_do(provider: Provider, *, template: str = CODE_INTERPRETER) -> None:
    """A network mode that cannot be had is UnsupportedOption, and no sandbox is made."""
    for network in (NetworkPolicy(allow=("example.org",), deny=("8.8.8.0/24",)),):
        request = make_request(template, network=network)
        error = await raises(
            UnsupportedOption,
            lambda request=request: provider.create(request),  # type: ignore[misc]  # bound now, not later
            "A network mode that cannot be had is refused.",
        )
        must(error.option == "network", "UnsupportedOption names the option.")
        must(not await listed(provider, dict(request.metadata)), "A refused create makes nothing.")


@check
async def create_sets_metadata_and_environment(provider: Provider, *, template: str = CODE_INTERPRETER) -> None:
    """Metadata find the sandbox, pair by pair; its environment is seen by code and by commands."""
    tag = {CHECK_TAG: uuid.uuid4().hex, "a b=c&d": "e%f/g"}
    async with running(provider, template, metadata=tag, envs={"GREETING": "hello world"}) as sandbox:
        must(await listed(provider, tag) == {sandbox.sandbox_id}, "A sandbox is found by its metadata.")
        must(not await listed(provider, tag | {"other": "x"}), "All pairs must be there.")
        must(not await listed(provider, {CHECK_TAG: "other"}), "Another value does not match.")
        ran = await sandbox.run_code("import os\nos.environ['GREETING']")
        must(ran.text == "hello world", "Code sees the sandbox's environment.")
        done = await sandbox.run_command('echo "$GREETING"')
        must(done.stdout == "hello world\n", "Commands see the sandbox's environment.")


@check
async def create_leaves_nothing_when_cancelled(provider: Provider, *, template: str = CODE_INTERPRETER) -> None:
    """However soon a create is cancelled, what it made is killed."""
    for delay in (0.0, 0.001, 0.01, 0.05, 0.2):
        request = make_request(template)
        made = []
        with anyio.move_on_after(delay):
            made.append(await provider.create(request))
        for sandbox in made:  # it was quicker than the cancellation
            await provider.kill(sandbox.sandbox_id)
        with anyio.move_on_after(5):
            while await listed(provider, dict(request.metadata)):  # noqa: ASYNC110  # another process's doing
                await anyio.sleep(0.02)
            continue
        raise AssertionError(f"A create that was cancelled after {delay} s left a sandbox.")
