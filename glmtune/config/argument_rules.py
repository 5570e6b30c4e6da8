"""Which values of `training_args` a run can go on with, and which of them go together.

The keys are transformers' own; what joins them with keys of ours stands in `run_config.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from glmtune.errors import nearest

from .training_keys import WITHOUT_WARM_UP

METRICS = ["loss", "bleu-4", "rouge-1", "rouge-2", "rouge-l", "tool-name-accuracy", "tool-call-accuracy"]
"""What the best checkpoint can be chosen by; all but `loss` is measured on generated text."""

NUMBER_RANGES: tuple[tuple[tuple[str, ...], str, Callable[[float], bool]], ...] = (
    (("learning_rate",), "a finite number above 0", lambda value: 0 < value < math.inf),
    (
        ("weight_decay", "adam_epsilon", "max_grad_norm", "warmup_steps", "eval_delay"),
        "a finite number, 0 or more",
        lambda value: 0 <= value < math.inf,
    ),
    (("adam_beta1", "adam_beta2", "label_smoothing_factor"), "0 or more, below 1", lambda value: 0 <= value < 1),
    (("logging_steps", "save_steps"), "a number above 0", lambda value: 0 < value < math.inf),
    (
        ("logging_steps", "save_steps", "eval_steps", "warmup_steps"),
        "a whole number, or a share of all steps below 1",
        lambda value: value <= 1 or not math.isfinite(value) or float(value).is_integer(),
    ),
    (("eval_steps",), "0 (like `logging_steps`) or a number above 0", lambda value: 0 <= value < math.inf),
    (("neftune_noise_alpha",), "a finite number, 0 or more", lambda value: 0 <= value < math.inf),
    (("seed", "data_seed"), "a whole number from 0 to 4294967295", lambda value: 0 <= value < 2**32),
    (("save_total_limit", "dataloader_num_workers"), "0 or more", lambda value: value >= 0),
    (("dataloader_prefetch_factor", "ddp_timeout", "torch_empty_cache_steps"), "1 or more", lambda value: value >= 1),
)
"""Names of `training_args`, what is expected of their values, and whether a value is such a number."""


class Rule(NamedTuple):
    """What has to hold of some keys together, and what is said where it does not."""

    keys: tuple[str, ...]
    """The keys that it joins; the first is the one to complain of."""
    holds: bool
    message: str
    fix: str | None = None


def argument_rules(arguments: Mapping[str, Any], *, has_val_rows: bool, has_own_metrics: bool) -> Iterator[Rule]:
    """Yield what has to hold of `training_args`, all keys of which are given.

    Args:
        arguments: What file and overrides say, on top of transformers' defaults and ours.
        has_val_rows: Whether there are rows to evaluate on during training.
        has_own_metrics: Whether a file of the user's computes metrics, whose names only it knows.
    """
    yield from _number_rules(arguments)
    yield from _length_rules(arguments)
    yield from _reader_rules(arguments)
    yield from _evaluation_rules(arguments, has_val_rows, has_own_metrics)


def _number_rules(arguments: Mapping[str, Any]) -> Iterator[Rule]:
    """Yield for each number of `training_args` whether it is one that training can go on with."""
    for keys, expected, holds in NUMBER_RANGES:
        for name in keys:
            value = arguments.get(name)
            # Words are `lr_scheduler_type`'s and others' own; null takes transformers' default.
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                yield Rule((f"training_args.{name}",), holds(value), f"expected {expected}, found `{value}`")


def _length_rules(arguments: Mapping[str, Any]) -> Iterator[Rule]:
    """Yield whether a run takes any step at all."""
    steps, epochs = arguments["max_steps"], arguments["num_train_epochs"]
    yield Rule(
        ("training_args.max_steps",),
        steps >= 1 or steps == -1,
        f"expected 1 or more (or -1, by which `num_train_epochs` counts), found `{steps}`: nothing would be trained",
    )
    yield Rule(
        ("training_args.num_train_epochs", "training_args.max_steps"),
        steps != -1 or 0 < epochs < math.inf,
        f"expected a number above 0, found `{epochs}`: nothing would be trained"
        if not epochs > 0
        else f"expected a number, found `{epochs}`",
        "set `num_train_epochs` or `max_steps`",
    )
    # A file of DeepSpeed's may bring a scheduler of its own; what a run does with it shows in its steps.
    has_warm_up = arguments["lr_scheduler_type"] not in WITHOUT_WARM_UP and not arguments["deepspeed"]
    yield Rule(
        ("training_args.warmup_steps", "training_args.max_steps"),
        steps != 1 or not has_warm_up or not arguments["warmup_steps"],
        "the learning rate of a warm-up begins at 0, and `max_steps: 1` leaves no other step: nothing would be trained",
        "leave `warmup_steps` out, or raise `max_steps`",
    )


def _reader_rules(arguments: Mapping[str, Any]) -> Iterator[Rule]:
    """Yield whether keys of the processes that read rows meet such processes."""
    for name in ("dataloader_persistent_workers", "dataloader_prefetch_factor"):
        yield Rule(
            (f"training_args.{name}", "training_args.dataloader_num_workers"),
            not arguments[name] or bool(arguments["dataloader_num_workers"]),
            "is for processes that read rows, and `dataloader_num_workers` is 0",
            "set `dataloader_num_workers`, or leave it out",
        )


def _evaluation_rules(arguments: Mapping[str, Any], has_val_rows: bool, has_own_metrics: bool) -> Iterator[Rule]:
    evaluate, save = arguments["eval_strategy"], arguments["save_strategy"]
    yield Rule(
        ("training_args.eval_strategy", "data_config.val_file"),
        evaluate == "no" or has_val_rows,
        f"`{evaluate}` needs `data_config.val_file`, which is not given",
        "name a file to evaluate on, set `data_config.val_size: 0.05`, or set `eval_strategy: no`",
    )
    load_best = arguments["load_best_model_at_end"]
    strategies = ("training_args.load_best_model_at_end", "training_args.eval_strategy", "training_args.save_strategy")
    in_step = evaluate != "no" and save in ("best", evaluate)
    yield Rule(
        strategies,
        not load_best or in_step,
        f"needs a checkpoint at each evaluation; found eval_strategy `{evaluate}`, save_strategy `{save}`",
        "set both to `steps` or both to `epoch`",
    )
    # Transformers evaluates at every `logging_steps` where `eval_steps` is left out.
    eval_steps, save_steps = arguments["eval_steps"] or arguments["logging_steps"], arguments["save_steps"]
    yield Rule(
        (*strategies, "training_args.save_steps", "training_args.eval_steps", "training_args.logging_steps"),
        not load_best or not evaluate == save == "steps" or _is_multiple(save_steps, eval_steps),
        f"needs `save_steps` to be a multiple of `eval_steps`; found `{save_steps}` and `{eval_steps}`",
    )
    metric = arguments["metric_for_best_model"]
    measured = (metric or "loss").removeprefix("eval_")
    yield Rule(
        ("training_args.metric_for_best_model",),
        measured in METRICS or has_own_metrics,
        f"expected one of {', '.join(f'`{name}`' for name in METRICS)}, found `{metric}`{nearest(measured, METRICS)}",
    )
    yield Rule(
        ("training_args.metric_for_best_model", "training_args.predict_with_generate", "data_config.val_file"),
        measured == "loss" or arguments["predict_with_generate"],
        f"`{metric}` is measured on generated text, which `predict_with_generate: false` rules out",
        "set `predict_with_generate: true`",
    )
    yield Rule(
        ("metrics", "training_args.predict_with_generate", "data_config.val_file"),
        not has_own_metrics or arguments["predict_with_generate"],
        "is computed on generated text, and the run generates none",
        "name rows to evaluate on (`data_config.val_file`, `val_size`); with a `test_file` alone set "
        "`training_args.predict_with_generate: true`, too",
    )
    yield Rule(
        ("training_args.save_strategy", "training_args.metric_for_best_model", "training_args.eval_strategy"),
        save != "best" or (evaluate != "no" and (load_best or metric is not None)),
        "`best` needs evaluations and a `metric_for_best_model`",
    )


def _is_multiple(save_steps: float, eval_steps: float) -> bool:
    # Below 1 both are shares of all steps; a share and a number of steps cannot be compared.
    if (save_steps < 1) != (eval_steps < 1):
        return False
    save_parts, eval_parts = round(save_steps * 1_000_000), round(eval_steps * 1_000_000)  # 0.3 % 0.1 is not 0
    return eval_parts > 0 and save_parts % eval_parts == 0
