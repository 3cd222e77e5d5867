"""Hostile programs after files: the host's, the agent's, another box's, by every way round a mount namespace."""

from __future__ import annotations

import os
import sys
import uuid
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="boxes need Linux")]

BOTH = pytest.mark.parametrize("ordinary", [False, True], ids=["as-started", "as-ordinary-user"])


async def attacked(isolation: Any, code: str) -> Any:
    """See `hostile_tools.attack`."""
    from hostile_tools import attack

    return await attack(isolation, code)


WAYS_OUT = r"""
SECRET = %(secret)r
ways = ['', '/proc/self/root', '/proc/self/task/%%d/root' %% os.getpid(), '/proc/1/root', '/proc/2/root',
        '/proc/3/root',
        '/proc/1/cwd', '/proc/self/cwd/../../../../..', '/proc/1/cwd/../../../..', '/home/user/../../..',
        '/dev/fd/../../..',
        '/proc/1/root/../../..', '/opt/sandboxkit/python/../../../..', '/opt/sandboxkit/agent/../../..', '/usr/..']
for at, way in enumerate(ways):
    attempt('secret through %%s' %% way, read, way + SECRET)
    os.symlink(way + SECRET, '/home/user/link%%d' %% at)
    attempt('secret by a link through %%s' %% way, read, '/home/user/link%%d' %% at)
    attempt('hard link through %%s' %% way, os.link, way + SECRET, '/home/user/hard%%d' %% at)
    for name in ('/etc/shadow', '/root', '/mnt/boxes', '/var/lib/dpkg/status', '/sys/kernel/notes',
                 '/lost+found', '/run/systemd', '/boot', '/proc/1/root/mnt/bwrap'):
        attempt('%%s through %%s' %% (name, way), lambda: read(way + name) if os.path.isfile(way + name)
                else os.listdir(way + name))
# A directory that was opened before the root changed would be a way out: look at every descriptor of all processes.
for pid in (name for name in os.listdir('/proc') if name.isdigit()):
    try:
        numbers = os.listdir('/proc/%%s/fd' %% pid)
    except OSError:
        continue
    for number in numbers:
        path = '/proc/%%s/fd/%%s' %% (pid, number)
        attempt('%%s as a directory' %% path, lambda: os.listdir(path + '/..'))
        attempt('the secret from %%s' %% path, read, path + '/../../../../../..' + SECRET)
for entry in ('cwd', 'root', 'exe'):
    attempt('agent: ' + entry, os.readlink, '/proc/%%d/%%s' %% (AGENT, entry))
attempt('fd of the agent', os.listdir, '/proc/%%d/fd' %% AGENT)
attempt('map_files of the agent', os.listdir, '/proc/%%d/map_files' %% AGENT)
"""


@BOTH
def test_ways_out_of_the_root(box_runner: Any, ordinary: bool) -> None:
    """A file of the host that anybody may read is not found by links, hard links, /proc/*/root, cwd or descriptors."""
    secret = Path("/tmp", f"sandboxkit-secret-{uuid.uuid4().hex}")
    secret.write_text("secret")
    secret.chmod(0o644)
    try:
        told = box_runner(attacked, code=WAYS_OUT % {"secret": str(secret)}, as_ordinary_user=ordinary)
    finally:
        secret.unlink()
    assert len(told) > 150
    if os.environ["SANDBOXKIT_ISOLATION"] == "gvisor":
        told.pop("fd of the agent")  # only numbers: see SECURITY.md, the agent is not closed there
    # /proc/1/cwd and the like are this box's own root, where the secret's name means nothing.
    assert [name for name, what in told.items() if what.startswith("worked")] == []


