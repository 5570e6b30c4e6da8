"""GLM-4-9B's real shape on one GPU: tokens/s, utilisation and memory, beside transformers' Trainer with PEFT.

python benchmarks/gpu_glm4_9b.py                    # one GPU of 80 GB or more, about 10 minutes for each method
python benchmarks/gpu_glm4_9b.py --methods lora     # the part that matters most
python benchmarks/gpu_glm4_9b.py --tiny             # the same code on a tiny model, on any machine; writes no results

Random weights, built on the GPU; no network and no files. For each length: one row of so many tokens; as many tokens
in eight rows of 1/16 to 1/4 of it, laid end to end; and these rows padded. Half of each row is labelled. Both trainers
get the same rows. Activations are recomputed only where memory runs out without.

Utilisation is the arithmetic that the work needs (recomputation, padding and logits without a label not counted) over
what a large bf16 matrix product reaches on the same GPU in the same run.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from gpu_case import MARK, PEFT_CONFIGS, TINY_VOCABULARY, glm_config
from peers import environment
from results import machine, table, write_section
from transformers import GlmConfig

TRAINERS = {"glmtune": "glmtune", "plain": "Trainer + PEFT"}
SHARES = (4, 3, 2, 2, 2, 1, 1, 1)
"""Lengths of eight rows, in sixteenths of all tokens."""
LONG = 16384
"""From this length on fewer steps are measured, for each takes seconds."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How the tokens of a step are laid out."""

    label: str
    shares: tuple[int, ...]
    is_packed: bool


LAYOUTS = {
    "one": Layout(label="1 row", shares=(16,), is_packed=True),
    "packed": Layout(label="8 rows end to end", shares=SHARES, is_packed=True),
    "padded": Layout(label="8 rows padded", shares=SHARES, is_packed=False),
}


def main() -> None:
    """Measure, and write the section of the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="a tiny model and short rows")
    parser.add_argument("--methods", nargs="*", choices=list(PEFT_CONFIGS), default=list(PEFT_CONFIGS))
    parser.add_argument("--lengths", type=int, nargs="*", help="tokens of a step; 512 to 32,768 where none are given")
    parser.add_argument("--layouts", nargs="*", choices=list(LAYOUTS), default=list(LAYOUTS))
    parser.add_argument("--steps", type=int, default=4, help="steps that count; half as many from 16,384 tokens on")
    parser.add_argument("--minutes", type=float, default=60, help="start nothing after that")
    arguments = parser.parse_args()
    if not torch.cuda.is_available() and not arguments.tiny:
        sys.exit("there is no GPU here; `--tiny` runs the same code on the CPU")
    # The length that the aims are set for comes first.
    lengths = arguments.lengths or ([64, 32] if arguments.tiny else [4096, 512, 2048, 8192, 16384, 32768])
    deadline = time.monotonic() + 60 * arguments.minutes
    speed = matmul_speed(256 if arguments.tiny else 8192)
    results = []
    for method in arguments.methods:
        for trainer in TRAINERS:
            plan = {
                "method": method,
                "trainer": trainer,
                "is_tiny": arguments.tiny,
                "vocabulary": TINY_VOCABULARY if arguments.tiny else 151552,
                "warm_up": 1,
                "cases": cases_of(trainer, lengths, arguments.layouts, arguments.steps),
            }
            results += [{"method": method, "trainer": trainer} | found for found in run(plan, deadline)]
    speed = max(speed, matmul_speed(256 if arguments.tiny else 8192))
    text = report(results, speed, glm_config(is_tiny=arguments.tiny), lengths)
    if arguments.tiny:
        print(text)
    else:
        write_section("gpu-glm4-9b", text)


def cases_of(trainer: str, lengths: list[int], layouts: list[str], num_steps: int) -> list[dict[str, Any]]:
    """Return what one trainer is measured with; it cannot lay rows end to end unless it is ours."""
    return [
        {
            "length": length,
            "layout": name,
            "row_lengths": [share * length // 16 for share in LAYOUTS[name].shares],
            "is_packed": LAYOUTS[name].is_packed,
            "num_steps": 1 + (max(1, num_steps // 2) if length >= LONG else num_steps),
        }
        for length in lengths
        for name in layouts
        if trainer == "glmtune" or name != "packed"
    ]


def run(plan: dict[str, Any], deadline: float) -> list[dict[str, Any]]:
    """Run the cases of a method and a trainer in a process of their own; returns those that ended in time."""
    if deadline <= time.monotonic():
        return []
    with tempfile.TemporaryDirectory(prefix="glmtune-benchmark-") as folder:
        file = Path(folder) / "plan.json"
        file.write_text(json.dumps(plan), encoding="utf-8")
        command = [sys.executable, str(Path(__file__).parent / "gpu_case.py"), str(file)]
        log = Path(folder) / "log"
        with log.open("w") as output:
            process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment())
            try:
                process.wait(timeout=max(1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                print(f"out of time in {plan['method']}, {plan['trainer']}", file=sys.stderr)
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
        found = [json.loads(line[len(MARK) :]) for line in lines if line.startswith(MARK)]
        if len(found) < len(plan["cases"]):
            print("\n".join(lines[-20:]), file=sys.stderr)
    print(f"{plan['method']}, {plan['trainer']}: {len(found)} cases", file=sys.stderr)
    return found


def matmul_speed(size: int) -> float:
    """Return the multiplications and additions a second of a square bf16 matrix product."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    left, right = (torch.randn(size, size, dtype=torch.bfloat16, device=device) for _ in range(2))
    num_rounds = 20
    for count in (5, num_rounds):  # the first round warms up
        if device == "cuda":
            torch.cuda.synchronize()
        begin = time.perf_counter()
        for _ in range(count):
            left @ right
        if device == "cuda":
            torch.cuda.synchronize()
        seconds = time.perf_counter() - begin
    return 2 * size**3 * num_rounds / seconds


