r"""Paths that are not UTF-8: rows in such folders are trained on, models and runs are refused at the start."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from glmtune import GlmtuneError, evaluate, export, load_config, resume, train
from glmtune.modeling.finding.model_source import find_model

NAME = os.fsdecode("数据".encode("gbk"))
SHOWN = r"\xca\xfd\xbe\xdd"

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")


def test_a_run_on_such_rows_trains_and_is_resumed(demo_data: Path, demo_model: str, write_config, tmp_path) -> None:
    folder = tmp_path / NAME
    folder.symlink_to(demo_data)
    run = train(folder, demo_model, write_config(max_steps=1, save_steps=1, eval_strategy="no"))
    resume(run, overrides=["training_args.max_steps=2"], accept_changes=True)
    assert (run / "checkpoint-2").is_dir()


def test_predictions_name_the_rows(demo_data: Path, demo_model: str, tmp_path: Path) -> None:
    output = tmp_path / f"{NAME}-out.jsonl"
    (tmp_path / NAME).symlink_to(demo_data)
    evaluate(demo_model, tmp_path / NAME / "dev.jsonl", output=output, limit=1, max_new_tokens=1)
    assert SHOWN in json.loads(output.read_text(encoding="utf-8").splitlines()[0])["where"]


@pytest.mark.parametrize("what", ["model", "run", "export"])
def test_models_and_runs_need_a_path_in_utf_8(
    what: str, demo_model: str, demo_data: Path, write_config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / NAME
    (folder / "x").mkdir(parents=True)
    monkeypatch.chdir(folder)
    begin = {
        "model": lambda: find_model("./x"),
        "run": lambda: train(demo_data, demo_model, write_config(output_dir="x")),
        "export": lambda: export(demo_model, "x"),
    }[what]
    with pytest.raises(GlmtuneError) as caught:
        begin()
    assert str(caught.value) == (
        f"the path of the {what} `{tmp_path}/{SHOWN}/x` is not UTF-8, and the libraries that read and write models "
        "cannot open it\nhint: rename it"
    )
    assert not any((folder / "x").iterdir())


def test_a_value_that_is_not_utf_8_is_an_error(write_config) -> None:
    with pytest.raises(GlmtuneError) as caught:
        load_config(write_config(), [f"training_args.output_dir={NAME}"])
    assert str(caught.value) == (
        "`training_args.output_dir`: the value is not UTF-8\n"
        f"  --> --set training_args.output_dir={SHOWN}\n"
        "hint: rename the file or folder; a file of rows may also be named by its folder"
    )
