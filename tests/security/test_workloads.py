"""Ordinary programs do not notice the system-call filter, nor the limits of an ordinary user's box."""

from __future__ import annotations

import shutil
import sys
from typing import Any

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="boxes need Linux")]

BOTH = pytest.mark.parametrize("ordinary", [False, True], ids=["as-started", "as-ordinary-user"])

PROGRAMS: dict[str, tuple[str, str, str]] = {
    # name: (the program it needs, the command, what it prints in the end)
    "threads": (
        "python3",
        "python3 -c 'import threading; ts = [threading.Thread(target=sum, args=([1],)) for _ in range(20)];"
        '[t.start() for t in ts]; [t.join() for t in ts]; print("fine")\'',
        "fine",
    ),
    "multiprocessing": (
        "python3",
        'printf \'import multiprocessing as m, os\\ndef f(x): return x * x\\nif __name__ == "__main__":\\n'
        ' for how in ("fork", "spawn", "forkserver"):\\n'
        "  with m.get_context(how).Pool(2) as p: print(p.map(f, [1, 2, 3]))\\n"
        " from multiprocessing import shared_memory\\n s = shared_memory.SharedMemory(create=True, size=1 << 20)\\n"
        ' s.close(); s.unlink(); q = m.Queue(); q.put(1); print(q.get(), m.Value("i", 5).value)\\n\' > pool.py; '
        "python3 pool.py",
        "[1, 4, 9]\n[1, 4, 9]\n[1, 4, 9]\n1 5",
    ),
    "asyncio": (
        "python3",
        "python3 -c 'import asyncio\nasync def main():\n"
        ' p = await asyncio.create_subprocess_exec("echo", "child", stdout=-1)\n print((await p.communicate())[0])\n'
        ' s = await asyncio.start_server(lambda r, w: w.close(), "127.0.0.1", 8000)\n'
        ' r, w = await asyncio.open_connection("127.0.0.1", 8000)\n print(await r.read())\nasyncio.run(main())\'',
        "b'child\\n'\nb''",
    ),
    "sqlite": (
        "python3",
        'python3 -c \'import sqlite3; d = sqlite3.connect("x.db"); d.execute("pragma journal_mode=wal");'
        ' d.execute("create table t (a)"); d.execute("insert into t values (7)"); d.commit();'
        ' print(d.execute("select a from t").fetchone()[0])\'',
        "7",
    ),
    "mmap and files": (
        "python3",
        "python3 -c 'import mmap, os, tempfile, fcntl; m = mmap.mmap(-1, 1 << 20); m[0] = 1;"
        " f = tempfile.TemporaryFile(); fcntl.flock(f, 2); f.truncate(1 << 20);"
        ' g = mmap.mmap(f.fileno(), 0); g[:1] = b"x"; g.flush();'
        ' os.posix_fallocate(f.fileno(), 0, 1 << 20); os.sendfile(1, os.open("/etc/hostname", 0), 0, 8)\'',
        "sandbox",
    ),
    "shell": (
        "bash",
        "bash -c 'set -e; x=$(printf abc | rev | tr a-z A-Z); sort <(echo b; echo a) | head -1; echo $x'",
        "a\nCBA",
    ),
    "gcc": (
        "gcc",
        "printf '#include <stdio.h>\\n#include <pthread.h>\\nvoid *f(void *p) { return p; }\\nint main(void) {"
        ' pthread_t t; pthread_create(&t, 0, f, 0); pthread_join(t, 0); puts("compiled"); }\''
        " > x.c; gcc -pthread x.c -o x && ./x",
        "compiled",
    ),
    "git": (
        "git",
        "git init -q r; cd r; echo x > f; git add f; git -c user.name=u -c user.email=e commit -qm m; git gc -q;"
        " git clone -q . ../c; git -C ../c log --format=%s",
        "m",
    ),
    "node": (
        "node",
        'node -e \'require("fs").writeFileSync("x", "y"); new (require("worker_threads").Worker)("1", {eval: true})'
        '.on("exit", () => console.log(require("child_process").execSync("cat x") + "")); \'',
        "y",
    ),
    "tar": ("tar", "mkdir -p d/e; echo x > d/e/f; tar czf d.tgz d; rm -r d; tar xzf d.tgz; cat d/e/f", "x"),
}


async def work(isolation: Any, programs: dict[str, str]) -> Any:
    """Run each program in a box."""
    from box_tools import run, small

    box = await isolation.create(small("work", memory=1 << 30, disk=256 << 20, inodes=20_000, processes=128))
    told = {}
    for name, command in programs.items():
        ran = await run(box, ["sh", "-c", f"mkdir '{name}'; cd '{name}'; {command}"], seconds=40)
        told[name] = [ran.status.code, ran.output.strip()]
    return told


@BOTH
def test_ordinary_programs(box_runner: Any, ordinary: bool) -> None:
    """Python's processes and threads, a compiler, git, Node and the usual tools work in a box as outside."""
    here = {
        name: command for name, (needs, command, _) in PROGRAMS.items() if shutil.which(needs, path="/usr/bin:/bin")
    }
    here |= {name: PROGRAMS[name][1] for name in PROGRAMS if PROGRAMS[name][0] == "python3"}
    told = box_runner(work, programs=here, as_ordinary_user=ordinary)
    assert told == {name: [0, PROGRAMS[name][2]] for name in here}
