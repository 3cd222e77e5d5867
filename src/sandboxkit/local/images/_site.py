"""Lets a sandbox's user add packages to an environment that is read-only: the layer's `sitecustomize.py`.

The environment looks like a virtual one, which has no user site. Here it gets one, before its own packages, so that
`pip install` falls back on it by itself, may replace what the template brought, and can uninstall what it installed.
Runs at each start of Python inside, and imports nothing that `site` has not.
"""

import os
import site
import sys


def _add_user_site(place: str) -> None:
    """Put the user's packages before the template's, where they can be found even if the first comes later."""
    if os.path.isdir(place):
        before = set(sys.path)
        site.addsitedir(place)
        added = [path for path in sys.path if path not in before]
    else:
        import _frozen_importlib_external as machinery

        # The usual way there remembers that there is no such directory, and a running kernel would never look again.
        loaders = machinery._get_supported_file_loaders()  # type: ignore[attr-defined]
        sys.path_importer_cache[place] = machinery.FileFinder(place, *loaders)
        added = [place]
    rest = [path for path in sys.path if path not in added]
    own = next((at for at, path in enumerate(rest) if path.startswith(sys.prefix + "/")), len(rest))
    sys.path[:] = [*rest[:own], *added, *rest[own:]]


def _is_pip() -> bool:
    words = [*sys.orig_argv[1:], "", ""]
    return words[:2] == ["-m", "pip"] or words[0].startswith(f"{sys.prefix}/bin/pip")


if not (sys.flags.no_user_site or os.environ.get("PYTHONNOUSERSITE")):
    site.ENABLE_USER_SITE = True
    _add_user_site(site.getusersitepackages())
    if _is_pip():
        # pip refuses to replace or remove packages across the border of a virtual environment. For it alone this is
        # an installation of its own, whose site-packages cannot be written.
        sys.base_prefix = sys.prefix
        sys.base_exec_prefix = sys.exec_prefix