BY_HANDLE = r"""
handle = ctypes.create_string_buffer(struct.pack('Ii', 128, 0) + b'\0' * 128)
mount_id = ctypes.c_int()
attempt('name_to_handle_at', lambda: syscall(NUMBERS['name_to_handle_at'], -100, b'/home/user', handle,
        ctypes.c_void_p(ctypes.addressof(mount_id)), 0))
fd = os.open('/usr', os.O_RDONLY)
for inode in (2, 128, 256):  # the roots of ext4, XFS and btrfs
    raw = ctypes.create_string_buffer(struct.pack('IiII', 8, 1, inode, 0) + b'\0' * 64)
    attempt('open_by_handle_at %d' % inode, lambda: syscall(NUMBERS['open_by_handle_at'], fd, raw, 0))
"""

WRITES = r"""
for path in ('/usr/bin/hostile', '/etc/hostile', '/opt/sandboxkit/agent/agent.py', '/opt/sandboxkit/agent/hostile',
             '/opt/sandboxkit/python/bin/hostile', '/hostile', '/dev/hostile', '/run/hostile', '/home/hostile',
             '/lib/hostile', '/proc/hostile', '/etc/passwd', '/usr/bin/env', '/dev/pts/hostile', '/opt/hostile'):
    attempt('write ' + path, lambda: os.close(os.open(path, os.O_WRONLY | os.O_CREAT, 0o755)))
for path in ('/usr/bin/env', '/etc/passwd', '/opt/sandboxkit/agent/agent.py', '/opt/sandboxkit/python/bin/python3'):
    attempt('unlink ' + path, os.unlink, path)
    attempt('chmod ' + path, os.chmod, path, 0o777)
    attempt('rename ' + path, os.rename, path, path + '2')
    attempt('xattr ' + path, os.setxattr, path, 'user.hostile', b'x')
    attempt('utime ' + path, os.utime, path)
    attempt('reopen ' + path, lambda: write('/proc/self/fd/%d' % os.open(path, os.O_RDONLY), b'x'))
    # A page of a read-only file, mapped to be shared, is not to be written.
    def share():
        fd = os.open(path, os.O_RDONLY)
        mmap.mmap(fd, 0, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
    attempt('map ' + path, share)
for pid in (1, 2, AGENT):
    attempt('exe of %d' % pid, lambda: os.close(os.open('/proc/%d/exe' % pid, os.O_WRONLY)))
"""


@BOTH
def test_files_by_handle_and_read_only_places(box_runner: Any, ordinary: bool) -> None:
    """No file opens by handle, and nothing of the system, of ours or of pid 1's program can be written."""
    told = box_runner(attacked, code=BY_HANDLE + WRITES, as_ordinary_user=ordinary)
    assert len(told) > 35
    assert {name: what for name, what in told.items() if what.startswith("worked")} == {}


DEVICES = r"""
kinds = {entry: os.lstat('/dev/' + entry) for entry in os.listdir('/dev')}
out['devices'] = sorted(name for name, info in kinds.items()
                        if stat.S_ISCHR(info.st_mode) or stat.S_ISBLK(info.st_mode))
for name, kind, number in (('mem', stat.S_IFCHR, (1, 1)), ('kmsg', stat.S_IFCHR, (1, 11)),
                           ('vda', stat.S_IFBLK, (254, 0)), ('sda', stat.S_IFBLK, (8, 0)),
                           ('kvm', stat.S_IFCHR, (10, 232)), ('null', stat.S_IFCHR, (1, 3))):
    for place in ('/home/user', '/tmp', '/dev/shm', '/dev'):
        def make():
            os.mknod(place + '/' + name, 0o666 | kind, os.makedev(*number))
            return read(place + '/' + name, 1)
        attempt('mknod %s in %s' % (name, place), make)
for name in ('mem', 'kmem', 'port', 'kmsg', 'kvm', 'fuse', 'net/tun', 'vhost-net', 'vhost-vsock', 'vsock',
             'userfaultfd', 'loop-control', 'loop0', 'mapper/control', 'btrfs-control', 'uinput', 'hpet', 'rtc',
             'rtc0', 'watchdog', 'cpu_dma_latency', 'console', 'tty0', 'tty1', 'ttyS0', 'vcs', 'vcsa',
             'snapshot', 'dri/card0', 'nvidia0', 'input/event0', 'sda', 'vda', 'nvme0', 'raw/rawctl', 'ppp',
             'hwrng', 'autofs', 'mqueue', 'hugepages'):
    attempt('open ' + name, lambda: os.close(os.open('/dev/' + name, os.O_RDONLY | os.O_NONBLOCK)))
"""


