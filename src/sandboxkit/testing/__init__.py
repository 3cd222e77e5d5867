"""For tests of code that uses sandboxkit: an in-memory provider, and the checks that every provider passes."""

from sandboxkit.testing._fake import FakeProvider, Fault
from sandboxkit.testing._sandbox import FakeSandbox

__all__ = ["FakeProvider", "FakeSandbox", "Fault"]

for _public in (FakeProvider, FakeSandbox, Fault):
    _public.__module__ = "sandboxkit.testing"
