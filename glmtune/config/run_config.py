"""A YAML file and `--set key=value` on top become one `RunConfig`, or one error that names every mistake in them.

`load_config` reads; `check` holds the rules that join several keys. Keys and types of `training_args` and `peft_config`
are those of the installed transformers and PEFT.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

from glmtune.errors import GlmtuneError, nearest
from glmtune.files.user_paths import user_path
from glmtune.python_arguments import expect_overrides, expect_paths
from glmtune.text.secret_values import without_secrets

from .deepspeed import read_deepspeed
from .field_types import check_fields
from .old_keys import modernize
from .sections import (
    expand_paths,
    find_deepspeed_file,
    find_metrics_file,
    generation_section,
    peft_section,
    training_fields,
    training_section,
)
from .training_keys import WITHOUT_WARM_UP
from .yaml_source import Source, found, read_source

METHODS = {"LORA": "lora", "PREFIX_TUNING": "ptuning_v2"}
"""PEFT's name of a method to ours."""

METRICS = ["loss", "bleu-4", "rouge-1", "rouge-2", "rouge-l", "tool-name-accuracy", "tool-call-accuracy"]
"""What the best checkpoint can be chosen by; all but `loss` is measured on generated text."""

AT_LEAST_ONE = (
    "tokens_per_batch",
    "max_input_length",
    "max_output_length",
    "early_stopping_patience",
    "data_config.num_proc",
    "training_args.per_device_train_batch_size",
    "training_args.per_device_eval_batch_size",
    "training_args.gradient_accumulation_steps",
)


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


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which files of DATA_DIR are read, and how."""

    train_file: str | list[Any]
    """Training rows: a file, folder or pattern such as `*.jsonl` relative to DATA_DIR, `hub:OWNER/NAME:SPLIT` of
    Hugging Face, or `modelscope:OWNER/NAME:FILE`; or a list of them, each also as `{path: a.jsonl, weight: 2}`: how
    many times an epoch shows each of its rows."""
    val_file: str | list[Any] | None = None
    """Rows for the evaluations during training, named in the same ways; where `eval_strategy` is not `no`, this or
    `val_size` is needed."""
    test_file: str | list[Any] | None = None
    """Rows for one evaluation after training; none where it is left out."""
    val_size: float = 0.0
    """Part of the training rows to evaluate on instead of a `val_file`: a share below 1, or a number of rows. Which
    rows they are depends on their text alone, and equal rows stay on one side."""
    format: str | None = None
    """Format of all rows (`glmtune data formats` lists them); null finds it out row by row."""
    columns: Mapping[str, Any] = field(default_factory=dict)
    """What the files call the keys of the format, where they have other names: `{instruction: question}`."""
    strict: bool = False
    """Stop at the first row that cannot be trained on; otherwise it is left out, counted and listed."""
    num_proc: int = 1
    """Processes that tokenize; each costs its own copy of the tokenizer, and files of fewer than 10,000 rows use one.
    One process encoded 7,960 rows of AdvertiseGen a second (`benchmarks/RESULTS.md`)."""

    @property
    def has_val_rows(self) -> bool:
        """Whether there are rows to evaluate on during training."""
        return self.val_file is not None or self.val_size > 0


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything that decides a run, except DATA_DIR and MODEL."""

    data_config: DataConfig
    """The files to read."""
    max_input_length: int = 512
    """Tokens of a row's prompt. A row may take the sum of both lengths; memory grows with it. In an evaluation, turns
    with a longer prompt are left out and counted."""
    max_output_length: int = 512
    """Tokens of a row's answer; in an evaluation the longest answer, where `generation_config` says nothing."""
    combine: bool = False
    """Train only the last assistant turn of each row: `train_on: last` under its name in the original demos."""
    train_on: Literal["all", "last", "none-but-flagged"] = "all"
    """Which assistant messages are trained: all but those with `loss: false`, the last turn of each row, or those with
    a `loss` of their own alone."""
    train_reasoning: bool = True
    """Train what stands in `reasoning_content`, too; otherwise the answer behind it alone. The model's chat template
    must show reasoning."""
    freezeV: bool = False
    """Freeze the vision tower, where the model has one: less memory, and images are seen as before."""
    swanlab: Literal["local", "cloud", "disabled"] | None = None
    """Where SwanLab records the run: `local` in the run folder, `cloud` sends it away; null is like `disabled`.
    Needs `glmtune[swanlab]`."""
    truncation: Literal["right", "drop", "drop_turns", "error"] = "right"
    """What happens to a row that is too long: cut its end, leave the row out, leave its last turns out (its first ones
    where only the last is trained), or stop; each is counted and reported."""
    packing: bool = True
    """Lay the rows of a micro-batch end to end, each attending to itself alone, where the model can do that exactly
    (tried at the start): the same loss without the time that padding takes. False pads."""
    tokens_per_batch: int | None = None
    """Fill each micro-batch with as many rows as fit into so many tokens, best fit first, instead of
    `per_device_train_batch_size` rows, which must be 1: as much memory in every step, but steps of fewer or more
    rows. Needs `packing`."""
    loss_kernel: Literal["auto", "liger", "logits"] = "auto"
    """How the loss is computed: `auto` makes logits for some labelled positions at a time, and never holds them all;
    `liger` is Liger's kernel for GPUs (needs `glmtune[liger]`); `logits` holds those of all labelled
    positions at once."""
    fused_layers: bool = True
    """Train norms, gated MLPs and LoRA's matrices with less memory, and fewer passes over it, where the model has them
    as Llama and GLM do (tried at the start): the same results but for rounding. False leaves them to transformers and
    PEFT."""
    trust_remote_code: bool = False
    """Run Python code that lies beside the model's weights. It can do whatever you can do."""
    force_fp16: bool = False
    """Allow fp16 although GLM's loss turns to 0 or NaN in it."""
    attn_implementation: str | None = None
    """`sdpa`, `eager`, `flash_attention_2` or another name that transformers knows; null lets it choose."""
    model_dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Type of the loaded weights; `auto`: float32 for what is trained, bfloat16 for what is frozen where the device
    computes in it. GLM-4-9B: 19 GB in bfloat16, 38 GB in float32."""
    quantization: Literal["4bit", "8bit"] | None = None
    """Quantize the frozen weights by bitsandbytes as they are loaded (QLoRA): `4bit` is NF4, its scales quantized, too.
    GLM-4-9B: 7 GB in 4 bits, 11 GB in 8, 19 GB in bfloat16; a step takes longer. Needs `glmtune[quant]`."""
    early_stopping_patience: int | None = None
    """End the run after so many evaluations in a row that were no better than the best before, by
    `metric_for_best_model`; null never does. The best checkpoint is told at the end."""
    early_stopping_threshold: float = 0.0
    """By how much an evaluation has to be better to count as better, in units of that metric."""
    metrics: str | None = None
    """A Python file with metrics of your own: its `compute(predictions: list[str], references: list[str])` returns
    `dict[str, float]`, which evaluations add to what they measure; `metric_for_best_model` may name one. The file is
    run with your rights, and searched for from the working directory, then beside the configuration."""
    training_args: Mapping[str, Any]
    """Any field of `transformers.Seq2SeqTrainingArguments`, and `generation_config`."""
    generation_config: Mapping[str, Any]
    """Any field of `transformers.GenerationConfig`, for the evaluations of the run; it stands in the file as
    `training_args.generation_config`."""
    peft_config: Mapping[str, Any] | None
    """The configuration of a PEFT method, chosen by `peft_type`; null trains every weight. `init_lora_weights` may be
    `true`, `false`, `gaussian`, `orthogonal` or `mica`: starts that change the base model's weights (PiSSA, OLoRA,
    LoftQ, CorDA, LoRA-GA) are refused, because the saved adapter alone would not be the trained model."""
    source: Mapping[str, Any]
    """What file and overrides said, under present key names, with the DeepSpeed file's full path and without tokens of
    a hub. Write it with `yaml_source.dump_yaml`; `config_from_mapping` reads it again."""
    notices: tuple[str, ...]
    """Lines for the user: what was taken differently from how it was written, with file and line."""

    @property
    def method(self) -> str:
        """`sft`, `lora`, `ptuning_v2`, or PEFT's name of another method in lower case."""
        if self.peft_config is None:
            return "sft"
        peft_type: str = self.peft_config["peft_type"]
        return METHODS.get(peft_type, peft_type.lower())

    @cached_property
    def deepspeed(self) -> dict[str, Any] | None:
        """What `training_args.deepspeed` holds, or the file that it names, read once; None without DeepSpeed."""
        given = self.training_args.get("deepspeed")
        return read_deepspeed(given) if given else None