@BOTH
def test_devices(box_runner: Any, ordinary: bool) -> None:
    """There are the six devices that anybody may have and no other, and none can be made."""
    told = box_runner(attacked, code=DEVICES, as_ordinary_user=ordinary)
    assert told.pop("devices") == ["full", "null", "random", "tty", "urandom", "zero"]
    assert {name: what for name, what in told.items() if what.startswith("worked")} == {}


async def on_the_host_side(isolation: Any, skeleton: str) -> Any:
    """Let a box fill its home with traps, and have the engine's side handle them."""
    from box_tools import run, small

    from sandboxkit.local.isolation import AgentError, BoxSpec

    traps = (
        "ln -s /etc/shadow link; ln -s /proc/self/environ environ; ln -s / slash; mkfifo fifo; mkdir -p deep/er; "
        "ln -s ../../../../../../.. deep/up; ln -s loop loop; touch deep/file; ln deep/file hard"
    )
    box = await isolation.create(small("traps"))
    await run(box, ["sh", "-c", traps])
    told = {}
    for name in ("link", "environ", "fifo", "slash", "loop", "/proc/1/mem", "/dev/tty", "/dev/zero", "/proc/self/mem"):
        path = name if name.startswith("/") else f"/home/user/{name}"
        for flags in (os.O_RDONLY, os.O_WRONLY | os.O_TRUNC):
            try:
                file = await box.agent.open_file(path, flags)
                try:
                    told[f"{name} {flags}"] = f"worked: {await file.read(40, 0)!r}" if flags == 0 else "worked"
                except OSError as error:
                    told[f"{name} {flags}"] = str(error.errno)
                finally:
                    file.close()
            except AgentError as error:
                told[f"{name} {flags}"] = str(error.errno)
    entries = [entry.path for entry in await box.agent.list("/home/user", depth=9)]
    await box.kill()
    spec = BoxSpec(box_id="skeleton", skeleton=skeleton, limits=small("x").limits)
    copied = await isolation.create(spec)
    inside = (await run(copied, ["sh", "-c", "ls -A; readlink out; cat out fine; ls -ln | cut -d' ' -f3"])).output
    return {"opened": told, "listed": entries, "copied": inside}


@BOTH
def test_traps_for_the_host_side(box_runner: Any, ordinary: bool, tmp_path: Path) -> None:
    """Links, pipes and devices that a box leaves are not opened by us, are listed without being entered, and a link in
    a skeleton stays a link that means something inside only."""
    skeleton = Path("/tmp", f"sandboxkit-skeleton-{uuid.uuid4().hex}")
    skeleton.mkdir(mode=0o755)
    try:
        (skeleton / "fine").write_text("fine\n")
        (skeleton / "fine").chmod(0o644)
        (skeleton / "out").symlink_to("/etc/shadow")
        told = box_runner(on_the_host_side, skeleton=str(skeleton), as_ordinary_user=ordinary, readable=[str(skeleton)])
    finally:
        for path in skeleton.iterdir():
            path.unlink()
        skeleton.rmdir()
    opened = told["opened"]
    if os.environ["SANDBOXKIT_ISOLATION"] == "gvisor":
        # The agent's environment is not closed there; there are three variables in it, and none is the host's.
        assert opened.pop("environ 0").removeprefix("worked: b'").startswith(("LANG=", "PATH=", "HOME="))
    assert {name: what for name, what in opened.items() if what.startswith("worked")} == {}
    assert "/home/user/slash/etc" not in told["listed"]
    assert "/home/user/deep/up/usr" not in told["listed"]
    assert "/home/user/deep/up" in told["listed"]
    assert "/etc/shadow" in told["copied"]
    assert "No such file" in told["copied"]
    assert "root:" not in told["copied"]
    assert "fine\n" in told["copied"]
