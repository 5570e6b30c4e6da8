"""Files damaged at random: every row is read or refused, and a file is read or refused, never anything else."""

from __future__ import annotations

import csv
import gzip
import io
import json
import random
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from glmtune.data.conversation import RowError
from glmtune.data.reading.read_rows import read_rows
from glmtune.errors import GlmtuneError

ROWS = [
    {"messages": [{"role": "user", "content": f"你好 {number}\n"}, {"role": "assistant", "content": '"hi"'}]}
    for number in range(5)
]
NUM_FILES = 200
BYTES = b'\0\n\r",[]{}\\:\xff\xe4\xeda1'
"""What damage puts in: bytes that mean something to one of the formats."""


def lines() -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()


def table() -> bytes:
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["messages", "id"])
    writer.writerows([json.dumps(row["messages"], ensure_ascii=False), number] for number, row in enumerate(ROWS))
    return text.getvalue().encode()


def columns() -> bytes:
    stream = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist(ROWS), stream)
    return stream.getvalue()


FILES = {
    "rows.jsonl": lines(),
    "rows.json": json.dumps(ROWS, ensure_ascii=False, indent=1).encode(),
    "rows.csv": table(),
    "rows.parquet": columns(),
    "rows.jsonl.gz": gzip.compress(lines(), mtime=0),
    "rows.jsonl.zst": pyarrow.compress(lines(), codec="zstd", asbytes=True),
}


def damaged(data: bytes, chance: random.Random) -> bytes:
    """Change, take out or put in a few bytes."""
    result = bytearray(data)
    for _ in range(chance.randint(1, 4)):
        start = chance.randrange(len(result))
        end = start + chance.choice([0, 1, 1, 2, 30])
        result[start:end] = bytes(
            chance.choice(b'\0\n\r",[]{}\\:\xff\xe4\xed\x00a1') for _ in range(chance.randint(0, 3))
        )
    return bytes(result)


@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_is_read_or_refused(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(FILES[name])
    assert sum(len(row.conversations()) for row in read_rows(path)) == len(ROWS)
    chance = random.Random(name)
    num_refused = sum(read(path, damaged(FILES[name], chance)) for _ in range(NUM_FILES))
    assert num_refused > NUM_FILES / 4


def read(path: Path, content: bytes) -> int:
    """Return how many rows of a file are refused; 1 where the file is."""
    path.write_bytes(content)
    num_refused = 0
    try:
        for row in read_rows(path):
            try:
                row.conversations()
            except RowError:
                num_refused += 1
    except GlmtuneError:
        return 1
    return num_refused