DERIVED = ("generation_config", "source", "notices")
"""Fields of `RunConfig` that are not keys of a file."""

SECTIONS = ("data_config", "training_args", "peft_config")


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Return the checked configuration of a YAML file.

    Args:
        path: the file; its name stands in messages as it is given here.
        overrides: `a.b=value` each, the value in YAML, from `--set`; the last one of a key counts.

    Raises:
        GlmtuneError: with every mistake in file and overrides at once.
    """
    expect_paths(config=path)
    expect_overrides(overrides)
    source = read_source(path)
    for override in overrides:
        source.override(override)
    return _build(source, user_path(path).parent)


def config_from_mapping(source: Mapping[str, Any], *, where: str, overrides: Sequence[str] = ()) -> RunConfig:
    """Return the checked configuration of a run folder's saved `source`; `where` names it in messages."""
    if not isinstance(source, Mapping):
        raise GlmtuneError(f"expected keys and values, found {found(source)}", where=where)
    expect_overrides(overrides)
    values = Source(origin=where, values=dict(source))
    for override in overrides:
        values.override(override)
    return _build(values, None)


def as_config(config: str | Path | RunConfig, overrides: Sequence[str] = ()) -> RunConfig:
    """Return the configuration of a file, or one that was loaded before, with `overrides` on top of it.

    Raises:
        GlmtuneError: The file or an override is wrong, or the configuration was changed in a way that nothing records.
    """
    if not isinstance(config, RunConfig):
        return load_config(config, overrides)
    if not overrides:
        return config
    recorded = config_from_mapping(config.source, where="the configuration")
    if replace(recorded, notices=()) != replace(config, notices=()):
        raise GlmtuneError(
            "the configuration was changed after it was loaded, and `overrides` would undo that",
            fix="pass every change in `overrides`, or none",
        )
    return config_from_mapping(config.source, where="the configuration", overrides=overrides)


