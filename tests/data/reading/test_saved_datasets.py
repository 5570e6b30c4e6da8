"""Folders of `save_to_disk` and Arrow files of both kinds are read; what cannot be told apart is named."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow
import pytest
from datasets import Dataset, DatasetDict

from glmtune.data.reading.read_rows import read_rows
from glmtune.data.reading.sources import command_line_files, find_data_files
from glmtune.errors import GlmtuneError

ROWS = [{"instruction": f"第{number}题", "output": f"答案{number}"} for number in range(2_500)]


def texts(entry: Path) -> list[dict[str, str]]:
    files = command_line_files(str(entry))
    return [json.loads(row.text) for file in files for row in read_rows(file.path)]


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    Dataset.from_list(ROWS).save_to_disk(tmp_path / "one", num_shards=2)
    return tmp_path / "one"


def test_the_rows_of_a_saved_data_set_are_read_in_order(saved: Path) -> None:
    assert texts(saved) == ROWS
    assert [file.path for file in find_data_files(saved.parent, "one", "train_file")] == [
        saved / "data-00000-of-00002.arrow",
        saved / "data-00001-of-00002.arrow",
    ]
    second = read_rows(saved / "data-00001-of-00002.arrow")
    assert [row.where for row in second][::1249] == [f"{saved}/data-00001-of-00002.arrow:row {n}" for n in (1, 1250)]


def test_one_of_several_splits_has_to_be_named(tmp_path: Path) -> None:
    both = DatasetDict({"train": Dataset.from_list(ROWS[:3]), "test": Dataset.from_list(ROWS[3:4])})
    both.save_to_disk(tmp_path / "many")
    with pytest.raises(GlmtuneError) as caught:
        command_line_files(str(tmp_path / "many"))
    assert str(caught.value) == (
        f"`{tmp_path}/many` holds 2 splits of a data set that `save_to_disk` wrote: `train`, `test`; expected one\n"
        f"  --> {tmp_path}/many\nhint: name one of them, such as `{tmp_path}/many/train`"
    )
    assert texts(tmp_path / "many" / "test") == ROWS[3:4]


def test_a_single_split_needs_no_name(tmp_path: Path) -> None:
    DatasetDict({"train": Dataset.from_list(ROWS[:3])}).save_to_disk(tmp_path / "many")
    assert texts(tmp_path / "many") == ROWS[:3]


def test_a_saved_data_set_that_lacks_a_file_is_an_error(saved: Path) -> None:
    (saved / "data-00001-of-00002.arrow").unlink()
    with pytest.raises(GlmtuneError, match=r"the saved data set lacks its file `data-00001-of-00002\.arrow`"):
        texts(saved)


def test_a_saved_data_set_with_a_list_of_its_rows_is_an_error(saved: Path) -> None:
    state = json.loads((saved / "state.json").read_text(encoding="utf-8"))
    (saved / "state.json").write_text(
        json.dumps(state | {"_indices_files": [{"filename": "i.arrow"}]}), encoding="utf-8"
    )
    with pytest.raises(GlmtuneError, match="with a list of its rows beside it") as caught:
        texts(saved)
    assert "to_parquet" in str(caught.value.fix)


@pytest.mark.parametrize("content", ["", "[]", "{", '{"_data_files": 3}', '{"text": "Ohio"}', "[" * 100_000])
def test_another_file_of_that_name_makes_no_saved_data_set(content: str, tmp_path: Path) -> None:
    (tmp_path / "state.json").write_text(content, encoding="utf-8")
    (tmp_path / "dataset_info.json").write_text("{}", encoding="utf-8")
    assert [file.path for file in command_line_files(str(tmp_path))] == [tmp_path / "state.json"]


@pytest.mark.parametrize("kind", ["file", "stream"])
@pytest.mark.parametrize("batch_size", [1, 999, 2_500])
def test_both_kinds_of_arrow_files_are_read(kind: str, batch_size: int, tmp_path: Path) -> None:
    table, path = pyarrow.Table.from_pylist(ROWS), tmp_path / "rows.arrow"
    make = {"file": pyarrow.ipc.new_file, "stream": pyarrow.ipc.new_stream}[kind]
    with pyarrow.OSFile(str(path), "wb") as sink, make(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=batch_size)
    rows = list(read_rows(path))
    assert [json.loads(row.text) for row in rows] == ROWS
    assert [row.where for row in rows] == [f"{path}:row {number + 1}" for number in range(len(ROWS))]


@pytest.mark.parametrize("content", [b"", b"ARROW1\0\0", b"{}\n" * 9])
def test_an_arrow_file_that_is_cut_off_is_an_error(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "rows.arrow"
    path.write_bytes(content)
    with pytest.raises(GlmtuneError, match="the file cannot be read: ") as caught:
        list(read_rows(path))
    assert caught.value.where == str(path)
