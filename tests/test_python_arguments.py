"""Slips of Python programs that would be taken for something else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import glmtune
from glmtune.config.run_config import load_config
from glmtune.errors import GlmtuneError

ROWS = [{"messages": [{"role": "user", "content": "a"}]}]
A_STRING = "`overrides` is of type `str`; expected a list of texts"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda path: glmtune.evaluate("demo", ROWS), "`data_file` is of type `list`; expected a path"),
        (lambda path: glmtune.evaluate("demo", path, output=5), "`output` is of type `int`; expected a path"),
        (lambda path: glmtune.evaluate(ROWS, path), "`model` is of type `list`; expected a path"),
        (lambda path: glmtune.generate(5, ["a"]), "`model` is of type `int`; expected a path"),
        (lambda path: glmtune.check_data(ROWS), "`data` is of type `list`; expected a path"),
        (lambda path: glmtune.check_data(ROWS, "demo"), "`data` is of type `list`; expected a path"),
        (lambda path: glmtune.convert_data(ROWS, path), "`data` is of type `list`; expected a path"),
        (lambda path: glmtune.train(ROWS, "demo", path), "`data_dir` is of type `list`; expected a path"),
        (lambda path: glmtune.train(path, "demo", [1]), "`config` is of type `list`; expected a path"),
        (lambda path: glmtune.train(path, "demo", path, overrides="a=b"), A_STRING),
        (lambda path: glmtune.prepare_data(path, "demo", path, overrides="a=b"), A_STRING),
        (lambda path: glmtune.prepare_data(ROWS, "demo", path), "`data_dir` is of type `list`; expected a path"),
        (lambda path: glmtune.estimate("demo", path, overrides="a=b"), A_STRING),
        (lambda path: glmtune.export("demo", ["out"]), "`out` is of type `list`; expected a path"),
        (lambda path: glmtune.export("demo", "out", prompts=["a"]), "`prompts` is of type `list`; expected a path"),
    ],
)  # fmt: skip
def test_what_is_no_path_is_told_by_its_name(call, message: str, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch()
    with pytest.raises(GlmtuneError) as caught:
        call(path)
    assert caught.value.what == message


def test_rows_in_the_place_of_a_file_come_with_a_way_out() -> None:
    with pytest.raises(GlmtuneError, match=r"hint: write the rows into a file, one line of JSON each"):
        glmtune.evaluate("demo", ROWS)


@pytest.mark.parametrize("value", [0, -1, 1.5, "1", True])
@pytest.mark.parametrize("name", ["batch_size", "limit", "max_input_length"])
def test_a_count_that_is_none_is_named(name: str, value: Any, tmp_path: Path) -> None:
    with pytest.raises(GlmtuneError, match=f"`{name}` is .*; expected a whole number, 1 or more"):
        glmtune.evaluate("demo", tmp_path / "rows.jsonl", **{name: value})


@pytest.mark.parametrize("value", [0, "2"])
def test_a_batch_of_no_prompts_is_named(value: Any) -> None:
    with pytest.raises(GlmtuneError, match="`batch_size` is"):
        glmtune.generate("demo", ["a"], batch_size=value)


@pytest.mark.parametrize("value", [-1, 2**64, "1"])
def test_a_seed_that_torch_cannot_take_is_named(value: Any) -> None:
    with pytest.raises(GlmtuneError, match=r"`seed` is .*; expected a whole number from 0 to"):
        glmtune.generate("demo", ["a"], seed=value)


@pytest.mark.parametrize("columns", ["instruction=question", ["instruction"]])
def test_columns_without_keys_are_named(columns: Any, tmp_path: Path) -> None:
    with pytest.raises(GlmtuneError, match=r"`columns` is of type `.*`; expected keys and values"):
        glmtune.convert_data(tmp_path / "rows.jsonl", tmp_path / "out.jsonl", columns=columns)


@pytest.mark.parametrize("overrides", [[1], "a=b", 5])
def test_overrides_that_are_no_list_of_texts_are_named(overrides: Any, tmp_path: Path) -> None:
    with pytest.raises(GlmtuneError, match="expected a list of texts"):
        load_config(tmp_path / "run.yaml", overrides)
