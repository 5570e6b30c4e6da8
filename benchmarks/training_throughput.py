"""How many rows a second are trained on a CPU: glmtune, the original's algorithm, LLaMA-Factory and TRL.

python benchmarks/peers.py                                       # once: their environments
python benchmarks/training_throughput.py                         # AdvertiseGen on the small shape
python benchmarks/training_throughput.py --shape medium
python benchmarks/training_throughput.py --rows glaive           # tool calls: long prompts, few labels
python benchmarks/training_throughput.py --dtype float32         # for a CPU that has nothing for bfloat16

LoRA r 8 on q, k and v, batches of 4 rows, two threads. Every tool trains on the same rows in the same batches,
one tool after the other, several rounds: what else the machine does meets all of them, and each ratio is that of a
round. The losses of the same steps stand side by side, and beside the speeds the share that a step reaches of the rate
at which the machine multiplies matrices of the output layer's shape, measured in the same rounds.

In float32 LLaMA-Factory is left out: where neither `bf16` nor `fp16` is asked for it takes half precision all the same,
if transformers calls it available.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from matrix_rate import Rates, operations
from ours_in_process import as_yaml
from peers import default_folder, environment
from results import machine, processor, processor_name, table, write_section
from shapes import SHAPES, SHARED, describe, write_model
from tools import TOOLS, Run, available, median_and_range, run_tool, versions_of
from work import Work

Rows = list[dict[str, Any]]
SEED = 42  # of transformers' trainers
TRL_IS_NOT_PACKED = (
    "TRL's rows are padded, not packed: its packing lays rows end to end without a mask and leaves it to "
    "FlashAttention to keep them apart, which no CPU has; with `sdpa` a row would see those before it, and a step "
    "would hold other rows than those of the other tools."
)
ROLES = {"user": "human", "assistant": "gpt"}
PLAIN = ["glmtune", "original-plain", "llamafactory-plain", "trl-plain"]


@dataclass(frozen=True, kw_only=True)
class Source:
    """Rows to train on."""

    file: str
    title: str
    max_length: int
    has_tools: bool
    as_sharegpt: Callable[[dict[str, Any]], dict[str, Any]]
    """Turns a row of the file into what LLaMA-Factory reads."""


def main() -> None:
    """Measure, and write the section of the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=[name for name in SHAPES if name != "9b"], default="small")
    parser.add_argument("--rows", choices=list(SOURCES), default="advertisegen")
    parser.add_argument("--data", type=Path, default=SHARED / "data", help="folder of the published rows")
    parser.add_argument("--tokenizer", type=Path, default=SHARED / "glm-4-9b-chat", help="folder of a GLM-4 model")
    parser.add_argument("--peers", type=Path, default=default_folder(), help="where peers.py put the environments")
    parser.add_argument("--tools", nargs="*", choices=list(TOOLS), default=["original", *PLAIN])
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16", help="that all compute in")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--warm-up", type=int, default=3, help="steps that do not count")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    source = SOURCES[arguments.rows]
    tools = [name for name in arguments.tools if name != "glmtune"]
    if arguments.dtype == "float32":
        tools = [name for name in tools if TOOLS[name].peer != "llamafactory"]
    names = available(["glmtune", *tools], arguments.peers)
    with tempfile.TemporaryDirectory(prefix="glmtune-benchmark-") as name:
        folder = Path(name)
        model = write_model(arguments.shape, folder / "model", arguments.tokenizer)
        work = Work(
            model=str(model),
            data="",
            output="",
            num_steps=arguments.steps,
            max_length=source.max_length,
            is_half=arguments.dtype == "bfloat16",
        )
        write_rows(source, arguments.data / source.file, work, folder)
        rounds, rates = [], []
        for number in range(arguments.rounds):
            rates.append(_matrix_rates(arguments.shape))
            rounds.append(
                {name: _run(name, work, folder / f"round-{number}", source, arguments.peers) for name in names}
            )
        amount = _operations_per_row(folder / "data" / "encoded.jsonl", work, arguments)
    dtype = "" if work.is_half else f"-{arguments.dtype}"
    title = f"training-{arguments.rows}-{arguments.shape}{dtype}-{processor_name()}"
    write_section(title, report(rounds, rates, amount, work, source, arguments))


