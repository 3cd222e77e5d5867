"""Unpacks the archive of a template's COPY step inside the box of its build, where a hostile one can hurt only that.

    python3 -I -S unpack.py SOURCE TARGET INTO MODE PLACE MAX_BYTES MAX_FILES   < archive

Paths in the archive are relative to the template's folder. What SOURCE, a pattern, matches of them goes to TARGET as
Docker's COPY does it: a folder's content is merged into TARGET, a file becomes TARGET, or goes into it where INTO is 1,
where TARGET is a directory, or where there are several. PLACE is a directory on the same file system as TARGET.
Symbolic links stay what they are, wherever they lead: they are files until all else is done, so that nothing follows
one here.
"""

import copy
import glob
import os
import shutil
import stat
import sys
import tarfile
import tempfile


def main() -> None:
    """Unpack, place, and leave nothing else; the reason of a failure goes to standard error."""
    source, target, into, mode, place, max_bytes, max_files = sys.argv[1:]
    os.umask(0o022)
    os.makedirs(place, exist_ok=True)
    root = tempfile.mkdtemp(prefix=".copying-", dir=place)
    try:
        links = unpack(root, max_bytes=int(max_bytes), max_files=int(max_files))
        if mode:
            set_modes(root, int(mode, 8))
        put(root, source, target, links, into=into == "1", place=place)
    except (OSError, tarfile.TarError, EOFError, ValueError) as error:
        sys.exit(f"COPY {source}: {error}")
    finally:
        shutil.rmtree(root, ignore_errors=True)


def unpack(root: str, *, max_bytes: int, max_files: int) -> dict[str, str]:
    """Unpack standard input below `root`; returns where links are to be, and to what. ValueError: it is too much."""
    links: dict[str, str] = {}
    total = 0
    with tarfile.open(fileobj=sys.stdin.buffer, mode="r|*") as archive:
        for number, member in enumerate(archive):
            total += member.size
            if number >= max_files or total > max_bytes:
                raise ValueError(f"the archive holds more than {max_files:,} files or {max_bytes:,} bytes")
            path = os.path.join(root, os.path.normpath(member.name))
            links.pop(path, None)
            same = links.get(os.path.join(root, os.path.normpath(member.linkname))) if member.islnk() else None
            if member.issym() or same is not None:
                links[path] = member.linkname if same is None else same
                member = copy.copy(member)
                member.type, member.linkname = tarfile.REGTYPE, ""
            if hasattr(tarfile, "data_filter"):
                archive.extract(member, root, filter="data")
            else:  # Python before 3.11.4
                archive.extract(checked(member, root), root)
    return links


def checked(member: tarfile.TarInfo, root: str) -> tarfile.TarInfo:
    """A member that stays below `root` and is a file, a folder or a hard link; what the filter "data" asks for."""
    real, name = os.path.realpath(root), member.name
    link = member.linkname
    ends = [os.path.join(real, name)]
    if member.islnk():
        ends.append(os.path.join(real, link))
    elif not (member.isreg() or member.isdir()):
        raise ValueError(f"{name!r} is no file, folder or link")
    absolute = os.path.isabs(name) or (member.islnk() and os.path.isabs(link))
    if absolute or any(os.path.commonpath([real, os.path.realpath(end)]) != real for end in ends):
        raise ValueError(f"{name!r} leads out of the archive")
    member.mode = member.mode & 0o755 | 0o600 if not member.isdir() else 0o755
    member.uid, member.gid, member.uname, member.gname = os.getuid(), os.getgid(), "", ""
    return member


def set_modes(root: str, mode: int) -> None:
    """Give every file this mode, and every directory the right to be entered where it may be read."""
    enter = mode | (mode & 0o444) >> 2 | 0o700
    for folder, folders, files in os.walk(root):
        for name in files:
            path = os.path.join(folder, name)
            if stat.S_ISREG(os.lstat(path).st_mode):
                os.chmod(path, mode)
        for name in folders:
            if not os.path.islink(os.path.join(folder, name)):
                os.chmod(os.path.join(folder, name), enter)


def put(root: str, source: str, target: str, links: dict[str, str], *, into: bool, place: str) -> None:
    """Move what matches to its place, once the links are links."""
    pattern = os.path.normpath(source)
    found = ["."] if pattern == "." else sorted(glob.glob(pattern, root_dir=root, recursive=True, include_hidden=True))
    found = [name for name in found if not any(name.startswith(other + "/") for other in found)]
    if not found:
        raise ValueError("nothing in the archive has this name")
    for path, to in links.items():
        os.unlink(path)
        os.symlink(to, path)
    # The name of a file, whose place would be a directory that was made for it.
    is_file = not into and len(found) == 1 and not os.path.isdir(os.path.join(root, found[0]))
    if is_file and target == place and "." in os.path.basename(target):
        raise ValueError(
            f"{target} cannot be a file here: a template has directories beside the system's, and files in them"
        )
    into = into or len(found) > 1 or os.path.isdir(target)
    for name in found:
        path = os.path.join(root, name)
        is_folder = os.path.isdir(path) and not os.path.islink(path)
        move(path, os.path.join(target, os.path.basename(name)) if into and not is_folder else target)


def move(path: str, target: str) -> None:
    """Move one entry; a folder is merged into one that is there."""
    if os.path.isdir(path) and not os.path.islink(path):
        os.makedirs(target, exist_ok=True)
        for name in os.listdir(path):
            move(os.path.join(path, name), os.path.join(target, name))
        return
    os.makedirs(os.path.dirname(target), exist_ok=True)
    if os.path.lexists(target) and (os.path.islink(target) or not os.path.isdir(target)):
        os.unlink(target)
    shutil.move(path, target)


if __name__ == "__main__":
    main()
