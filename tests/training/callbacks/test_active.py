"""The line that says what a run really trains with."""

from __future__ import annotations

from pathlib import Path

import pytest

from glmtune import train


def active_line(told: str) -> str:
    """Return the one line of a run's output that says what is active."""
    (line,) = [line for line in told.splitlines() if line.startswith("active: ")]
    return line


def test_a_run_says_once_what_is_active(demo_data: Path, write_config, capsys) -> None:
    train(demo_data, "demo", write_config(max_steps=1, eval_strategy="no", use_cpu=True, optim="adamw_torch"))
    assert active_line(capsys.readouterr().err) == (
        "active: attention packed_sdpa, loss fused over labelled positions, layers fused (norms, MLPs, LoRA), "
        "weights float32 (trained float32), checkpointing off, packing on, optimizer adamw_torch"
    )


@pytest.mark.parametrize("key", ["gradient_checkpointing", "activation_checkpointing"])
def test_the_line_is_read_off_the_model(key: str, demo_data: Path, write_config, capsys) -> None:
    top = {"attn_implementation": "eager", "model_dtype": "bfloat16"}
    settings = {key: True, "optim": "adafactor", "use_cpu": True, "max_steps": 1, "eval_strategy": "no"}
    train(demo_data, "demo", write_config(top=top, **settings))
    assert active_line(capsys.readouterr().err) == (
        "active: attention eager, loss fused over labelled positions, layers fused (norms, MLPs, LoRA), "
        "weights bfloat16 (trained float32), checkpointing on, packing on, optimizer adafactor"
    )


@pytest.mark.parametrize("method", ["lora", "ptuning_v2", "sft"])
def test_in_bfloat16_rows_are_packed_although_kernels_round_in_different_ways(
    method: str, demo_data: Path, write_config, capsys
) -> None:
    train(demo_data, "demo", write_config(method, max_steps=1, eval_strategy="no", use_cpu=True, bf16=True))
    assert "packing on" in active_line(capsys.readouterr().err)


def test_padding_and_logits_are_named_where_they_were_asked_for(demo_data: Path, write_config, capsys) -> None:
    top = {"packing": False, "loss_kernel": "logits", "fused_layers": False}
    train(demo_data, "demo", write_config(max_steps=1, eval_strategy="no", use_cpu=True, top=top))
    line = active_line(capsys.readouterr().err)
    assert line.startswith("active: attention sdpa, loss logits of labelled positions, ")
    assert "packing off" in line
    assert "layers" not in line


def test_weights_that_are_all_trained_have_one_type(demo_data: Path, write_config, capsys) -> None:
    train(demo_data, "demo", write_config("sft", max_steps=1, eval_strategy="no", use_cpu=True))
    assert "weights float32, checkpointing off" in active_line(capsys.readouterr().err)
