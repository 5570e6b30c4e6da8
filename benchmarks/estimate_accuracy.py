"""How near `glmtune estimate` comes to the memory that training really takes.

python benchmarks/estimate_accuracy.py --tokenizer MODEL

Every case trains two steps in a process of its own: random weights of the shape named, rows as long as the
configuration allows (every fourth one shorter, so that a batch may need padding).

On a CPU the figure is the process's peak of resident memory (`VmHWM`, set back by writing 5 to /proc/self/clear_refs
when the model is loaded) less what was resident before it was loaded. Before that a tiny model has been trained in the
same process, and the model at hand loaded once, so that libraries, kernels and Python's own objects are there already;
and glibc's malloc is told to give every freed block above 64 kB back at once, or else the figure would depend on the
order of allocations. Every page of the weights is read once: frozen weights are mapped from their file, and those of
tokens that the few rows here do not use would not count.

On a GPU the figure is `torch.cuda.max_memory_allocated`, which leaves out
what CUDA takes for itself, as the estimate does here. That part has not run yet: no GPU was at hand.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml
from results import machine, table, write_section

SHAPES: dict[str, dict[str, int]] = {
    "demo": {},
    "128 x 2": {"hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 2, "num_attention_heads": 4},
    "512 x 8": {"hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 8, "num_attention_heads": 8},
}
"""Hidden size x layers; all but the demo's with GLM-4's vocabulary of 151,552 tokens."""
GPU_SHAPES: dict[str, dict[str, int]] = {
    "4096 x 8": {"hidden_size": 4096, "intermediate_size": 13696, "num_hidden_layers": 8, "num_attention_heads": 32},
}
VOCABULARY = 151_552
METHODS: dict[str, dict[str, Any] | None] = {
    "lora": {"peft_type": "LORA", "r": 8, "lora_alpha": 32, "lora_dropout": 0.1},
    "ptuning_v2": {"peft_type": "PREFIX_TUNING", "num_virtual_tokens": 128},
    "sft": None,
}
GIVE_BACK_AT_ONCE = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1"}
MB = 1e6


def main() -> None:
    """Measure every case and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", help="folder of a GLM-4 model, whose tokenizer is used")
    parser.add_argument("--shapes", nargs="*", help="of those in the table; all by default")
    parser.add_argument("--methods", nargs="*", default=list(METHODS))
    parser.add_argument("--lengths", nargs="*", type=int, default=[512], help="tokens of a row")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="for every configuration")
    parser.add_argument("--dry", action="store_true", help="leave RESULTS.md as it is")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(arguments.measure, arguments.set)))
        return
    import torch

    on_gpu = torch.cuda.is_available()
    shapes = GPU_SHAPES if on_gpu else SHAPES
    lines = []
    with tempfile.TemporaryDirectory() as place:
        for name in arguments.shapes or shapes:
            for length in arguments.lengths:
                for method in arguments.methods:
                    for checkpointing in (False, True):
                        case = Case(Path(place), name, shapes[name], method, checkpointing, length, arguments.tokenizer)
                        lines.append(case.line(arguments.set, num_gpus=int(on_gpu)))
                        print(*lines[-1], sep="  ", file=sys.stderr, flush=True)
    header = ["shape", "method", "checkpointing", "tokens", "estimate MB", "measured MB", "ratio"]
    text = (
        "## `glmtune estimate` against real steps\n\n"
        f"`python benchmarks/estimate_accuracy.py`: {machine('torch', 'transformers', 'peft')}, "
        f"{'GPU: max_memory_allocated' if on_gpu else 'CPU: peak resident memory beyond the interpreter'}. "
        f"Batch 4{', ' + ', '.join(arguments.set) if arguments.set else ''}.\n\n" + table(header, lines)
    )
    print(text) if arguments.dry else write_section("estimate", text)