def _matrix_rates(shape: str) -> Rates:
    """Measure in a process of its own, with the threads that the tools have."""
    command = [sys.executable, str(Path(__file__).with_name("matrix_rate.py")), shape]
    output = subprocess.run(command, env=environment(), check=True, capture_output=True, text=True).stdout
    rates = Rates(**json.loads(output))
    print(f"matrix rate: {rates.float32 / 1e9:.0f} and {rates.bfloat16 / 1e9:.0f} GFLOP/s", file=sys.stderr)
    return rates


def _operations_per_row(encoded: Path, work: Work, arguments: argparse.Namespace) -> float:
    """Return the multiplications and additions of a row, on average over those that count."""
    rows = _read(encoded)[arguments.warm_up * work.rows_per_step :]
    amount = operations(
        SHAPES[arguments.shape],
        num_tokens=sum(len(row["input_ids"]) for row in rows),
        num_labelled=sum(int(label != -100) for row in rows for label in row["labels"][1:]),
    )
    return amount / len(rows)


def _run(name: str, work: Work, folder: Path, source: Source, peers: Path) -> Run:
    tool = TOOLS[name]
    place = folder / name
    place.mkdir(parents=True)
    data = folder.parent / "data"
    options = {"is_encoded": source.has_tools} if "original" in name else None
    run = run_tool(
        name,
        replace(work, data=str(data), output=str(place / "run"), checkpointing=tool.recomputes, options=options),
        peers,
    )
    speed = run.samples_per_second(work.rows_per_step, 1)
    print(f"{name}: {speed:.2f} samples/s, whole process {run.seconds:.0f} s", file=sys.stderr)
    return run


def write_rows(source: Source, file: Path, work: Work, folder: Path) -> None:
    """Write the rows into `data`: as they are, encoded, and in the form of ShareGPT."""
    rows = _read(file)
    random.Random(SEED).shuffle(rows)
    encoded = _encode(source, rows, work, folder / "all")
    fitting = [index for index, row in encoded.items() if len(row["input_ids"]) < source.max_length]
    chosen = fitting[: work.num_steps * work.rows_per_step]
    assert len(chosen) == work.num_steps * work.rows_per_step, f"{file} has only {len(chosen)} rows that fit"
    _write(folder / "data" / "train.jsonl", [rows[index] for index in chosen])
    _write(folder / "data" / "encoded.jsonl", [encoded[index] for index in chosen])
    sharegpt = [source.as_sharegpt(rows[index]) for index in chosen]
    (folder / "data" / "sharegpt.json").write_text(json.dumps(sharegpt, ensure_ascii=False), encoding="utf-8")


def _encode(source: Source, rows: Rows, work: Work, folder: Path) -> dict[int, dict[str, Any]]:
    """Return what `glmtune data inspect --json` makes of the rows, by number."""
    _write(folder / "train.jsonl", rows)
    config = folder / "config.yaml"
    settings = as_yaml(replace(work, output=str(folder / "run"), max_length=2 * source.max_length))
    config.write_text(yaml.safe_dump(settings), encoding="utf-8")
    command = [sys.executable, "-m", "glmtune", "data", "inspect", str(folder), work.model, "--config", str(config)]
    output = subprocess.run([*command, "--json"], env=environment(), check=True, capture_output=True, text=True).stdout
    found = [json.loads(line) for line in output.splitlines()]
    return {row["row"]: row for row in found if "input_ids" in row}


