"""Settings that fit: to the rows, to the model, and to the memory of this machine."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from transformers import PretrainedConfig

from glmtune.config.run_config import config_from_mapping
from glmtune.errors import GlmtuneError
from glmtune.memory.run import EstimateRow, estimate
from glmtune.modeling.context import context_of

from .row_facts import Files, RowFacts

METHODS: dict[str, dict[str, Any] | None] = {
    "lora": {"peft_type": "LORA", "r": 8, "lora_alpha": 32, "lora_dropout": 0.1},
    "ptuning_v2": {"peft_type": "PREFIX_TUNING", "num_virtual_tokens": 128},
    "sft": None,
}
"""By the name of `--method`: the `peft_config`, as in the shipped configurations."""

SMALL_WIDTH = 512
RATES = {"lora": (5e-4, 5e-3), "ptuning_v2": (5e-3, 2e-1), "sft": (5e-5, 3e-3)}
"""Learning rates of whole models, as in the shipped configurations, and of those narrower than `SMALL_WIDTH`, as the
demo has found them by trying."""

EPOCHS = ((100, 10), (500, 5), (5_000, 3), (50_000, 2), (math.inf, 1))
"""Up to so many rows: passes over them."""
SMALL_EPOCHS_FACTOR = 4
"""A model without knowledge of its own takes longer to learn a few rows, and little time for each."""
ROWS_PER_STEP = ((1_000, 8), (10_000, 16), (math.inf, 32))
"""Up to so many rows: rows of a step, of all GPUs together."""

VAL_SHARE = 0.1
MIN_ROWS_TO_SPLIT = 10
MAX_TOKENS_ANSWERED = 60_000
"""Rows to evaluate on, times tokens of the longest answer. Above, an evaluation measures the loss alone: to write an
answer takes far longer than to train on it."""
MAX_EPOCH_STEPS = 1_000
"""Above, evaluations and checkpoints come every 500 steps instead of once an epoch."""
STEPS_BETWEEN = 500

SAFE_SHARE = 0.9
"""Of the memory that an estimate may fill: it does not know what else will be there."""
MOST_ROWS_AT_ONCE = 16
FAR_BEYOND = 2
"""Times the length of 99 rows in 100: a few rows so long are not worth the memory."""
ROWS_FOR_PROCESSES = 20_000
"""To tokenize; fewer take less time than the processes to start."""
DEEPSPEED_FILES = {
    "ZeRO-2": "ds_zero2.json",
    "ZeRO-3": "ds_zero3.json",
    "ZeRO-3 offload all": "ds_zero3_offload.json",
}
"""By the name that an estimate has for a way to share: the shipped file."""
LENGTH_UNIT_TOKENS = 32
"""Limits are rounded up to whole ones: they leave room for rows a little longer than those seen."""


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What there is to train on."""

    device_bytes: float
    """Of one GPU, the smallest; or of the machine as far as this process may use it."""
    num_gpus: int

    @property
    def num_devices(self) -> int:
        """How many share the rows of a step: the CPU is one, too."""
        return max(1, self.num_gpus)

    @property
    def name(self) -> str:
        """What a comment calls it."""
        if self.num_gpus > 1:
            return f"each of {self.num_gpus} GPUs"
        return "the GPU" if self.num_gpus else "this machine"


@dataclass(kw_only=True)
class Fitted:
    """A configuration, and why its values are what they are."""

    values: dict[str, Any] = field(default_factory=dict)
    comments: dict[str, str] = field(default_factory=dict)
    """By dotted key."""
    notes: list[str] = field(default_factory=list)
    """Lines for the user: what may not go well."""


def fit(
    files: Files,
    facts: RowFacts,
    *,
    model: str,
    model_config: PretrainedConfig,
    method: str,
    output_dir: str,
    machine: Machine,
    trust_remote_code: bool = False,
) -> Fitted:
    """Return a configuration for rows and a model on this machine.

    Args:
        files: Of the run.
        facts: Of the training rows.
        model: A model folder, hub name or `demo`.
        model_config: Of the model.
        method: `lora`, `ptuning_v2` or `sft`.
        output_dir: The run folder.
        machine: What is trained on.
        trust_remote_code: Run code that the model brings along.
    """
    fitted = Fitted()
    has_val_rows = _fit_data(fitted, files, facts)
    _fit_lengths(fitted, facts, context_of(model_config), METHODS[method] or {})
    if trust_remote_code:
        fitted.values["trust_remote_code"] = True
    width = model_config.get_text_config(decoder=True).hidden_size
    _fit_training(fitted, facts, method, output_dir, is_small=width < SMALL_WIDTH, has_val_rows=has_val_rows)
    fitted.values["peft_config"] = METHODS[method]
    _fit_memory(fitted, model, method, machine, _up_to(ROWS_PER_STEP, facts.num_rows))
    return fitted


