"""DeepSpeed's configuration file: what cannot be saved or trained is told before anything runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from glmtune import train
from glmtune.config import load_config
from glmtune.errors import GlmtuneError

CONFIGS = Path(__file__).parents[2] / "configs"


def write(folder: Path, content: Any) -> Path:
    path = folder / "ds.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


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


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("ds_*.json")), ids=lambda path: path.name)
@pytest.mark.parametrize("name", ["lora.yaml", "ptuning_v2.yaml", "sft.yaml"])
def test_every_shipped_configuration_finds_every_shipped_file_by_its_name(
    name: str, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = load_config(CONFIGS / name, [f"training_args.deepspeed={path.name}"])
    assert config.training_args["deepspeed"] == str(path)
