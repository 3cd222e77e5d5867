"""Run one scenario of a test with real boxes, in a process of its own: `python box_child.py FILE NAME STATE ARGS`.

`enter` changes the process that calls it for good, so that no test may call it in pytest's own. The scenario is an
`async def NAME(isolation, **arguments)` of the test's file; what it returns goes to the test as JSON on descriptor 1.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import sys
from pathlib import Path

from sandboxkit.errors import IsolationUnavailable
from sandboxkit.local._selector import Selector
from sandboxkit.local.isolation import BubblewrapIsolation, GvisorIsolation, enter, find_runsc, release

UNAVAILABLE = 77


def main() -> None:
    file, name, state, arguments = sys.argv[1:]
    sys.path.insert(0, str(Path(__file__).parent))  # box_tools
    answers = os.dup(1)
    os.dup2(2, 1)
    given = json.loads(arguments)
    try:
        runsc = find_runsc() if os.environ.get("SANDBOXKIT_ISOLATION") == "gvisor" else None
        namespace = enter(
            state,
            readable=[
                *(str(Path(file).parent), str(Path(__file__).parent)),
                *given.pop("readable", []),
                *([runsc] if runsc else []),
            ],
        )
        spec = importlib.util.spec_from_file_location("scenario", file)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        ways = {"zygote": given.pop("zygote", "auto"), "without_steps": given.pop("without_steps", ())}
        isolation = GvisorIsolation(namespace, runsc) if runsc else BubblewrapIsolation(namespace, **ways)

        async def run() -> object:
            await isolation.start()
            try:
                return await getattr(module, name)(isolation, **given)
            finally:
                await isolation.aclose()

        with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(Selector())) as runner:  # as the engine
            result = runner.run(run())
        mounts = Path("/proc/self/mountinfo").read_text()
        assert f"{namespace.runtime}/boxes/" not in mounts, "a box's mount is left"
        assert not list((namespace.runtime / "boxes").iterdir()), "a box's directory is left"
        release(namespace)
    except IsolationUnavailable as error:
        print(error, file=sys.stderr)
        sys.exit(UNAVAILABLE)
    with os.fdopen(answers, "w") as stream:
        json.dump(result, stream)


if __name__ == "__main__":
    main()