def _fit_data(fitted: Fitted, files: Files, facts: RowFacts) -> bool:
    """Say which files there are, and how they are read; returns whether there are rows to evaluate on."""
    data: dict[str, Any] = dict(files.names)
    said = f"{facts.num_rows:,} rows"
    if facts.num_rejected:
        where, problem = facts.first_problem
        fitted.notes.append(f"{facts.num_rejected:,} of the rows looked at cannot be trained on; {where}: {problem}")
    formats = [name for name, _ in sorted(facts.formats.items(), key=lambda each: -each[1]) if name]
    fitted.comments["data_config.train_file"] = f"{said}, read as {' and '.join(formats[:3])}"
    if "val_file" not in data and facts.num_distinct >= MIN_ROWS_TO_SPLIT:
        data["val_size"] = VAL_SHARE
        fitted.comments["data_config.val_size"] = "about a tenth of the rows to evaluate on; equal ones stay together"
    if facts.columns:
        data["columns"] = dict(facts.columns)
        fitted.comments["data_config.columns"] = "key of the format: what the file calls it"
    if facts.num_rows > ROWS_FOR_PROCESSES:
        data["num_proc"] = min(4, os.cpu_count() or 1)
        fitted.comments["data_config.num_proc"] = "processes that tokenize"
    fitted.values["data_config"] = data
    return "val_file" in data or "val_size" in data


