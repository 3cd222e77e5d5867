"""What reads files by URL reads those of a real sandbox: pandas, by fsspec, on the engine."""

from __future__ import annotations

import io
from typing import Any

import pytest

from sandboxkit import SandboxPool
from sandboxkit._types import Endpoint

pytest.importorskip("fsspec")
pandas: Any = pytest.importorskip("pandas", reason="needs pandas: pip install pandas pyarrow")

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.full]


def test_pandas_reads_and_writes_files_of_a_session(engine: Endpoint) -> None:
    """A table goes in by URL, is there for the code in the sandbox, and what that code writes comes back by URL."""
    with SandboxPool(endpoint=engine, template="base") as pool:
        options = {"pool": pool}
        table = pandas.DataFrame({"name": ["a", "é", "\u202e"], "value": [1, 2.5, -3]})
        table.to_csv("sandboxkit://alice/data/in.csv", index=False, storage_options=options)
        session = pool.session("alice")
        done = session.run_command("cd data && sort -r in.csv > out.csv && wc -l < out.csv")
        assert done.stdout.strip() == "4"
        assert session.files.read_text("data/in.csv") == table.to_csv(index=False)
        back = pandas.read_csv("sandboxkit://alice/data/in.csv", storage_options=options)
        assert back.equals(table)
        pieces = pandas.read_csv("sandboxkit://alice/data/in.csv", storage_options=options, chunksize=2)
        assert [len(piece) for piece in pieces] == [2, 1]
        session.close()


def test_parquet(engine: Endpoint) -> None:
    """A format that is read from its end, in parts."""
    pytest.importorskip("pyarrow", reason="needs pyarrow: pip install pyarrow")
    with SandboxPool(endpoint=engine, template="base") as pool:
        options = {"pool": pool}
        table = pandas.DataFrame({"x": range(20_000), "y": [str(number) for number in range(20_000)]})
        raw = io.BytesIO()
        table.to_parquet(raw)
        session = pool.session("bob")
        session.files.write_bytes("t.parquet", raw.getvalue())
        read = pandas.read_parquet("sandboxkit://bob/t.parquet", storage_options=options, columns=["y"])
        assert read.equals(table[["y"]])
        table.to_parquet("sandboxkit://bob/again.parquet", storage_options=options)
        assert pandas.read_parquet(io.BytesIO(session.files.read_bytes("again.parquet"))).equals(table)
        with pytest.raises(FileNotFoundError):
            pandas.read_parquet("sandboxkit://bob/none.parquet", storage_options=options)
        with pytest.raises(ValueError, match="leads out"):
            pandas.read_csv("sandboxkit://bob/../../etc/passwd", storage_options=options)
        session.close()
