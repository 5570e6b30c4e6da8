"""Results as data frames of pandas."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pandas
import pytest

import glmtune
from glmtune.errors import GlmtuneError
from glmtune.evaluation.evaluate import Scores
from glmtune.evaluation.predictions import Prediction
from glmtune.reports.metrics_file import append_log

CONFIG = {"data_config": {"train_file": "train.jsonl"}, "training_args": {"output_dir": "runs/a"}}


def test_what_is_logged_at_one_step_is_one_row(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    append_log(path, 2, {"loss": 2.0, "learning_rate": 0.1})
    append_log(path, 1, {"loss": 3.0})
    append_log(path, 2, {"eval_loss": 2.5})
    frame = glmtune.read_metrics(tmp_path)
    assert frame.index.name == "step"
    assert frame.index.tolist() == [1, 2]
    assert frame["loss"].tolist() == [3.0, 2.0]
    assert frame["eval_loss"].dropna().tolist() == [2.5]


def test_a_folder_without_figures_is_told(tmp_path: Path) -> None:
    with pytest.raises(GlmtuneError) as caught:
        glmtune.read_metrics(tmp_path)
    told = f"there is no `metrics.jsonl` with figures\n  --> {tmp_path}\nhint: give the folder of a run"
    assert str(caught.value) == told


def test_predictions_are_a_row_each() -> None:
    prediction = Prediction(where="a.jsonl:1", turn=0, prompt="a", reference="b", prediction="c")
    frame = Scores(metrics={"loss": 1.0}, predictions=(prediction,)).to_pandas()
    assert frame.to_dict("records")[0] == vars(prediction)
    assert frame.columns.tolist() == Scores(metrics={}).to_pandas().columns.tolist()


def test_ways_to_train_are_a_row_each() -> None:
    found = glmtune.estimate("demo", CONFIG, num_gpus=0)
    frame = found.to_pandas()
    assert len(frame) == len(found.rows)
    assert frame.loc[frame["is_configured"], "total"].tolist() == [found.configured.memory.total]


def test_where_pandas_is_not_installed_that_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for call in (lambda: glmtune.read_metrics(tmp_path), Scores(metrics={}).to_pandas):
        with pytest.raises(GlmtuneError) as caught:
            call()
        assert str(caught.value) == "`pandas` is not installed\nhint: run `pip install pandas` and try again"


def test_a_frame_in_the_place_of_a_file_comes_with_a_way_out() -> None:
    with pytest.raises(GlmtuneError) as caught:
        glmtune.check_data(pandas.DataFrame({"question": ["a"]}))
    assert str(caught.value) == (
        "`data` is of type `DataFrame`; expected a path\nhint: write it into a file: "
        '`frame.to_json("rows.jsonl", orient="records", lines=True, force_ascii=False)`'
    )
