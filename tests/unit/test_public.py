"""The public names: where they come from, and what importing them costs."""

from __future__ import annotations

import subprocess
import sys

import pytest

import sandboxkit


@pytest.mark.parametrize("name", sandboxkit.__all__)
def test_names(name: str) -> None:
    """Every public name can be had, and a class or function of ours says that it is `sandboxkit`'s."""
    value = getattr(sandboxkit, name)
    assert name in dir(sandboxkit)
    if isinstance(value, type):
        assert value.__module__ in ("sandboxkit", "sandboxkit.errors")


def test_unknown_names() -> None:
    """A name that is none is an AttributeError, as in any module."""
    with pytest.raises(AttributeError, match="no_such_name"):
        sandboxkit.no_such_name  # noqa: B018


def test_import_loads_no_sdk() -> None:
    """Importing the package loads neither the SDK nor an event loop nor the engine; using the data classes neither."""
    source = (
        "import sys, sandboxkit\n"
        "light = set(sys.modules)\n"
        "sandboxkit.Endpoint('k'); sandboxkit.TimeoutPolicy(); sandboxkit.confine('a')\n"
        "heavy = {'e2b', 'e2b_code_interpreter', 'httpx', 'pyqwest', 'starlette', 'uvicorn', 'trio'}\n"
        "print(sorted(heavy & set(sys.modules)), sorted({'asyncio', 'pydantic', 'anyio'} & light))\n"
    )
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=True, timeout=50)
    assert done.stdout.strip() == "[] []"


def test_the_sync_face_is_up_to_date(repository: object) -> None:
    """`_sync.py` is what its generator makes of the asynchronous classes now."""
    done = subprocess.run(
        [sys.executable, ".ci/generate_sync.py", "--check"],
        cwd=str(repository),
        capture_output=True,
        text=True,
        check=False,
        timeout=50,
    )
    assert done.returncode == 0, done.stdout


def test_the_faces_match() -> None:
    """Each public name of an asynchronous class is there in its synchronous one, and no other."""
    for sync, coloured in (
        (sandboxkit.SandboxPool, sandboxkit.AsyncSandboxPool),
        (sandboxkit.Session, sandboxkit.AsyncSession),
        (sandboxkit.SafeFS, sandboxkit.AsyncSafeFS),
        (sandboxkit.CommandHandle, sandboxkit.AsyncCommandHandle),
    ):
        names = [{name for name in vars(face) if not name.startswith("_")} for face in (sync, coloured)]
        assert names[0] == names[1]
        for name in names[0]:
            text = getattr(vars(sync)[name], "__doc__", None) or ""
            assert "Async" not in text
            assert "await" not in text, f"{sync.__name__}.{name}: {text}"
