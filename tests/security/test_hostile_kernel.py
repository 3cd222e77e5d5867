"""Hostile programs after the kernel: its settings, its rarer calls, other ways to make a call, privileges, sockets."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="boxes need Linux")]

BOTH = pytest.mark.parametrize("ordinary", [False, True], ids=["as-started", "as-ordinary-user"])


async def attacked(isolation: Any, code: str) -> Any:
    """See `hostile_tools.attack`."""
    from hostile_tools import attack

    return await attack(isolation, code)


PROC = r"""
writable = []
for top, directories, files in os.walk('/proc', followlinks=False):
    if top == '/proc':  # processes have their own test
        directories[:] = [name for name in directories if not name.isdigit() and name not in ('self', 'thread-self')]
    for name in files:
        path = os.path.join(top, name)
        try:
            os.close(os.open(path, os.O_WRONLY))
        except OSError:
            continue
        writable.append(path)
out['writable'] = writable
for name in ('kcore', 'kmsg', 'timer_list', 'sched_debug', 'latency_stats', 'keys', 'kpagemap', 'slabinfo',
             'vmallocinfo', 'interrupts'):
    attempt(name, lambda: read('/proc/' + name) or (_ for _ in ()).throw(OSError(errno.ENODATA, 'empty')))
addresses = set()
try:
    addresses = {line.split()[0] for line in read('/proc/kallsyms', 1 << 16).splitlines()[:-1] if line}
except OSError:
    pass
out['kernel addresses'] = sorted(str(int(a, 16)) for a in addresses)
out['cgroup'] = sorted({line.split(':', 2)[2] for line in read('/proc/self/cgroup').decode().splitlines()})
out['sys'] = str(os.path.exists('/sys'))
attempt('sysrq', write, '/proc/sysrq-trigger', b'b')
attempt('core_pattern', write, '/proc/sys/kernel/core_pattern', b'|/tmp/x')
attempt('modprobe', write, '/proc/sys/kernel/modprobe', b'/tmp/x')
attempt('binfmt', write, '/proc/sys/fs/binfmt_misc/register', b':x:E::x::/tmp/x:')
for name in ('uid_map', 'gid_map', 'setgroups', 'projid_map'):
    attempt(name, write, '/proc/self/' + name, b'0 0 1' if name != 'setgroups' else b'allow')
"""


@BOTH
def test_proc_and_sys(box_runner: Any, ordinary: bool) -> None:
    """Nothing of /proc but one's own processes can be written, /sys is not there, and no kernel address, no path of the
    engine's cgroup and nothing that Docker hides is told."""
    told = box_runner(attacked, code=PROC, as_ordinary_user=ordinary)
    assert told.pop("writable") == []
    assert set(told.pop("kernel addresses")) <= {"0"}
    cgroup = told.pop("cgroup")
    if not ordinary and os.getuid() == 0 and Path("/sys/fs/cgroup/memory").exists():
        assert cgroup == ["/"]
    assert not [path for path in cgroup if "sandboxkit" in path or "hostile" in path]
    assert told.pop("sys") == "False"
    assert {name: what for name, what in told.items() if what.startswith("worked")} == {}


