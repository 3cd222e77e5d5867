"""What else is asked of a root than that nothing leaves it, and which level's files can keep that."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from sandboxkit._confine import confine
from sandboxkit._types import Level
from sandboxkit.errors import ConfigurationError, InvalidPath, UnsupportedOption
from sandboxkit.provider._base import ProviderSandbox
from sandboxkit.provider._confined import to_bytes
from sandboxkit.safefs._levels import CheckedFiles, EnforcedFiles, LevelFiles, LexicalFiles

Links: TypeAlias = Literal["follow", "refuse"]
HardLinks: TypeAlias = Literal["allow", "refuse"]

_LEVELS: Final = ("lexical", "checked", "enforced", None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """The options of a root; `mounts` are confined paths."""

    links: Links
    hard_links: HardLinks
    mounts: tuple[str, ...]

    def terms(self, root: str) -> bytes:
        """As the wire has them, behind the root's identity; empty where nothing is asked."""
        letters = ("l" if self.links == "refuse" else "") + ("h" if self.hard_links == "refuse" else "")
        if not letters and not self.mounts:
            return b""
        below = [to_bytes(mount[len(root) :].strip("/")) for mount in self.mounts]
        return b"\0" + b"\0".join([letters.encode(), *below])


def asked(root: str, *, links: Links, hard_links: HardLinks, mounts: Collection[object]) -> Asked:
    """Check the options of a root. ConfigurationError for a value that is none, PathError for a mount elsewhere."""
    if links not in ("follow", "refuse"):
        raise ConfigurationError(f"SafeFS(links={links!r}): 'follow' or 'refuse' is needed.")
    if hard_links not in ("allow", "refuse"):
        raise ConfigurationError(f"SafeFS(hard_links={hard_links!r}): 'allow' or 'refuse' is needed.")
    if isinstance(mounts, str | bytes):
        raise ConfigurationError(f"SafeFS(mounts={mounts!r}): a collection of paths is needed, not one.")
    confined = tuple(confine(mount, root) for mount in mounts)  # type: ignore[arg-type]  # it refuses what is no path
    if root in confined:
        raise InvalidPath("SafeFS(mounts=...): the root itself is no mount below it.", path=root)
    return Asked(links=links, hard_links=hard_links, mounts=confined)


def files_of(sandbox: ProviderSandbox, root: str, level: Level | None, wanted: Asked) -> LevelFiles:
    """The files of a level, with what is asked of them.

    Raises:
        ConfigurationError: the level is none.
        UnsupportedOption: it cannot keep what is asked.
    """
    if level not in _LEVELS:
        raise ConfigurationError(f"SafeFS(level={level!r}): 'lexical', 'checked', 'enforced' or None is needed.")
    if level in ("lexical", "checked"):
        cannot = {"hard_links": wanted.hard_links == "refuse", "mounts": bool(wanted.mounts)}
        if level == "lexical":
            cannot["links"] = wanted.links == "refuse"
        for option in (name for name, is_asked in cannot.items() if is_asked):
            raise UnsupportedOption(
                f"SafeFS({option}=...) needs level='enforced'"
                f"{' or checked' if option == 'links' else ''}: at {level!r} it could not be kept.",
                option=option,
                sandbox_id=sandbox.sandbox_id,
            )
    if level == "lexical":
        return LexicalFiles(sandbox.files)
    if level == "checked":
        return CheckedFiles(sandbox.files, root, follows=wanted.links == "follow")
    return EnforcedFiles(sandbox, root, wanted.terms(root))
