"""Keys that other keys leave nothing to say are told, at their line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from glmtune.config.run_config import config_from_mapping, load_config
from glmtune.errors import GlmtuneError

EVALUATED: dict[str, Any] = {"eval_strategy": "steps"}


def notices(training: dict[str, Any] | None = None, peft: dict[str, Any] | None = None) -> list[str]:
    """Return what is said of a configuration."""
    lora = {"peft_type": "LORA", "r": 4} if peft is None else peft
    data = {"train_file": "a.jsonl", "val_file": "b.jsonl"}
    config = config_from_mapping(
        {"data_config": data, "training_args": training or {}, "peft_config": lora}, where="run.yaml"
    )
    return [line for line in config.notices if "nothing" in line or "worst" in line]


@pytest.mark.parametrize(
    ("training", "told"),
    [
        ({"eval_steps": 1}, "`training_args.eval_steps` does nothing: `eval_strategy` is `no`"),
        (
            {"eval_strategy": "epoch", "eval_steps": 1},
            "`training_args.eval_steps` does nothing: `eval_strategy` is `epoch`",
        ),
        ({"eval_delay": 3}, "`training_args.eval_delay` does nothing: `eval_strategy` is `no`"),
        ({"eval_on_start": True}, "`training_args.eval_on_start` does nothing: `eval_strategy` is `no`"),
        ({"save_strategy": "no", "save_steps": 1}, "`training_args.save_steps` does nothing: `save_strategy` is `no`"),
        (
            {"save_strategy": "epoch", "save_steps": 1},
            "`training_args.save_steps` does nothing: `save_strategy` is `epoch`",
        ),
        (
            {"logging_strategy": "epoch", "logging_steps": 1},
            "`training_args.logging_steps` does nothing: `logging_strategy` is `epoch`",
        ),
        (
            {"lr_scheduler_type": "constant", "warmup_steps": 3},
            "`training_args.warmup_steps` does nothing: `lr_scheduler_type` is `constant`",
        ),
        (
            {"optim_target_modules": ["q_proj"]},
            "`training_args.optim_target_modules` does nothing: only GaLore, APOLLO and LOMO read it",
        ),
        (
            {"gradient_checkpointing_kwargs": {"use_reentrant": True}},
            "_checkpointing` is off",
        ),
        (
            {"greater_is_better": True},
            "`training_args.greater_is_better` does nothing: none of `load_best_model_at_end`, "
            "`save_strategy: best`, `early_stopping_patience` asks for a best one",
        ),
        (
            EVALUATED
            | {"load_best_model_at_end": True, "greater_is_better": True, "metric_for_best_model": "eval_loss"},
            "`training_args.greater_is_better` is `true`, by which the worst `eval_loss` is the best",
        ),
        (
            EVALUATED | {"load_best_model_at_end": True, "greater_is_better": False, "metric_for_best_model": "bleu-4"},
            "`training_args.greater_is_better` is `false`, by which the worst `bleu-4` is the best",
        ),
    ],
    ids=str,
)
def test_a_key_that_others_leave_nothing_to_say_is_told(training: dict[str, Any], told: str) -> None:
    [line] = notices(training)
    assert line.endswith(told)


@pytest.mark.parametrize(
    "training",
    [
        {},
        EVALUATED | {"eval_steps": 1, "eval_delay": 2, "eval_on_start": True, "save_steps": 2, "logging_steps": 3},
        {"warmup_steps": 3, "lr_scheduler_type": "cosine"},
        {"warmup_steps": 3, "lr_scheduler_type": "constant_with_warmup"},
        {"warmup_steps": 0, "lr_scheduler_type": "constant"},
        {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}},
        EVALUATED | {"load_best_model_at_end": True, "greater_is_better": False},
        EVALUATED | {"load_best_model_at_end": True, "greater_is_better": True, "metric_for_best_model": "rouge-l"},
    ],
    ids=str,
)
def test_keys_that_are_read_are_not_told(training: dict[str, Any]) -> None:
    assert notices(training) == []


@pytest.mark.parametrize(
    ("peft", "reason"),
    [
        ({"fan_in_fan_out": True}, "PEFT sets it by the kind of each layer"),
        ({"loftq_config": {"loftq_bits": 4}}, "`init_lora_weights` is not `loftq`"),
        ({"qalora_group_size": 32}, "`use_qalora` is not set"),
        ({"ensure_weight_tying": True}, "neither `modules_to_save` nor `trainable_token_indices` trains a tied layer"),
    ],
)
def test_a_key_of_an_adapter_that_does_nothing_is_told(peft: dict[str, Any], reason: str) -> None:
    [line] = notices(peft={"peft_type": "LORA", "r": 4} | peft)
    [key] = peft
    assert line.endswith(f"`peft_config.{key}` does nothing: {reason}")


def test_an_encoder_of_a_prefix_is_told() -> None:
    [line] = notices(peft={"peft_type": "PREFIX_TUNING", "num_virtual_tokens": 4, "encoder_hidden_size": 64})
    assert line.endswith("does nothing: a prefix is trained directly, without an encoder")


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("output_dir", None, "expected a folder, found `null`"),
        ("output_dir", "", "expected a folder, found "),
        ("neftune_noise_alpha", -5, "expected a finite number, 0 or more, found `-5`"),
        (
            "dataloader_persistent_workers",
            True,
            "is for processes that read rows, and `dataloader_num_workers` is 0",
        ),
        ("dataloader_prefetch_factor", 2, "is for processes that read rows, and `dataloader_num_workers` is 0"),
    ],
)
def test_a_value_that_would_fail_later_is_refused(key: str, value: Any, told: str, tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump({"data_config": {"train_file": "a"}, "training_args": {key: value}}), "utf-8")
    with pytest.raises(GlmtuneError) as caught:
        load_config(path)
    assert str(caught.value).startswith(f"`training_args.{key}`: {told}")
    assert f"--> {path}:4" in str(caught.value)


def test_quantized_lora_of_gptq_is_refused_on_weights_that_are_whole() -> None:
    with pytest.raises(GlmtuneError, match="is for a model whose weights GPTQ has quantized"):
        notices(peft={"peft_type": "LORA", "use_qalora": True})


@pytest.mark.parametrize(
    ("peft", "told"),
    [
        ({"alora_invocation_tokens": [1, 2]}, "an activated LoRA trains only rows that hold these tokens"),
        ({"arrow_config": {}}, "it mixes adapters that were trained before"),
        ({"runtime_config": {}}, "it holds settings of a program"),
        ({"megatron_config": {"a": 1}}, "models sharded by Megatron are not supported"),
        (
            {"trainable_token_indices": [1], "modules_to_save": ["embed_tokens"]},
            "names rows of the embedding, which `modules_to_save: [embed_tokens]` trains as a whole",
        ),
    ],
)
def test_a_key_of_an_adapter_that_no_run_can_follow_is_refused(peft: dict[str, Any], told: str) -> None:
    with pytest.raises(GlmtuneError) as caught:
        notices(peft={"peft_type": "LORA", "r": 4} | peft)
    assert told in str(caught.value)
