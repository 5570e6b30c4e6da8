"""A YAML file and `--set key=value` on top become one `RunConfig`, or one error that names every mistake in them.

`load_config` reads; `check` holds the rules that join several keys, but for those of `training_args` alone
(`argument_rules.py`). Keys and types of `training_args` and `peft_config` are those of the installed transformers and
PEFT.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from glmtune.errors import GlmtuneError
from glmtune.files.user_paths import user_path
from glmtune.python_arguments import expect_overrides, expect_paths
from glmtune.text.secret_values import masked_argument, without_secrets

from .argument_rules import Rule, argument_rules
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
from .yaml_source import Problem, Source, found, read_source, source_of_mapping, source_of_text

METHODS = {"LORA": "lora", "PREFIX_TUNING": "ptuning_v2"}
"""PEFT's name of a method to ours."""

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


SPLITS = ("train", "val", "test")
"""Sets of rows: each has a key of its own, such as `data_config.train_file`."""


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
    text: str = ""
    """YAML, where the configuration was fitted to the rows and stands in no file of the user's: the run keeps it."""

    def __repr__(self) -> str:
        """Return what is trained, on which files, where to; `source` has all that was set."""
        files = self.data_config.train_file
        return f"<RunConfig: {self.method} on {files}, into {self.training_args['output_dir']}>"

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


DERIVED = ("generation_config", "source", "notices", "text")
"""Fields of `RunConfig` that are not keys of a file."""

SECTIONS = ("data_config", "training_args", "peft_config")

AnyConfig = str | Path | Mapping[str, Any] | RunConfig
"""What functions take for a configuration: a YAML file, what such a file would hold, or one that was loaded before."""

IN_PYTHON = "the configuration"
"""Where something is wrong that stands in no file."""


def load_config(path: str | Path | Mapping[str, Any], overrides: Sequence[str] = ()) -> RunConfig:
    """Return the checked configuration of a YAML file, or of what such a file would hold.

    Args:
        path: the file, whose name stands in messages as it is given here; or its keys and values.
        overrides: `a.b=value` each, the value in YAML, from `--set`; the last one of a key counts.

    Raises:
        GlmtuneError: with every mistake in file and overrides at once.
    """
    if isinstance(path, Mapping):
        return config_from_mapping(path, where=IN_PYTHON, overrides=overrides)
    expect_paths(config=path)
    expect_overrides(overrides)
    source = read_source(path)
    for override in overrides:
        source.override(override)
    return _build(source, user_path(path).parent)


def config_from_text(text: str, *, where: str) -> RunConfig:
    """Return the checked configuration of a YAML text, which it keeps; `where` names it in messages."""
    return replace(_build(source_of_text(text, where), None), text=text)


def config_from_mapping(source: Mapping[str, Any], *, where: str, overrides: Sequence[str] = ()) -> RunConfig:
    """Return the checked configuration of a program's mapping or a run folder's `source`; messages name `where`."""
    if not isinstance(source, Mapping):
        raise GlmtuneError(f"expected keys and values, found {found(source)}", where=where)
    expect_overrides(overrides)
    values = source_of_mapping(source, where)
    for override in overrides:
        values.override(override)
    return _build(values, None)


def problems_of(values: Mapping[str, Any]) -> list[Problem]:
    """Return what is wrong with the keys and values of a configuration, all at once; nothing where it can be loaded."""
    source = Source(origin="the configuration", values=dict(values))
    with contextlib.suppress(GlmtuneError):
        _build(source, None)
    return source.problems


def as_config(config: AnyConfig, overrides: Sequence[str] = ()) -> RunConfig:
    """Return the configuration of a file or a mapping, or one that was loaded before, with `overrides` on top of it.

    Raises:
        GlmtuneError: The file or an override is wrong, or the configuration was changed in a way that nothing records.
    """
    if not isinstance(config, RunConfig):
        return load_config(config, overrides)
    if not overrides:
        return config
    recorded = config_from_mapping(config.source, where=IN_PYTHON)
    if replace(recorded, notices=()) != replace(config, notices=(), text=""):
        raise GlmtuneError(
            "the configuration was changed after it was loaded, and `overrides` would undo that",
            fix="pass every change in `overrides`, or none",
        )
    changed = config_from_mapping(config.source, where=IN_PYTHON, overrides=overrides)
    told = "".join(f"# --set {masked_argument(override)}\n" for override in overrides)
    return replace(changed, text=f"{config.text}\n# and on top of it:\n{told}" if config.text else "")


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
        *argument_rules(
            arguments, has_val_rows=config.data_config.has_val_rows, has_own_metrics=config.metrics is not None
        ),
        *_packing_rules(config, arguments),
        *_stopping_rules(config, arguments),
        *_fp16_rules(config, arguments),
        *_quantization_rules(config),
    ):
        # A key whose own value is wrong would only bring more complaints about the same slip.
        if not rule.holds and not wrong.intersection(rule.keys):
            source.complain(rule.keys[0], rule.message, rule.fix)