def _fit_lengths(fitted: Fitted, facts: RowFacts, limit: int | None, peft_config: Mapping[str, Any]) -> None:
    """Leave room for the longest row, or, where a few are far longer than all others, for those others."""
    room = (limit or math.inf) - int(peft_config.get("num_virtual_tokens", 0))
    # The longest prompt and the longest answer are seldom of one row: their sum would cost memory for nothing.
    longest = int(min(_enough(facts.row_tokens), room))
    prompt = min(_enough(facts.prompt_tokens), longest - min(LENGTH_UNIT_TOKENS, longest // 2))
    num_cut = sum(length > longest for length in facts.row_tokens)
    num_lost = sum(length >= longest for length in facts.prompt_tokens)
    if num_lost == len(facts.prompt_tokens):
        raise GlmtuneError(
            f"every row's prompt is longer than the {longest:,} tokens that the model has room for, so that no answer "
            "could be trained",
            fix="shorten the rows, or take a model with a longer context",
        )
    fitted.values["max_input_length"] = prompt
    fitted.values["max_output_length"] = longest - prompt
    most, middle = max(facts.row_tokens), int(np.median(facts.row_tokens))
    fitted.comments["max_input_length"] = "tokens; a row may take the sum of both, and memory grows with it"
    fitted.comments["max_output_length"] = f"the longest row has {most:,} tokens, one in the middle {middle:,}"
    if num_cut:
        fitted.values["truncation"] = "right"
        fitted.comments["truncation"] = f"{num_cut:,} of {len(facts.row_tokens):,} rows looked at are longer, and cut"
        fitted.notes.append(fitted.comments["truncation"])
    if num_lost:
        fitted.notes.append(f"of these, {num_lost:,} are left out: their answers begin behind the limit")


def _enough(lengths: Sequence[int]) -> int:
    """Return a limit for lengths in whole units: the longest, unless it is far beyond 99 of 100."""
    most, usual = max(lengths), float(np.percentile(lengths, 99))
    limit = most if most <= FAR_BEYOND * usual else usual
    return LENGTH_UNIT_TOKENS * math.ceil((limit + 1) / LENGTH_UNIT_TOKENS)


def _fit_training(
    fitted: Fitted, facts: RowFacts, method: str, output_dir: str, *, is_small: bool, has_val_rows: bool
) -> None:
    """Choose how long, how fast, and how often is looked at it."""
    splits_off = "val_size" in fitted.values["data_config"]
    num_rows = round(facts.num_rows * (1 - VAL_SHARE)) if splits_off else facts.num_rows
    epochs = _up_to(EPOCHS, facts.num_rows) * (SMALL_EPOCHS_FACTOR if is_small else 1)
    epoch_steps = math.ceil(num_rows / _up_to(ROWS_PER_STEP, facts.num_rows))
    is_long = epoch_steps > MAX_EPOCH_STEPS
    rhythm = "steps" if is_long else "epoch"
    num_val_rows = facts.num_rows - num_rows if splits_off else facts.num_val_rows
    answer = _enough(facts.answer_tokens)
    answers = has_val_rows and num_val_rows * answer <= MAX_TOKENS_ANSWERED
    training: dict[str, Any] = {
        "output_dir": output_dir,
        "num_train_epochs": epochs,
        "learning_rate": RATES[method][is_small],
        "lr_scheduler_type": "cosine",
        "warmup_steps": 0.03,
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": 2,  # until the memory is looked at: gradients that are kept take some
        "logging_steps": max(1, min(10, epochs * epoch_steps // 50)),
        "eval_strategy": rhythm if has_val_rows else "no",
        **({"eval_steps": STEPS_BETWEEN} if is_long and has_val_rows else {}),
        "per_device_eval_batch_size": 8,
        "predict_with_generate": answers,
        **({"generation_config": {"max_new_tokens": answer}} if answers else {}),
        "save_strategy": rhythm,
        **({"save_steps": STEPS_BETWEEN} if is_long else {}),
        "save_total_limit": 2,
    }
    fitted.values["training_args"] = training
    fitted.comments |= {
        "training_args": "see `transformers.Seq2SeqTrainingArguments`",
        "training_args.output_dir": "the run folder",
        "training_args.num_train_epochs": f"passes over the rows; each is {epoch_steps:,} steps",
        "training_args.learning_rate": "the first knob to turn; too high shows as a loss that jumps",
        "training_args.warmup_steps": "below 1 it is a share of all steps",
        "training_args.predict_with_generate": "an answer to every row to evaluate on, for BLEU and ROUGE"
        if answers
        else "true: an answer to every row to evaluate on, for BLEU and ROUGE; that takes time",
        "training_args.save_total_limit": "older checkpoints are deleted",
    }


def _fit_memory(fitted: Fitted, model: str, method: str, machine: Machine, rows_per_step: int) -> None:
    """Choose how many rows are computed at once, and what is done where not even one would fit."""
    safe_bytes = SAFE_SHARE * machine.device_bytes
    training = fitted.values["training_args"]
    ways = _ways(fitted, model, machine)
    chosen = next((way for way in ways if _num_rows_that_fit(way, safe_bytes)), None)
    if chosen is None and method != "sft" and machine.num_gpus:
        fitted.values["quantization"] = "4bit"
        fitted.comments["quantization"] = "the frozen weights alone would not fit; needs `glmtune[quant]`"
        ways = _ways(fitted, model, machine)
        chosen = next((way for way in ways if _num_rows_that_fit(way, safe_bytes)), None)
    if chosen is None:
        chosen = min(ways, key=lambda way: way.memory.total)
        fitted.notes.append(
            f"one row at a time needs about {chosen.memory.total / 1e9:,.0f} GB, and {machine.name} has "
            f"{machine.device_bytes / 1e9:,.0f} GB: `glmtune estimate {model} CONFIG` shows what other ways would take"
        )
    share = max(1, rows_per_step // machine.num_devices)
    most = max(1, min(_num_rows_that_fit(chosen, safe_bytes), MOST_ROWS_AT_ONCE))
    at_once = max(number for number in range(1, most + 1) if share % number == 0)
    steps = share // at_once
    training["per_device_train_batch_size"] = at_once
    training["gradient_accumulation_steps"] = steps
    total = chosen.memory.total + (at_once - 1) * _row_bytes(chosen)
    fitted.comments["training_args.per_device_train_batch_size"] = (
        f"rows at once; about {total / 1e9:,.1f} of the {machine.device_bytes / 1e9:,.0f} GB of {machine.name}"
    )
    fitted.comments["training_args.gradient_accumulation_steps"] = (
        f"times that before a step, which sees {at_once * steps * machine.num_devices} rows"
    )
    if chosen.gradient_checkpointing:
        training["gradient_checkpointing"] = True
        fitted.comments["training_args.gradient_checkpointing"] = "about a third slower, and long rows fit"
    if file := DEEPSPEED_FILES.get(chosen.sharding):
        training["deepspeed"] = file
        fitted.comments["training_args.deepspeed"] = f"{chosen.sharding}: what one GPU cannot hold is shared by all"


def _ways(fitted: Fitted, model: str, machine: Machine) -> list[EstimateRow]:
    """Return the ways to train as configured, the fastest first: whole on each device, without recomputing."""
    config = config_from_mapping(fitted.values, where="the fitted configuration")
    rows = estimate(model, config, num_gpus=machine.num_gpus, only_configured=True).rows
    names = ["none", "DDP", *(DEEPSPEED_FILES if machine.num_gpus > 1 else ())]
    return sorted(
        (row for row in rows if row.sharding in names),
        key=lambda row: (names.index(row.sharding), row.gradient_checkpointing),
    )


def _row_bytes(way: EstimateRow) -> float:
    return way.memory.activations + way.memory.logits


def _num_rows_that_fit(way: EstimateRow, safe_bytes: float) -> int:
    return max(0, int((safe_bytes - way.memory.total) // _row_bytes(way)) + 1)


def this_machine() -> Machine:
    """Return what there is here, used or not: two processes, or one an hour later, are to choose the same settings."""
    if torch.cuda.is_available():
        places = range(torch.cuda.device_count())
        sizes = [torch.cuda.get_device_properties(place).total_memory for place in places]
        return Machine(device_bytes=float(min(sizes)), num_gpus=len(sizes))
    return Machine(device_bytes=float(min([psutil.virtual_memory().total, *_container_limits()])), num_gpus=0)


def _container_limits() -> list[int]:
    """Return what a container of Linux allows, by either version of its control groups."""
    found = []
    for path in (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes")):
        try:
            found.append(int(path.read_text(encoding="ascii")))
        except (OSError, ValueError):  # there is none; or it says `max`
            continue
    return found


def _up_to(table: Sequence[tuple[float, int]], number: int) -> int:
    """Return the value of the first line of a table whose limit is not below a number."""
    return next(value for most, value in table if number <= most)
