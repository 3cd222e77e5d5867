"""Carries fragments out: a pure plan, then the steps."""

from sandboxkit.runner._app import AsyncApp
from sandboxkit.runner._colours import with_app, with_apps
from sandboxkit.runner._plan import plan
from sandboxkit.runner._run import Bench, Emit, carry_out, stream
from sandboxkit.runner._workshop import Workshop

__all__ = ["AsyncApp", "Bench", "Emit", "Workshop", "carry_out", "plan", "stream", "with_app", "with_apps"]
