"""Templates on this machine: which there are, whether they are built, and how the engine's own are built.

`base` and `code-interpreter-v1` are the engine's own: `build` makes them, slowly, without an engine, and without
running any code of the packages. All others are built by an engine, step by step, in boxes (`_builder`); here they are
only looked up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from sandboxkit.errors import TemplateBuildFailed, TemplateNotBuilt, TemplateNotFound
from sandboxkit.local._config import cache_home
from sandboxkit.local.images import _manifest
from sandboxkit.local.images._cache import find_layer, hold_layer, make_layer, prune_layers
from sandboxkit.local.images._definition import BASE, OWN, BuiltTemplate, definition
from sandboxkit.local.images._records import build_of, built_from, split_name
from sandboxkit.local.images._store import Store
from sandboxkit.template import folders

__all__ = [
    "OWN",
    "BuiltTemplate",
    "TemplateNotBuilt",
    "TemplateNotFound",
    "build",
    "damage",
    "find",
    "hold",
    "known",
    "prune",
    "rebuild_command",
]


def known(store: Store | None = None) -> tuple[str, ...]:
    """The names that this engine serves: its own, those that come with the library, and what was built here."""
    return tuple(dict.fromkeys((*OWN, *folders(), *(store or Store(cache_home())).names())))


def find(template_id: str, store: Store | None = None) -> BuiltTemplate:
    """Look a template up, as `name` or `name:tag`, without building anything. A few file system calls.

    Args:
        store: where builds of an engine are; those of this process's user if None.

    Raises:
        TemplateNotFound: this engine does not serve it; the message lists what it does.
        TemplateNotBuilt: it is not built on this machine, or visibly damaged; the message names the command that
            builds it.
    """
    name, tag = split_name(template_id)
    if name not in OWN or tag not in ("default", "latest"):
        return _find_built(name, tag, store or Store(cache_home()))
    template_id = name
    found = definition(template_id)
    if found is None:
        return BuiltTemplate(id=BASE)
    layer = find_layer(cache_home(), found.layer_name)
    if layer is None:
        raise TemplateNotBuilt(
            f"Template {template_id!r} is not built on this machine (or its definition changed). "
            f"Build it once with: sandboxkit templates build {template_id}",
            template=template_id,
        )
    if (wrong := _manifest.damage_at_a_glance(layer)) is not None:
        raise TemplateNotBuilt(
            f"Template {template_id!r} is damaged: {wrong} in {layer}. "
            f"Build it again with: {rebuild_command(template_id)}",
            template=template_id,
            is_damaged=True,
        )
    return found.built(layer)


def _find_built(name: str, tag: str, store: Store) -> BuiltTemplate:
    shown = name if tag == "default" else f"{name}:{tag}"
    record = store.read(name)
    build = build_of(record, tag) if record is not None else None
    if build is not None:
        found = built_from(name, build, store)
        if found is not None:
            return found
        raise TemplateNotBuilt(
            f"Template {shown!r} is not whole any more: some of its layers were removed. Build it again"
            + (f" with: sandboxkit templates build {name}" if name in folders() else "."),
            template=name,
            is_damaged=True,
        )
    if name in folders() and record is None:
        raise TemplateNotBuilt(
            f"Template {name!r} is not built on this machine. Build it once with: sandboxkit templates build {name}",
            template=name,
        )
    names = known(store)
    raise TemplateNotFound(
        f"The local engine has no template {shown[:128]!r}; it has {', '.join(names[:50])}.",
        template=shown,
        known=names,
    )


def rebuild_command(template_id: str) -> str:
    """The command that helps where a built template is damaged."""
    return f"sandboxkit templates build {template_id} --force"


def damage(built: BuiltTemplate) -> str | None:
    """Say how a built template differs from what was built; None when it does not. Some tenths of a second."""
    if built.build_id:
        trees = {Path(tree).parent for tree in _trees(built)}
        return next((wrong for layer in sorted(trees) if (wrong := _manifest.layer_damage(layer))), None)
    return next((wrong for layer in built.layers if (wrong := _manifest.damage(Path(layer.source)))), None)


def _trees(built: BuiltTemplate) -> Iterator[str]:
    for layer in built.layers:
        yield from (layer.source, *layer.below)
    for overlay in built.overlays:
        yield from overlay.lowers


def build(
    template_id: str, *, force: bool = False, on_line: Callable[[str], object] = lambda line: None
) -> BuiltTemplate:
    """Build a template unless it is built and whole; blocks for up to a minute or two. Safe to call from many
    processes, and while sandboxes use what was built before.

    Args:
        template_id: which one.
        force: build it again, whatever there is.
        on_line: told what happens, line by line.

    Raises:
        TemplateNotFound: this engine does not serve it.
        TemplateBuildFailed: the packages could not be installed, or the disk is full; the message says what to do,
            `log_tail` what the installers said. Nothing is left of it.
    """
    found = definition(template_id)
    if found is None:
        return BuiltTemplate(id=BASE)
    home = cache_home()
    before = find_layer(home, found.layer_name) if force else None

    def is_good(layer: Path) -> bool:
        if layer == before:
            return False
        if (wrong := _manifest.damage(layer)) is not None:
            on_line(f"What was built is damaged: {wrong}.")
        return wrong is None

    if not force and (layer := find_layer(home, found.layer_name)) is not None and _manifest.damage(layer) is None:
        return found.built(layer)

    def make(working: Path) -> None:
        # Imported here: the engine only ever looks, and need not know how to build.
        from sandboxkit.local.images._environment import make_environment

        on_line(f"Building {template_id}.")
        make_environment(working, found.requirements_file, on_line=on_line)
        _manifest.write(working)

    try:
        layer = make_layer(
            home,
            found.layer_name,
            make,
            on_wait=lambda: on_line("Another build is running; waiting for it to finish."),
            is_good=is_good,
        )
    except OSError as error:
        from sandboxkit.local.images._install import advice

        raise TemplateBuildFailed(
            f"Template {template_id!r} could not be built: {error}. {advice(str(error), home)}", log_tail=str(error)
        ) from error
    on_line(f"{template_id} is ready.")
    return found.built(layer)


@contextmanager
def hold(built: BuiltTemplate) -> Iterator[None]:
    """Keep a built template from being pruned while boxes use it."""
    with ExitStack() as stack:
        places = {Path(tree).parent if built.build_id else Path(tree) for tree in _trees(built)}
        for place in places:
            stack.enter_context(hold_layer(place))
        yield


def prune(keep_bytes: int = 0) -> int:
    """Remove built templates that nobody holds, least recently used first, until at most `keep_bytes` are left.

    Returns:
        how many bytes were freed.
    """
    home = cache_home()
    stores = [Store(home, uid=int(path.name)) for path in (home / "built").glob("*") if path.name.isdecimal()]
    freed = sum(store.prune(keep_bytes) for store in stores)
    return freed + prune_layers(home, keep_bytes=keep_bytes)
