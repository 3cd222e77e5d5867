"""Forks ready agents into new boxes: load everything once, then fork for each box that the engine asks for.

Runs outside every box, in the view of one (its files under the same names), as
`/opt/sandboxkit/env/bin/python3 /opt/sandboxkit/agent/zygote.py kernel`, with an environment of four words that
anybody may know, one socket as descriptor 3, and nothing else. Where there is no interpreter in the template, as
`/opt/sandboxkit/python/bin/python3 -I -S /opt/sandboxkit/agent/zygote.py plain`, for agents alone.

`_entry` has the steps between fork and agent, `docs/explanation/the-zygote.md` the reasons. The work is in the modules
beside it, which Python finds compiled.
"""

import contextlib
import os
import sys

KERNEL = "/opt/sandboxkit/agent/kernel.py"


def main() -> None:
    """Load and serve; in a fork, be an agent; in a fork of that, be a kernel. Each unwinds the frames before it."""
    kind, without = sys.argv[1], frozenset(sys.argv[2:])
    here = os.path.dirname(os.path.abspath(__file__))
    if kind == "kernel":
        sys.path[0] = os.path.dirname(here)
    else:
        # Last on the path, so that none of our names can hide one of the standard library's.
        sys.path.append(os.path.dirname(here))
    from agent import _loop, _programs, _zygote  # type: ignore[import-not-found]

    shell, path, line = None, sys.path[:], (0, 0)
    if kind == "kernel":
        from agent import kernel_loop

        # In a notebook the working directory comes first.
        sys.path[0] = ""
        sys.argv[:] = [KERNEL]
        shell = kernel_loop.prepare()
        path, line = sys.path[:], _zygote.own_line()
        # Not in an agent: nothing that a program has put into its home is to be imported there.
        sys.path[:] = [place for place in path if place]
    with contextlib.suppress(_zygote.Entered):
        _zygote.serve(without)
    try:
        _loop.serve(_zygote.AGENT_FD, can_fork_kernels=shell is not None, fork=_zygote.fork)
    except _programs.BecomeKernel as start:
        environment = start.environment
    except BaseException:
        os._exit(1)
    else:
        # Nothing that a module has asked to be called at exit is to run in an agent.
        os._exit(0)
    sys.path[:] = path
    _zygote.start_kernel(shell, environment, line)


if __name__ == "__main__":
    main()