def report(
    rounds: list[dict[str, Run]],
    rates: list[Rates],
    amount: float,
    work: Work,
    source: Source,
    arguments: argparse.Namespace,
) -> str:
    """Return the section; `amount` is what a row costs, in multiplications and additions."""
    names = list(rounds[0])
    speeds = {
        name: [each[name].samples_per_second(work.rows_per_step, arguments.warm_up) for each in rounds]
        for name in names
    }
    shown = sorted({1, work.num_steps // 2, work.num_steps})
    rows = []
    for name in names:
        ratios = [ours / theirs for ours, theirs in zip(speeds["glmtune"], speeds[name])]
        losses = {step["step"]: step["loss"] for step in rounds[0][name].steps}
        peak = statistics.median(each[name].peak_bytes for each in rounds) / 1e9
        shares = [100 * speed * amount / rate.best for speed, rate in zip(speeds[name], rates)]
        ratio = "" if name == "glmtune" else f"**{median_and_range(ratios)}**"
        rows.append(
            [
                TOOLS[name].label,
                median_and_range(speeds[name]),
                ratio,
                f"{_two_digits(statistics.median(shares))} %",
                f"{peak:.1f} GB",
            ]
            + [f"{losses[step]:.3f}" for step in shown]
        )
    header = ["tool", "samples/s", "glmtune is faster by", "share of the matrix rate", "peak of the process"]
    header += [f"loss at step {step}" for step in shown]
    peers = sorted({str(TOOLS[name].peer) for name in names if TOOLS[name].peer})
    counts = _token_counts(rounds[0])
    how = (
        f"--rows {arguments.rows} --shape {arguments.shape} --steps {arguments.steps} --warm-up {arguments.warm_up} "
        f"--rounds {arguments.rounds}"
    ) + ("" if work.is_half else f" --dtype {arguments.dtype}")
    dtype = "bf16" if work.is_half else "float32"
    return "\n\n".join(
        [
            f"## Training on {source.title} in {arguments.dtype}: {describe(arguments.shape)}; {processor()}",
            table(header, rows),
            f"{work.num_steps} steps of {work.rows_per_step} rows ({arguments.warm_up} of them to warm up), LoRA r 8 "
            f"on q, k and v, {dtype}, two threads; medians of {len(rounds)} rounds, in turn, the ratio that of each "
            f"round. {_loss_difference(rounds, names)} {counts}".strip(),
            _about_rates(rates) + (f" {TRL_IS_NOT_PACKED}" if "trl-plain" in names else ""),
            f"{machine('torch', 'transformers', 'peft')}. "
            + " ".join(f"{peer}: {versions_of(peer, arguments.peers)}." for peer in peers),
            f"Again: `python benchmarks/training_throughput.py {how}`",
        ]
    )


def _two_digits(value: float) -> str:
    """Return a figure with two digits, or all of those before the point."""
    return f"{value:.0f}" if value >= 10 else f"{value:.2g}"


def _about_rates(rates: list[Rates]) -> str:
    float32, bfloat16 = (
        _two_digits(statistics.median(getattr(each, name) for each in rates) / 1e9) for name in ("float32", "bfloat16")
    )
    return (
        f"The machine multiplies matrices of the output layer's shape at {float32} GFLOP/s in float32 "
        f"and {bfloat16} in bfloat16, forward and backward as one. The share is what a step's rows cost "
        "(logits of labelled tokens, layers of all tokens, forward and backward to what goes in) over its time, of "
        "the higher rate: 100 % would be a step that does nothing else."
    )


def _loss_difference(rounds: list[dict[str, Run]], names: list[str]) -> str:
    """Say how far the losses of the other tools lie from ours at the same steps."""
    ours = {step["step"]: step["loss"] for step in rounds[0]["glmtune"].steps}
    parts = []
    for name in names[1:]:
        theirs = {step["step"]: step["loss"] for step in rounds[0][name].steps}
        largest = max(abs(ours[step] - theirs[step]) for step in ours)
        parts.append(f"{TOOLS[name].label} {largest:.3f}")
    return f"Largest difference to glmtune's loss at any step: {'; '.join(parts)}." if parts else ""


def _token_counts(runs: dict[str, Run]) -> str:
    parts = [
        f"{TOOLS[name].label} {run.facts['num_tokens']:,} ({run.facts['num_labels']:,} labelled)"
        for name, run in runs.items()
        if run.facts
    ]
    return f"Tokens of all rows: {'; '.join(parts)}." if parts else ""


def _as_plain_sharegpt(row: dict[str, Any]) -> dict[str, Any]:
    turns = [{"from": ROLES[message["role"]], "value": message["content"]} for message in row["messages"]]
    return {"conversations": turns, "system": "", "tools": ""}


def _as_sharegpt_with_tools(row: dict[str, Any]) -> dict[str, Any]:
    return {"conversations": row["conversations"], "system": row.get("system", ""), "tools": row.get("tools", "")}


SOURCES = {
    "advertisegen": Source(
        file="AdvertiseGen/train.jsonl",
        title="AdvertiseGen",
        max_length=1024,
        has_tools=False,
        as_sharegpt=_as_plain_sharegpt,
    ),
    "glaive": Source(
        file="glaive_toolcall_zh_1k.json",
        title="tool calls (glaive)",
        max_length=2048,
        has_tools=True,
        as_sharegpt=_as_sharegpt_with_tools,
    ),
}


def _read(file: Path) -> Rows:
    text = file.read_text(encoding="utf-8")
    return json.loads(text) if file.suffix == ".json" else [json.loads(line) for line in text.splitlines()]


def _write(file: Path, rows: Rows) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


if __name__ == "__main__":
    main()