def _build(source: Source, config_folder: Path | None) -> RunConfig:
    """Return the configuration that `source` describes, or raise one error for all that is wrong with it."""
    training_keys = training_fields()
    modernize(source, training_keys)
    expand_paths(source)
    find_deepspeed_file(source, config_folder)
    find_metrics_file(source, config_folder)
    top_keys = [each.name for each in fields(RunConfig) if each.name not in DERIVED]
    homes = {
        **dict.fromkeys(training_keys, "in `training_args`"),
        **dict.fromkeys((each.name for each in fields(DataConfig)), "in `data_config`"),
        **dict.fromkeys(top_keys, "at the top, without indentation"),
    }
    data = check_fields(source, "data_config", source.section("data_config"), DataConfig, homes=homes)
    unread = {"data_config", "data_config.train_file"} & source.wrong_keys
    if "train_file" not in source.section("data_config") and not unread:
        source.complain(
            "data_config.train_file", "is missing", "name the training rows, such as `train_file: train.jsonl`"
        )
    top = {key: value for key, value in source.values.items() if key not in SECTIONS}
    config = RunConfig(
        **check_fields(source, "", top, RunConfig, hidden=DERIVED, homes=homes),
        data_config=DataConfig(**{"train_file": "", **data}),
        training_args=training_section(source, homes),
        generation_config=generation_section(source),
        peft_config=peft_section(source),
        source=without_secrets(source.values),
        notices=tuple(source.notices),
    )
    check(config, source)
    source.raise_problems()
    return config


def check(config: RunConfig, source: Source) -> None:
    """Complain to `source` of every rule over values and pairs of keys that does not hold."""
    wrong = source.wrong_keys
    arguments = {**training_fields(), **config.training_args}
    for rule in (
        *_data_rules(config),
        *_size_rules(config, arguments),
        *_number_rules(arguments),
        *_length_rules(arguments),
        *_reader_rules(arguments),
        *_packing_rules(config, arguments),
        *_evaluation_rules(config, arguments),
        *_fp16_rules(config, arguments),
        *_quantization_rules(config),
    ):
        # A key whose own value is wrong would only bring more complaints about the same slip.
        if not rule.holds and not wrong.intersection(rule.keys):
            source.complain(rule.keys[0], rule.message, rule.fix)


class _Rule(NamedTuple):
    keys: tuple[str, ...]
    """The keys that it joins; the first is the one to complain of."""
    holds: bool
    message: str
    fix: str | None = None


def _data_rules(config: RunConfig) -> Iterator[_Rule]:
    data = config.data_config
    yield _Rule(
        ("data_config.val_size", "data_config.val_file"),
        not (data.val_size and data.val_file),
        "`val_size` and `val_file` exclude each other",
        "leave one of them out",
    )
    yield _Rule(
        ("data_config.val_size",),
        data.val_size >= 0 and (data.val_size < 1 or float(data.val_size).is_integer()),
        f"expected a share below 1 or a number of rows, found `{data.val_size}`",
    )
    yield _Rule(
        ("train_on", "combine"),
        not config.combine or config.train_on in ("all", "last"),
        f"`{config.train_on}` and `combine: true` exclude each other",
        "leave one of them out",
    )


