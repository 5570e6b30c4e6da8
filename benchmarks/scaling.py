"""Whether a run costs the same for a thousand rows and for a million: start, tokens/s while training, memory.

python benchmarks/scaling.py                     # about 15 minutes on two cores
python benchmarks/scaling.py --max-rows 100000   # about 4

The rows are AdvertiseGen's, as often as needed, each with its number in it, so that no two are alike. The small shape,
LoRA r 8 on q, k and v, bf16, batches of 4 rows in random order. Two processes for each size: the first encodes the
rows, the second finds them encoded; both train.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from ours_in_process import as_yaml
from peers import environment
from results import machine, table, write_section
from shapes import SHARED, describe, write_model
from transformers import TrainerCallback
from work import Work, memory

MARK = "benchmark-run "
SIZES = (1_000, 10_000, 100_000, 1_000_000)
NUM_WARM_UP = 4
STARTS = ("first", "second")


def main() -> None:
    """Measure, and write the section of the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--max-rows", type=int, default=SIZES[-1])
    parser.add_argument("--data", type=Path, default=SHARED / "data", help="folder of the published rows")
    parser.add_argument("--tokenizer", type=Path, default=SHARED / "glm-4-9b-chat", help="folder of a GLM-4 model")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--measure", nargs=2, metavar=("WORK", "BEGIN"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        work = Work(**json.loads(Path(arguments.measure[0]).read_text(encoding="utf-8")))
        print(MARK + json.dumps(measure(work, float(arguments.measure[1]))))
        return
    found: dict[int, list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory(prefix="glmtune-benchmark-") as name:
        folder = Path(name)
        model = write_model("small", folder / "model", arguments.tokenizer)
        for num_rows in (size for size in SIZES if size <= arguments.max_rows):
            data = folder / f"rows-{num_rows}"
            write_rows(arguments.data / "AdvertiseGen" / "train.jsonl", data / "train.jsonl", num_rows)
            for start in STARTS:
                output = folder / f"{num_rows}-{start}"
                work = Work(model=str(model), data=str(data), output=str(output / "run"), num_steps=arguments.steps)
                found.setdefault(num_rows, []).append(_in_a_process(work, output, folder / "cache"))
                print(f"{num_rows:,} rows, {start} start: {found[num_rows][-1]}", file=sys.stderr)
    write_section("scaling", report(found, arguments))


def write_rows(source: Path, file: Path, num_rows: int) -> None:
    """Write rows that are all different."""
    templates = [json.loads(line) for line in source.read_text(encoding="utf-8").splitlines()]
    file.parent.mkdir()
    with file.open("w", encoding="utf-8") as output:
        for number in range(num_rows):
            question, answer = templates[number % len(templates)]["messages"]
            answer = answer | {"content": f"{answer['content']}（第{number:07}条）"}
            output.write(json.dumps({"messages": [question, answer]}, ensure_ascii=False) + "\n")


def _in_a_process(work: Work, folder: Path, cache: Path) -> dict[str, Any]:
    folder.mkdir()
    file = work.save(folder / "work.json")
    command = [sys.executable, __file__, "--measure", str(file), str(time.monotonic())]
    variables = environment() | {"GLMTUNE_CACHE": str(cache)}
    done = subprocess.run(command, env=variables, capture_output=True, text=True)
    lines = [line for line in done.stdout.splitlines() if line.startswith(MARK)]
    if not lines:
        sys.exit(f"the run failed:\n{done.stderr[-3000:]}")
    return json.loads(lines[0][len(MARK) :])


def measure(work: Work, begin: float) -> dict[str, Any]:
    """Train in this process; returns seconds from its start on, tokens/s and memory."""
    from glmtune.config.run_config import config_from_mapping
    from glmtune.console import notice
    from glmtune.training.building import build_model, build_trainer
    from glmtune.training.folder.run_folder import RunRequest
    from glmtune.training.setup.arguments import training_arguments
    from glmtune.training.setup.preparation import prepare_run

    settings = as_yaml(work)
    # In random order, and without a log in between, which would begin the count of tokens anew.
    settings["training_args"] |= {"train_sampling_strategy": "random", "logging_steps": 10 * work.num_steps}
    config = config_from_mapping(settings, where="benchmark")
    prepare_begin = time.monotonic()
    prepared = prepare_run(RunRequest(data_dir=Path(work.data), model=work.model, config=config))
    prepare_seconds = time.monotonic() - prepare_begin
    peak_of_preparing = memory("VmHWM")
    run_folder = Path(work.output)
    run_folder.mkdir()
    arguments = training_arguments(config, run_folder, notice)
    trainer = build_trainer(prepared, arguments, build_model(prepared, arguments, None), run_folder)
    watch = _Watch(trainer, work.num_steps)
    trainer.add_callback(watch)
    trainer.train()
    return {
        "prepare_seconds": prepare_seconds,
        "first_step_seconds": watch.first_step - begin,
        "peak_of_preparing": peak_of_preparing,
        "tokens_per_second": watch.speed,
        "own_memory": watch.own_memory,
    }


class _Watch(TrainerCallback):
    """Takes the speed of the steps after the first ones, and the memory of the last."""

    def __init__(self, trainer: Any, num_steps: int) -> None:
        self.trainer = trainer
        self.num_steps = num_steps
        self.first_step = self.speed = 0.0
        self.own_memory = 0

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == 1:
            self.first_step = time.monotonic()
        if state.global_step == NUM_WARM_UP:
            self.trainer.tokens_per_second()  # counts from here
        if state.global_step == self.num_steps:
            self.speed = self.trainer.tokens_per_second()
            self.own_memory = memory("RssAnon")


def report(found: dict[int, list[dict[str, Any]]], arguments: argparse.Namespace) -> str:
    """Return the section."""
    smallest = [each["tokens_per_second"] for each in found[min(found)]]
    rows = []
    for num_rows, (first, second) in found.items():
        speeds = [first["tokens_per_second"], second["tokens_per_second"]]
        rows.append(
            [
                f"{num_rows:,}",
                f"{num_rows / first['prepare_seconds']:,.0f}",
                f"{first['first_step_seconds']:.1f} s",
                f"{second['first_step_seconds']:.1f} s",
                f"{first['peak_of_preparing'] / 1e6:,.0f} MB",
                f"{sum(speeds) / 2:,.0f}",
                f"**{sum(speeds) / sum(smallest):.2f}**",
                f"{second['own_memory'] / 1e6:,.0f} MB",
            ]
        )
    header = ["rows", "rows/s read and encoded", "to the end of step 1, first start", "second start"]
    header += [
        "peak while encoding",
        "tokens/s in training",
        f"of that with {min(found):,} rows",
        "own memory in training",
    ]
    return "\n\n".join(
        [
            f"## Cost against size: {describe('small')}",
            table(header, rows),
            f"{arguments.steps} steps of 4 rows, mean of both starts; own memory is that of the process without pages "
            f"of mapped files, which the kernel takes back when memory is short. Rows/s count the loading of the "
            f"tokenizer. {machine('torch', 'transformers', 'datasets')}.",
            f"Again: `python benchmarks/scaling.py --max-rows {arguments.max_rows}`",
        ]
    )


if __name__ == "__main__":
    main()
