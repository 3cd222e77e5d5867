"""What `Files` must do."""

from __future__ import annotations

from sandboxkit._types import CODE_INTERPRETER, DEFAULT_ROOT
from sandboxkit.errors import (
    IsADirectory,
    NotADirectory,
    NotFound,
    TooLarge,
)
from sandboxkit.provider._base import Provider
from sandboxkit.testing.conformance._check import (
    check,
    must,
    raises,
    running,
)


@check
async def files_are_read_and_written(provider: Provider, *, template: str = CODE_INTERPRETER) -> None:
    """A file is written whole, with its parents, replaces what was there, and is read whole."""
    async with running(provider, template) as sandbox:
        files, path = sandbox.files, f"{DEFAULT_ROOT}/a/b/ü x.bin"
        data = bytes(range(256)) * 5000
        await files.write(path, data)
        must(await files.read(path) == data, "What was written is read.")
        await files.write(path, b"")
        must(await files.read(path) == b"", "Writing replaces, and a file may be empty.")
        await files.write(path, b"12345")
        must(await files.read(path, max_bytes=5) == b"12345", "max_bytes is a bound, not a wish.")
        await raises(TooLarge, lambda: files.read(path, max_bytes=4), "A file past the bound is not read.")
        info = await files.stat(path)
        must((info.name, info.path, info.type, info.size) == ("ü x.bin", path, "file", 5), f"stat describes: {info}.")


@check
async def files_are_listed(provider: Provider, *, template: str = CODE_INTERPRETER) -> None:
    """A directory is listed down to `depth` levels."""
    async with running(provider, template) as sandbox:
        files, root = sandbox.files, f"{DEFAULT_ROOT}/tree"
        await files.write(f"{root}/one.txt", b"1")
        await files.write(f"{root}/sub/two.txt", b"2")
        entries = {(e.path, e.type) for e in await files.list(root)}
        must(entries == {(f"{root}/one.txt", "file"), (f"{root}/sub", "dir")}, f"One level: {entries}.")
        deeper = {e.path for e in await files.list(root, depth=2)}
        must(deeper == {f"{root}/one.txt", f"{root}/sub", f"{root}/sub/two.txt"}, f"Two levels: {deeper}.")
        must(await files.make_dir(f"{root}/new/dir"), "make_dir makes parents.")
        must(not await files.make_dir(f"{root}/new/dir"), "A second make_dir says that it was there.")
        must(await files.list(f"{root}/new/dir") == [], "An empty directory has no entries.")


@check
async def files_are_renamed_and_removed(provider: Provider, *, template: str = CODE_INTERPRETER) -> None:
    """rename replaces a file; remove takes a tree, and raises NotFound where there is nothing."""
    async with running(provider, template) as sandbox:
        files, root = sandbox.files, f"{DEFAULT_ROOT}/tree"
        await files.write(f"{root}/a", b"a")
        await files.write(f"{root}/b", b"b")
        await files.rename(f"{root}/a", f"{root}/b")
        must(await files.read(f"{root}/b") == b"a", "rename replaces a file.")
        must(not await files.exists(f"{root}/a"), "The source is gone.")
        await raises(NotFound, lambda: files.rename(f"{root}/a", f"{root}/c"), "There is nothing to rename.")
        await files.remove(root)
        must(not await files.exists(root), "remove takes a whole tree.")
        await raises(NotFound, lambda: files.remove(root), "There is nothing to remove.")


@check
async def files_have_typed_errors(provider: Provider, *, template: str = CODE_INTERPRETER) -> None:
    """NotFound, IsADirectory and NotADirectory say what is wrong, with the path."""
    async with running(provider, template) as sandbox:
        files, root = sandbox.files, DEFAULT_ROOT
        await files.write(f"{root}/file", b"x")
        await files.make_dir(f"{root}/dir")
        missing = f"{root}/missing"
        for sentence, work in (
            ("read", lambda: files.read(missing)),
            ("stat", lambda: files.stat(missing)),
            ("list", lambda: files.list(missing)),
        ):
            error = await raises(NotFound, work, f"{sentence} of a missing path is NotFound.")
            must(error.path == missing, "The error names the path.")
        await raises(IsADirectory, lambda: files.read(f"{root}/dir"), "A directory cannot be read.")
        await raises(IsADirectory, lambda: files.write(f"{root}/dir", b""), "A directory cannot be written.")
        await raises(NotADirectory, lambda: files.list(f"{root}/file"), "A file cannot be listed.")
        await raises(NotADirectory, lambda: files.make_dir(f"{root}/file"), "A file is in the way.")
        await raises(NotADirectory, lambda: files.write(f"{root}/file/x", b""), "A file is no parent.")
        must(not await files.exists(f"{root}/file/x"), "What cannot be there is not there.")
