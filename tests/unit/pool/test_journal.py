"""What a session remembers of its files: names always, contents as far as they fit."""

from __future__ import annotations

from sandboxkit.pool import _journal
from sandboxkit.pool._journal import Journal


def test_the_journal_keeps_so_many_bytes() -> None:
    """What does not fit is remembered by name, and told as lost."""
    journal = Journal(keeps_content=True, most_bytes=10)
    journal.wrote("/home/user/a", b"12345678")
    journal.wrote("/home/user/b", b"12345678")
    assert journal.files == {"/home/user/a": b"12345678"}
    assert journal.names == ("/home/user/a", "/home/user/b")
    journal.wrote("/home/user/a", b"1")
    journal.wrote("/home/user/b", b"12345678")
    assert set(journal.files) == {"/home/user/a", "/home/user/b"}
    journal.renamed("/home/user/a", "/home/user/b")
    assert journal.files == {"/home/user/b": b"1"}
    journal.removed("/home/user")
    assert journal.names == ()
    journal.wrote("/home/user/c", b"1234567890")
    assert set(journal.files) == {"/home/user/c"}


def test_64_mib_are_kept_unless_said() -> None:
    """As much as the documentation of `on_loss` promises."""
    assert Journal(keeps_content=True).most_bytes == 67_108_864


def test_names_alone_are_kept_where_nothing_is_replayed() -> None:
    """Without contents the names are known, and nothing is held."""
    journal = Journal(keeps_content=False)
    journal.wrote("/a", b"1")
    assert journal.names == ("/a",)
    assert journal.files == {}


def test_directories_move_and_go_with_their_entries() -> None:
    """What lies beneath is renamed and removed; what only begins with the same letters is not."""
    journal = Journal(keeps_content=True)
    journal.made("/h/d")
    journal.made("/h/d/e")
    journal.made("/h/dd")
    journal.wrote("/h/d/f", b"1")
    journal.wrote("/h/dx", b"2")
    journal.renamed("/h/d", "/h/n")
    assert journal.directories == ("/h/dd", "/h/n", "/h/n/e")
    assert journal.files == {"/h/dx": b"2", "/h/n/f": b"1"}
    journal.removed("/h/n")
    assert journal.directories == ("/h/dd",)
    assert journal.files == {"/h/dx": b"2"}


def test_the_number_of_names_is_bounded() -> None:
    """A session that writes files without end costs so many names and no more; known ones are still updated."""
    journal = Journal(keeps_content=True)
    for number in range(_journal.MOST_NAMES + 5):
        journal.wrote(f"/{number}", b"")
        journal.made(f"/d{number}")
    assert len(journal.names) == len(journal.directories) == _journal.MOST_NAMES
    journal.wrote("/0", b"new")
    assert journal.files["/0"] == b"new"