def operations_per_step(config: GlmConfig, row_lengths: list[int], num_labels: int, method: str) -> float:
    """Return the multiplications and additions that a step needs, each counted as one.

    A weight costs 2 per token forward and 2 backward, 2 more where it is trained itself; the output layer works on
    labelled tokens alone. Attention is causal within each row; its backward pass costs twice its forward pass.
    """
    hidden, head_size = config.hidden_size, int(config.head_dim or 0)
    width = config.num_attention_heads * head_size
    key_width = config.num_key_value_heads * head_size
    per_layer = hidden * (2 * width + 2 * key_width) + 3 * hidden * config.intermediate_size
    layers = config.num_hidden_layers
    factor = 6 if method == "sft" else 4
    prefix = (PEFT_CONFIGS[method] or {}).get("num_virtual_tokens", 0)
    attended = sum(length * length / 2 + length * prefix for length in row_lengths)
    weights = per_layer * layers * sum(row_lengths) + hidden * config.vocab_size * num_labels
    return factor * weights + 3 * 4 * attended * width * layers


def report(results: list[dict[str, Any]], speed: float, config: GlmConfig, lengths: list[int]) -> str:
    """Return the section."""
    found = {(each["method"], each["length"], each["layout"], each["trainer"]): each for each in results}
    rows = []
    for (method, length, layout, trainer), each in sorted(
        found.items(), key=lambda item: (list(PEFT_CONFIGS).index(item[0][0]), item[0][1], item[0][2], item[0][3])
    ):
        row = [method, f"{length:,}", LAYOUTS[layout].label, TRAINERS[trainer]]
        if "problem" in each:
            rows.append([*row, each["problem"], "", "", "", "", ""])
            continue
        num_steps = each["num_steps"] - 1
        needed = operations_per_step(config, each["row_lengths"], each["num_labels"] // num_steps, method)
        # Rows laid end to end are compared with the same rows padded: the other trainer knows no better.
        other = found.get((method, length, "padded" if layout == "packed" else layout, "plain"))
        faster, less = _compared(each, other) if trainer == "glmtune" else ("", "")
        rows.append(
            [
                *row,
                "yes" if each["recomputes"] else "no",
                f"{each['num_tokens'] / each['seconds']:,.0f}",
                f"{100 * needed * num_steps / each['seconds'] / speed:.0f}%",
                f"{each['peak'] / 1e9:.1f} GB ({(each['peak'] - each['weights']) / 1e9:.1f})",
                faster,
                less,
            ]
        )
    header = ["method", "tokens a step", "layout", "trainer", "recomputed", "tokens/s", "utilisation"]
    header += ["peak memory (beyond weights)", "tokens/s of the plain Trainer's", "memory of the plain Trainer's"]
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    return "\n\n".join(
        [
            f"## GLM-4-9B's shape on {device}",
            table(header, rows),
            f"Random weights in bfloat16, half of each row labelled; a bf16 matrix product reaches {speed / 1e12:.4g} "
            f"TFLOP/s here. {machine('torch', 'transformers', 'peft')}.",
            "Again: `python benchmarks/gpu_glm4_9b.py`",
        ]
    )


def _compared(ours: dict[str, Any], other: dict[str, Any] | None) -> tuple[str, str]:
    """Return how many times as fast and with which share of the memory, where the other one ran at all."""
    if other is None or "problem" in other:
        return "", ""
    faster = ours["num_tokens"] / ours["seconds"] / (other["num_tokens"] / other["seconds"])
    return f"**{faster:.2f}**", f"**{ours['peak'] / other['peak']:.2f}**"


if __name__ == "__main__":
    main()
