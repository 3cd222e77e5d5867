"""Imported by every Python of a framework's environment at its start: what `import sandboxkit` does against an abort at
the interpreter's end, which the newest SDKs' HTTP client brings about in 1 of 50 exits under load."""

import importlib.util
import os

_spec = importlib.util.spec_from_file_location("_foreign", os.environ["SANDBOXKIT_TEST_FOREIGN"])
_foreign = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_foreign)
_foreign.wait_at_exit()
