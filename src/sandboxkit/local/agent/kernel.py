"""The interpreter of one context: harden this process, then run the cells that come over descriptor 3.

Runs inside the box as `/opt/sandboxkit/env/bin/python3 /opt/sandboxkit/agent/kernel.py [LANGUAGE]`, so that IPython, or
the Jupyter client by which another language's kernel is asked, is the template's own. The wire is described in the
engine's `interpreter/_frames.py`. The work is in the modules beside it, which Python finds compiled; this file it must
compile each time, and so it is short.
"""

import os
import sys

NO_KERNEL = 69
"""The exit code that says: there is no kernel for this language here (EX_UNAVAILABLE)."""


def main() -> None:
    """Harden, leave the module search path as a notebook has it, serve."""
    here = os.path.dirname(os.path.abspath(__file__))
    if sys.path[:1] == [here]:  # not under PYTHONSAFEPATH
        del sys.path[0]
    sys.path.insert(0, os.path.dirname(here))
    from agent.agent import PR_SET_DUMPABLE, prctl  # type: ignore[import-not-found]

    if sys.argv[1:]:
        try:
            from agent.kernel_jupyter import serve  # type: ignore[import-not-found]
        except ImportError as error:
            print(f"its template has no Jupyter client ({error.name})", file=sys.stderr)
            sys.exit(NO_KERNEL)
    else:
        from agent.kernel_loop import serve  # type: ignore[import-not-found]

    # In a notebook the working directory comes first.
    sys.path[0] = ""
    # A user's own module may be called so.
    del sys.modules["agent"]
    prctl(PR_SET_DUMPABLE, 0)
    serve(3, *sys.argv[1:])


if __name__ == "__main__":
    main()
