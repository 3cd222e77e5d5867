"""What is read from the pages by which development servers tell of errors."""

from __future__ import annotations

import json

import pytest

from sandboxkit.runner._answers import MOST, missing_packages, reason

NEXT = (
    '<html><head><title>500</title></head><body><div id="__next"></div>'
    '<script id="__NEXT_DATA__" type="application/json">%s</script></body></html>'
)


def test_next_tells_it_in_the_pages_data() -> None:
    """The message alone, without the colours of a terminal and without the stack."""
    error = {"message": "\x1b[31m./pages/index.tsx:1:30\x1b[0m\n\nError: Expected '}'\n", "stack": "at x"}
    assert reason(NEXT % json.dumps({"err": error})) == "./pages/index.tsx:1:30\nError: Expected '}'"


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (json.dumps({"statusCode": 500, "message": "no good", "stack": ["at y"]}), "no good"),
        ("Traceback:\n  File\nZeroDivisionError\n", "Traceback:\n  File\nZeroDivisionError"),
        ("<style>p {}</style><h1>Oh&amp;no</h1><script>let x</script>", "Oh&no"),
        ("<HEAD><title>500</title></HEAD><header>no<br/>good</header><script>if (1 < 2) x</script>", "no good"),
        ("1 < 2", "1 < 2"),
        (NEXT % "{broken", ""),
        ("[1, 2]", "[1, 2]"),
        ('{"message": 5}', '{"message": 5}'),
        ("", ""),
    ],
)
def test_others_tell_it_as_they_do(body: str, says: str) -> None:
    """JSON by its message, a page by what is seen of it, and text as it is."""
    assert reason(body) == says


def test_a_reason_is_bounded() -> None:
    """Whatever the page says."""
    assert len(reason("x " * 100_000)) <= MOST


@pytest.mark.timeout(10)
@pytest.mark.parametrize("piece", ["<", "<head>", "<script ", '<script id="__NEXT_DATA__">', "[", "&", "\x1b["])
def test_a_page_of_any_form_is_read_in_one_pass(piece: str) -> None:
    """The sandbox's server makes it, and the loop of the program that uses the library waits for it: 64 KiB of them
    took eight seconds, or raised."""
    assert len(reason((piece * 65536)[:65536])) <= MOST
    assert len(reason((piece * 500_000)[:500_000])) <= MOST


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("Module not found: Can't resolve 'left-pad'", ("left-pad",)),
        ("Can't resolve '@scope/name/deep' and Can't resolve 'a/b.css'", ("@scope/name", "a")),
        ('Failed to resolve import "chart.js" from "app/app.vue". Does the file exist?', ("chart.js",)),
        ("Cannot find package 'zod' imported from '/home/user/app/app.vue'", ("zod",)),
        ("ModuleNotFoundError: No module named 'yfinance'", ("yfinance",)),
        ("Can't resolve './mine', Can't resolve '@/lib/mine', Cannot find module '/x', '~/y', '#app'", ()),
        ("no good", ()),
    ],
)
def test_packages_are_named_and_own_files_are_not(text: str, names: tuple[str, ...]) -> None:
    """By the words of Next.js, Vite, Node and Python."""
    assert missing_packages(text) == names
