"""What more than one tool says: transformers' own arguments, lengths, DeepSpeed's files, reasons to leave a key out."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from glmtune.config.field_types import Mismatch
from glmtune.config.old_keys import RENAMED, RETIRED
from glmtune.config.sections import training_fields
from glmtune.config.training_keys import NOTED, REFUSED
from glmtune.files.shipped import shipped_file

from .draft import EMPTY, Draft, Key

BY_ITSELF = "happens by itself, or by default"
TEMPLATE = "rows are written with the chat template of the model's own tokenizer"
PICTURES = "for pictures, films and sounds, which are not trained here"
PREFERENCES = "for training by preferences or rewards; here the good answers are trained"
SAME_SOURCE = "the place that a model or its data comes from is part of its name here"
PARALLEL = "models and sequences are not split here; ZeRO-3 or FSDP shard the weights (`--deepspeed ds_zero3.json`)"
OTHER_TRAINING = "another way of training, which is not supported"
OTHER_OPTIMIZER = "no optimizer or schedule of transformers; `training_args.optim` and `lr_scheduler_type` name those"
KERNELS = "layers and loss are fused where the model allows (`fused_layers`, `loss_kernel`)"
EXPORT = "`glmtune export RUN_DIR OUTPUT_DIR` merges, writes GGUF and uploads"
SERVE = "`glmtune serve` and `glmtune infer` have options of their own"
ANSWERING = "for answers: an option of `glmtune infer` and `glmtune chat`"
STREAMING = "rows are read once, encoded and kept, however many they are"
TOKENS = "the model's folder says which tokens there are; add them there first"
SAMPLES = "rows are not counted off here: write as many into a file, or give it a weight, `{path: FILE, weight: 0.5}`"
IN_ROWS = "a system's text stands in each row, as `system` or as the first message"
LAUNCHER = "the launcher decides: `--nproc`, `torchrun` or `accelerate`"
TRACKERS = "trackers are named in `training_args.report_to`, and read variables of their own"
NOT_RESUMED = "to begin with the weights of an adapter: `glmtune train DATA_DIR MODEL CONFIG --init-from CHECKPOINT`"
NEW_MODEL = "the model is trained as its folder describes it"
PROFILER = "a run is not profiled"
CALLBACKS = "code of one's own is not loaded"


def left(table: Mapping[str, str]) -> dict[str, str]:
    """Return every name of a table of reasons, in which names stand in one text, with its reason."""
    return {name: reason for reason, names in table.items() for name in names.split()}


def named_model(draft: Draft, key: str, value: Any) -> None:
    """Take the model, which is an argument of the command here."""
    if isinstance(value, bool):
        draft.leave(key, "expected the name of a model")
    else:
        draft.model = str(value)


def switch(place: str, value: Any, otherwise: str = BY_ITSELF) -> Key:
    """Return what sets one of our keys where a switch is on, and lists it with a reason where it is off."""

    def read(draft: Draft, key: str, given: Any) -> None:
        if given is True:
            draft.put(place, value, key)
        else:
            draft.leave(key, otherwise)

    return Key(f"{place}: {str(value).lower() if isinstance(value, bool) else value}", read)


def lengths(draft: Draft, key: str, value: Any) -> None:
    """Divide the tokens of a row into those of the prompt and those of the answer."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 2:
        draft.leave(key, "expected a number of tokens, 2 or more")
        return
    draft.put("max_input_length", value - value // 2, key, "a row may take the sum of both")
    draft.put("max_output_length", value // 2, key)


def deepspeed(draft: Draft, key: str, value: Any) -> None:
    """Name DeepSpeed's file: the one that is there, or the one of ours that does the same."""
    place = f"training_args.{key}"
    if isinstance(value, dict):
        draft.put(place, value, key)
        return
    beside = draft.file.parent / str(value)
    if Path(str(value)).is_file() or shipped_file(Path(str(value))):
        draft.put(place, value, key)
    elif beside.is_file():
        draft.put(place, str(beside), key)
    else:
        stage = re.search(r"(?:zero|z)_?([0-3])", str(value).lower())
        offload = "_offload" if "offload" in str(value).lower() else ""
        if stage is None or stage[1] in "01":
            draft.leave(key, "there is no such file; `--deepspeed FILE` names one, such as ds_zero2.json")
        else:
            draft.put(place, f"ds_zero{stage[1]}{offload}.json", key, "the one that comes along")


def training_arguments(draft: Draft, done: set[str]) -> set[str]:
    """Take over what are arguments of transformers, under their present names; returns the keys that are."""
    known = training_fields()
    keys = [key for key in draft.source if key not in done and (key in known or key in RENAMED or key in RETIRED)]
    for key in keys:
        value = draft.source[key]
        if value is None:
            draft.leave(key, EMPTY)
        elif key in ("do_train", "do_eval", "do_predict"):
            draft.leave(key, "`glmtune train` trains, and evaluates where there are rows to evaluate on")
        elif key in REFUSED:
            is_harmless = any(value is each or value == each for each in REFUSED[key].harmless)
            draft.leave(key, BY_ITSELF if is_harmless else f"{REFUSED[key].message}; {REFUSED[key].fix}")
        elif key in NOTED:
            draft.leave(key, NOTED[key].reason)
        elif key in known:
            draft.put(f"training_args.{key}", value, key)
        elif key in RETIRED:
            draft.leave(key, RETIRED[key])
        else:
            _renamed(draft, key, value)
    return set(keys)


def _renamed(draft: Draft, key: str, value: Any) -> None:
    place = f"training_args.{RENAMED[key].new}"
    if key == "warmup_ratio" and (not value or place in draft.values):
        draft.leave(key, BY_ITSELF if not value else "`warmup_steps` says it, too")
        return
    try:
        draft.put(place, RENAMED[key].convert(value), key)
    except Mismatch as mismatch:
        draft.leave(key, f"expected {mismatch}")


def translate_keys(draft: Draft, keys: Mapping[str, Key], reasons: Mapping[str, str], *, has_arguments: bool) -> None:
    """Go through every key of the source: put it in its place, or list it.

    Args:
        draft: Which is filled.
        keys: What has a place here, in the order in which it is looked at.
        reasons: What has none, and why.
        has_arguments: Whether the tool takes transformers' arguments under their own names.
    """
    done = set()
    for key, meaning in keys.items():
        if key in draft.source:
            meaning.translate(draft, key)
            done.add(key)
    done |= {key for key in draft.source if key in reasons}
    if has_arguments:
        done |= training_arguments(draft, done)
    for key in draft.source:
        if key in reasons and key not in keys:
            draft.leave(key, EMPTY if draft.source[key] is None else reasons[key])
        elif key not in done:
            draft.leave(key, f"no key of {draft.tool} that is known here")


def settle_evaluation(draft: Draft, strategy: str | None = None) -> None:
    """Evaluate the loss alone, as the tool does, where there are rows for that; list what would evaluate without any.

    Args:
        draft: The translation, whose keys have been gone through.
        strategy: When the tool evaluates where nothing is said.
    """
    if any(draft.values.get(f"data_config.{key}") for key in ("val_file", "val_size")):
        draft.default("training_args.predict_with_generate", False, "the loss alone is evaluated, as there")
        if strategy is not None:
            draft.default("training_args.eval_strategy", strategy)
        return
    for name in ("eval_strategy", "eval_steps", "eval_delay", "eval_on_start"):
        place = f"training_args.{name}"
        if place in draft.values:
            key, written = draft.origins[place]
            del draft.values[place]
            draft.leave(key, "there are no rows to evaluate on", written)


def as_list(value: Any) -> list[str]:
    """Return names that stand in a list, or in one text with commas between."""
    items = value if isinstance(value, list) else str(value).split(",")
    return [str(item).strip() for item in items if str(item).strip()]
