"""Two machines, as two network namespaces with a cable between them: a whole run, and what a dead machine means."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from json_lines import json_lines
from safetensors.torch import load_file

# One worker does all of it: the undisturbed run is made once.
pytestmark = [pytest.mark.multi, pytest.mark.long]

ADDRESSES = ["10.213.7.1", "10.213.7.2"]
PORT = 29400
NUM_STEPS, NUM_SAVED = 60, 10


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


@pytest.fixture(scope="module")
def machines() -> Iterator[list[str]]:
    """Two network namespaces that see each other, and nothing else."""
    names = [f"glmtune-{os.getpid()}-{number}" for number in range(2)]
    try:
        for name in names:
            ip("netns", "add", name)
        ip("-n", names[0], "link", "add", "cable", "type", "veth", "peer", "name", "cable", "netns", names[1])
        for name, address in zip(names, ADDRESSES):
            ip("-n", name, "addr", "add", f"{address}/24", "dev", "cable")
            for device in ("lo", "cable"):
                ip("-n", name, "link", "set", device, "up")
    except (OSError, subprocess.CalledProcessError) as error:
        reason = error.stderr if isinstance(error, subprocess.CalledProcessError) else error
        remove(names)
        pytest.skip(f"two network namespaces need root and `ip` of iproute2: {reason}")
    yield names
    remove(names)


def remove(names: list[str]) -> None:
    for name in names:
        if (Path("/run/netns") / name).exists():
            kill_all_of(name)
            ip("netns", "del", name)


def kill_all_of(machine: str) -> None:
    """End everything that runs on a machine without a word, as a killed job would."""
    listed = subprocess.run(["ip", "netns", "pids", machine], capture_output=True, text=True, check=True)
    for process_id in listed.stdout.split():
        os.kill(int(process_id), signal.SIGKILL)


def start(machines: list[str], environment: dict[str, str], folder: Path, *verb: str) -> list[subprocess.Popen[str]]:
    """Start a verb on both machines, with the commands that the README shows."""
    agents = []
    for number, (machine, address) in enumerate(zip(machines, ADDRESSES)):
        # The first line makes a namespace a machine. By the name of a real one, torchrun finds out its address, and
        # whether it is the one of `--rdzv-endpoint`.
        command = [
            "ip", "netns", "exec", machine, "unshare", "--uts", "sh", "-c", f'hostname machine-{number}; exec "$@"',
            "sh", sys.executable, "-m", "torch.distributed.run", "--local-addr", address,
            "--nnodes", "2", "--nproc-per-node", "1", "--rdzv-backend", "c10d", "--rdzv-id", "glmtune",
            "--rdzv-endpoint", f"{ADDRESSES[0]}:{PORT}", "--rdzv-conf", f"is_host={int(number == 0)}",
            "-m", "glmtune", *verb,
        ]  # fmt: skip
        with (folder / f"machine-{number}.log").open("a", encoding="utf-8") as log:
            agents.append(
                subprocess.Popen(
                    command, cwd=folder, stdout=log, stderr=log, text=True,
                    env=environment | {"GLOO_SOCKET_IFNAME": "cable"},
                )
            )  # fmt: skip
    return agents


def log_of(folder: Path, number: int) -> str:
    return (folder / f"machine-{number}.log").read_text(encoding="utf-8")


def finish(agents: list[subprocess.Popen[str]], folder: Path) -> None:
    for number, agent in enumerate(agents):
        assert agent.wait(timeout=200) == 0, log_of(folder, number)[-4000:]


def write_config(folder: Path, write_small_config: Callable) -> Path:
    return write_small_config(
        folder, max_steps=NUM_STEPS, save_steps=NUM_SAVED, eval_strategy="steps", eval_steps=NUM_STEPS,
        generation_config={"max_new_tokens": 4},
    )  # fmt: skip


def wait_for(checkpoint: Path, agents: list[subprocess.Popen[str]], folder: Path) -> None:
    """Wait until the run is past a checkpoint."""
    deadline = time.monotonic() + 120
    while not checkpoint.exists():
        logs = "".join(log_of(folder, number)[-3000:] for number in range(2))
        assert time.monotonic() < deadline, logs
        assert all(agent.poll() is None for agent in agents), logs
        time.sleep(0.1)


def read_last_losses(run: Path) -> dict[int, float]:
    """Return the loss of every step; of one that was trained twice, the later."""
    lines = json_lines(run / "metrics.jsonl")
    return {line["step"]: line["loss"] for line in lines if "loss" in line}


@pytest.fixture(scope="module")
def undisturbed(
    machines: list[str],
    demo_data: Path,
    tmp_path_factory: pytest.TempPathFactory,
    write_small_config: Callable,
    cpu_environment: dict[str, str],
) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    config = write_config(folder, write_small_config)
    finish(start(machines, cpu_environment, folder, "train", str(demo_data), "demo", str(config)), folder)
    return folder


def test_two_machines_train_evaluate_and_save(undisturbed: Path, read_losses: Callable) -> None:
    run = undisturbed / "run"
    losses = read_losses(run)
    assert len(losses) == NUM_STEPS
    assert losses[-1] < losses[0]
    assert '"eval_rouge-l"' in (run / "metrics.jsonl").read_text(encoding="utf-8")
    assert sorted(path.name for path in run.glob("checkpoint-*")) == sorted(
        f"checkpoint-{step}" for step in range(NUM_SAVED, NUM_STEPS + 1, NUM_SAVED)
    )
    assert f"done: {run}" in log_of(undisturbed, 0)
    assert "step " not in log_of(undisturbed, 1)  # only the main process talks


def test_a_machine_that_dies_ends_the_other_and_the_run_is_resumed(
    undisturbed: Path,
    machines: list[str],
    demo_data: Path,
    tmp_path: Path,
    write_small_config: Callable,
    cpu_environment: dict[str, str],
) -> None:
    """First the second machine dies, after the resume the first one, where the group meets; then the run ends."""
    run = tmp_path / "run"
    verb = ["train", str(demo_data), "demo", str(write_config(tmp_path, write_small_config))]
    for dying, last_saved in ((1, NUM_SAVED), (0, 3 * NUM_SAVED)):
        agents = start(machines, cpu_environment, tmp_path, *verb)
        wait_for(run / f"checkpoint-{last_saved}", agents, tmp_path)
        kill_all_of(machines[dying])
        killed_at = time.monotonic()
        assert agents[1 - dying].wait(timeout=60) not in (0, None)
        assert time.monotonic() - killed_at < 30
        agents[dying].wait(timeout=10)
        verb = ["resume", str(run)]
    finish(start(machines, cpu_environment, tmp_path, *verb), tmp_path)
    assert len(log_of(tmp_path, 0).split("resuming ")) == 3
    assert read_last_losses(run) == read_last_losses(undisturbed / "run")
    ours, theirs = (load_file(folder / f"checkpoint-{NUM_STEPS}" / "model.safetensors")
                    for folder in (run, undisturbed / "run"))  # fmt: skip
    assert all(ours[name].equal(tensor) for name, tensor in theirs.items())
