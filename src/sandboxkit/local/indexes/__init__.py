"""The package indexes that pip, uv and npm are set up for on this machine, and what a sandbox needs to use them.

`read_settings` reads what is configured; `learn` asks the tools for their defaults, and the indexes for the hosts that
their files lie on. No index is named in our code.
"""

from sandboxkit.local.indexes._known import KnownIndexes
from sandboxkit.local.indexes._learn import Indexes, learn, with_defaults
from sandboxkit.local.indexes._settings import Settings, read_settings

__all__ = ["Indexes", "KnownIndexes", "Settings", "learn", "read_settings", "with_defaults"]
