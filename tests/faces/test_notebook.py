"""The synchronous pool inside a notebook's kernel, whose event loop is running."""

from __future__ import annotations

import asyncio
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

CELLS = (
    "import threading\nfrom sandboxkit import SandboxPool\npool = SandboxPool(endpoint={endpoint})\n"
    "session = pool.session('notebook')",
    "session.run_code('x = 6', on_stdout=print)\nsession.run_code('print(\"live\")\\nx * 7', "
    "on_stdout=lambda m: print('told', m.text.strip(), threading.current_thread() is threading.main_thread())).text",
    "session.files.write('a.txt', 'kept')\nsession.files.read_text('a.txt')",
    "import asyncio\nasyncio.get_running_loop().is_running()",
    "pool.close()",
)


def _run(endpoint: str, tmp_path: Path) -> list[str]:
    """Execute the cells in a kernel of their own; the text that each one displayed."""
    cells = [nbformat.v4.new_code_cell(source.replace("{endpoint}", endpoint)) for source in CELLS]
    notebook = nbformat.v4.new_notebook(cells=cells)
    client = NotebookClient(notebook, timeout=50, resources={"metadata": {"path": str(tmp_path)}})
    asyncio.run(client.async_execute())
    shown = []
    for cell in notebook.cells:
        parts = [o.text if o.output_type == "stream" else o.data["text/plain"] for o in cell.outputs]
        shown.append("".join(parts))
    return shown


def _check(shown: list[str]) -> None:
    assert "told live True" in shown[1]
    assert "'42'" in shown[1]
    assert shown[2] == "'kept'"
    assert shown[3] == "True"
    assert shown[4] == "()"


@pytest.mark.slow
def test_on_the_fake(tmp_path: Path) -> None:
    """Pool, session, callbacks and files work from cells, and callbacks print into the cell that runs."""
    _check(_run("__import__('sandboxkit.testing').testing.FakeProvider()", tmp_path))


@pytest.mark.slow
@pytest.mark.engine
def test_on_the_engine(tmp_path: Path) -> None:
    """The same on the local engine, which ends with the notebook's kernel."""
    _check(_run("'local'", tmp_path))
