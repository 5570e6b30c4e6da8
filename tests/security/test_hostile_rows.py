"""Rows of strangers: read, or refused in one line, in bounded time and memory."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from glmtune.data.reading import cell_sizes, streams
from glmtune.data.reading.cell_sizes import row_sizes, slices
from glmtune.data.reading.read_rows import read_rows
from glmtune.errors import GlmtuneError

ROW = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}
SECONDS = 20.0
MEGABYTES = 1_500
"""Of a process that reads a file, what it has imported among them (100)."""

READ = """
import sys
from pathlib import Path
from glmtune.data.reading.read_rows import read_rows
from glmtune.errors import GlmtuneError
rows = problems = 0
told = ""
try:
    for row in read_rows(Path(sys.argv[1])):
        rows += 1
        problems += any(isinstance(part, ValueError) for part in row.parts())
        if rows == 50:
            break
except GlmtuneError as error:
    told = error.what
# Not `ru_maxrss`, which begins at what the process has that started this one.
status = Path("/proc/self/status").read_text()
memory = int(status.partition("VmHWM:")[2].split()[0]) // 1024
print(memory, rows, problems, told, sep="|")
"""


def dictionary(values: list[str], indices: list[int]) -> pa.DictionaryArray:
    return pa.DictionaryArray.from_arrays(pa.array(indices, pa.int32()), pa.array(values))


def text_bomb(path: Path) -> None:
    """A text of 8 MB that a thousand rows show."""
    table = pa.table({"text": dictionary([8_000_000 * "x"], 1_000 * [0])})
    parquet.write_table(table, path)


def list_bomb(path: Path) -> None:
    """Rows with a thousand messages, each the same megabyte."""
    messages = pa.StructArray.from_arrays([dictionary([1_000_000 * "x"], 10_000 * [0])], ["content"])
    offsets = pa.array(range(0, 10_001, 1_000), pa.int32())
    parquet.write_table(pa.table({"messages": pa.ListArray.from_arrays(offsets, messages)}), path)


def one_text(path: Path) -> None:
    """A row of 60 MB."""
    parquet.write_table(pa.table({"text": ["short", 60_000_000 * "x", "short"]}), path, compression="zstd")


def arrow_bomb(path: Path) -> None:
    """The same as an Arrow file."""
    batch = pa.record_batch([dictionary([8_000_000 * "x"], 1_000 * [0])], names=["text"])
    with pa.ipc.new_file(path, batch.schema) as writer:
        writer.write_batch(batch)


def blanks(path: Path) -> None:
    """Blanks, 600 MB of them."""
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(b"[")
        for _ in range(600):
            file.write((1 << 20) * b" ")
        file.write(b"]")


def blank_lines(path: Path) -> None:
    """Lines without anything, 600 MB of them."""
    with gzip.open(path, "wb", compresslevel=1) as file:
        for _ in range(600):
            file.write((1 << 20) * b"\n")


BOMBS = {
    "a text in a dictionary": ("b.parquet", text_bomb, "50|0|"),
    "messages in a dictionary": ("b.parquet", list_bomb, "10|10|"),
    "a long text": ("b.parquet", one_text, "3|1|"),
    "an Arrow dictionary": ("b.arrow", arrow_bomb, "50|0|"),
    "blanks": ("b.json.gz", blanks, "0|0|the file unpacks to more than 200 times its size"),
    "blank lines": ("b.jsonl.gz", blank_lines, "0|0|the file unpacks to more than 200 times its size"),
}


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
@pytest.mark.parametrize(("name", "write", "told"), BOMBS.values(), ids=BOMBS)
def test_a_bomb_is_read_in_bounded_memory_and_time(name: str, write, told: str, tmp_path: Path) -> None:
    write(tmp_path / name)
    assert (tmp_path / name).stat().st_size < 12_000_000
    started = time.monotonic()
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", READ, str(tmp_path / name)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60, check=True)
    assert time.monotonic() - started < SECONDS
    memory, _, found = done.stdout.partition("|")
    assert found.startswith(told)
    assert int(memory) < MEGABYTES


def test_rows_that_take_no_room_are_counted_against_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = pa.record_batch([pa.nulls(100_000)], names=["n"])
    with pa.ipc.new_file(tmp_path / "n.arrow", batch.schema) as writer:
        writer.write_batch(batch)
    monkeypatch.setattr("glmtune.data.reading.tables.MAX_ROWS_PER_BYTE", 1)
    with pytest.raises(GlmtuneError, match="the file claims to have more than"):
        list(read_rows(tmp_path / "n.arrow"))


def written(values: list[object], kind: pa.DataType | None = None) -> pa.RecordBatch:
    return pa.record_batch([pa.array(values, kind)], names=["a"])


SIZES = {
    "texts": written(["abc", None, "é"]),
    "a dictionary": pa.record_batch([dictionary(["abc", "d"], [0, 1, 0])], names=["a"]),
    "lists": written([["abc", "d"], [], None]),
    "objects": written([{"x": "abc", "y": 1}, {"x": None, "y": 2}]),
    "maps": written([[("k", "v")], []], pa.map_(pa.string(), pa.string())),
    "numbers": written([1, 2]),
    "nulls": written([None, None]),
    "bytes": written([b"abc"]),
    "large": written(["abc"], pa.large_string()),
    "views": written(["abc"], pa.string_view()),
    "fixed lists": written([[1, 2]], pa.list_(pa.int32(), 2)),
    "nothing": written([], pa.string()),
    "no lists": written([], pa.list_(pa.string())),
}


@pytest.mark.parametrize("batch", SIZES.values(), ids=SIZES)
def test_the_size_of_a_row_is_at_least_that_of_its_texts(batch: pa.RecordBatch) -> None:
    found = row_sizes(batch)
    assert len(found) == batch.num_rows
    for size, value in zip(found, batch.to_pylist()):
        texts = json.dumps(value, default=bytes.decode, ensure_ascii=False).split('"')[1::2]
        assert size >= sum(len(text.encode()) for text in texts if text not in ("x", "y"))


def test_a_batch_is_cut_where_memory_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cell_sizes, "BATCH_BYTES", 100)
    monkeypatch.setattr(cell_sizes, "LONGEST_BYTES", 200)
    lengths = [10, 300, 80, 10, 90, 500]
    parts = list(slices(written([length * "x" for length in lengths])))
    assert [(part.num_rows, is_too_long) for part, is_too_long in parts] == [
        *((1, False), (1, True), (1, False), (1, False), (1, False), (1, True))
    ]
    assert np.concatenate([part.column(0).to_pylist() for part, _ in parts]).tolist() == [
        length * "x" for length in lengths
    ]


def test_tables_of_texts_are_read_as_before(tmp_path: Path) -> None:
    rows = [
        {"messages": [{"role": "user", "content": f"{n % 3}"}], "tools": None, "id": n, "x": "é"} for n in range(50)
    ]
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "r.parquet")
    found = [json.loads(row.text) for row in read_rows(tmp_path / "r.parquet")]
    assert found == rows


TEXTS = {
    "a deep list": ("r.jsonl", 100_000 * "[" + 100_000 * "]", "not JSON: nested too deeply"),
    "a deep object": ("r.jsonl", 100_000 * '{"a":', "not JSON: nested too deeply"),
    "a deep file": ("r.json", 100_000 * "[", "not JSON: nested too deeply"),
    "a long number": ("r.jsonl", f'{{"a": {100_000 * "9"}}}', "a number of more than 4,300 digits"),
    "an infinite number": ("r.jsonl", '{"a": 1e999}', "is too large a number"),
    "quotes in a cell": ("r.csv", 'messages\n"[""' + 300_000 * '\\""' + '"\n', ""),
    "a cell of brackets": ("r.csv", "messages\n" + 100_000 * "[" + "\n", ""),
    "NUL": ("r.jsonl", '{"a": "\0"}', "is NUL"),
    "a key twice": ("r.jsonl", '{"a": 1, "a": 2}', "key `a` stands twice"),
    "a surrogate": ("r.jsonl", '{"messages": [{"role": "user", "content": "\\ud800"}]}', ""),
    "a million commas": ("r.json", "[" + 1_000_000 * "," + "]", ""),
    "a million blanks": ("r.jsonl", 1_000_000 * " " + "{", "not JSON"),
}


@pytest.mark.parametrize(("name", "text", "told"), TEXTS.values(), ids=TEXTS)
def test_hostile_text_costs_its_own_row_soon(name: str, text: str, told: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    started = time.monotonic()
    try:
        reasons = [str(part) for row in read_rows(path) for part in row.parts() if isinstance(part, ValueError)]
    except GlmtuneError as error:
        reasons = [error.what]
    assert time.monotonic() - started < 5
    if told:
        assert told in reasons[0]


def test_a_compressed_file_may_unpack_to_what_is_usual(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "SMALL_BYTES", 1_000)
    path = tmp_path / "r.jsonl.gz"
    lines = [json.dumps({**ROW, "id": number * 7919}) for number in range(1_000)]
    path.write_bytes(gzip.compress("\n".join(lines).encode()))
    assert len(list(read_rows(path))) == 1_000
    path.write_bytes(gzip.compress(b"\n" * 1_000_000))
    with pytest.raises(GlmtuneError, match="the file unpacks to more than 200 times its size"):
        list(read_rows(path))
