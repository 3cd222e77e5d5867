"""What E2B's interpreter adds to IPython's display: table data, chart data, JSON, and pictures that are saved or shown.

Nothing here imports a library: each form waits until the user's code has imported it.
"""

from __future__ import annotations

import builtins
import importlib.abc
import importlib.util
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from IPython.core.formatters import BaseFormatter
from traitlets import ObjectName, Unicode


class DataFormatter(BaseFormatter):
    """The columns of a table."""

    format_type = Unicode("e2b/data")
    print_method = ObjectName("_repr_e2b_data_")
    _return_type = dict


class ChartFormatter(BaseFormatter):
    """What a chart shows, as numbers and labels."""

    format_type = Unicode("e2b/chart")
    print_method = ObjectName("_repr_e2b_chart_")
    _return_type = dict

    def __call__(self, obj: Any) -> Any:
        # Not registered for the type: Matplotlib's inline backend removes figures from every formatter.
        figures = sys.modules.get("matplotlib.figure")
        if figures is not None and isinstance(obj, figures.Figure):
            return _chart(obj)
        return super().__call__(obj)


def install(shell: Any) -> None:
    """Add the formatters and the hooks to a shell."""
    display = shell.display_formatter
    data = DataFormatter(parent=display)
    for module in ("pandas", "pandas.core.frame"):  # pandas 3 and later, and before
        data.for_type_by_name(module, "DataFrame", _columns)  # type: ignore[no-untyped-call]
    display.formatters["e2b/data"] = data
    display.formatters["e2b/chart"] = ChartFormatter(parent=display)
    as_json = display.formatters["application/json"]
    for kind in (dict, list):
        as_json.for_type(kind, lambda value: value)
    sys.meta_path.insert(0, _AfterImport("PIL.Image", _patch_pillow))


def _columns(frame: Any) -> dict[str, Any]:
    columns = frame.to_dict(orient="list")
    return {str(name): [_moment(value) for value in values] for name, values in columns.items()}


def _moment(value: Any) -> Any:
    # Timestamps are datetimes; both are written as ISO 8601 says.
    return value.isoformat() if hasattr(value, "isoformat") else value


def _chart(figure: Any) -> dict[str, Any] | None:
    from e2b_charts import chart_figure_to_dict  # type: ignore[import-not-found]

    try:
        # Warnings about its own models are no business of the user's.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return chart_figure_to_dict(figure) or None
    except Exception:
        # Its picture is still shown; a chart that e2b-charts does not understand has no data.
        return None


def _patch_pillow(module: ModuleType) -> None:
    """Show pictures where they are shown or saved to a file: there is no viewer here."""
    plain_save = module.Image.save

    def save(self: Any, fp: Any, format: str | None = None, **params: Any) -> None:
        plain_save(self, fp, format, **params)
        # Matplotlib saves its figures through here, and shows them by itself.
        caller = sys._getframe(1).f_globals.get("__name__", "")
        if isinstance(fp, str | bytes | os.PathLike) and not caller.startswith(("matplotlib", "PIL")):
            _display(self)

    def show(self: Any, title: str | None = None, **options: Any) -> None:
        _display(self)

    save.__doc__, show.__doc__ = plain_save.__doc__, module.Image.show.__doc__
    module.Image.save, module.Image.show = save, show


def _display(value: Any) -> None:
    builtins.display(value)  # type: ignore[attr-defined]


class _AfterImport(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Calls back once a module has been imported, then is gone."""

    def __init__(self, name: str, then: Callable[[ModuleType], None]) -> None:
        self._name = name
        self._then = then
        self._loader: Any = None

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != self._name:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None:
            self._loader, spec.loader = spec.loader, self
        return spec

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        created: ModuleType | None = self._loader.create_module(spec)
        return created

    def exec_module(self, module: ModuleType) -> None:
        # The module must look as if we had never been there.
        module.__loader__ = self._loader
        assert module.__spec__ is not None
        module.__spec__.loader = self._loader
        self._loader.exec_module(module)
        self._then(module)