CALLS = r"""
NEW = {'NEWNS': 0x20000, 'NEWCGROUP': 0x2000000, 'NEWUTS': 0x4000000, 'NEWIPC': 0x8000000, 'NEWUSER': 0x10000000,
       'NEWPID': 0x20000000, 'NEWNET': 0x40000000, 'NEWTIME': 0x80}
for name, flag in NEW.items():
    attempt('unshare ' + name, syscall, NUMBERS['unshare'], flag)
    attempt('unshare with high bits ' + name, syscall, NUMBERS['unshare'], flag | 1 << 40)
    def cloned():
        pid = syscall(NUMBERS['clone'], flag | signal.SIGCHLD, 0, 0, 0, 0)
        if pid == 0:
            os._exit(0)
        os.waitpid(pid, 0)
    attempt('clone ' + name, cloned)
    def cloned3():
        args = ctypes.create_string_buffer(struct.pack('8Q', flag, 0, 0, 0, signal.SIGCHLD, 0, 0, 0))
        pid = syscall(NUMBERS['clone3'], args, 64)
        if pid == 0:
            os._exit(0)
    attempt('clone3 ' + name, cloned3)
for name in ('user', 'net', 'mnt', 'pid', 'ipc', 'uts', 'cgroup', 'time'):
    for pid in ('1', 'self'):
        def joined():
            fd = os.open('/proc/%s/ns/%s' % (pid, name), os.O_RDONLY)
            syscall(NUMBERS['setns'], fd, 0)
        attempt('setns %s of %s' % (name, pid), joined)
        def owner():
            return fcntl.ioctl(os.open('/proc/%s/ns/%s' % (pid, name), os.O_RDONLY), 0xB701)  # NS_GET_USERNS
        told = attempt('owner of %s of %s' % (name, pid), owner)
        if told.startswith('worked'):  # one's own user namespace may be looked at, never entered
            attempt('parent of the owner of %s of %s' % (name, pid),
                    lambda: syscall(NUMBERS['setns'], int(told.split(': ')[1]), 0))
            out['owner of %s of %s' % (name, pid)] = 'only a handle'
attempt('mount tmpfs', syscall, NUMBERS['mount'], b'none', b'/tmp', b'tmpfs', 0, None)
attempt('mount bind', syscall, NUMBERS['mount'], b'/', b'/tmp', None, 4096, None)
attempt('remount /usr', syscall, NUMBERS['mount'], None, b'/usr', None, 32 | 4096, None)
attempt('umount', syscall, NUMBERS['umount2'], b'/usr', 2)
attempt('fsopen', syscall, NUMBERS['fsopen'], b'tmpfs', 0)
attempt('open_tree', syscall, NUMBERS['open_tree'], -100, b'/', 1)
attempt('mount_setattr', syscall, NUMBERS['mount_setattr'], -100, b'/usr', 0, ctypes.create_string_buffer(32), 32)
attempt('pivot_root', syscall, NUMBERS['pivot_root'], b'/tmp', b'/tmp')
attempt('chroot', os.chroot, '/tmp')
attempt('bpf', syscall, NUMBERS['bpf'], 0, ctypes.create_string_buffer(120), 120)
attempt('io_uring', syscall, NUMBERS['io_uring_setup'], 8, ctypes.create_string_buffer(120))
attempt('userfaultfd', syscall, NUMBERS['userfaultfd'], 1)
attempt('perf', syscall, NUMBERS['perf_event_open'], ctypes.create_string_buffer(128), 0, -1, -1, 0)
attempt('keyctl', syscall, NUMBERS['keyctl'], 0, -3, 1)
attempt('add_key', syscall, NUMBERS['add_key'], b'user', b'x', b'y', 1, -3)
attempt('request_key', syscall, NUMBERS['request_key'], b'user', b'x', b'y', -3)
attempt('kexec', syscall, NUMBERS['kexec_load'], 0, 0, 0, 0)
attempt('init_module', syscall, NUMBERS['init_module'], b'', 0, b'')
attempt('finit_module', syscall, NUMBERS['finit_module'], 0, b'', 0)
attempt('swapon', syscall, NUMBERS['swapon'], b'/tmp/x', 0)
attempt('quotactl', syscall, NUMBERS['quotactl'], 0, b'/dev/vda', 0, 0)
attempt('reboot', syscall, NUMBERS['reboot'], 0xfee1dead, 672274793, 0, 0)
attempt('syslog', syscall, NUMBERS['syslog'], 3, ctypes.create_string_buffer(64), 64)
attempt('settimeofday', syscall, NUMBERS['settimeofday'], ctypes.create_string_buffer(16), None)
attempt('adjtimex', syscall, NUMBERS['adjtimex'], ctypes.create_string_buffer(256))
attempt('sethostname', socket.sethostname, 'x')
attempt('mbind', syscall, NUMBERS['mbind'], 0, 0, 0, 0, 0, 0)
attempt('set_mempolicy', syscall, NUMBERS['set_mempolicy'], 0, 0, 0)
attempt('get_mempolicy', syscall, NUMBERS['get_mempolicy'], 0, 0, 0, 0, 0)
attempt('fanotify', syscall, NUMBERS['fanotify_init'], 0, 0)
attempt('io_setup', syscall, NUMBERS['io_setup'], 8, ctypes.create_string_buffer(8))
attempt('memfd_secret', syscall, NUMBERS['memfd_secret'], 0)
attempt('acct', syscall, NUMBERS['acct'], b'/tmp/acct')
attempt('vhangup', syscall, NUMBERS['vhangup'])
for flags in (0x0040000, 0x0400000, 0x4000000, 0x0200000, 0x8000000):
    attempt('personality %x' % flags, syscall, NUMBERS['personality'], flags)
for number in (500, 600, 1000, 0x3fffffff):
    attempt('unknown call %d' % number, syscall, number, 0, 0, 0)
for name, number in NUMBERS.items():
    if name in ('iopl', 'ioperm', 'modify_ldt', 'uselib', 'ustat', 'sysfs', '_sysctl', 'nfsservctl', 'lookup_dcookie'):
        attempt(name, syscall, number, 3 if name == 'iopl' else 0, 1, 1)
"""

