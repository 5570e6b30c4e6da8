"""How much memory one training step takes beyond the weights, and how long it lasts: one sequence, half of it labelled.

python benchmarks/peers.py                                       # once: the environments of the other tools
python benchmarks/step_memory.py

The small shape, LoRA r 8 on q, k and v, bf16, two threads, each tool and length in a fresh process. Full logits are
transformers' `Trainer`, whose loss comes from the model. The memory is the peak of resident memory (`VmHWM`) from the
first step on, less what was resident before it, with every weight read once; the time is that of the last step.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from peers import default_folder
from results import machine, table, write_section
from shapes import SHAPES, SHARED, describe, write_model
from tools import TOOLS, Run, available, median_and_range, run_tool, versions_of
from work import Work

FULL, OURS = "original-plain", "glmtune-parts"
LABELS = {FULL: "full logits", OURS: "glmtune"}


def main() -> None:
    """Measure, and write the section of the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=[name for name in SHAPES if name != "9b"], default="small")
    parser.add_argument("--lengths", type=int, nargs="*", default=[512, 2048, 8192])
    parser.add_argument("--data", type=Path, default=SHARED / "data", help="folder of the published rows")
    parser.add_argument("--tokenizer", type=Path, default=SHARED / "glm-4-9b-chat", help="folder of a GLM-4 model")
    parser.add_argument("--peers", type=Path, default=default_folder(), help="where peers.py put the environments")
    parser.add_argument("--tools", nargs="*", choices=list(TOOLS), default=["trl-plain", "llamafactory-plain"])
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=2)
    arguments = parser.parse_args()
    names = [FULL, OURS, *available(arguments.tools, arguments.peers)]
    runs: dict[tuple[int, str], list[Run]] = {}
    with tempfile.TemporaryDirectory(prefix="glmtune-benchmark-") as folder:
        model = write_model(arguments.shape, Path(folder) / "model", arguments.tokenizer)
        for length in arguments.lengths:
            data = Path(folder) / f"rows-{length}"
            write_row(data, length, arguments)
            for number in range(arguments.rounds):
                for name in names:
                    output = Path(folder) / f"{length}-{number}-{name}" / "run"
                    output.parent.mkdir()
                    work = Work(
                        model=str(model),
                        data=str(data),
                        output=str(output),
                        num_steps=arguments.steps,
                        rows_per_step=1,
                        max_length=2 * length,
                        options={"is_encoded": True} if name == FULL else None,
                    )
                    run = run_tool(name, replace(work, checkpointing=TOOLS[name].recomputes), arguments.peers)
                    runs.setdefault((length, name), []).append(run)
                    print(f"{length} tokens, {name}: {_peak(run) / 1e6:,.0f} MB", file=sys.stderr)
    write_section(f"step-memory-{arguments.shape}", report(runs, names, arguments))


def write_row(folder: Path, length: int, arguments: argparse.Namespace) -> None:
    """Write a row of so many tokens, half of them labelled, as often as there are steps."""
    from transformers import AutoTokenizer

    from glmtune.chatformat.encoding import Encoder
    from glmtune.data.formats import to_conversation
    from glmtune.family import GLM

    tokenizer = AutoTokenizer.from_pretrained(arguments.tokenizer)
    encoder = Encoder(tokenizer, GLM)
    lines = (arguments.data / "AdvertiseGen" / "train.jsonl").read_text(encoding="utf-8").splitlines()
    text = "".join(json.loads(line)["messages"][1]["content"] for line in lines[: length // 20])
    ids = tokenizer.encode(text, add_special_tokens=False)
    # Cut text rarely has exactly as many tokens again: what is over or missing is taken off the question.
    half = length // 2
    answer = tokenizer.decode(ids[: half - 2])
    for size in range(half - 4, half - 40, -1):
        row = _row(tokenizer.decode(ids[half : half + size]), answer)
        example = encoder.encode(to_conversation(row))
        if len(example.input_ids) <= length:
            break
    encoded = {"input_ids": example.input_ids, "labels": example.labels}
    sharegpt = {
        "conversations": [
            {"from": role, "value": message["content"]} for role, message in zip(("human", "gpt"), row["messages"])
        ],
        "system": "",
        "tools": "",
    }
    folder.mkdir()
    for name, content in (("train.jsonl", row), ("encoded.jsonl", encoded)):
        (folder / name).write_text((json.dumps(content, ensure_ascii=False) + "\n") * arguments.steps, encoding="utf-8")
    (folder / "sharegpt.json").write_text(json.dumps([sharegpt] * arguments.steps), encoding="utf-8")


def _row(question: str, answer: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def report(runs: dict[tuple[int, str], list[Run]], names: list[str], arguments: argparse.Namespace) -> str:
    """Return the section."""
    rows = []
    for length in arguments.lengths:
        full = runs[length, FULL]
        for name in names:
            mine = runs[length, name]
            share = statistics.median(map(_peak, mine)) / statistics.median(map(_peak, full))
            times = [theirs.steps[-1]["seconds"] / own.steps[-1]["seconds"] for theirs, own in zip(full, mine)]
            facts = mine[0].facts
            per_row = f"{facts['num_tokens'] // arguments.steps:,} ({facts['num_labels'] // arguments.steps:,})"
            rows.append(
                [
                    per_row,
                    LABELS.get(name, TOOLS[name].label),
                    f"{statistics.median(map(_peak, mine)) / 1e6:,.0f} MB",
                    f"**{share:.3f}**",
                    f"{statistics.median(run.steps[-1]['seconds'] for run in mine):.2f} s",
                    median_and_range(times),
                ]
            )
    header = ["tokens (labelled)", "tool", "memory of a step", "of full logits", "time", "times as fast as full logits"]
    peers = sorted({str(TOOLS[name].peer) for name in names if TOOLS[name].peer})
    return "\n\n".join(
        [
            f"## Memory of a step beyond the weights: {describe(arguments.shape)}",
            table(header, rows),
            f"One sequence, LoRA r 8 on q, k and v, bf16, two threads, a fresh process each; medians of "
            f"{arguments.rounds} rounds. {machine('torch', 'transformers', 'peft')}. "
            + " ".join(f"{peer}: {versions_of(peer, arguments.peers)}." for peer in peers),
            f"Again: `python benchmarks/step_memory.py --shape {arguments.shape}`",
        ]
    )


def _peak(run: Run) -> int:
    return max(step["peak"] for step in run.steps)


if __name__ == "__main__":
    main()
