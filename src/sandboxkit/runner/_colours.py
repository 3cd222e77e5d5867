"""Results of fragments in the other colour: their app is the only part that has one."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Generator
from contextlib import closing
from typing import Any, TypeVar

from sandboxkit.events import Event
from sandboxkit.fragment import FragmentResult
from sandboxkit.runner._app import AsyncApp

AnApp = TypeVar("AnApp")


def with_app(result: FragmentResult[AsyncApp], wrap: Callable[[AsyncApp], AnApp]) -> FragmentResult[AnApp]:
    """The same result with its app in another form."""
    made: Any = dataclasses.replace(result, app=None)
    return made if result.app is None else dataclasses.replace(made, app=wrap(result.app))


def with_apps(events: Generator[Event, None, None], wrap: Callable[[AsyncApp], AnApp]) -> Generator[Event, None, None]:
    """The events of a fragment, with the app of the result in another form."""
    with closing(events):
        for event in events:
            result = event.data.get("result")
            if isinstance(result, FragmentResult):
                event = dataclasses.replace(event, data={**event.data, "result": with_app(result, wrap)})
            yield event
