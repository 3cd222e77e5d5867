"""The file system over the wire."""

from __future__ import annotations

import os
from typing import Any

import pytest


def names(envd: Any, path: str, depth: int = 1) -> list[str]:
    """Names below a path, in the order of the answer, relative to the home."""
    answer = envd.call("Filesystem/ListDir", {"path": path, "depth": depth})
    assert answer.status_code == 200, answer.text
    return [os.path.relpath(entry["path"], envd.home) for entry in answer.json()["entries"]]


def refused(envd: Any, method: str, message: dict[str, Any]) -> tuple[str, str]:
    """Code and sentence of a refusal."""
    answer = envd.call(method, message)
    assert answer.status_code >= 400, answer.text
    return answer.json()["code"], answer.json()["message"]


def test_stat_describes_by_the_absolute_path(envd: Any) -> None:
    """An entry has the path that was meant, its size as a string, and its metadata."""
    (envd.home / "a").write_bytes(b"12345")
    os.chmod(envd.home / "a", 0o640)
    entry = envd.call("Filesystem/Stat", {"path": "a"}).json()["entry"]
    assert (entry["name"], entry["path"]) == ("a", f"{envd.home}/a")
    assert (entry["type"], entry["size"], entry["mode"]) == ("FILE_TYPE_FILE", "5", 0o640)
    assert entry["permissions"] == "-rw-r-----"
    assert "metadata" not in entry


def test_stat_of_a_link_tells_its_target(envd: Any) -> None:
    """The type is the target's, and symlinkTarget is where the link leads in the end."""
    (envd.home / "dir").mkdir()
    (envd.home / "one").symlink_to("dir")
    (envd.home / "two").symlink_to("one")
    (envd.home / "lost").symlink_to("nowhere")
    two = envd.call("Filesystem/Stat", {"path": "two"}).json()["entry"]
    assert (two["type"], two["symlinkTarget"]) == ("FILE_TYPE_DIRECTORY", os.path.realpath(envd.home / "dir"))
    assert "type" not in envd.call("Filesystem/Stat", {"path": "lost"}).json()["entry"]


def test_what_is_not_there_is_not_found(envd: Any) -> None:
    """Stat, listing and moving of a missing path are not_found; removing it succeeds, as in envd."""
    (envd.home / "file").write_text("x")
    assert refused(envd, "Filesystem/Stat", {"path": "missing"})[0] == "not_found"
    assert refused(envd, "Filesystem/Stat", {"path": "file/below"})[0] == "not_found"
    assert refused(envd, "Filesystem/ListDir", {"path": "missing"})[0] == "not_found"
    assert refused(envd, "Filesystem/Move", {"source": "missing", "destination": "there"})[0] == "not_found"
    assert envd.call("Filesystem/Remove", {"path": "missing"}).json() == {}


@pytest.mark.parametrize("method", ["Stat", "ListDir", "MakeDir", "Remove"])
@pytest.mark.parametrize("path", ["~bob/x", "a\0b"])
def test_paths_that_are_none_are_refused(envd: Any, method: str, path: str) -> None:
    """Another user's home and a NUL are invalid_argument everywhere."""
    assert refused(envd, f"Filesystem/{method}", {"path": path})[0] == "invalid_argument"


def test_make_dir_makes_parents_once(envd: Any) -> None:
    """Parents come with it; a second time it exists already; a file in the way is told apart."""
    made = envd.call("Filesystem/MakeDir", {"path": "a/b/c"})
    assert made.json()["entry"]["type"] == "FILE_TYPE_DIRECTORY"
    assert refused(envd, "Filesystem/MakeDir", {"path": "a/b/c"}) == (
        "already_exists",
        f"directory already exists: {envd.home}/a/b/c",
    )
    (envd.home / "file").write_text("x")
    code, message = refused(envd, "Filesystem/MakeDir", {"path": "file"})
    assert code == "invalid_argument"
    assert message == f"path already exists but it is not a directory: {envd.home}/file"
    code, message = refused(envd, "Filesystem/MakeDir", {"path": "file/x"})
    assert (code, message) == ("internal", f"error getting file info: Not a directory: {envd.home}/file/x")


def test_listing_walks_in_order_and_to_its_depth(envd: Any) -> None:
    """Depth 0 counts as 1; deeper listings come depth first, names in order, without the root."""
    for path in ("b/y", "a/z/deep", "a.x", "c"):
        (envd.home / path).parent.mkdir(parents=True, exist_ok=True)
        (envd.home / path).write_text("x")
    assert names(envd, "", 0) == names(envd, "", 1) == ["a", "a.x", "b", "c"]
    assert names(envd, ".", 2) == ["a", "a/z", "a.x", "b", "b/y", "c"]
    assert names(envd, "~", 4_000_000_000) == ["a", "a/z", "a/z/deep", "a.x", "b", "b/y", "c"]


def test_listing_a_link_keeps_its_name(envd: Any) -> None:
    """A link to a directory is listed under the path that was asked for; links below are not entered."""
    (envd.home / "dir/sub").mkdir(parents=True)
    (envd.home / "dir/sub/f").write_text("x")
    (envd.home / "dir/loop").symlink_to("..")
    (envd.home / "link").symlink_to("dir")
    assert names(envd, "link", 5) == ["link/loop", "link/sub", "link/sub/f"]


def test_listing_a_file_is_refused(envd: Any) -> None:
    """A file is not a directory, and the error says so."""
    (envd.home / "f").write_text("x")
    assert refused(envd, "Filesystem/ListDir", {"path": "f"}) == (
        "invalid_argument",
        f"path is not a directory: {envd.home}/f",
    )
    (envd.home / "loop").symlink_to("loop")
    assert refused(envd, "Filesystem/ListDir", {"path": "loop"})[0] == "failed_precondition"


def test_a_name_that_is_not_utf8_does_not_hide_the_others(envd: Any) -> None:
    """A listing with an undecodable name is whole; that name shows with a replacement character."""
    with open(os.fsencode(envd.home) + b"/bad\xff", "w"):
        pass
    (envd.home / "good").write_text("x")
    answer = envd.call("Filesystem/ListDir", {"path": ""})
    assert [entry["name"] for entry in answer.json()["entries"]] == ["bad�", "good"]


def test_move_makes_parents_and_describes_the_new_place(envd: Any) -> None:
    """The answer is the entry at its destination; an existing file there is replaced."""
    (envd.home / "old").write_text("content")
    (envd.home / "taken").write_text("x")
    moved = envd.call("Filesystem/Move", {"source": "old", "destination": "new/dir/name"}).json()["entry"]
    assert moved["path"] == f"{envd.home}/new/dir/name"
    envd.call("Filesystem/Move", {"source": "new/dir/name", "destination": "taken"})
    assert (envd.home / "taken").read_text() == "content"


def test_remove_takes_trees_but_not_what_links_lead_to(envd: Any) -> None:
    """A whole tree goes; the target of a link inside it stays."""
    (envd.home / "keep").mkdir()
    (envd.home / "keep/f").write_text("x")
    (envd.home / "tree/sub").mkdir(parents=True)
    (envd.home / "tree/sub/link").symlink_to(envd.home / "keep")
    assert envd.call("Filesystem/Remove", {"path": "tree"}).json() == {}
    assert not (envd.home / "tree").exists()
    assert (envd.home / "keep/f").exists()
