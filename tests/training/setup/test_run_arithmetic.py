"""What a run multiplies in is chosen once, said, recorded, and kept when it goes on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from glmtune import resume, train
from glmtune.errors import GlmtuneError
from glmtune.kernels import arithmetic, wide_linear
from glmtune.training.setup.run_arithmetic import recorded_arithmetic

CHOICES = {
    "usual": {"loss": 9.0, "attention": 9.0, "layers": 1.0},
    "loss": {"loss": 0.5, "attention": 9.0, "layers": 1.0},
    "half": {"loss": 0.5, "attention": 0.5, "layers": 0.5},
    "wide": {"loss": 9.0, "attention": 9.0, "layers": 9.0},
}
"""How long bfloat16 takes where float32 takes 1."""
NAMES = {
    "usual": {"loss": "float32", "attention": "float32", "layers": "bfloat16"},
    "loss": {"loss": "bfloat16", "attention": "float32", "layers": "bfloat16"},
    "half": {"loss": "bfloat16", "attention": "bfloat16", "layers": "bfloat16"},
    "wide": {"loss": "float32", "attention": "float32", "layers": "float32"},
}
FUSED = "loss fused over labelled positions, computed in"
TOLD = {
    "usual": f"attention packed_sdpa, {FUSED} float32 (loss, attention) and bfloat16 (layers), ",
    "loss": f"attention packed_sdpa, {FUSED} bfloat16 (loss, layers) and float32 (attention), ",
    "half": f"attention packed_sdpa_bfloat16, {FUSED} bfloat16 (loss, attention, layers), ",
    "wide": f"attention packed_sdpa, {FUSED} float32 (loss, attention, layers), ",
}


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Return a function that puts other timings in the place of this machine's."""

    def be(choice: str) -> None:
        found = {part: {"float32": 1.0, "bfloat16": value} for part, value in CHOICES[choice].items()}
        monkeypatch.setenv("GLMTUNE_CACHE", str(tmp_path / f"cache-{choice}"))
        monkeypatch.setattr(arithmetic, "measure", lambda shapes: found)

    return be


def record_of(run: Path) -> dict[str, Any]:
    return yaml.safe_load((run / "run.yaml").read_text(encoding="utf-8"))


def active(told: str) -> str:
    (line,) = [line for line in told.splitlines() if line.startswith("active: ")]
    return line


@pytest.mark.parametrize("choice", CHOICES)
def test_the_choice_is_said_and_recorded(choice: str, demo_data: Path, write_config, machine, capsys) -> None:
    machine(choice)
    run = train(demo_data, "demo", write_config(max_steps=1, eval_strategy="no", use_cpu=True, bf16=True))
    assert active(capsys.readouterr().err).startswith(f"active: {TOLD[choice]}")
    assert record_of(run)["arithmetic"] == NAMES[choice]


def test_a_run_in_float32_has_nothing_to_choose(demo_data: Path, write_config, machine, capsys) -> None:
    machine("half")
    run = train(demo_data, "demo", write_config(max_steps=1, eval_strategy="no", use_cpu=True))
    assert "computed in" not in active(capsys.readouterr().err)
    assert record_of(run)["arithmetic"] is None


def test_what_is_not_ours_is_not_said_to_be_chosen(demo_data: Path, write_config, machine, capsys) -> None:
    machine("half")
    top = {"packing": False, "loss_kernel": "logits", "fused_layers": False}
    train(demo_data, "demo", write_config(max_steps=1, eval_strategy="no", use_cpu=True, bf16=True, top=top))
    assert "computed in" not in active(capsys.readouterr().err)


@pytest.mark.parametrize("method", ["lora", "ptuning_v2", "sft"])
def test_in_bfloat16_a_run_takes_the_steps_that_it_takes_in_float32(
    method: str, demo_data: Path, write_config, read_losses, machine, tmp_path: Path
) -> None:
    losses = []
    for name in ("usual", "half", "wide"):
        machine(name)
        config = write_config(
            method, output_dir=str(tmp_path / name), max_steps=2, eval_strategy="no", use_cpu=True, bf16=True,
            top={"peft_config": {"peft_type": "LORA", "r": 4, "lora_alpha": 8}} if method == "lora" else None,
        )  # fmt: skip
        losses.append(read_losses(train(demo_data, "demo", config)))
    assert len({tuple(each.values()) for each in losses}) == 3  # they were really computed in other types
    assert losses[1] == pytest.approx(losses[0], rel=5e-3)
    assert losses[2] == pytest.approx(losses[0], rel=5e-3)


