"""Weights that are numbers: a model with one NaN in it answers `!!!!` for ever, and nothing else tells of it.

A model of 19 GB is not read through for it at each start. Its logits are looked at, which costs a comparison for each
token; where one is no number, the weights are searched, and the one that is to blame is named with its file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any
from weakref import WeakSet

import torch
from peft import PeftModel
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers.utils import ModelOutput

from glmtune.errors import GlmtuneError, RunFailure

_watched: WeakSet[nn.Module] = WeakSet()

FIX = "download it again, or take a checkpoint from before the training went wrong"


def check_finite(path: Path) -> None:
    """Raise where a weight of a safetensors file holds what is no number; reads the whole file."""
    name = _first_in_file(path)
    if name is not None:
        raise GlmtuneError(f"weight `{name}` holds numbers that are not finite", where=str(path), fix=FIX)


def watch_logits(model: Any) -> None:
    """Have a model raise from now on where its logits are not finite; one that does so already is left as it is.

    Args:
        model: Possibly with an adapter.
    """
    base: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    if base in _watched:
        return

    def look(module: nn.Module, inputs: Any, output: Any) -> None:
        logits = vars(output).get("logits") if isinstance(output, ModelOutput) else None
        # The largest is NaN where any is; `-inf` alone is a way to forbid a token.
        if torch.is_tensor(logits) and logits.numel() and not torch.isfinite(logits.amax()):
            raise _failure(module, str(base.config.name_or_path))

    base.register_forward_hook(look)
    _watched.add(base)


def _failure(model: nn.Module, folder: str) -> RunFailure:
    for path in sorted(Path(folder).glob("*.safetensors")) if Path(folder).is_dir() else ():
        if (name := _first_in_file(path)) is not None:
            return RunFailure(
                f"the model computes no numbers: its weight `{name}` is not finite", where=str(path), fix=FIX
            )
    is_loaded_so = any(not torch.isfinite(weight).all() for weight in model.parameters())
    return RunFailure(
        "the model computes no numbers: "
        + ("a weight of it is not finite" if is_loaded_so else "what it computes goes beyond all numbers"),
        where=folder,
        fix=FIX,
    )


def _first_in_file(path: Path) -> str | None:
    """Return the name of the first weight of a file that holds what is no number."""
    try:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 -- not a dict
                weight = file.get_tensor(name)
                if weight.is_floating_point() and not torch.isfinite(weight.float()).all():
                    return str(name)
    except SafetensorError as error:
        raise GlmtuneError(f"`{path.name}` cannot be read: {error}", where=str(path), fix="download it again") from None
    return None
