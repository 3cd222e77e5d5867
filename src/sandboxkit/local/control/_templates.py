"""Which templates sandboxes can be made from: the engine's view of the images room."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Protocol

from sandboxkit.local import images
from sandboxkit.local.images import BuiltTemplate
from sandboxkit.local.images._records import split_name
from sandboxkit.local.images._store import Store


class Templates(Protocol):
    """Where built templates are found."""

    def known(self) -> tuple[str, ...]:
        """Name those that this engine serves, built or not."""

    def find(self, template_id: str) -> BuiltTemplate:
        """Look one up. TemplateNotFound, or TemplateNotBuilt with the command that builds it."""


class BuiltTemplates:
    """The templates of the cache. What was once found is held until the engine ends, so that nobody prunes it away
    from under a sandbox."""

    def __init__(self, store: Store | None = None) -> None:
        self._store = store
        self._held: set[object] = set()
        self._found: dict[str, tuple[int, BuiltTemplate]] = {}
        self._holds = ExitStack()

    def known(self) -> tuple[str, ...]:
        """Name those that this engine serves."""
        return images.known(self._store)

    def find(self, template_id: str) -> BuiltTemplate:
        """Look one up: a few file system calls."""
        stamp = self._store.stamp(split_name(template_id)[0]) if self._store is not None else 0
        known = self._found.get(template_id)
        if stamp and known is not None and known[0] == stamp:
            return known[1]
        built = images.find(template_id, self._store)
        if stamp and built.build_id:
            # Its layers are held from here on, so what was found stays true until its record changes.
            self._found[template_id] = stamp, built
        if (key := (built.layers, built.overlays)) not in self._held:
            self._holds.enter_context(images.hold(built))
            self._held.add(key)
        return built

    def close(self) -> None:
        """Let go of what is held."""
        self._holds.close()
