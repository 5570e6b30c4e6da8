r"""Names of files that are not UTF-8, as GBK names unpacked on Linux are: the rows in such files are read."""

from __future__ import annotations

import gzip
import json
import os
import sys
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from glmtune.chatformat.encoding import Encoder
from glmtune.data.conversion import convert
from glmtune.data.reading.read_rows import read_rows
from glmtune.data.reading.sources import command_line_files
from glmtune.encoded.dataset import encode_file, write_rejects
from glmtune.errors import GlmtuneError, printable
from glmtune.family import GLM

NAME = os.fsdecode("数据".encode("gbk"))
SHOWN = r"\xca\xfd\xbe\xdd"
ROW = {"messages": [{"role": "user", "content": "几点开门？"}, {"role": "assistant", "content": "九点。"}]}


def write_rows(folder: Path, suffix: str) -> Path:
    path = folder / f"{NAME}{suffix}"
    lines = 2 * f"{json.dumps(ROW)}\n" + '{"x": 1}\n'
    table = pyarrow.Table.from_pylist([ROW, ROW, {"messages": None}])
    with path.open("wb") as file:
        if suffix == ".parquet":
            parquet.write_table(table, file)
        elif suffix == ".arrow":
            with pyarrow.ipc.new_file(pyarrow.PythonFile(file, "w"), table.schema) as writer:
                writer.write_table(table)
        elif suffix == ".json":
            file.write(json.dumps([ROW, ROW, {"x": 1}]).encode())
        else:
            file.write(gzip.compress(lines.encode()) if suffix.endswith(".gz") else lines.encode())
    return path


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".jsonl.gz", ".parquet", ".arrow"])
def test_rows_are_read_and_told_by_a_name_that_can_be_written(suffix: str, demo_tokenizer, tmp_path: Path) -> None:
    path = write_rows(tmp_path, suffix)
    rows = list(read_rows(path))
    assert len(rows) == 3
    assert all(row.where.startswith(f"{tmp_path}/{SHOWN}{suffix}") for row in rows)
    data = encode_file(path, Encoder(demo_tokenizer, GLM))
    assert len(data.dataset) == 2
    write_rejects(tmp_path / "rejects.jsonl", [data])
    assert json.loads((tmp_path / "rejects.jsonl").read_text(encoding="utf-8"))["where"] == rows[2].where
    assert len(convert(command_line_files(str(path)), tmp_path / "out.jsonl").rejects) == 1


@pytest.mark.parametrize(
    ("text", "shown"),
    [("还🚀", "还🚀"), (NAME, SHOWN), ("a\ud83d", r"a\ud83d"), ("\udcff\ud83d", r"\xff\ud83d")],
)
def test_every_text_of_an_error_can_be_written(text: str, shown: str) -> None:
    assert printable(text) == shown
    assert str(GlmtuneError(text, where=text, fix=text)) == f"{shown}\n  --> {shown}\nhint: {shown}"