def _size_rules(config: RunConfig, arguments: Mapping[str, Any]) -> Iterator[_Rule]:
    sections = {"": vars(config), "data_config": vars(config.data_config), "training_args": arguments}
    for key in AT_LEAST_ONE:
        section, _, name = key.rpartition(".")
        value = sections[section][name]
        if value is None:
            continue
        yield _Rule((key,), value >= 1, f"expected 1 or more, found `{value}`")


def _number_rules(arguments: Mapping[str, Any]) -> Iterator[_Rule]:
    """Yield for each number of `training_args` whether it is one that training can go on with."""
    for keys, expected, holds in NUMBER_RANGES:
        for name in keys:
            value = arguments.get(name)
            # Words are `lr_scheduler_type`'s and others' own; null takes transformers' default.
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                yield _Rule((f"training_args.{name}",), holds(value), f"expected {expected}, found `{value}`")


def _length_rules(arguments: Mapping[str, Any]) -> Iterator[_Rule]:
    """Yield whether a run takes any step at all."""
    steps, epochs = arguments["max_steps"], arguments["num_train_epochs"]
    yield _Rule(
        ("training_args.max_steps",),
        steps >= 1 or steps == -1,
        f"expected 1 or more (or -1, by which `num_train_epochs` counts), found `{steps}`: nothing would be trained",
    )
    yield _Rule(
        ("training_args.num_train_epochs", "training_args.max_steps"),
        steps != -1 or 0 < epochs < math.inf,
        f"expected a number above 0, found `{epochs}`: nothing would be trained"
        if not epochs > 0
        else f"expected a number, found `{epochs}`",
        "set `num_train_epochs` or `max_steps`",
    )
    # A file of DeepSpeed's may bring a scheduler of its own; what a run does with it shows in its steps.
    has_warm_up = arguments["lr_scheduler_type"] not in WITHOUT_WARM_UP and not arguments["deepspeed"]
    yield _Rule(
        ("training_args.warmup_steps", "training_args.max_steps"),
        steps != 1 or not has_warm_up or not arguments["warmup_steps"],
        "the learning rate of a warm-up begins at 0, and `max_steps: 1` leaves no other step: nothing would be trained",
        "leave `warmup_steps` out, or raise `max_steps`",
    )


def _reader_rules(arguments: Mapping[str, Any]) -> Iterator[_Rule]:
    """Yield whether keys of the processes that read rows meet such processes."""
    for name in ("dataloader_persistent_workers", "dataloader_prefetch_factor"):
        yield _Rule(
            (f"training_args.{name}", "training_args.dataloader_num_workers"),
            not arguments[name] or bool(arguments["dataloader_num_workers"]),
            "is for processes that read rows, and `dataloader_num_workers` is 0",
            "set `dataloader_num_workers`, or leave it out",
        )


def _packing_rules(config: RunConfig, arguments: Mapping[str, Any]) -> Iterator[_Rule]:
    tokens, rows = config.tokens_per_batch, arguments["per_device_train_batch_size"]
    yield _Rule(
        ("tokens_per_batch", "packing"),
        tokens is None or config.packing,
        "rows are laid end to end to fill a batch, which `packing: false` rules out",
        "leave one of them out",
    )
    yield _Rule(
        ("tokens_per_batch", "training_args.per_device_train_batch_size"),
        tokens is None or rows == 1,
        f"rows are counted by their tokens; found `per_device_train_batch_size: {rows}`, too",
        "set `per_device_train_batch_size: 1`",
    )
    longest = config.max_input_length + config.max_output_length
    yield _Rule(
        ("tokens_per_batch", "max_input_length", "max_output_length"),
        tokens is None or tokens >= longest,
        f"`{tokens}` is less than the longest row may have, {longest} tokens",
        "raise it, or lower `max_input_length` or `max_output_length`",
    )


