"""Files confined to a root inside a sandbox, at a named level."""

from sandboxkit.safefs._helper import HelperConfined
from sandboxkit.safefs._safefs import AsyncSafeFS

__all__ = ["AsyncSafeFS", "HelperConfined"]