class Case:
    """One model, configuration and folder of rows."""

    def __init__(
        self, place: Path, name: str, shape: dict, method: str, checkpointing: bool, length: int, tokenizer: str | None
    ) -> None:
        self.titles = [name, method, "yes" if checkpointing else "no", f"{length}"]
        self.folder = Path(tempfile.mkdtemp(dir=place))
        self.model = "demo" if name == "demo" else str(random_model(place / name.replace(" ", ""), shape, tokenizer))
        write_rows(self.folder / "train.jsonl", length)
        self.config = {
            "data_config": {"train_file": "train.jsonl"},
            "max_input_length": length // 2,
            "max_output_length": length - length // 2,
            "training_args": {
                "output_dir": str(self.folder / "run"),
                "max_steps": 2,
                "per_device_train_batch_size": 4,
                "gradient_checkpointing": checkpointing,
                "eval_strategy": "no",
                "save_strategy": "no",
                "dataloader_pin_memory": False,
            },
            "peft_config": METHODS[method],
        }
        (self.folder / "config.yaml").write_text(yaml.safe_dump(self.config), encoding="utf-8")
        (self.folder / "model").write_text(self.model, encoding="utf-8")

    def line(self, overrides: list[str], *, num_gpus: int) -> list[str]:
        """Return the row of the table."""
        from glmtune.memory.run import estimate

        command = [sys.executable, __file__, "--measure", str(self.folder), "--set", *overrides]
        environment = os.environ | GIVE_BACK_AT_ONCE
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
        measured = json.loads(done.stdout.splitlines()[-1])
        estimated = estimate(
            self.model,
            self.folder / "config.yaml",
            overrides=overrides,
            num_gpus=num_gpus,
            labelled=measured["labelled"],
        ).configured.memory
        expected = estimated.total - estimated.runtime
        shutil.rmtree(self.folder)
        figures = [f"{expected / MB:,.0f}", f"{measured['bytes'] / MB:,.0f}", f"{expected / measured['bytes']:.2f}"]
        return [*self.titles, *figures]


def measure(folder: Path, overrides: list[str]) -> dict[str, float]:
    """Train and return the peak, and the share of the tokens of a batch that have a label."""
    import torch

    from glmtune import load_config
    from glmtune.training.folder.run_folder import RunRequest
    from glmtune.training.setup.preparation import prepare_run

    model = (folder / "model").read_text(encoding="utf-8")
    config = load_config(folder / "config.yaml", overrides)
    request = RunRequest(data_dir=folder, model=model, config=config)
    prepared = prepare_run(request)
    rows = prepared.data["train"].dataset
    lengths = [len(rows[i]["labels"]) for i in range(4)]
    labelled = sum(label >= 0 for i in range(4) for label in rows[i]["labels"]) / (4 * (max(lengths) - 1))
    train(prepare_run(RunRequest(data_dir=folder, model="demo", config=config)), folder / "warm-up")
    # The tokenizer's vocabulary as Python's own objects, and what else loading leaves behind.
    load(prepared, folder / "run")
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        train(prepared, folder / "run")
        return {"bytes": torch.cuda.max_memory_allocated(), "labelled": labelled}
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    before = resident("VmRSS")
    train(prepared, folder / "run")
    return {"bytes": resident("VmHWM") - before, "labelled": labelled}


def train(prepared: Any, run_folder: Path) -> None:
    """Train as a run does, and set the peak back when the model is loaded."""
    import torch

    from glmtune.training.building import build_trainer

    model, arguments = load(prepared, run_folder)
    for weight in model.parameters():
        weight.detach().flatten()[::512].sum()
    run_folder.mkdir()
    trainer = build_trainer(prepared, arguments, model, run_folder)
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    trainer.train()


def load(prepared: Any, run_folder: Path) -> tuple[Any, Any]:
    """Return model and arguments of a run."""
    from glmtune.training.building import build_model
    from glmtune.training.setup.arguments import training_arguments

    arguments = training_arguments(prepared.request.config, run_folder, print)
    return build_model(prepared, arguments, None), arguments


def resident(key: str) -> int:
    """Return a figure of /proc/self/status in bytes."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(re.search(rf"{key}:\s+(\d+) kB", status)[1]) * 1024


def random_model(folder: Path, shape: dict[str, int], tokenizer: str | None) -> Path:
    """Write a GLM of random weights, once, with the tokenizer of a real one."""
    if folder.exists():
        return folder
    assert tokenizer, "--tokenizer names the folder of a GLM-4 model"
    from transformers import AutoTokenizer, GlmConfig

    from glmtune.demo.model import random_model as build

    heads = shape["num_attention_heads"]
    config = GlmConfig(
        **shape,
        num_key_value_heads=2,
        head_dim=shape["hidden_size"] // heads,
        vocab_size=VOCABULARY,
        attention_bias=True,
    )
    build(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tokenizer).save_pretrained(folder)
    return folder


def write_rows(path: Path, length: int) -> None:
    """Write rows of at least so many tokens, every fourth one shorter; nearly all of them are labelled."""
    chooser = random.Random(0)
    with path.open("w", encoding="utf-8") as file:
        for row in range(16):
            words = chooser.choices("abcdefghijklmnopqrstuvwxyz", k=length if row % 4 else length - 40)
            messages = [{"role": "user", "content": "?"}, {"role": "assistant", "content": " ".join(words)}]
            file.write(json.dumps({"messages": messages}, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