def _evaluation_rules(config: RunConfig, arguments: Mapping[str, Any]) -> Iterator[_Rule]:
    evaluate, save = arguments["eval_strategy"], arguments["save_strategy"]
    data = config.data_config
    yield _Rule(
        ("training_args.eval_strategy", "data_config.val_file"),
        evaluate == "no" or data.has_val_rows,
        f"`{evaluate}` needs `data_config.val_file`, which is not given",
        "name a file to evaluate on, set `data_config.val_size: 0.05`, or set `eval_strategy: no`",
    )
    load_best = arguments["load_best_model_at_end"]
    strategies = ("training_args.load_best_model_at_end", "training_args.eval_strategy", "training_args.save_strategy")
    in_step = evaluate != "no" and save in ("best", evaluate)
    yield _Rule(
        strategies,
        not load_best or in_step,
        f"needs a checkpoint at each evaluation; found eval_strategy `{evaluate}`, save_strategy `{save}`",
        "set both to `steps` or both to `epoch`",
    )
    # Transformers evaluates at every `logging_steps` where `eval_steps` is left out.
    eval_steps, save_steps = arguments["eval_steps"] or arguments["logging_steps"], arguments["save_steps"]
    yield _Rule(
        (*strategies, "training_args.save_steps", "training_args.eval_steps", "training_args.logging_steps"),
        not load_best or not evaluate == save == "steps" or _is_multiple(save_steps, eval_steps),
        f"needs `save_steps` to be a multiple of `eval_steps`; found `{save_steps}` and `{eval_steps}`",
    )
    metric = arguments["metric_for_best_model"]
    measured = (metric or "loss").removeprefix("eval_")
    yield _Rule(
        ("training_args.metric_for_best_model",),
        measured in METRICS or config.metrics is not None,
        f"expected one of {', '.join(f'`{name}`' for name in METRICS)}, found `{metric}`{nearest(measured, METRICS)}",
    )
    yield _Rule(
        ("training_args.metric_for_best_model", "training_args.predict_with_generate", "data_config.val_file"),
        measured == "loss" or arguments["predict_with_generate"],
        f"`{metric}` is measured on generated text, which `predict_with_generate: false` rules out",
        "set `predict_with_generate: true`",
    )
    patience, threshold = config.early_stopping_patience, config.early_stopping_threshold
    yield _Rule(
        ("early_stopping_patience", "training_args.eval_strategy"),
        patience is None or evaluate != "no",
        "needs evaluations; found `eval_strategy: no`",
        "set `training_args.eval_strategy` to `steps` or `epoch`",
    )
    yield _Rule(
        ("early_stopping_threshold",),
        0 <= threshold < math.inf,
        f"expected a finite number, 0 or more, found `{threshold}`",
    )
    yield _Rule(
        ("early_stopping_threshold", "early_stopping_patience"),
        patience is not None or threshold == 0,
        "does nothing without `early_stopping_patience`",
        "set that, too, or leave it out",
    )
    yield _Rule(
        ("metrics", "training_args.predict_with_generate", "data_config.val_file"),
        config.metrics is None or arguments["predict_with_generate"],
        "is computed on generated text, and the run generates none",
        "name rows to evaluate on (`data_config.val_file`, `val_size`); with a `test_file` alone set "
        "`training_args.predict_with_generate: true`, too",
    )
    yield _Rule(
        ("training_args.save_strategy", "training_args.metric_for_best_model", "training_args.eval_strategy"),
        save != "best" or (evaluate != "no" and (load_best or metric is not None)),
        "`best` needs evaluations and a `metric_for_best_model`",
    )


def _fp16_rules(config: RunConfig, arguments: Mapping[str, Any]) -> Iterator[_Rule]:
    both = arguments["fp16"] and arguments["bf16"]
    yield _Rule(("training_args.fp16", "training_args.bf16"), not both, "`fp16` and `bf16` exclude each other")
    for key, is_half in ("training_args.fp16", arguments["fp16"]), ("model_dtype", config.model_dtype == "float16"):
        yield _Rule(
            (key, "force_fp16"),
            config.force_fp16 or not is_half,
            "GLM's loss turns to 0 or NaN in fp16",
            "use bf16, or set `force_fp16: true` to go on all the same",
        )


def _quantization_rules(config: RunConfig) -> Iterator[_Rule]:
    yield _Rule(
        ("quantization", "peft_config"),
        config.quantization is None or config.peft_config is not None,
        "quantized weights cannot be trained, and `peft_config: null` trains every weight",
        "add a `peft_config` (LoRA, P-Tuning v2), or leave `quantization` out",
    )


def _is_multiple(save_steps: float, eval_steps: float) -> bool:
    # Below 1 both are shares of all steps; a share and a number of steps cannot be compared.
    if (save_steps < 1) != (eval_steps < 1):
        return False
    save_parts, eval_parts = round(save_steps * 1_000_000), round(eval_steps * 1_000_000)  # 0.3 % 0.1 is not 0
    return eval_parts > 0 and save_parts % eval_parts == 0
