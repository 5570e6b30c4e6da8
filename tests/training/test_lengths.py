"""Rows may be no longer than the model's context: told before they are read."""

from __future__ import annotations

from pathlib import Path

import pytest

from glmtune import train
from glmtune.config import load_config
from glmtune.errors import GlmtuneError
from glmtune.modeling.sources import find_model
from glmtune.training.preparation import prepare_run
from glmtune.training.run_folder import RunRequest


@pytest.mark.parametrize(
    ("method", "lengths", "message"),
    [
        ("lora", (8000, 193), "`max_input_length` (8,000) and `max_output_length` (193) are 8,193 tokens together, "
         "and the model's context ends at 8,192"),
        ("ptuning_v2", (8000, 189), "`max_input_length` (8,000) and `max_output_length` (189), with 4 virtual tokens, "
         "are 8,193 tokens together, and the model's context ends at 8,192"),
    ],
)  # fmt: skip
def test_lengths_beyond_the_models_context_are_refused(
    method: str, lengths: tuple[int, int], message: str, write_config, demo_data: Path, tmp_path: Path
) -> None:
    path = write_config(method, top={"max_input_length": lengths[0], "max_output_length": lengths[1]})
    with pytest.raises(GlmtuneError) as caught:
        train(demo_data, "demo", path)
    assert caught.value.what == message
    assert not (tmp_path / "run").exists()
    fitting = load_config(path, [f"max_output_length={lengths[1] - 1}"])
    assert prepare_run(RunRequest(data_dir=demo_data, model="demo", config=fitting)).source == find_model("demo")


def test_an_adapter_on_the_untrained_demo_model_is_noted(write_config, demo_data: Path, capsys) -> None:
    train(demo_data, Path("demo"), write_config(max_steps=1), dry_run=True)
    assert "note: `demo` has random weights, and an adapter on them learns little: " in capsys.readouterr().err
    train(demo_data, "demo", write_config("sft", max_steps=1), dry_run=True)
    assert "random weights" not in capsys.readouterr().err
