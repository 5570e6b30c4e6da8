"""DeepSpeed's configuration file: what cannot be saved or trained is told before anything runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from glmtune import train
from glmtune.errors import GlmtuneError
from glmtune.training.arguments import _deepspeed_settings

CONFIGS = Path(__file__).parents[2] / "configs"


def write(folder: Path, content: Any) -> Path:
    path = folder / "ds.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("ds_*.json")), ids=lambda path: path.name)
def test_the_shipped_files_are_taken_as_they_are(path: Path) -> None:
    notes: list[str] = []
    assert _deepspeed_settings(path, notes.append) == json.loads(path.read_text(encoding="utf-8"))
    assert not notes


def test_zero_3_is_made_to_save_whole_weights(tmp_path: Path) -> None:
    notes: list[str] = []
    settings = _deepspeed_settings(write(tmp_path, {"zero_optimization": {"stage": 3}}), notes.append)
    assert settings == {"zero_optimization": {"stage": 3, "stage3_gather_16bit_weights_on_model_save": True}}
    assert notes == ["`stage3_gather_16bit_weights_on_model_save` is set to true: `ds.json` would save empty weights"]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ({}, "`zero_optimization.stage` is 0; expected 1, 2 or 3"),
        ({"zero_optimization": {"stage": "three"}}, '`zero_optimization.stage` is "three"; expected 1, 2 or 3'),
    ],
)
def test_a_file_that_cannot_be_trained_with_is_told(
    demo_data: Path, write_config, tmp_path: Path, content: Any, problem: str
) -> None:
    path = write(tmp_path, content)
    with pytest.raises(GlmtuneError) as caught:
        train(demo_data, "demo", write_config(deepspeed=str(path)))
    assert str(caught.value).startswith(problem)
    assert caught.value.where == str(path)
    assert not (tmp_path / "run").exists()
