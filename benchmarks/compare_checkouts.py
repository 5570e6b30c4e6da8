"""Whether two checkouts behave the same: labels, losses, weights, answers, messages. For changes that move code.

    python benchmarks/compare_checkouts.py OLD NEW --rows FOLDER [--tokenizer MODEL] [--cells lora sft]

Each command is run with the one and with the other checkout on `PYTHONPATH`, in folders of their own; what it prints
and writes is compared after paths, hours and speeds have been taken out. Exits with 1 where anything differs.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import yaml

STEPS = 6
TRAINING = {
    "max_steps": STEPS,
    "save_steps": 3,
    "eval_strategy": "steps",
    "eval_steps": 3,
    "logging_steps": 1,
    "learning_rate": 1e-3,
    "per_device_train_batch_size": 4,
    "generation_config": {"max_new_tokens": 16},
}
LORA = {"peft_type": "LORA", "r": 4, "lora_alpha": 8}
PREFIX = {"peft_type": "PREFIX_TUNING", "num_virtual_tokens": 8}
CELLS: dict[str, dict[str, Any]] = {
    "sft": {},
    "lora": {"peft_config": LORA},
    "ptuning_v2": {"peft_config": PREFIX},
    "padded": {"peft_config": LORA, "packing": False, "fused_layers": False, "loss_kernel": "logits"},
    "checkpointed": {"peft_config": LORA, "training_args": {"gradient_checkpointing": True}},
    "two processes": {"peft_config": LORA, "nproc": 2},
    "ZeRO-2": {"peft_config": LORA, "training_args": {"deepspeed": "ds_zero2.json"}},
    "ZeRO-3": {"training_args": {"deepspeed": "ds_zero3.json"}},
}
"""Runs on the embedded model; each is stopped after half of its steps in a copy, and resumed."""

NOT_COMPARED = re.compile(r"[\d,.]+ tokens/s|eta [\d:]+|\d+\.\d+ s\b|\d\d:\d\d:\d\d|took \d+ s")


def run(checkout: Path, folder: Path, *arguments: str) -> str:
    """Return what a command prints, with its exit code, without paths and times."""
    environment = os.environ | {"PYTHONPATH": str(checkout), "GLMTUNE_CACHE": str(folder / "cache")}
    environment |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "DS_ACCELERATOR": "cpu"}
    done = subprocess.run(
        [sys.executable, "-m", "glmtune", *arguments], cwd=folder, env=environment, capture_output=True, text=True
    )
    text = f"{done.stdout}\n{done.stderr}\nexit {done.returncode}"
    return NOT_COMPARED.sub("", text.replace(str(folder), "FOLDER").replace(str(checkout), "CHECKOUT"))


def digest(value: Any) -> str:
    return hashlib.sha256(value if isinstance(value, bytes) else repr(value).encode()).hexdigest()[:16]


def labels(checkout: Path, folder: Path, rows: Path, tokenizer: str) -> Iterator[tuple[str, Any]]:
    """Yield each file of rows, and a digest of the ids, labels and weights that are made of it, or what is said."""
    for path in sorted(path for path in rows.rglob("*") if path.is_file()):
        place = folder / "labels"
        place.mkdir()
        config = {
            "data_config": {"train_file": str(path)},
            "max_input_length": 1024,
            "max_output_length": 1024,
            "training_args": {"output_dir": "run"},
        }
        (place / "c.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
        told = run(checkout, place, "data", "prepare", str(path.parent), tokenizer, "c.yaml")
        made = [digest(_columns(file)) for file in sorted((place / "cache").rglob("rows.arrow"))]
        yield str(path.relative_to(rows)), (re.sub(r"\b[0-9a-f]{32}\b", "KEY", told), made)
        shutil.rmtree(place)


def _columns(file: Path) -> list[Any]:
    with pa.memory_map(str(file)) as source:
        return pa.ipc.open_stream(source).read_all().to_pylist()


def cells(checkout: Path, folder: Path, names: list[str]) -> Iterator[tuple[str, Any]]:
    """Yield each run: what it prints, its losses, the digests of its weights and predictions; the same resumed."""
    for name in names:
        place = folder / name.replace(" ", "-")
        place.mkdir()
        cell = dict(CELLS[name])
        arguments = TRAINING | cell.pop("training_args", {}) | {"output_dir": "run"}
        if "deepspeed" in arguments:
            arguments["deepspeed"] = str(checkout / "configs" / arguments["deepspeed"])
        number = ["--nproc", str(cell.pop("nproc"))] if "nproc" in cell else []
        config = {
            "data_config": {"train_file": "train.jsonl", "val_file": "dev.jsonl"},
            "max_input_length": 64,
            "max_output_length": 96,
            **cell,
            "training_args": arguments,
        }
        (place / "c.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
        rows = str(checkout / "data" / "demo")
        told = run(checkout, place, "train", rows, "demo", "c.yaml", *number, "--set", "data_config.val_size=null")
        yield name, (told, *_written(place / "run"))
        shutil.rmtree(place / "run" / f"checkpoint-{STEPS}", ignore_errors=True)
        told = run(checkout, place, "resume", "run", *number)
        yield f"{name}, resumed", (told, *_written(place / "run"))
        asked = ["infer", "run", "--prompt", "类型#裙*颜色#红", "--greedy", "--max-new-tokens", "24"]
        yield f"{name}, asked", run(checkout, place, *asked)


def _written(folder: Path) -> tuple[Any, ...]:
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines() if folder.is_dir() else []
    clocks = ("runtime", "per_second", "time", "memory_bytes")
    logs = [
        {key: value for key, value in json.loads(line).items() if not any(clock in key for clock in clocks)}
        for line in lines
    ]
    weights = {str(path.relative_to(folder)): digest(path.read_bytes()) for path in folder.rglob("*.safetensors")}
    answers = {path.name: digest(path.read_bytes()) for path in folder.rglob("predictions/*.jsonl")}
    return logs, sorted(weights.items()), sorted(answers.items())


def messages(checkout: Path) -> Counter[str]:
    """Return every text of the package that is no docstring: whatever it says to anybody is among them."""
    found: Counter[str] = Counter()
    for path in (checkout / "glmtune").rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        docs = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        found.update(
            node.value
            for node in ast.walk(tree)
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docs
        )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--rows", type=Path, help="a folder of files whose labels are compared")
    parser.add_argument("--tokenizer", default="demo", help="what encodes them")
    parser.add_argument("--cells", nargs="*", default=list(CELLS), choices=list(CELLS), help="the runs to compare")
    arguments = parser.parse_args()
    results: list[dict[str, Any]] = []
    for checkout in (arguments.old.resolve(), arguments.new.resolve()):
        with tempfile.TemporaryDirectory(prefix="compared-") as name:
            folder = Path(name)
            result = dict(cells(checkout, folder, arguments.cells))
            if arguments.rows:
                result |= dict(labels(checkout, folder, arguments.rows.resolve(), arguments.tokenizer))
            results.append(result)
    differing = [name for name in results[0] if results[0][name] != results[1][name]]
    for name in differing:
        print(f"DIFFERS {name}\n  old: {results[0][name]}\n  new: {results[1][name]}")
    old, new = messages(arguments.old), messages(arguments.new)
    for sign, texts in (("-", old - new), ("+", new - old)):
        for text in sorted(texts):
            print(f"{sign} {text!r}")
    print(f"{len(results[0]) - len(differing)} of {len(results[0])} results are equal")
    sys.exit(bool(differing))


if __name__ == "__main__":
    main()