PRIVILEGES = r"""
fields = dict(line.split(':\t', 1) for line in read('/proc/self/status').decode().splitlines() if ':\t' in line)
WANTED = ('CapInh', 'CapPrm', 'CapEff', 'CapBnd', 'CapAmb', 'NoNewPrivs', 'Seccomp')
out['status'] = {name: fields[name] for name in WANTED}
first = dict(line.split(':\t', 1) for line in read('/proc/1/status').decode().splitlines() if ':\t' in line)
out['status of pid 1'] = {name: first[name] for name in out['status']}
attempt('setuid 0', os.setuid, 0)
attempt('setresuid', os.setresuid, 0, 0, 0)
attempt('setgid 0', os.setgid, 0)
attempt('setgroups', os.setgroups, [0])
attempt('capset', lambda: syscall(NUMBERS['capset'], ctypes.create_string_buffer(struct.pack('Ii', 0x20080522, 0)),
        ctypes.create_string_buffer(struct.pack('6I', *[0xffffffff] * 6))))
attempt('ambient', lambda: syscall(NUMBERS['prctl'], 47, 2, 21, 0, 0))
attempt('securebits', lambda: syscall(NUMBERS['prctl'], 28, 0x2f, 0, 0, 0))
attempt('no_new_privs off', lambda: syscall(NUMBERS['prctl'], 38, 0, 0, 0, 0))
attempt('seccomp off', lambda: syscall(NUMBERS['prctl'], 22, 0, 0, 0, 0))
attempt('mm', lambda: syscall(NUMBERS['prctl'], 35, 1, 0x400000, 0, 0))
out['setuid programs'] = [path for path in ('/usr/bin/su', '/usr/bin/sudo', '/usr/bin/passwd', '/usr/bin/mount',
    '/usr/bin/newgrp', '/usr/bin/chsh') if os.path.exists(path) and subprocess.run(
    ['sh', '-c', 'echo | %s 2>/dev/null; cat /proc/self/status' % path], capture_output=True, timeout=20,
    stdin=subprocess.DEVNULL).stdout.find(b'CapEff:\t0000000000000000') < 0]
subprocess.run(['cp', '/usr/bin/id', '/home/user/id'], check=True)
os.chmod('/home/user/id', 0o6755)
out['own setuid program'] = subprocess.run(['/home/user/id', '-u'], capture_output=True, text=True).stdout.strip()
attempt('nice -20', os.nice, -20)
attempt('real time', lambda: os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(50)))
import resource
for name in ('NPROC', 'NOFILE', 'MEMLOCK', 'CORE', 'MSGQUEUE'):
    limit = getattr(resource, 'RLIMIT_' + name)
    attempt('raise ' + name, lambda: resource.setrlimit(limit, (resource.getrlimit(limit)[1] + 1,) * 2))
"""


