"""A run whose steps change no weight does not end as if it had trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from glmtune import resume, train
from glmtune.errors import GlmtuneError
from glmtune.kernels.loss import LabelledLoss
from glmtune.training.callbacks import learning

ONE_EPOCH = {"max_steps": -1, "num_train_epochs": 0.001, "warmup_steps": 0.03}
"""One step, which no rule of the configuration can know."""

WITHOUT_DROPOUT = {"peft_type": "LORA", "r": 4, "lora_alpha": 8}


@pytest.mark.parametrize(
    ("arguments", "where"),
    [
        (ONE_EPOCH, "training_args.warmup_steps"),
        (
            {
                "max_steps": 2,
                "lr_scheduler_type": "warmup_stable_decay",
                "warmup_steps": 0,
                "lr_scheduler_kwargs": {"num_decay_steps": 0, "num_stable_steps": 0},
            },
            "training_args.lr_scheduler_kwargs",
        ),
    ],
)
def test_a_rate_of_0_at_every_step_is_told_before_the_first(
    arguments: dict[str, Any], where: str, demo_data: Path, write_config, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    with pytest.raises(GlmtuneError, match="the learning rate is 0 at every step of this run") as caught:
        train(demo_data, "demo", write_config(eval_strategy="no", **arguments))
    assert caught.value.where == where
    assert "step 1/" not in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("warmup", "is_noted"), [(5000, True), (2, True), (1, False)])
def test_a_warm_up_that_outlasts_the_run_is_noted(
    warmup: int, is_noted: bool, demo_data: Path, write_config, capsys: pytest.CaptureFixture
) -> None:
    train(demo_data, "demo", write_config(eval_strategy="no", max_steps=2, warmup_steps=warmup))
    line = f"note: the warm-up takes {warmup:,} steps, and the run has 2: its learning rate reaches "
    assert (line in capsys.readouterr().err) == is_noted


@pytest.mark.parametrize("method", ["lora", "sft"])
def test_gradients_of_0_are_an_error_at_the_end_although_weights_decay(
    method: str, demo_data: Path, write_config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    summed = LabelledLoss.summed
    monkeypatch.setattr(LabelledLoss, "summed", lambda *args, **options: summed(*args, **options) * 0)
    monkeypatch.setattr(learning, "NUM_STEPS_TO_SAY_SO", 2)
    config = write_config(method, eval_strategy="no", max_steps=3, weight_decay=0.1)
    with pytest.raises(GlmtuneError, match="no step has changed a weight: at every step the gradients were 0"):
        train(demo_data, "demo", config)
    told = capsys.readouterr().err
    assert "note: none of the 2 steps so far has changed a weight" in told
    assert "done:" not in told
    assert (tmp_path / "run" / "checkpoint-3").is_dir()


def test_steps_too_small_for_the_weights_are_an_error(demo_data: Path, write_config) -> None:
    config = write_config("sft", eval_strategy="no", max_steps=1, learning_rate=1e-60)
    with pytest.raises(GlmtuneError, match=r"no step has changed a weight: .* too small for the type of the weights"):
        train(demo_data, "demo", config)


def test_a_rate_that_a_scheduler_of_another_kind_brings_to_0_is_an_error(
    demo_data: Path, write_config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(learning, "_check_rates", lambda *_: None)
    with pytest.raises(GlmtuneError, match="no step has changed a weight: the learning rate was 0 at every step"):
        train(demo_data, "demo", write_config(eval_strategy="no", **ONE_EPOCH))


def test_a_run_whose_first_step_only_warms_up_has_learnt(demo_data: Path, write_config) -> None:
    config = write_config(eval_strategy="no", max_steps=2, warmup_steps=1, top={"peft_config": WITHOUT_DROPOUT})
    assert (train(demo_data, "demo", config) / "checkpoint-2").is_dir()


def test_the_last_steps_of_a_resumed_run_may_lie_where_the_rate_is_0(demo_data: Path, write_config) -> None:
    decay = {"lr_scheduler_type": "warmup_stable_decay", "warmup_steps": 0, "max_steps": 4, "save_steps": 2}
    decay |= {"lr_scheduler_kwargs": {"num_stable_steps": 1, "num_decay_steps": 1}}
    run = train(demo_data, "demo", write_config(eval_strategy="no", **decay))
    for path in (run / "checkpoint-4").iterdir():
        path.unlink()
    (run / "checkpoint-4").rmdir()
    assert resume(run) == run


def test_rows_that_all_weigh_nothing_are_told_before_the_first_step(
    write_config, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    row = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "loss": 0}]}
    (tmp_path / "train.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    config = write_config(eval_strategy="no", top={"data_config": {"train_file": "train.jsonl"}})
    with pytest.raises(GlmtuneError):
        train(tmp_path, "demo", config)
    assert "step 1/" not in capsys.readouterr().err