@pytest.mark.parametrize(("began", "now"), [("half", "wide"), ("wide", "usual")])
def test_a_resumed_run_multiplies_as_it_began_whatever_is_faster_now(
    began: str, now: str, demo_data: Path, write_config, read_losses, read_weights, machine, tmp_path: Path, capsys
) -> None:
    settings: dict[str, Any] = {"eval_strategy": "no", "use_cpu": True, "bf16": True, "max_steps": 4, "save_steps": 2}
    machine(began)
    whole = train(demo_data, "demo", write_config(output_dir=str(tmp_path / "whole"), **settings))
    run = train(demo_data, "demo", write_config(output_dir=str(tmp_path / "run"), **settings))
    machine(now)
    (run / "checkpoint-4" / "manifest.json").unlink()  # the last one is damaged
    capsys.readouterr()
    resume(run, checkpoint_step=2)
    assert f"active: {TOLD[began]}" in capsys.readouterr().err
    assert read_losses(run) == read_losses(whole)
    for name, weight in read_weights(whole / "checkpoint-4").items():
        assert read_weights(run / "checkpoint-4")[name].equal(weight)
    resume(run, verify=True)
    assert "equal to the last digit" in capsys.readouterr().err


@pytest.mark.parametrize(("choice", "is_wide"), [("wide", True), ("half", False)])
def test_an_evaluation_multiplies_its_layers_as_training_does(
    choice: str, is_wide: bool, demo_data: Path, write_config, machine, monkeypatch
) -> None:
    machine(choice)
    multiply = wide_linear.wide_linear
    in_evaluation: list[int] = []

    def note(layer: torch.nn.Linear, states: torch.Tensor) -> torch.Tensor:
        if not torch.is_grad_enabled():
            in_evaluation.append(layer.out_features)
        return multiply(layer, states)

    monkeypatch.setattr(wide_linear, "wide_linear", note)
    train(demo_data, "demo", write_config(max_steps=1, eval_steps=1, use_cpu=True, bf16=True))
    assert bool(in_evaluation) == is_wide
    if is_wide:
        assert max(in_evaluation) > 1000  # the output layer, in generation


def test_a_run_of_old_goes_on_in_float32(demo_data: Path, write_config, machine, capsys) -> None:
    machine("usual")
    run = train(demo_data, "demo", write_config(eval_strategy="no", use_cpu=True, bf16=True, max_steps=4, save_steps=2))
    record = record_of(run)
    del record["arithmetic"]
    (run / "run.yaml").write_text(yaml.safe_dump(record), encoding="utf-8")
    machine("half")
    capsys.readouterr()
    resume(run, verify=True)
    told = capsys.readouterr().err
    assert f"active: {TOLD['usual']}" in told
    assert "equal to the last digit" in told


@pytest.mark.parametrize(
    "value", [{"loss": "float16"}, {"loss": ["float32"]}, {"lose": "float32"}, ["float32"], "fast"]
)
def test_a_record_that_cannot_be_meant_is_refused(value: Any) -> None:
    with pytest.raises(GlmtuneError) as caught:
        recorded_arithmetic({"arithmetic": value})
    assert str(caught.value) == (
        f"`run.yaml` has `arithmetic: {value}`; expected `loss`, `attention`, `layers`, each of "
        "`float32` or `bfloat16`\n"
        "hint: write back what stood there: a run goes on in the types that it began with"
    )


def test_a_dry_run_multiplies_as_the_run_will(demo_data: Path, write_config, machine, capsys) -> None:
    machine("half")
    train(demo_data, "demo", write_config(eval_strategy="no", use_cpu=True, bf16=True), dry_run=True)
    assert f"active: {TOLD['half']}" in capsys.readouterr().err
