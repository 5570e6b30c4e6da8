"""A resumed run trains as its configuration says now, or says why it cannot."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from glmtune import resume, train
from glmtune.errors import GlmtuneError

PLAIN = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"]}
ARGUMENTS = {"max_steps": 4, "save_steps": 1, "eval_strategy": "no", "logging_steps": 1, "learning_rate": 1e-3}


@pytest.fixture
def run_of(demo_data: Path, write_config, tmp_path: Path):
    """Return a function that trains four steps and forgets the last two."""

    def make(**arguments: Any) -> Path:
        config = write_config(**ARGUMENTS, **arguments, top={"peft_config": PLAIN})
        run = train(demo_data, "demo", config)
        shutil.copytree(run / "checkpoint-3", tmp_path / "before")
        for step in (3, 4):
            shutil.rmtree(run / f"checkpoint-{step}")
        return run

    return make


def weights_of(checkpoint: Path) -> torch.Tensor:
    tensors = load_file(checkpoint / "adapter_model.safetensors")
    return torch.cat([tensors[name].flatten() for name in sorted(tensors)])


def rates_of(run: Path) -> dict[int, float]:
    lines = map(json.loads, (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    return {line["step"]: line["learning_rate"] for line in lines if "learning_rate" in line}


def test_ten_times_the_rate_is_ten_times_the_step(run_of, tmp_path: Path) -> None:
    run = run_of(optim="sgd", lr_scheduler_type="constant", max_grad_norm=0)
    resume(run, overrides=["training_args.learning_rate=1e-2"], accept_changes=True)
    start = weights_of(run / "checkpoint-2")
    small, great = weights_of(tmp_path / "before") - start, weights_of(run / "checkpoint-3") - start
    assert small.abs().max() > 0
    torch.testing.assert_close(great, 10 * small, rtol=1e-3, atol=1e-3 * great.abs().max().item())
    assert rates_of(run) == {1: 1e-3, 2: 1e-3, 3: 1e-2, 4: 1e-2}


def test_the_first_step_already_takes_the_rate_of_the_new_schedule(run_of) -> None:
    run = run_of(lr_scheduler_type="linear", warmup_steps=0)
    resume(run, overrides=["training_args.learning_rate=4e-3", "training_args.max_steps=8"], accept_changes=True)
    rates = rates_of(run)
    assert [rates[step] for step in range(3, 9)] == pytest.approx([3e-3, 2.5e-3, 2e-3, 1.5e-3, 1e-3, 5e-4])


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("weight_decay", 0.5, {"weight_decay": 0.5}),
        ("adam_beta1", 0.1, {"betas": (0.1, 0.999)}),
        ("adam_epsilon", 1.0, {"eps": 1.0}),
    ],
)
def test_other_settings_of_the_optimizer_count_from_the_next_step(
    key: str, value: float, expected: dict[str, Any], run_of, tmp_path: Path
) -> None:
    run = run_of()
    resume(run, overrides=[f"training_args.{key}={value}"], accept_changes=True)
    group = torch.load(run / "checkpoint-4" / "optimizer.pt", weights_only=True)["param_groups"][0]
    assert {name: group[name] for name in expected} == expected
    assert not weights_of(run / "checkpoint-3").equal(weights_of(tmp_path / "before"))


def test_what_has_not_changed_is_trained_bit_for_bit(run_of, tmp_path: Path) -> None:
    run = run_of()
    resume(run, overrides=["training_args.logging_steps=2"], accept_changes=True)
    assert weights_of(run / "checkpoint-3").equal(weights_of(tmp_path / "before"))


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("peft_config.r=8", "peft_config.r"),
        ("peft_config.target_modules=[q_proj, v_proj]", "peft_config.target_modules"),
        ("peft_config.modules_to_save=[lm_head]", "peft_config.modules_to_save"),
        ("peft_config.use_dora=true", "peft_config.use_dora"),
        ("peft_config.layers_to_transform=0", "peft_config.layers_to_transform"),
        ("peft_config=null", "peft_config"),
        ("peft_config={peft_type: PREFIX_TUNING, num_virtual_tokens: 4}", "peft_config.lora_alpha"),
        ("training_args.optim=sgd", "training_args.optim"),
        ("training_args.optim=adafactor", "training_args.optim"),
    ],
)
def test_what_a_checkpoint_was_made_by_is_kept(override: str, key: str, run_of) -> None:
    run = run_of()
    with pytest.raises(GlmtuneError, match=r"a run keeps it to its end\n") as caught:
        resume(run, overrides=[override], accept_changes=True)
    if key != "peft_config.lora_alpha":
        assert str(caught.value).startswith(f"`{key}")
    assert f"--init-from {run / 'checkpoint-2'}" in str(caught.value.fix)
    assert "changes" not in (run / "run.yaml").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "override",
    [
        *("peft_config.lora_alpha=16", "peft_config.peft_type=lora"),
        *("peft_config.bias=none", "peft_config.init_lora_weights=true", "peft_config.modules_to_save=null"),
    ],
)
def test_what_no_weight_depends_on_may_change(override: str, run_of) -> None:
    assert resume(run_of(), overrides=[override], accept_changes=True)


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (["max_steps=1"], "`checkpoint-2` stands at 2 steps, and `max_steps` is 1"),
        (["max_steps=2"], "`checkpoint-2` stands at 2 steps, and `max_steps` is 2"),
        (["max_steps=-1", "num_train_epochs=0.1"], "epochs, and `num_train_epochs` is 0.1"),
    ],
)
def test_a_run_that_would_take_no_further_step_is_told_so(overrides: list[str], reason: str, run_of, capsys) -> None:
    run = run_of()
    capsys.readouterr()
    with pytest.raises(GlmtuneError, match="no step would be taken: ") as caught:
        resume(run, overrides=[f"training_args.{each}" for each in overrides], accept_changes=True)
    assert reason in str(caught.value)
    assert "done:" not in capsys.readouterr().err


def test_a_resumed_run_stays_in_its_folder(run_of, tmp_path: Path) -> None:
    run = run_of()
    with pytest.raises(GlmtuneError, match=r"`training_args\.output_dir` cannot be changed"):
        resume(run, overrides=[f"training_args.output_dir={tmp_path / 'other'}"], accept_changes=True)


def test_a_run_that_is_to_save_nothing_keeps_its_last_step(demo_data: Path, write_config, capsys) -> None:
    run = train(demo_data, "demo", write_config(max_steps=3, save_strategy="no", eval_strategy="no"))
    assert [path.name for path in run.glob("checkpoint-*")] == ["checkpoint-3"]
    assert "note: `save_strategy: no`: the last step is saved all the same, and no other\n" in capsys.readouterr().err
