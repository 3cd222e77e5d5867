"""What every provider must do: one check for each sentence of the contract in `sandboxkit.provider._base`.

A provider of your own is held to it like this, with pytest and anyio's plugin:

    @pytest.mark.anyio
    @pytest.mark.parametrize("check", conformance.CHECKS, ids=conformance.name_of)
    async def test_provider(check):
        await check(MyProvider())

A check needs the template `code-interpreter-v1`, or another with Python and a shell whose id is passed as `template=`.
It kills what it made. It fails with an AssertionError whose message is the sentence that does not hold.
"""

from __future__ import annotations

from sandboxkit.testing.conformance import _code, _commands, _create, _files, _life, _pause  # noqa: F401  # they add theirs
from sandboxkit.testing.conformance._check import CHECKS, Check, name_of

__all__ = ["CHECKS", "Check", "name_of"]

Check.__module__ = "sandboxkit.testing.conformance"