@BOTH
def test_calls_and_namespaces(box_runner: Any, ordinary: bool) -> None:
    """No namespace is made or joined by any call and flag, nothing is mounted, and no rarer part of the kernel
    answers."""
    told = box_runner(attacked, code=CALLS, as_ordinary_user=ordinary)
    assert len(told) > 100
    # For clone the bit of NEWTIME is a part of the exit signal's number, and is refused as such.
    assert {name: what for name, what in told.items() if what.startswith("worked")} == {}
    assert told["clone3 NEWUSER"] == "ENOSYS"
    assert {what for name, what in told.items() if name.startswith("unknown call")} == {"ENOSYS"}


@BOTH
def test_privileges(box_runner: Any, ordinary: bool) -> None:
    """No capability is had, gained by a setuid program, or by any call; pid 1 has none either."""
    told = box_runner(attacked, code=PRIVILEGES, as_ordinary_user=ordinary)
    none = "0" * 16
    for status in (told.pop("status"), told.pop("status of pid 1")):
        assert {status[name] for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {none}
        assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
    assert told.pop("setuid programs") == []
    assert told.pop("own setuid program") == "1000"
    assert {name: what for name, what in told.items() if what.startswith("worked")} == {}


SOCKETS = r"""
names = {1: 'unix', 2: 'inet', 10: 'inet6', 16: 'netlink'}
for family in range(50):
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_RAW, socket.SOCK_SEQPACKET, 4, 6):
        for protocol in (0, 6, 17, 33, 58, 132, 136, 255, 256, 262):
            label = 'family %d kind %d protocol %d' % (family, kind, protocol)
            try:
                socket.socket(family, kind, protocol).close()
            except OSError as error:
                continue
            out[label] = 'worked'
out = {'families': sorted({int(label.split()[1]) for label in out}),
       'protocols': sorted({int(label.split()[5]) for label in out if label.split()[1] in ('2', '10')}),
       'netlink': sorted({int(label.split()[5]) for label in out if label.split()[1] == '16'})}
route = socket.socket(16, socket.SOCK_RAW, 0)
route.bind((0, 0))
def ask(kind, flags, body):
    route.send(struct.pack('IHHII', 16 + len(body), kind, flags, 1, 0) + body)
    answer = route.recv(65536)
    number, what = struct.unpack_from('IH', answer)
    if what == 2:
        code = -struct.unpack_from('i', answer, 16)[0]
        if code:
            raise OSError(code, os.strerror(code))
attempt('links can be looked at', ask, 18, 1 | 0x300, struct.pack('BBHiII', 0, 0, 0, 0, 0, 0))
for _ in range(3):
    route.setblocking(False)
    try:
        while route.recv(65536): pass
    except BlockingIOError: pass
route.setblocking(True); route.settimeout(5)
address = struct.pack('BBBBI', 2, 24, 0, 0, 1) + struct.pack('HH4B', 8, 2, 10, 0, 0, 1)
attempt('add an address', ask, 20, 5 | 0x600, address)
attempt('add a link', ask, 16, 5 | 0x600, struct.pack('BBHiII', 0, 0, 0, 0, 0, 0))
attempt('bind to a device', lambda: socket.socket().setsockopt(socket.SOL_SOCKET, 25, b'lo\0'))
attempt('iptables', lambda: socket.socket(2, 3, 255).setsockopt(0, 64, b'x' * 64))
attempt('raw ip', lambda: socket.socket(2, 3, 1))
attempt('low port', lambda: None if int(read('/proc/sys/net/ipv4/ip_unprivileged_port_start')) == 0 else
        socket.socket().bind(('127.0.0.1', 80)))
"""


@BOTH
def test_socket_families(box_runner: Any, ordinary: bool) -> None:
    """There are Unix sockets, TCP, UDP and read-only routing queries; no packet, vsock, crypto, XDP or other family,
    and no protocol that the kernel would load a module for."""
    told = box_runner(attacked, code=SOCKETS, as_ordinary_user=ordinary)
    assert set(told.pop("families")) <= {1, 2, 10, 16}
    assert set(told.pop("protocols")) <= {0, 1, 6, 17, 58}
    assert told.pop("netlink") == [0]
    assert told.pop("links can be looked at").startswith("worked")
    told.pop("low port")
    assert {name for name, what in told.items() if what.startswith("worked")} <= {"bind to a device"}


ABSTRACT = r"""
for name in %(names)r:
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_SEQPACKET):
        attempt('abstract %%s %%d' %% (name, kind), lambda: socket.socket(1, kind).connect('\0' + name))
for path in ('/run/dbus/system_bus_socket', '/var/run/docker.sock', '/run/user/1000/bus', '/tmp/.X11-unix/X0',
             '/dev/log', '/run/systemd/private', '/run/containerd/containerd.sock', %(path)r):
    attempt(path, lambda: socket.socket(1).connect(path))
out['unix'] = str(len(read('/proc/net/unix', 65536).splitlines()))
for address in (('127.0.0.1', %(port)d), ('0.0.0.0', %(port)d), ('127.0.0.2', %(port)d), ('169.254.169.254', 80),
                ('10.0.0.1', 80), ('192.168.0.1', 80), ('172.17.0.1', 2375), ('8.8.8.8', 53)):
    def connect():
        with socket.socket() as one:
            one.settimeout(3)
            one.connect(address)
    attempt('tcp %%s:%%d' %% address, connect)
    attempt('udp %%s:%%d' %% address, lambda: socket.socket(2, 2).sendto(b'x', address))
"""


@BOTH
def test_sockets_of_the_host(box_runner: Any, ordinary: bool, tmp_path: Path) -> None:
    """Abstract sockets, sockets with a path and ports of the host are out of reach, on whatever address."""
    name = f"sandboxkit-hostile-{os.getpid()}"
    path = f"/tmp/{name}.sock"
    with socket.create_server(("", 0)) as tcp, socket.socket(socket.AF_UNIX) as abstract, socket.socket(1) as pathed:
        abstract.bind("\0" + name)
        abstract.listen()
        pathed.bind(path)
        os.chmod(path, 0o777)
        pathed.listen()
        try:
            code = ABSTRACT % {"names": [name, "/tmp/dbus", "systemd"], "path": path, "port": tcp.getsockname()[1]}
            told = box_runner(attacked, code=code, as_ordinary_user=ordinary)
        finally:
            os.unlink(path)
    assert int(told.pop("unix")) < 5
    # A datagram to one's own loopback goes nowhere, and nobody says so.
    fine = {name for name in told if name.startswith(("udp 127.", "udp 0.0.0.0"))}
    assert {name for name, what in told.items() if what.startswith("worked")} <= fine


OTHER_DOORS = r"""
kept = []
def machine_code(*code):
    rights = mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC
    memory = mmap.mmap(-1, 4096, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, rights)
    memory.write(bytes(code))
    kept.append(memory)
    return ctypes.CFUNCTYPE(ctypes.c_long)(ctypes.addressof(ctypes.c_char.from_buffer(memory)))
if not AARCH64:
    assert died(machine_code(0xC3)) == 0  # ret: the way itself works
    # mov eax, N; int 0x80; ret: the calls of 32-bit programs (20 = getpid, 21 = mount, 113 = vm86old, 1 = exit)
    out['int 0x80'] = [died(machine_code(0xB8, n, 0, 0, 0, 0xCD, 0x80, 0xC3)) for n in (20, 21, 113, 166, 1)]
    for name in ('getpid', 'mount', 'ptrace', 'unshare', 'bpf'):
        attempt('x32 ' + name, syscall, 0x40000000 | NUMBERS[name], 0, 0, 0, 0, 0)
    for number in range(512, 548):
        attempt('x32 %d' % number, syscall, 0x40000000 | number, 0, 0, 0, 0, 0)
a, b = os.openpty()
for code in (0x5412, 0x541C, 0x5412 | 1 << 32, 0x541D, 0x541F):  # TIOCSTI, TIOCLINUX, TIOCCONS
    def type_for_others():
        if libc.ioctl(ctypes.c_int(b), ctypes.c_ulong(code), ctypes.create_string_buffer(b'x')) < 0:
            raise OSError(ctypes.get_errno(), '')
    attempt('terminal %x' % code, type_for_others)
for path in ('/dev/tty', '/dev/console', '/proc/1/fd/0'):
    attempt('tiocsti ' + path, lambda: fcntl.ioctl(os.open(path, os.O_RDWR | os.O_NOCTTY), 0x5412, b'x'))
"""


@BOTH
def test_other_doors_into_the_kernel(box_runner: Any, ordinary: bool) -> None:
    """A 32-bit call kills its program, x32 calls are not there, and nobody types into a terminal for another."""
    told = box_runner(attacked, code=OTHER_DOORS, as_ordinary_user=ordinary)
    if os.uname().machine == "x86_64":
        # SIGSYS; a kernel without 32-bit programs knows no such interrupt, which is SIGSEGV.
        assert told.pop("int 0x80") in ([31] * 5, [11] * 5)
        assert {what for name, what in told.items() if name.startswith("x32")} == {"ENOSYS"}
    assert {name: what for name, what in told.items() if what.startswith("worked")} == {}


C_PROGRAM = r"""
#define _GNU_SOURCE
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>
#include <sched.h>
#include <sys/ptrace.h>
#include <sys/uio.h>
#include <sys/wait.h>
static long raw(long n, long a, long b, long c, long d) {
    errno = 0;
    long r = syscall(n, a, b, c, d, 0, 0);
    return r < 0 ? -errno : r;
}
static int inside(void *nothing) { return 0; }
int main(void) {
    char word[64] = {0};
    struct iovec local = {word, sizeof word}, remote = {(void *)0x400000, sizeof word};
    for (int pid = 1; pid <= 2; pid++) {
        printf("read%d %ld\n", pid, raw(SYS_process_vm_readv, pid, (long)&local, 1, (long)&remote));
        printf("attach%d %ld\n", pid, raw(SYS_ptrace, PTRACE_ATTACH, pid, 0, 0));
        printf("seize%d %ld\n", pid, raw(SYS_ptrace, PTRACE_SEIZE, pid, 0, 0));
    }
    pid_t child = fork();
    if (child == 0) { long told = raw(SYS_ptrace, PTRACE_TRACEME, 0, 0, 0); _exit(told < 0 ? (int)-told : 0); }
    int status; waitpid(child, &status, 0);
    printf("traceme -%d\n", WEXITSTATUS(status));
    static char stack[65536];
    printf("clone -%d\n", clone(inside, stack + sizeof stack, CLONE_NEWUSER | 17, 0) < 0 ? errno : 0);
    printf("vfork ");
    fflush(stdout);
    pid_t quick = vfork();
    if (quick == 0) _exit(0);
    waitpid(quick, &status, 0);
    printf("%d\n", WEXITSTATUS(status));
    return 0;
}
"""


async def run_compiled(isolation: Any, program: str) -> Any:
    """Upload a program and run it."""
    from box_tools import run, small

    box = await isolation.create(small("compiled"))
    file = await box.agent.open_file("/home/user/hostile", os.O_WRONLY | os.O_CREAT, 0o755)
    await file.write(Path(program).read_bytes())
    file.close()
    done = await run(box, ["/home/user/hostile"])
    return [done.status.code, done.output]


@BOTH
def test_a_compiled_program(box_runner: Any, ordinary: bool, tmp_path: Path) -> None:
    """A C program gets no further with tracing, other processes' memory and namespaces than a Python one."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler here")
    place = Path("/tmp", f"sandboxkit-hostile-{os.getpid()}-{ordinary}")
    place.mkdir(mode=0o755)
    try:
        (place / "hostile.c").write_text(C_PROGRAM)
        subprocess.run([compiler, "-w", "-o", place / "hostile", place / "hostile.c"], check=True)
        (place / "hostile").chmod(0o755)
        code, output = box_runner(
            run_compiled, program=str(place / "hostile"), readable=[str(place)], as_ordinary_user=ordinary
        )
    finally:
        shutil.rmtree(place)
    assert code == 0, output
    told = {name: int(number) for name, number in (line.split() for line in output.splitlines())}
    assert told.pop("vfork") == 0
    assert set(told.values()) == {-1}, told
