"""DeepSpeed's configuration file: what cannot be saved or trained is told before anything runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from glmtune import train
from glmtune.config.run_config import load_config
from glmtune.errors import GlmtuneError
from glmtune.training.distributed.sharding import check_sharding, zero_stage
from glmtune.training.folder.changes import asked_settings

CONFIGS = Path(__file__).parents[3] / "configs"


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


CONTRADICTIONS = [
    ({"train_micro_batch_size_per_gpu": 8}, "`train_micro_batch_size_per_gpu` is 8, "
     "but `training_args.per_device_train_batch_size` is 2"),
    ({"gradient_accumulation_steps": 4}, "`gradient_accumulation_steps` is 4, "
     "but `training_args.gradient_accumulation_steps` is 2"),
    ({"train_batch_size": 32}, "`train_batch_size` is 32, but rows, accumulation and processes make 4"),
    ({"gradient_clipping": 0.5}, "`gradient_clipping` is 0.5, but `training_args.max_grad_norm` is 1.0"),
    ({"fp16": {"enabled": True}}, "`fp16.enabled` is true, but `training_args.fp16` is false"),
    ({"bf16": {"enabled": True}}, "`bf16.enabled` is true, but `training_args.bf16` is false"),
    ({"optimizer": {"type": "AdamW", "params": {"lr": 0.5}}}, "`optimizer.params.lr` is 0.5, "
     "but `training_args.learning_rate` is 0.001"),
    ({"optimizer": {"type": "AdamW", "params": {"betas": [0.5, 0.9]}}}, "`optimizer.params.betas` is [0.5, 0.9], "
     "but `training_args.adam_beta1` and `adam_beta2` are [0.9, 0.999]"),
    ({"optimizer": {"type": "AdamW", "params": {"weight_decay": 0.5}}}, "`optimizer.params.weight_decay` is 0.5, "
     "but `training_args.weight_decay` is 0.0"),
    ({"scheduler": {"type": "WarmupLR", "params": {"warmup_max_lr": 5}}}, "`scheduler.params.warmup_max_lr` is 5, "
     "but `training_args.learning_rate` is 0.001"),
]  # fmt: skip


@pytest.mark.parametrize(("content", "problem"), CONTRADICTIONS)
def test_a_file_that_contradicts_the_configuration_is_told_with_its_key(
    write_config, tmp_path: Path, content: dict[str, Any], problem: str
) -> None:
    path = write(tmp_path, {"zero_optimization": {"stage": 2}, **content})
    with pytest.raises(GlmtuneError) as caught:
        check_sharding(load_config(write_config(deepspeed=str(path))))
    assert caught.value.what == f"DeepSpeed's file contradicts the configuration: {problem}"
    assert caught.value.where == str(path)


def test_all_contradictions_are_told_at_once_and_auto_is_none(write_config, tmp_path: Path) -> None:
    both = {"train_micro_batch_size_per_gpu": 8, "fp16": {"enabled": True, "loss_scale": 0}}
    path = write(tmp_path, {"zero_optimization": {"stage": 2}, **both})
    with pytest.raises(GlmtuneError, match=r"`train_micro_batch_size_per_gpu` is 8.*; `fp16\.enabled` is true"):
        check_sharding(load_config(write_config(deepspeed=str(path))))
    path = write(
        tmp_path,
        {
            "zero_optimization": {"stage": 2, "reduce_bucket_size": "auto"},
            **{"train_micro_batch_size_per_gpu": "auto", "train_batch_size": 4, "gradient_clipping": 1},
            **{"fp16": {"enabled": "auto"}, "bf16": {"enabled": False}},
        },
    )
    check_sharding(load_config(write_config(deepspeed=str(path))))


@pytest.mark.parametrize(
    ("zero", "problem"),
    [
        ({"stage": 2, "offload_optimizer": "cpu"}, "offload_optimizer"),
        ({"stage": 2, "reduce_bucket_size": "much"}, "reduce_bucket_size"),
        ({"stage": 2, "reduce_bucket_sise": 5}, "reduce_bucket_sise"),
        ([1], "`zero_optimization` is [1]; expected an object"),
    ],
)
def test_what_deepspeed_itself_refuses_is_told_before_anything_is_loaded(
    write_config, tmp_path: Path, zero: Any, problem: str
) -> None:
    path = write(tmp_path, {"zero_optimization": zero})
    with pytest.raises(GlmtuneError) as caught:
        check_sharding(load_config(write_config(deepspeed=str(path))))
    assert problem in caught.value.what
    assert caught.value.where == str(path)


def test_a_file_that_begins_with_a_byte_order_mark_is_read(write_config, tmp_path: Path) -> None:
    path = tmp_path / "ds.json"
    path.write_text(json.dumps({"zero_optimization": {"stage": 2}}), encoding="utf-8-sig")
    config = load_config(write_config(deepspeed=str(path)))
    check_sharding(config)
    assert zero_stage(config) == 2
    assert asked_settings(config)["training_args"]["deepspeed"] == {"zero_optimization": {"stage": 2}}


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("ds_*.json")), ids=lambda path: path.name)
@pytest.mark.parametrize("name", ["lora.yaml", "ptuning_v2.yaml", "sft.yaml"])
def test_every_shipped_configuration_finds_every_shipped_file_by_its_name(
    name: str, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = load_config(CONFIGS / name, [f"training_args.deepspeed={path.name}"])
    assert config.training_args["deepspeed"] == str(path)
