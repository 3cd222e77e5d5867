"""The files of one box that can be written: its own tmpfs, what lies in it, and overlays over a template's files."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from sandboxkit.local.isolation._base import HOME, BoxSpec, Layer
from sandboxkit.local.isolation.host import _kernel, _runtime

NOWHERE = Path("/proc/self/fd/-1")


class BoxFiles:
    """See above; sized by the box's limits. `path` is where the engine reaches them, `directory` of the engine's tmpfs
    where they are mounted in its namespace."""

    def __init__(self, spec: BoxSpec, directory: Path) -> None:
        self._spec = spec
        self._mounted = False
        self.path = directory
        self.descriptor = -1
        """Of the tmpfs, where that is not mounted in the engine's namespace."""
        self.writable: tuple[Layer, ...] = ()

    def make(self, *, is_apart: bool) -> None:
        """Make the tmpfs. OSError where the kernel refuses.

        Args:
            is_apart: a warden mounts it, in the box alone: else the making of each box copies the mounts of all others.
        """
        limits = self._spec.limits
        if is_apart:
            self.descriptor = _kernel.detached_tmpfs(size=limits.disk, nr_inodes=limits.inodes, mode="755")
            self.path = Path(f"/proc/self/fd/{self.descriptor}")
        else:
            flags = _kernel.MS_NOSUID | _kernel.MS_NODEV
            options = f"size={limits.disk},nr_inodes={limits.inodes},mode=755"
            self.path.mkdir()
            _kernel.mount("tmpfs", str(self.path), "tmpfs", flags, options)
            self._mounted = True
        for name, mode in (("home", 0o755), ("tmp", 0o1777), ("shm", 0o1777)):
            (self.path / name).mkdir()
            (self.path / name).chmod(mode)

    def mount_overlays(self, runtime: Path, lower: Callable[[str], str]) -> None:
        """Mount what is kept and what else can be written. OSError where the kernel refuses.

        Args:
            runtime: the engine's tmpfs, which is its working directory.
            lower: binds a host directory there, and tells the relative path.
        """
        at = self.path.relative_to(runtime)
        if self._spec.kept is not None:
            (self.path / "kept").mkdir()
            _kernel.mount(self._spec.kept, str(self.path / "kept"), None, _kernel.MS_BIND)
        writable = []
        for number, overlay in enumerate(self._spec.overlays):
            place = "home" if overlay.target == HOME else f"at-{number}"
            own = at / "own" / str(number) if overlay.upper is None else at / "kept"
            name = "" if overlay.upper is None else overlay.upper
            upper, work = own / "up" / name, own / "work" / name
            for path in (at / place, upper, work):
                (runtime / path).mkdir(parents=True, exist_ok=True)
            (runtime / upper).chmod(0o1777 if overlay.target == "/tmp" else 0o755)
            lowers = tuple(lower(one) for one in overlay.lowers) or ("empty",)
            _runtime.mount_writable(runtime, str(at / place), lowers=lowers, upper=str(upper), work=str(work))
            if overlay.target != HOME:
                writable.append(Layer(source=str(runtime / at / place), target=overlay.target))
        self.writable = tuple(writable)

    def bind_volumes(self) -> None:
        """Bind its volumes, over what it starts with. OSError, UnsupportedOption; see `_runtime.bind_volumes`."""
        trees = {HOME: str(self.path / "home"), "/tmp": str(self.path / "tmp")}
        trees |= {layer.target: layer.source for layer in self.writable}
        self.writable += tuple(_runtime.bind_volumes(self.path, self._spec.volumes, trees))

    def fill_home(self) -> None:
        """Copy the home's first content."""
        if self._spec.skeleton is not None:
            shutil.copytree(self._spec.skeleton, self.path / "home", symlinks=True, dirs_exist_ok=True)

    def trees(self) -> dict[str, Path]:
        """What of it is kept: all that can be written, as it is seen inside, but for /dev/shm, which is memory by its
        name."""
        overlays = (f"at-{number}" for number, one in enumerate(self._spec.overlays) if one.target != HOME)
        return {name: self.path / name for name in ("home", "tmp", *overlays)}

    def used(self) -> int:
        """Bytes in it, which lie in memory. OSError once it is gone."""
        space = os.statvfs(self.path)
        return (space.f_blocks - space.f_bfree) * space.f_frsize

    def remove(self) -> None:
        """Let go of it. Idempotent."""
        if self._mounted:
            _kernel.unmount(str(self.path))
            self._mounted = False
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1
            self.path = NOWHERE
        with contextlib.suppress(FileNotFoundError):
            self.path.rmdir()
