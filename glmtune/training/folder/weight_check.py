"""Saved weights are read back: every one whole, in its full shape, and made of finite numbers.

Under ZeRO-3 a process holds a share of each weight, and tools have been seen to save what one process holds: empty
tensors.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors import SafetensorError, safe_open

from glmtune.errors import RunFailure

Shapes = Mapping[str, tuple[int, ...]]

PREFIX = "prompt_embeddings"
"""The name under which PEFT saves a trained prefix."""


def saved_shapes(model: Any) -> dict[str, tuple[int, ...]]:
    """Return the full shape of every weight that a checkpoint has to hold, by its name in the file.

    Args:
        model: Without the wrappers of DDP and DeepSpeed; its weights may be sharded over processes.
    """
    weights = dict(model.named_parameters())
    return {saved: _full_shape(weights[name]) for name, saved in saved_names(model).items()}


def saved_names(model: Any) -> dict[str, str]:
    """Return the name of every weight that a checkpoint has to hold, in the model and in the file."""
    if not isinstance(model, PeftModel):
        return {name: name for name, _ in model.named_parameters()}
    trained = [name for name, weight in model.named_parameters() if weight.requires_grad]
    adapter = model.active_adapter
    if model.peft_config[adapter].is_prompt_learning:
        (name,) = (name for name in trained if name.startswith("prompt_encoder."))
        return {name: PREFIX}
    return {name: name.replace(f".{adapter}.", ".").replace("modules_to_save.", "") for name in trained}


def check_weights(folder: Path, expected: Shapes) -> None:
    """Raise unless the safetensors files of a folder hold these weights, whole and finite.

    A weight may be stored in other pieces than the model holds it in (transformers splits joined experts when it
    saves), so that for weights under other names the count of their numbers has to do.
    """
    found: dict[str, tuple[int, ...]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        found |= _check_file(path, expected)
    _check_index(folder, found)
    saved, needed = (sum(map(math.prod, shapes.values())) for shapes in (found, expected))
    if saved < needed:
        missing = next((name for name in expected if name not in found), "")
        raise RunFailure(
            f"the checkpoint holds {saved:,} of the model's {needed:,} numbers"
            + (f"; weight `{missing}` was not saved" if missing else ""),
            where=str(folder),
        )


def _check_file(path: Path, expected: Shapes) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the tensors in a file; raises for one that is not whole."""
    found: dict[str, tuple[int, ...]] = {}
    try:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 -- not a dict
                tensor = file.get_tensor(name)
                found[name] = tuple(tensor.shape)
                shape = expected.get(name, found[name])
                if not tensor.numel():
                    raise RunFailure(f"weight `{name}` was saved empty", where=str(path))
                if found[name] != shape:
                    raise RunFailure(f"weight `{name}` was saved as {found[name]} instead of {shape}", where=str(path))
                if tensor.is_floating_point() and not torch.isfinite(tensor).all():
                    raise RunFailure(f"weight `{name}` holds numbers that are not finite", where=str(path))
    except SafetensorError as error:
        raise RunFailure(f"`{path.name}` cannot be read back: {error}", where=str(path)) from error
    return found


def _check_index(folder: Path, found: Mapping[str, Any]) -> None:
    """Raise where the index of weights in several files names one that no file holds."""
    for index in folder.glob("*.safetensors.index.json"):
        places = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        for name, file in places.items():
            if name not in found:
                raise RunFailure(f"weight `{name}` is missing: `{file}` does not hold it", where=str(index))


def _full_shape(weight: Any) -> tuple[int, ...]:
    """Return a weight's shape; ZeRO-3 keeps it beside the share of this process."""
    return tuple(getattr(weight, "ds_shape", weight.shape))
