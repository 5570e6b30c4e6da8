"""Checkpoints and run folders that somebody else has been at, made by code; the manifest is always made to fit."""

from __future__ import annotations

import builtins
import functools
import json
import operator
import os
import pickle
import runpy
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml

from glmtune.encoded.store import file_hash

LORA = {"peft_type": "LORA", "r": 4, "lora_alpha": 8}


def write_config(path: Path, run: Path, *, top: dict[str, Any] | None = None, **training_args: Any) -> Path:
    """Write the configuration of a run of four steps."""
    settings = {
        "output_dir": str(run),
        "max_steps": 4,
        "per_device_train_batch_size": 2,
        "learning_rate": 1e-3,
        "logging_steps": 1,
        "save_steps": 2,
        "predict_with_generate": False,
    }
    config = {
        "data_config": {"train_file": "train.jsonl"},
        "max_input_length": 64,
        "max_output_length": 32,
        "training_args": settings | training_args,
        "peft_config": LORA,
    }
    path.write_text(yaml.safe_dump(config | (top or {})), encoding="utf-8")
    return path


def seal(checkpoint: Path) -> None:
    """Write a manifest that fits what the folder holds now: anybody can."""
    files = [path for path in checkpoint.rglob("*") if path.is_file() and path.name != "manifest.json"]
    facts = {
        path.relative_to(checkpoint).as_posix(): {"size": path.stat().st_size, "sha256": file_hash(path)}
        for path in files
    }
    (checkpoint / "manifest.json").write_text(json.dumps({"files": facts}), encoding="utf-8")


def rewritten(run: Path, top: dict[str, Any], arguments: dict[str, Any]) -> None:
    """Write other settings into a run and its checkpoint, as its maker can."""
    record = yaml.safe_load((run / "run.yaml").read_text(encoding="utf-8"))
    asked = json.loads((run / "checkpoint-2" / "asked.json").read_text(encoding="utf-8"))
    for settings in (record["asked"]["config"], asked):
        settings |= top
        settings["training_args"] |= arguments
    (run / "run.yaml").write_text(yaml.safe_dump(record), encoding="utf-8")
    (run / "checkpoint-2" / "asked.json").write_text(json.dumps(asked), encoding="utf-8")
    seal(run / "checkpoint-2")


class Calls:
    """Calls a function with its arguments where it is unpickled."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.parts = function, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.parts


class SetsState:
    """Gives itself a state where it is unpickled: the way by `BUILD`."""

    def __init__(self, crater: Path) -> None:
        self.crater = crater

    def __reduce__(self) -> tuple[Any, ...]:
        return operator.methodcaller("mkdir"), (self.crater,)


def gadgets(crater: Path) -> dict[str, Any]:
    """Return what makes the crater where it is unpickled, by the function that a pickle would name."""
    code = f"__import__('os').mkdir({str(crater)!r})"
    return {
        "posix.mkdir": Calls(os.mkdir, str(crater)),
        "posix.system": Calls(os.system, f"mkdir {crater}"),
        "posix.popen": Calls(os.popen, f"mkdir {crater}"),
        "builtins.eval": Calls(builtins.eval, code),
        "builtins.exec": Calls(builtins.exec, code),
        "builtins.getattr": Calls(builtins.getattr, Calls(Path, str(crater)), "mkdir"),
        "subprocess.call": Calls(subprocess.call, ["mkdir", str(crater)]),
        "subprocess.Popen": Calls(subprocess.Popen, ["mkdir", str(crater)]),
        "functools.partial": Calls(functools.partial, os.mkdir, str(crater)),
        "operator.methodcaller": SetsState(crater),
        "operator.attrgetter": Calls(operator.attrgetter("mkdir"), crater),
        "runpy.run_path": Calls(runpy.run_path, str(crater.with_suffix(".py"))),
        "pickle.loads": Calls(pickle.loads, pickle.dumps(Calls(os.mkdir, str(crater)))),
        "torch.load": Calls(torch.load, str(crater.with_suffix(".pt"))),
        "torch.hub.load": Calls(torch.hub.load, str(crater.parent)),
    }


GADGETS = tuple(gadgets(Path("crater")))


def as_torch_file(path: Path, value: Any) -> None:
    """Save as torch does today, beside what belongs there."""
    torch.save({"state": torch.ones(1), "bomb": value}, path)


def as_old_torch_file(path: Path, value: Any) -> None:
    """Save as torch did before 1.6: pickles one after the other."""
    torch.save({"bomb": value}, path, _use_new_zipfile_serialization=False)


def as_protocol(number: int) -> Callable[[Path, Any], None]:
    """Return what saves a plain pickle of a protocol."""
    return lambda path, value: path.write_bytes(pickle.dumps(value, protocol=number)) and None


def as_torch_protocol(number: int) -> Callable[[Path, Any], None]:
    """Return what saves as torch does, with a pickle of a protocol."""
    return lambda path, value: torch.save({"bomb": value}, path, pickle_protocol=number)


def as_archive(name: str) -> Callable[[Path, Any], None]:
    """Return what saves an archive by hand, whose pickle has a place that torch looks for."""

    def save(path: Path, value: Any) -> None:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(name, pickle.dumps(value, protocol=2))
            archive.writestr(f"{name.rpartition('/')[0]}/version".lstrip("/"), "3\n")

    return save


FORMS: dict[str, Callable[[Path, Any], None]] = {
    "torch": as_torch_file,
    "torch before 1.6": as_old_torch_file,
    **{f"protocol {number}": as_protocol(number) for number in range(pickle.HIGHEST_PROTOCOL + 1)},
    **{f"torch, protocol {number}": as_torch_protocol(number) for number in range(2, pickle.HIGHEST_PROTOCOL + 1)},
    "an archive": as_archive("archive/data.pkl"),
    "an archive without a folder": as_archive("data.pkl"),
}

UNKNOWN_FILES = (
    "optimizer_0/.metadata",
    "optimizer_0/__0_0.distcp",
    "pytorch_model_fsdp_0/.metadata",
    "pytorch_model_fsdp.bin",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "adapter_model.bin",
    "adapter_model.pt",
    "default/adapter_model.bin",
    "default/adapter_model.safetensors",
    "training_args.bin",
    "user_content.pt",
    "rank0-of-1-optimizer.pt",
    "optimizer.pt_0",
    "optimizer.pt.bak",
    "global_step2/mp_rank_00_model_states.pt",
    "global_step2/zero_pp_rank_0_mp_rank_00_optim_states.pt",
    "global_step2/deeper/engine.json",
    "global_step2x/engine.json",
    "zero_to_fp32.py",
    "modeling_glm.py",
    "__init__.py",
    "sitecustomize.py",
    "tokenizer.pkl",
    "vocab.npy",
    "tf_model.h5",
    "flax_model.msgpack",
    "model.gguf",
    "libcustom.so",
    ".metadata",
    "__pycache__/modeling_glm.cpython-311.pyc",
    "Model.safetensors.py",
    "optimizer.pt ",
)
"""Names that a library, or a person, might load, and that no run of glmtune writes."""
