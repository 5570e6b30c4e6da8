"""Offload to the CPU and to NVMe: the losses of plain ZeRO, and runs that are resumed bit for bit."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from json_lines import json_lines
from safetensors.torch import load_file

from glmtune import train

# One worker does all of it: the runs are made once, in one group of processes.
pytestmark = [pytest.mark.multi, pytest.mark.long]

REPOSITORY = Path(__file__).parents[2]
FILES = ["ds_zero2_offload.json", "ds_zero3_offload.json", "ds_zero3_nvme.json"]
MISSING = "`ds_zero3_nvme.json` needs libaio (`apt-get install libaio-dev`)"


@pytest.fixture(scope="module")
def has_async_io() -> bool:
    from deepspeed.ops.op_builder import AsyncIOBuilder

    return AsyncIOBuilder().is_compatible(verbose=False)


@pytest.fixture(scope="module")
def single_losses(
    demo_data: Path, tmp_path_factory: pytest.TempPathFactory, write_small_config: Callable, read_losses: Callable
) -> list[float]:
    folder = tmp_path_factory.mktemp("single")
    config = write_small_config(folder, max_steps=4, save_steps=4, per_device_train_batch_size=4)
    return read_losses(train(demo_data, "demo", config))


@pytest.fixture(scope="module")
def runs(
    has_async_io: bool,
    demo_data: Path,
    tmp_path_factory: pytest.TempPathFactory,
    write_small_config: Callable,
    cpu_environment: dict[str, str],
) -> Path:
    """By file a run of four steps that was resumed from its second; its first end is kept as `before`."""
    top = tmp_path_factory.mktemp("offload")
    (top / "disk").mkdir()
    steps = []
    for name in FILES if has_async_io else FILES[:2]:
        content = (REPOSITORY / "configs" / name).read_text(encoding="utf-8")
        folder = top / name
        folder.mkdir()
        (folder / name).write_text(content.replace("/path/to/a/folder/on/nvme", str(top / "disk")), encoding="utf-8")
        config = write_small_config(
            folder, max_steps=4, save_steps=2, eval_strategy="steps", eval_steps=4,
            generation_config={"max_new_tokens": 4}, deepspeed=str(folder / name),
        )  # fmt: skip
        run = str(folder / "run")
        steps += [("train", [str(demo_data), "demo", str(config)]), ("forget", [run, 2]), ("resume", [run])]
    (top / "steps.json").write_text(json.dumps(steps), encoding="utf-8")
    several_runs = Path(__file__).with_name("several_runs.py")
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", several_runs, "steps.json"]
    done = subprocess.run(
        [sys.executable, *command], cwd=top, env=cpu_environment, capture_output=True, text=True, timeout=900,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-6000:]
    return top


@pytest.mark.parametrize("name", FILES)
def test_an_offloaded_run_is_resumed_bit_for_bit(
    name: str, runs: Path, has_async_io: bool, single_losses: list[float], read_losses: Callable
) -> None:
    if name not in FILES[:2] and not has_async_io:
        pytest.skip(MISSING)
    run = runs / name / "run"
    lines = json_lines(run / "metrics-before.jsonl")
    before = [line["loss"] for line in lines if "loss" in line]
    assert before == pytest.approx(single_losses, abs=1e-4)
    assert [line["step"] for line in lines if "eval_rouge-l" in line] == [4]
    assert read_losses(run) == before[2:]
    expected, resumed = (load_file(run / folder / "model.safetensors") for folder in ("before", "checkpoint-4"))
    assert expected.keys() == resumed.keys()
    assert all(resumed[key].equal(tensor) for key, tensor in expected.items())


def test_what_lies_on_the_disk_is_the_optimizer_and_the_weights(runs: Path, has_async_io: bool) -> None:
    if not has_async_io:
        pytest.skip(MISSING)
    swapped = list((runs / "disk").rglob("*.swp"))
    assert {path.parent.name for path in swapped} == {"rank0", "rank1"}
    assert any(path.name.startswith("exp_avg_sq") for path in swapped)
