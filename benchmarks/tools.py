"""Every tool runs the same work in a process and an environment of its own; its steps are read from what it prints."""

from __future__ import annotations

import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from ours_in_process import as_yaml
from peers import environment, is_made, python_of
from work import MARK, Work

HERE = Path(__file__).parent
CLI_STEP = re.compile(r"step (\d+)/\d+  loss ")


@dataclass(frozen=True, kw_only=True)
class Tool:
    """A tool and how it is set."""

    label: str
    script: str | None
    """None for the command line of glmtune."""
    peer: str | None = None
    """Name of its environment; None for that of glmtune."""
    recomputes: bool = False
    """Whether activations are recomputed in the backward pass (gradient checkpointing)."""


TOOLS = {
    "glmtune": Tool(label="glmtune", script=None),
    "glmtune-parts": Tool(label="glmtune", script="ours_in_process.py"),
    "original": Tool(label="original `finetune.py`", script="original.py", recomputes=True),
    "original-plain": Tool(label="original, nothing recomputed", script="original.py"),
    "llamafactory": Tool(label="LLaMA-Factory", script="peer_llamafactory.py", peer="llamafactory", recomputes=True),
    "llamafactory-plain": Tool(
        label="LLaMA-Factory, nothing recomputed", script="peer_llamafactory.py", peer="llamafactory"
    ),
    "trl": Tool(label="TRL", script="peer_trl.py", peer="trl", recomputes=True),
    "trl-plain": Tool(label="TRL, nothing recomputed", script="peer_trl.py", peer="trl"),
}


@dataclass(kw_only=True)
class Run:
    """What a tool reported."""

    steps: list[dict[str, Any]] = field(default_factory=list)
    """`step`, `loss` and `end` (seconds), and more where the tool runs with `StepReport`."""
    facts: dict[str, Any] = field(default_factory=dict)
    """`num_tokens` and `num_labels` of all rows."""
    peak_bytes: int = 0
    """Resident memory of the process at most."""
    seconds: float = 0.0

    def samples_per_second(self, rows_per_step: int, num_warm_up: int) -> float:
        """Return the speed without the first steps, from the end of a step to the end of the last."""
        first, last = self.steps[num_warm_up - 1], self.steps[-1]
        return (last["step"] - first["step"]) * rows_per_step / (last["end"] - first["end"])


def available(names: list[str], peers: Path) -> list[str]:
    """Return the tools whose environments are there; tell of the others."""
    missing = [name for name in names if TOOLS[name].peer and not is_made(str(TOOLS[name].peer), peers)]
    if missing:
        print(f"not there: {', '.join(missing)}; `python benchmarks/peers.py {peers}` installs them", file=sys.stderr)
    return [name for name in names if name not in missing]


def run_tool(name: str, work: Work, peers: Path) -> Run:
    """Run a tool on the work and wait for its end."""
    tool = TOOLS[name]
    python = str(python_of(tool.peer, peers)) if tool.peer else sys.executable
    folder = Path(work.output).parent
    if tool.script is None:
        config = folder / "config.yaml"
        config.write_text(yaml.safe_dump(as_yaml(work)), encoding="utf-8")
        command = [python, "-m", "glmtune", "train", work.data, work.model, str(config)]
    else:
        command = [python, str(HERE / tool.script), str(work.save(folder / "work.json"))]
    run = Run()
    log: list[str] = []
    begin = time.monotonic()
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment(), text=True, bufsize=1
    )
    for line in _lines(process, log):
        now = time.monotonic()
        if line.startswith(MARK):
            found = json.loads(line[len(MARK) :])
            run.steps.append(found) if "step" in found else run.facts.update(found)
        elif tool.script is None and (match := CLI_STEP.match(line)):
            run.steps.append({"step": int(match[1]), "end": now})
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    run.seconds = time.monotonic() - begin
    if process.returncode != 0 or not run.steps:
        raise SystemExit(f"{name} failed with {process.returncode}:\n{''.join(log[-40:])}")
    run.peak_bytes = usage.ru_maxrss * 1024
    if tool.script is None:
        _add_losses(run, Path(work.output) / "metrics.jsonl")
    return run


def _lines(process: subprocess.Popen[str], log: list[str]) -> Iterator[str]:
    assert process.stdout is not None, "a pipe was asked for"
    for line in process.stdout:
        log.append(line)
        yield line


def _add_losses(run: Run, metrics: Path) -> None:
    """Add the losses with all their digits, which the progress lines round."""
    lines = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    losses = {line["step"]: line["loss"] for line in lines if "loss" in line}
    for step in run.steps:
        step["loss"] = losses[step["step"]]


def versions_of(peer: str, peers: Path) -> str:
    """Return the versions of a peer's environment, in words."""
    names = [peer, "torch", "transformers", "peft"]
    code = f"import importlib.metadata as m; print(', '.join(f'{{n}} {{m.version(n)}}' for n in {names}))"
    return subprocess.run(
        [str(python_of(peer, peers)), "-c", code], check=True, capture_output=True, text=True
    ).stdout.strip()


def median_and_range(values: list[float]) -> str:
    """Return the median, and the range where there are several."""
    if len(values) == 1:
        return f"{values[0]:.2f}"
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"
