"""Models and adapters that are damaged, absurd or meant to harm, made by code from the embedded one."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from json_changes import changed
from safetensors.torch import load_file, save_file

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
WEIGHT = "model.layers.0.self_attn.q_proj.weight"
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 9969999999\n"
Damage = Callable[[Path], object]


def written(name: str, content: str | bytes) -> Damage:
    """Return what replaces a file."""
    return lambda folder: (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)


def weights(**values: Callable[[torch.Tensor], torch.Tensor]) -> Damage:
    """Return what changes weights: those whose names end so."""

    def change(folder: Path) -> None:
        path = next(folder.glob("*.safetensors"))
        tensors = load_file(path)
        for ending, make in values.items():
            for name in [name for name in tensors if name.endswith(ending.replace("__", "."))]:
                tensors[name] = make(tensors[name])
        save_file(tensors, path, {"format": "pt"})

    return change


def one_number(value: float) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return what sets the first number of a weight."""

    def change(weight: torch.Tensor) -> torch.Tensor:
        weight.view(-1)[0] = value
        return weight

    return change


def header(change: Callable[[dict[str, Any]], Any]) -> Damage:
    """Return what rewrites the header of the file of weights, without touching the weights."""

    def rewrite(folder: Path) -> None:
        path = next(folder.glob("*.safetensors"))
        content = path.read_bytes()
        (length,) = struct.unpack("<Q", content[:8])
        text = json.dumps(change(json.loads(content[8 : 8 + length]))).encode()
        path.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])

    return rewrite


def entry(**values: Any) -> Damage:
    """Return what changes the header's entry of one weight."""

    def change(found: dict[str, Any]) -> dict[str, Any]:
        name = WEIGHT if WEIGHT in found else next(name for name in found if name != "__metadata__")
        return found | {name: found[name] | values}

    return header(change)


def header_length(length: int) -> Damage:
    """Return what says that the header has another length."""

    def rewrite(folder: Path) -> None:
        path = next(folder.glob("*.safetensors"))
        path.write_bytes(struct.pack("<Q", length) + path.read_bytes()[8:])

    return rewrite


def index_to(file_name: Any, *, keeps: bool = True) -> Damage:
    """Return what has an index name a file for all weights; the real weights lie there, where `keeps`."""

    def rewrite(folder: Path) -> None:
        tensors = load_file(folder / WEIGHTS)
        (folder / WEIGHTS).unlink()
        # A file of weights stays, so that the folder looks like a model's.
        save_file({"x": torch.ones(1)}, folder / "other.safetensors")
        if keeps and isinstance(file_name, str):
            torch.save(tensors, folder / file_name)
        index = {"metadata": {}, "weight_map": dict.fromkeys(tensors, file_name)}
        (folder / INDEX).write_text(json.dumps(index), encoding="utf-8")

    return rewrite


def explicit_pickle(name: str) -> Damage:
    """Return what has `config.json` name a pickle as the file of the weights."""

    def rewrite(folder: Path) -> None:
        torch.save(load_file(folder / WEIGHTS), folder / Path(name).name)
        changed("config.json", transformers_weights=name)(folder)

    return rewrite


def removed(name: str) -> Damage:
    """Return what removes a file."""
    return lambda folder: (folder / name).unlink()
