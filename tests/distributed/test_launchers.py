"""Every way to start the processes of a run trains the same steps."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from glmtune import train

pytestmark = [pytest.mark.multi, pytest.mark.long]

BIN = Path(sys.executable).parent
LORA = {"peft_type": "LORA", "r": 4, "lora_alpha": 8}
ACCELERATE_CONFIG = {
    "compute_environment": "LOCAL_MACHINE",
    "distributed_type": "MULTI_GPU",  # with `MULTI_CPU`, accelerate starts several processes by mpirun only
    "num_machines": 1,
    "num_processes": 2,
    "mixed_precision": "no",
    "main_process_port": 0,
}
# Ports that are free, where a launcher does not look for one by itself: tests run side by side.
LAUNCHERS = {
    "nproc": ["python", "-m", "glmtune", "VERB", "--nproc", "2"],
    "torchrun": ["torchrun", "--standalone", "--nproc_per_node", "2", "-m", "glmtune", "VERB"],
    "accelerate": ["accelerate", "launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1",
                   "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0",
                   "--module", "glmtune", "VERB"],
    "accelerate with a file": ["accelerate", "launch", "--config_file", "accelerate.yaml", "--module", "glmtune",
                               "VERB"],
    "accelerate with FSDP2": ["accelerate", "launch", "--use_fsdp", "--fsdp_version", "2", "--num_processes", "2",
                              "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no",
                              "--main_process_port", "0", "--module", "glmtune", "VERB"],
    "deepspeed": ["deepspeed", "--num_gpus", "2", "--master_port", "PORT", "--module", "glmtune", "VERB"],
}  # fmt: skip


@pytest.fixture(scope="module")
def expected(
    demo_data: Path, tmp_path_factory: pytest.TempPathFactory, write_small_config: Callable, read_losses: Callable
) -> list[float]:
    """The losses of one process that takes all four rows of a step."""
    folder = tmp_path_factory.mktemp("single")
    config = write_small_config(folder, peft_config=LORA, per_device_train_batch_size=4)
    return read_losses(train(demo_data, "demo", config))


@pytest.mark.parametrize("launcher", LAUNCHERS.values(), ids=LAUNCHERS.keys())
def test_two_processes_train_under_every_launcher(
    launcher: list[str],
    expected: list[float],
    demo_data: Path,
    tmp_path: Path,
    cpu_environment: dict[str, str],
    write_small_config: Callable,
    read_losses: Callable,
    free_port: int,
) -> None:
    config = write_small_config(tmp_path, peft_config=LORA)
    (tmp_path / "accelerate.yaml").write_text(yaml.safe_dump(ACCELERATE_CONFIG), encoding="utf-8")
    words = {"VERB": "train", "PORT": str(free_port)}
    command = [words.get(word, word) for word in launcher]
    done = subprocess.run(
        [str(BIN / command[0]), *command[1:], str(demo_data), "demo", str(config)],
        cwd=tmp_path, env=cpu_environment, capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    assert yaml.safe_load((tmp_path / "run" / "run.yaml").read_text(encoding="utf-8"))["world_size"] == 2
    assert read_losses(tmp_path / "run") == pytest.approx(expected, abs=1e-4)
