"""Carries fragments out: a pure plan, then the steps."""

from sandboxkit.runner._plan import plan
from sandboxkit.runner._run import Emit, carry_out, stream

__all__ = ["Emit", "carry_out", "plan", "stream"]
