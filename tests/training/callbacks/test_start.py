"""What could fail after hours is found before the first step, and no run ends without one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import Seq2SeqTrainer

from glmtune import resume, train
from glmtune.config.run_config import config_from_mapping
from glmtune.errors import GlmtuneError, RunFailure
from glmtune.kernels.loss import LabelledLoss
from glmtune.modeling.finding.model_source import find_model
from glmtune.processes import group_watch
from glmtune.training.callbacks import first_save
from glmtune.training.trainer import GlmTrainer


def error_of(training_args: dict[str, Any]) -> str:
    with pytest.raises(GlmtuneError) as caught:
        config_from_mapping(
            {"data_config": {"train_file": "a.jsonl"}, "training_args": training_args}, where="run.yaml"
        )
    return caught.value.what


@pytest.mark.parametrize(
    ("arguments", "key"),
    [
        ({"max_steps": 0}, "max_steps"),
        ({"max_steps": -2}, "max_steps"),
        ({"num_train_epochs": 0}, "num_train_epochs"),
        ({"num_train_epochs": -1}, "num_train_epochs"),
        ({"num_train_epochs": float("nan")}, "num_train_epochs"),
        ({"num_train_epochs": float("inf")}, "num_train_epochs"),
        ({"num_train_epochs": 0, "max_steps": -1}, "num_train_epochs"),
        ({"learning_rate": -1e-4}, "learning_rate"),
        ({"learning_rate": 0}, "learning_rate"),
        ({"learning_rate": 0.0}, "learning_rate"),
        ({"learning_rate": float("inf")}, "learning_rate"),
        ({"learning_rate": float("nan")}, "learning_rate"),
        ({"weight_decay": -0.1}, "weight_decay"),
        ({"adam_beta1": 1.0}, "adam_beta1"),
        ({"label_smoothing_factor": 1.5}, "label_smoothing_factor"),
        ({"max_grad_norm": -1}, "max_grad_norm"),
        ({"warmup_steps": -1}, "warmup_steps"),
        ({"logging_steps": 0}, "logging_steps"),
        ({"save_steps": 0}, "save_steps"),
        ({"save_steps": -5}, "save_steps"),
        ({"seed": -1}, "seed"),
        ({"data_seed": -1}, "data_seed"),
        ({"save_total_limit": -1}, "save_total_limit"),
        ({"dataloader_num_workers": -1}, "dataloader_num_workers"),
    ],
)
def test_a_number_that_no_training_can_go_on_with_is_an_error_of_the_configuration(
    arguments: dict[str, Any], key: str
) -> None:
    assert error_of(arguments).startswith(f"`training_args.{key}`: expected ")


@pytest.mark.parametrize(
    "arguments",
    [
        {"max_steps": 1},
        {"max_steps": -1, "num_train_epochs": 0.001},
        {"max_steps": 5, "num_train_epochs": 0},
        {"learning_rate": 1e-12, "weight_decay": 0, "max_grad_norm": 0, "eval_steps": 0, "seed": 0, "data_seed": 0},
    ],
)
def test_a_number_at_its_limit_passes(arguments: dict[str, Any]) -> None:
    source = {"data_config": {"train_file": "a.jsonl"}, "training_args": arguments}
    config = config_from_mapping(source, where="run.yaml")
    assert {key: config.training_args[key] for key in arguments} == arguments


@pytest.mark.parametrize("warmup", [1, 5000, 0.03])
def test_a_warm_up_that_leaves_one_step_at_rate_0_is_refused(warmup: float) -> None:
    assert error_of({"max_steps": 1, "warmup_steps": warmup}).startswith(
        "`training_args.warmup_steps`: the learning rate of a warm-up begins at 0, and `max_steps: 1`"
    )
    for arguments in ({"max_steps": 2}, {"max_steps": 1, "lr_scheduler_type": "constant"}):
        config_from_mapping(
            {"data_config": {"train_file": "a.jsonl"}, "training_args": arguments | {"warmup_steps": warmup}},
            where="run.yaml",
        )


def test_a_small_share_of_an_epoch_trains_one_step(demo_data: Path, write_config) -> None:
    run = train(demo_data, "demo", write_config(max_steps=-1, num_train_epochs=0.001, eval_strategy="no"))
    assert (run / "checkpoint-1").is_dir()


@pytest.mark.parametrize("top", [{}, {"tokens_per_batch": 256}])
def test_rows_that_are_all_left_out_end_the_run_before_the_model_is_loaded(
    top: dict[str, Any], demo_data: Path, write_config, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    config = write_config(
        top=top,
        dataloader_drop_last=True,
        eval_strategy="no",
        per_device_train_batch_size=1 if top else 50,
        gradient_accumulation_steps=100 if top else 1,
    )
    with pytest.raises(GlmtuneError, match="`dataloader_drop_last` leaves out every row") as caught:
        train(demo_data, "demo", config)
    assert "there are 40 rows in all" in caught.value.what
    assert "parameters are trained" not in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_run_that_comes_to_its_end_without_a_step_is_an_error(
    demo_data: Path, write_config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Seq2SeqTrainer, "train", lambda self, *_, **__: True)
    with pytest.raises(GlmtuneError, match="no step was taken"):
        train(demo_data, "demo", write_config(eval_strategy="no"))
    assert not (tmp_path / "run").exists()


def test_a_checkpoint_that_cannot_be_saved_ends_the_run_before_the_first_step(
    demo_data: Path, write_config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise ValueError("this cannot be written")

    monkeypatch.setattr("transformers.PreTrainedTokenizerBase.save_pretrained", refuse)
    with pytest.raises(GlmtuneError, match=r"could not be saved, .* first step shows: this cannot be written"):
        train(demo_data, "demo", write_config(eval_strategy="no"))
    assert "step 1/" not in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("largest", [10**9, 0])
@pytest.mark.parametrize("method", ["lora", "ptuning_v2", "sft"])
def test_the_trial_of_a_save_leaves_no_trace_and_changes_no_loss(
    largest: int,
    method: str,
    demo_data: Path,
    write_config,
    monkeypatch: pytest.MonkeyPatch,
    read_losses,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(first_save, "LARGEST_TRIAL_BYTES", largest)
    config = write_config(method, max_steps=2, save_steps=2, eval_strategy="no")
    run = train(demo_data, "demo", config)
    assert not (run / ".saving").exists()
    with_trial = read_losses(run)
    monkeypatch.setattr("glmtune.training.callbacks.around_steps.try_saving", lambda trainer: None)
    shutil.rmtree(run)
    assert read_losses(train(demo_data, "demo", config)) == with_trial


def test_weights_that_do_not_come_back_whole_are_found_by_the_trial(
    demo_data: Path, write_config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(first_save, "saved_shapes", lambda model: {"a.weight": (10**7,)})
    with pytest.raises(RunFailure, match=r"weight `a\.weight` was not saved"):
        train(demo_data, "demo", write_config(eval_strategy="no"))


@pytest.mark.parametrize("split", ["val_file", "test_file"])
def test_generation_that_fails_is_found_before_the_first_step(
    split: str, demo_data: Path, write_config, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    config = write_config(
        top={"data_config": {"train_file": "train.jsonl", split: "dev.jsonl"}},
        eval_strategy="no",
        predict_with_generate=True,
        generation_config={"max_new_tokens": 4, "cache_implementation": "quantized"},
    )
    with pytest.raises(GlmtuneError, match="an evaluation of two rows, tried before the first step, fails") as caught:
        train(demo_data, "demo", config)
    assert caught.value.where == "training_args.generation_config"
    assert "step 1/" not in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("method", ["lora", "sft"])
def test_a_models_own_generation_settings_are_such_that_checkpoints_can_be_saved(
    method: str, demo_data: Path, write_config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tmp_path / "model"
    shutil.copytree(find_model("demo").base, model)
    path = model / "generation_config.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    idle = {"do_sample": False, "temperature": 0.9, "top_p": 0.6, "length_penalty": 2.0, "early_stopping": True}
    path.write_text(json.dumps(settings | idle | {"num_beams": 1, "output_scores": True}), encoding="utf-8")
    run = train(demo_data, str(model), write_config(method, max_steps=1, save_steps=1, eval_strategy="no"))
    saved = json.loads((run / "checkpoint-1" / "generation_config.json").read_text(encoding="utf-8"))
    assert not {"temperature", "top_p", "length_penalty", "early_stopping", "output_scores"} & saved.keys()

    monkeypatch.setattr("glmtune.modeling.loading.drop_idle_options", lambda config: None)
    shutil.rmtree(run)
    with pytest.raises(GlmtuneError, match=r"`generation_config\.json` cannot be saved with a checkpoint") as caught:
        train(demo_data, str(model), write_config(method, max_steps=1, eval_strategy="no"))
    assert caught.value.where == str(model)
    assert not run.exists()


def test_a_run_without_optimizer_in_its_checkpoints_is_not_resumed(demo_data: Path, write_config) -> None:
    run = train(demo_data, "demo", write_config(save_only_model=True, max_steps=4, save_steps=2, eval_strategy="no"))
    assert not (run / "checkpoint-2" / "optimizer.pt").exists()
    shutil.rmtree(run / "checkpoint-4")
    for options in ({}, {"verify": True}, {"overrides": ["training_args.save_only_model=false"]}):
        with pytest.raises(GlmtuneError) as caught:
            resume(run, **options)
        assert str(caught.value) == (
            "`checkpoint-2` holds no optimizer, because the run was trained with `save_only_model: true`\n"
            f"  --> {run / 'checkpoint-2'}\n"
            "hint: a run cannot be resumed from it; to begin anew with its weights: "
            f"`glmtune train DATA_DIR MODEL CONFIG --init-from {run / 'checkpoint-2'}`"
        )


@pytest.mark.parametrize("number", [float("inf"), float("-inf"), float("nan")])
def test_a_loss_that_is_not_finite_ends_the_run(
    number: float, demo_data: Path, write_config, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    summed = LabelledLoss.summed

    def broken(self: LabelledLoss, model: Any, *arguments: Any, **options: Any) -> Any:
        loss = summed(self, model, *arguments, **options)
        return loss + number if model.training else loss

    monkeypatch.setattr(LabelledLoss, "summed", broken)
    with pytest.raises(RunFailure, match=f"the loss became {number} at step 1; nothing of this step was saved"):
        train(demo_data, "demo", write_config(eval_strategy="no"))
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("failing_evaluations")
def test_evaluations_that_fail_at_one_step_are_told_apart_by_the_processes(
    demo_data: Path, write_config, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    monkeypatch.setattr(group_watch, "is_everywhere", lambda event: not events.append(event))
    files = {"train_file": "train.jsonl", "val_file": "dev.jsonl", "test_file": "test.jsonl"}
    train(demo_data, "demo", write_config(max_steps=2, eval_steps=2, top={"data_config": files}))
    assert len(events) == 2  # of the validation rows and of the test rows, both at step 2
    assert len(set(events)) == 2


@pytest.mark.usefixtures("failing_evaluations")
def test_every_process_writes_its_failed_evaluations_into_a_file_of_its_own(
    demo_data: Path, write_config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(GlmTrainer, "is_world_process_zero", lambda self: False)
    run = train(demo_data, "demo", write_config(max_steps=2, eval_steps=2))
    assert "Traceback" in (run / "evaluation-failures-0.log").read_text(encoding="utf-8")
    assert not (run / "evaluation-failures.log").exists()
