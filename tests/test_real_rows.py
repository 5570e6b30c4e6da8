"""The shipped configurations on published rows, with GLM-4's real tokenizer and a small random GLM."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from json_lines import json_lines
from transformers import GlmConfig, GlmForCausalLM

from glmtune import evaluate, generate, resume, train

REPOSITORY = Path(__file__).parents[1]
REDUCED = [
    "training_args.max_steps=4",
    "training_args.save_steps=2",
    "training_args.eval_steps=4",
    "training_args.logging_steps=1",
    "training_args.per_device_train_batch_size=2",
    "training_args.generation_config.max_new_tokens=8",
    "max_input_length=96",
    "max_output_length=64",
    "data_config.val_file=dev.jsonl",
    "data_config.test_file=null",
]


@pytest.fixture(scope="module")
def small_glm(glm_tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the real tokenizer and two random layers over the real vocabulary of 151,552."""
    folder = tmp_path_factory.mktemp("small-glm")
    config = GlmConfig(
        vocab_size=151552, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, attention_bias=True, pad_token_id=glm_tokenizer.pad_token_id,
        eos_token_id=glm_tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|user|>", "<|observation|>"]),
    )  # fmt: skip
    torch.manual_seed(0)
    GlmForCausalLM(config).save_pretrained(folder)
    glm_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def advertisegen(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All training rows, and the first 12 of the others."""
    folder = tmp_path_factory.mktemp("advertisegen")
    shutil.copy(shared_data / "AdvertiseGen" / "train.jsonl", folder)
    rows = (shared_data / "AdvertiseGen" / "dev.jsonl").read_text(encoding="utf-8").splitlines()[:12]
    (folder / "dev.jsonl").write_text("\n".join(rows), encoding="utf-8")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lora", "ptuning_v2", "sft"])
def test_a_shipped_configuration_trains_resumes_evaluates_and_infers(
    name: str, small_glm: Path, advertisegen: Path, tmp_path: Path
) -> None:
    overrides = [*REDUCED, f"training_args.output_dir={tmp_path / 'run'}"]
    run = train(advertisegen, str(small_glm), REPOSITORY / "configs" / f"{name}.yaml", overrides=overrides)
    lines = json_lines(run / "metrics.jsonl")
    losses = {line["step"]: line["loss"] for line in lines if "loss" in line}
    assert set(losses) == {1, 2, 3, 4}
    assert any("eval_bleu-4" in line for line in lines)
    shutil.rmtree(run / "checkpoint-4")
    resume(run)
    again = json_lines(run / "metrics.jsonl")
    assert {line["step"]: line["loss"] for line in again if "loss" in line} == losses
    assert len(again) == len(lines)
    scores = evaluate(str(run), advertisegen / "dev.jsonl", limit=4, max_new_tokens=4)
    assert scores.metrics["loss"] > 0
    assert len(generate(str(run / "checkpoint-4"), ["类型#裙"], max_new_tokens=4)) == 1
