"""What hostile programs share: each attempt is a function that either works, which is a hole, or tells its errno."""

from __future__ import annotations

import json
import os
from typing import Any

PRELUDE = r'''
import ctypes, errno, fcntl, json, mmap, os, signal, socket, stat, struct, subprocess, sys, time
libc = ctypes.CDLL(None, use_errno=True)
out = {}
AARCH64 = os.uname().machine == 'aarch64'
def syscall(number, *args):
    ctypes.set_errno(0)
    pointers = (bytes, ctypes.c_void_p, ctypes.Array, type(None))
    given = [a if isinstance(a, pointers) else ctypes.c_long(a) for a in args]
    result = libc.syscall(ctypes.c_long(number), *given)
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result
def attempt(name, action, *args):
    """Note `worked` and what came of it, or the errno's name."""
    try:
        result = action(*args)
    except ValueError as error:  # Python's own word for some refusals
        out[name] = str(error)
    except OSError as error:
        out[name] = errno.errorcode.get(error.errno, str(error.errno))
    else:
        out[name] = 'worked' if result is None else 'worked: ' + str(result)[:300]
    return out[name]
def read(path, size=4096):
    with open(path, 'rb', buffering=0) as file:
        return file.read(size)
def write(path, data):
    fd = os.open(path, os.O_WRONLY)
    try:
        os.write(fd, data)
    finally:
        os.close(fd)
def died(action):
    """The signal that a child dies of, or 0."""
    pid = os.fork()
    if pid == 0:
        try:
            action()
        finally:
            os._exit(7)
    status = os.waitpid(pid, 0)[1]
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
NUMBERS = json.loads(sys.argv[1])
AGENT, INIT = os.getppid(), 1
'''


async def attack(isolation: Any, code: str) -> Any:
    """Run a hostile program in one box while another one lives; return what its attempts came to."""
    from box_tools import run, small

    from sandboxkit.local.isolation.seccomp import _syscalls

    machine = os.uname().machine
    numbers = {
        **_syscalls.allowed(machine),
        **_syscalls.looked_into(machine),
        **_syscalls.uncounted(machine),
        **_syscalls.refused(machine),
        **_syscalls.absent(machine),
    }
    box, other = await isolation.create(small("hostile")), await isolation.create(small("other"))
    # In a box of bubblewrap's its init is the first process, and our agent the second.
    program = PRELUDE + code + "\nprint(json.dumps(out))\n"
    done = await run(box, ["python3", "-I", "-c", program, json.dumps(numbers)])
    assert done.status.code == 0, f"{done.status}: {done.output[-3000:]}"
    assert (await run(other, ["echo", "fine"])).output == "fine\n"
    return json.loads(done.output.splitlines()[-1])