def _data_rules(config: RunConfig) -> Iterator[Rule]:
    data = config.data_config
    yield Rule(
        ("data_config.val_size", "data_config.val_file"),
        not (data.val_size and data.val_file),
        "`val_size` and `val_file` exclude each other",
        "leave one of them out",
    )
    yield Rule(
        ("data_config.val_size",),
        data.val_size >= 0 and (data.val_size < 1 or float(data.val_size).is_integer()),
        f"expected a share below 1 or a number of rows, found `{data.val_size}`",
    )
    yield Rule(
        ("train_on", "combine"),
        not config.combine or config.train_on in ("all", "last"),
        f"`{config.train_on}` and `combine: true` exclude each other",
        "leave one of them out",
    )


def _size_rules(config: RunConfig, arguments: Mapping[str, Any]) -> Iterator[Rule]:
    sections = {"": vars(config), "data_config": vars(config.data_config), "training_args": arguments}
    for key in AT_LEAST_ONE:
        section, _, name = key.rpartition(".")
        value = sections[section][name]
        if value is None:
            continue
        yield Rule((key,), value >= 1, f"expected 1 or more, found `{value}`")


def _packing_rules(config: RunConfig, arguments: Mapping[str, Any]) -> Iterator[Rule]:
    tokens, rows = config.tokens_per_batch, arguments["per_device_train_batch_size"]
    yield Rule(
        ("tokens_per_batch", "packing"),
        tokens is None or config.packing,
        "rows are laid end to end to fill a batch, which `packing: false` rules out",
        "leave one of them out",
    )
    yield Rule(
        ("tokens_per_batch", "training_args.per_device_train_batch_size"),
        tokens is None or rows == 1,
        f"rows are counted by their tokens; found `per_device_train_batch_size: {rows}`, too",
        "set `per_device_train_batch_size: 1`",
    )
    longest = config.max_input_length + config.max_output_length
    yield Rule(
        ("tokens_per_batch", "max_input_length", "max_output_length"),
        tokens is None or tokens >= longest,
        f"`{tokens}` is less than the longest row may have, {longest} tokens",
        "raise it, or lower `max_input_length` or `max_output_length`",
    )


def _stopping_rules(config: RunConfig, arguments: Mapping[str, Any]) -> Iterator[Rule]:
    patience, threshold = config.early_stopping_patience, config.early_stopping_threshold
    yield Rule(
        ("early_stopping_patience", "training_args.eval_strategy"),
        patience is None or arguments["eval_strategy"] != "no",
        "needs evaluations; found `eval_strategy: no`",
        "set `training_args.eval_strategy` to `steps` or `epoch`",
    )
    yield Rule(
        ("early_stopping_threshold",),
        0 <= threshold < math.inf,
        f"expected a finite number, 0 or more, found `{threshold}`",
    )
    yield Rule(
        ("early_stopping_threshold", "early_stopping_patience"),
        patience is not None or threshold == 0,
        "does nothing without `early_stopping_patience`",
        "set that, too, or leave it out",
    )


def _fp16_rules(config: RunConfig, arguments: Mapping[str, Any]) -> Iterator[Rule]:
    both = arguments["fp16"] and arguments["bf16"]
    yield Rule(("training_args.fp16", "training_args.bf16"), not both, "`fp16` and `bf16` exclude each other")
    for key, is_half in ("training_args.fp16", arguments["fp16"]), ("model_dtype", config.model_dtype == "float16"):
        yield Rule(
            (key, "force_fp16"),
            config.force_fp16 or not is_half,
            "GLM's loss turns to 0 or NaN in fp16",
            "use bf16, or set `force_fp16: true` to go on all the same",
        )


def _quantization_rules(config: RunConfig) -> Iterator[Rule]:
    yield Rule(
        ("quantization", "peft_config"),
        config.quantization is None or config.peft_config is not None,
        "quantized weights cannot be trained, and `peft_config: null` trains every weight",
        "add a `peft_config` (LoRA, P-Tuning v2), or leave `quantization` out",
    )
