"""FSDP2 over gloo: the steps of one process, whole weights in checkpoints, runs that are resumed bit for bit."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from json_lines import json_lines
from safetensors.torch import load_file

from glmtune import generate, train

# One worker does all of it: the runs are made once, in one group of processes.
pytestmark = [pytest.mark.multi, pytest.mark.long]

METHODS: dict[str, dict[str, Any] | None] = {
    "sft": None,
    "lora": {"peft_type": "LORA", "r": 4, "lora_alpha": 8},
    "ptuning_v2": {"peft_type": "PREFIX_TUNING", "num_virtual_tokens": 4},
}


def write_config(folder: Path, method: str, write_small_config: Callable, **training_args: Any) -> Path:
    """Write a run of four steps that ends with the model of the highest loss: that of its first evaluation."""
    folder.mkdir()
    config = write_small_config(
        folder,
        peft_config=METHODS[method],
        **{
            "max_steps": 4,
            "save_steps": 2,
            "learning_rate": 1e-3,
            "gradient_checkpointing": True,
            "eval_strategy": "steps",
            "eval_steps": 2,
            "generation_config": {"max_new_tokens": 4},
            "load_best_model_at_end": True,
            "metric_for_best_model": "eval_loss",
            "greater_is_better": True,
            **training_args,
        },
    )
    settings = yaml.safe_load(config.read_text(encoding="utf-8"))
    settings["data_config"]["test_file"] = "dev.jsonl"
    config.write_text(yaml.safe_dump(settings), encoding="utf-8")
    return config


def do_in_one_group(
    steps: list[tuple[str, list[Any]]], folder: Path, environment: dict[str, str]
) -> subprocess.CompletedProcess[str]:
    """Do a list of things in one group of two processes."""
    (folder / "steps.json").write_text(json.dumps(steps), encoding="utf-8")
    several_runs = Path(__file__).with_name("several_runs.py")
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", several_runs, "steps.json"]
    return subprocess.run(
        [sys.executable, *command], cwd=folder, env=environment, capture_output=True, text=True, timeout=400,
        check=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def runs(
    demo_data: Path,
    tmp_path_factory: pytest.TempPathFactory,
    write_small_config: Callable,
    cpu_environment: dict[str, str],
) -> Path:
    """Runs by method that were resumed from their second step; their first end is kept as `before`."""
    top = tmp_path_factory.mktemp("fsdp")
    steps = []
    for method in METHODS:
        config = write_config(top / method, method, write_small_config, fsdp=True)
        run = str(top / method / "run")
        steps += [("train", [str(demo_data), "demo", str(config)]), ("forget", [run, 2]), ("resume", [run])]
    done = do_in_one_group(steps, top, cpu_environment)
    assert done.returncode == 0, done.stderr[-6000:]
    return top


@pytest.mark.parametrize("method", METHODS)
def test_a_divided_run_equals_one_process_and_is_resumed_bit_for_bit(
    method: str, runs: Path, demo_data: Path, tmp_path: Path, write_small_config: Callable, read_losses: Callable
) -> None:
    config = write_config(tmp_path / method, method, write_small_config, per_device_train_batch_size=4)
    single = train(demo_data, "demo", config)
    run = runs / method / "run"
    lines = json_lines(run / "metrics-before.jsonl")
    before = [line["loss"] for line in lines if "loss" in line]
    assert before == pytest.approx(read_losses(single), abs=1e-4)
    assert read_losses(run) == before[2:]

    name = "model.safetensors" if method == "sft" else "adapter_model.safetensors"
    expected, first, resumed = (
        load_file(folder / name) for folder in (single / "checkpoint-4", run / "before", run / "checkpoint-4")
    )
    assert first.keys() == resumed.keys() == expected.keys()
    for key, tensor in expected.items():
        torch.testing.assert_close(first[key], tensor, atol=1e-4, rtol=0)
        assert resumed[key].equal(first[key])
    # The weights stand in the checkpoint once, and no code beside them.
    assert not list((run / "checkpoint-4").rglob("pytorch_model*"))

    scores = [(key, line[key]) for line in lines for key in ("eval_loss", "test_loss") if key in line]
    assert [key for key, _ in scores] == ["eval_loss", "eval_loss", "test_loss"]
    assert scores[2][1] == pytest.approx(scores[0][1], rel=1e-5)
    assert scores[2][1] > scores[1][1]
    assert len(generate(str(run), ["类型#马甲*材质#纯棉"], max_new_tokens=4, do_sample=False)) == 1


@pytest.mark.parametrize("method", ["sft", "lora"])
def test_a_divided_run_that_has_changed_no_weight_is_no_run_that_is_done(
    method: str, demo_data: Path, tmp_path: Path, write_small_config: Callable, cpu_environment: dict[str, str]
) -> None:
    config = write_small_config(tmp_path, peft_config=METHODS[method], fsdp=True)
    done = do_in_one_group([("learn nothing", [str(demo_data), "demo", str(config)])], tmp_path, cpu_environment)
    assert done.returncode != 0
    assert done.stderr.count("no step has changed a weight: at every step the gradients were 0") == 1
    assert "done:" not in done.stderr
