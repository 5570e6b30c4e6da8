"""A run from Python without a configuration: what fits the rows, kept beside the run."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

import glmtune
from glmtune.errors import GlmtuneError


@pytest.fixture
def rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A CSV file in the current folder, whose columns no format names."""
    monkeypatch.chdir(tmp_path)
    lines = [f"衬衫 {number} 还有货吗？,有的" for number in range(12)]
    path = tmp_path / "kefu.csv"
    path.write_text("\n".join(["客人,店员", *lines]), encoding="utf-8")
    return path


COLUMNS = {"instruction": "客人", "output": "店员"}


def test_rows_and_a_model_are_enough(rows: Path) -> None:
    run = glmtune.train(rows, "demo", method="sft", columns=COLUMNS, overrides=["training_args.max_steps=2"])
    assert run.resolve() == rows.parent / "runs" / "kefu-sft"
    kept = yaml.safe_load((run / "fitted-config.yaml").read_text(encoding="utf-8"))
    assert kept["data_config"]["columns"] == COLUMNS
    assert kept["data_config"]["train_file"] == "kefu.csv"
    assert kept["peft_config"] is None
    assert (run / "checkpoint-2").is_dir()


def test_columns_are_read_beside_a_configuration(rows: Path) -> None:
    config = {
        "data_config": {"train_file": "kefu.csv"},
        "training_args": {"output_dir": "runs/own", "max_steps": 1, "per_device_train_batch_size": 2},
    }
    run = glmtune.train(rows.parent, "demo", config, columns=COLUMNS)
    recorded = (run / "run.yaml").read_text(encoding="utf-8")
    assert "instruction: 客人" in recorded


def test_a_method_beside_a_configuration_is_refused(rows: Path) -> None:
    with pytest.raises(GlmtuneError, match="is for a run without CONFIG, whose file says what is trained"):
        glmtune.train(rows.parent, "demo", {}, method="lora")


def test_one_of_several_processes_needs_a_configuration(rows: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(GlmtuneError, match="several processes need a configuration, the same for all of them"):
        glmtune.train(rows, "demo")
    assert not (rows.parent / "runs").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"overrides": "a=b"}, "`overrides` is of type `str`; expected a list of texts"),
        ({"columns": ["instruction"]}, "`columns` is of type `list`; expected keys and values"),
        ({"method": "lore"}, r"there is no method `lore` \(did you mean `lora`\?\)"),
    ],
)
def test_slips_are_named_before_anything_is_read(arguments: dict, message: str, rows: Path) -> None:
    with pytest.raises(GlmtuneError, match=message):
        glmtune.train(rows, "demo", **arguments)
    assert not (rows.parent / "runs").exists()
