"""What `fused_layers` saves: memory and time of a training step with it and without, one method after the other.

python benchmarks/fused_layers.py
python benchmarks/fused_layers.py --tokens 512 --methods lora

The medium shape, bf16, one row of so many tokens, half of them labelled, two threads, no gradient checkpointing; each
run in a fresh process, with and without in turn. Memory and time are taken as in `step_memory.py`.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from peers import default_folder
from results import machine, table, write_section
from shapes import SHAPES, SHARED, describe, write_model
from step_memory import write_row
from tools import Run, median_and_range, run_tool
from work import Work

LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_up_proj", "down_proj"]
METHODS: dict[str, dict[str, Any] | None] = {
    "lora": {"peft_type": "LORA", "r": 8, "lora_alpha": 32, "target_modules": LINEAR},
    "ptuning_v2": {"peft_type": "PREFIX_TUNING", "num_virtual_tokens": 128},
    "sft": None,
}
LABELS = {"lora": "LoRA on all linear layers", "ptuning_v2": "P-Tuning v2, 128 tokens", "sft": "full fine-tuning"}


def main() -> None:
    """Measure, and write the section of the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=[name for name in SHAPES if name != "9b"], default="medium")
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--methods", nargs="*", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--data", type=Path, default=SHARED / "data", help="folder of the published rows")
    parser.add_argument("--tokenizer", type=Path, default=SHARED / "glm-4-9b-chat", help="folder of a GLM-4 model")
    parser.add_argument("--steps", type=int, default=3, help="the first of which does not count")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    runs: dict[tuple[str, bool], list[Run]] = {}
    with tempfile.TemporaryDirectory(prefix="glmtune-benchmark-") as name:
        folder = Path(name)
        model = write_model(arguments.shape, folder / "model", arguments.tokenizer)
        write_row(folder / "data", arguments.tokens, arguments)
        for number in range(arguments.rounds):
            for method in arguments.methods:
                for fused in (True, False):
                    output = folder / f"{number}-{method}-{fused}" / "run"
                    output.parent.mkdir()
                    work = Work(
                        model=str(model),
                        data=str(folder / "data"),
                        output=str(output),
                        num_steps=arguments.steps,
                        rows_per_step=1,
                        max_length=2 * arguments.tokens,
                        learning_rate=1e-4,
                        options={"fused_layers": fused, "peft_config": METHODS[method]},
                    )
                    run = run_tool("glmtune-parts", work, default_folder())
                    runs.setdefault((method, fused), []).append(run)
                    print(
                        f"{method}, fused {fused}: {_seconds(run):.2f} s, {_peak(run) / 1e6:,.0f} MB", file=sys.stderr
                    )
    write_section(f"fused-layers-{arguments.shape}", report(runs, arguments))


def report(runs: dict[tuple[str, bool], list[Run]], arguments: argparse.Namespace) -> str:
    """Return the section."""
    rows = []
    for method in arguments.methods:
        ours, plain = runs[method, True], runs[method, False]
        memory = [_peak(mine) / _peak(other) for mine, other in zip(ours, plain)]
        faster = [_seconds(other) / _seconds(mine) for mine, other in zip(ours, plain)]
        losses = [run.steps[-1]["loss"] for run in (ours[0], plain[0])]
        rows.append(
            [
                LABELS[method],
                *(f"{statistics.median(map(_peak, each)) / 1e6:,.0f} MB" for each in (plain, ours)),
                f"**{median_and_range(memory)}**",
                *(f"{statistics.median(map(_seconds, each)):.2f} s" for each in (plain, ours)),
                f"**{median_and_range(faster)}**",
                " and ".join(f"{loss:.4f}" for loss in reversed(losses)),
            ]
        )
    header = ["method", "memory, layers as they are", "fused", "share", "time, layers as they are", "fused"]
    header += ["faster by", f"loss at step {arguments.steps}"]
    return "\n\n".join(
        [
            f"## Fused layers: {describe(arguments.shape)}",
            table(header, rows),
            f"One row of {arguments.tokens:,} tokens, half of them labelled, bf16, two threads, nothing recomputed; "
            f"memory of a step beyond the weights. Medians of {arguments.rounds} rounds, in turn. "
            f"{machine('torch', 'transformers', 'peft')}.",
            f"Again: `python benchmarks/fused_layers.py --shape {arguments.shape} --tokens {arguments.tokens}`",
        ]
    )


def _peak(run: Run) -> int:
    return max(step["peak"] for step in run.steps)


def _seconds(run: Run) -> float:
    return statistics.median(step["seconds"] for step in run.steps[1:])


if __name__ == "__main__":
    main()
