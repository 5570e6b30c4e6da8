"""What becomes of each key of `training_args`: honoured, refused, or taken with a note that it does nothing here.

`GlmTrainer` makes its own batches and evaluations, and a run keeps its checkpoints itself, so that some keys of
`Seq2SeqTrainingArguments` are read by nothing that runs. The three tables hold every key of every version that is
supported; `tests/config/test_training_keys.py` fails for one that a later version brings until it stands in one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, NamedTuple

from .field_types import complain_unknown
from .yaml_source import Source, found

HONOURED = frozenset(
    {
        *("accelerator_config", "activation_checkpointing", "activation_checkpointing_kwargs"),
        *("adam_beta1", "adam_beta2", "adam_epsilon", "average_tokens_across_devices", "bf16"),
        *("data_seed", "dataloader_drop_last", "dataloader_num_workers", "dataloader_persistent_workers"),
        *("dataloader_pin_memory", "dataloader_prefetch_factor"),
        *("ddp_backend", "ddp_broadcast_buffers", "ddp_bucket_cap_mb", "ddp_find_unused_parameters"),
        *("ddp_static_graph", "ddp_timeout", "debug", "deepspeed", "disable_tqdm"),
        *("eval_delay", "eval_on_start", "eval_steps", "eval_strategy"),
        *("fp16", "fsdp", "fsdp_config", "full_determinism"),
        *("generation_config", "gradient_accumulation_steps", "gradient_checkpointing"),
        *("gradient_checkpointing_kwargs", "greater_is_better", "include_num_input_tokens_seen"),
        *("label_smoothing_factor", "learning_rate", "load_best_model_at_end"),
        *("log_level", "log_level_replica", "log_on_each_node"),
        *("logging_first_step", "logging_steps", "logging_strategy", "lr_scheduler_kwargs", "lr_scheduler_type"),
        *("max_grad_norm", "max_steps", "metric_for_best_model", "neftune_noise_alpha", "num_train_epochs"),
        *("optim", "optim_args", "optim_target_modules", "output_dir"),
        *("per_device_eval_batch_size", "per_device_train_batch_size", "predict_with_generate", "report_to"),
        *("run_name", "save_only_model", "save_steps", "save_strategy", "save_total_limit", "seed"),
        *("skip_memory_metrics", "tf32", "torch_compile", "torch_compile_backend", "torch_compile_mode"),
        *("torch_empty_cache_steps", "train_sampling_strategy", "use_cpu", "warmup_steps", "weight_decay"),
        *("project", "trackio_bucket_id", "trackio_space_id", "trackio_static_space_id"),
    }
)
"""Keys that do what transformers says of them."""


class Refused(NamedTuple):
    """A key whose value would be expected to do something that no run does."""

    harmless: tuple[Any, ...]
    """Values that ask for nothing else than what happens."""
    message: str
    fix: str


REFUSED = {
    "auto_find_batch_size": Refused(
        (None, False),
        "is not supported: the rows of a step would change in the midst of a run",
        "`glmtune estimate` says what fits into memory, and `glmtune train --dry-run` tries it",
    ),
    "dataloader_in_order": Refused(
        (None, True), "batches out of order would make another run of every start", "leave it out"
    ),
    "dataloader_multiprocessing_context": Refused(
        (None,), "the processes that read rows are started as Python starts them on this system", "leave it out"
    ),
    "do_train": Refused(
        (None, True),
        "`glmtune train` trains",
        "to score a model without training it: `glmtune eval MODEL DATA_FILE`",
    ),
    "enable_jit_checkpoint": Refused(
        (None, False), "a run saves a checkpoint at SIGTERM in its own way, in any case", "leave it out"
    ),
    "generation_max_length": Refused(
        (None,),
        "the length of answers in evaluations is counted without the prompt",
        "set `training_args.generation_config.max_new_tokens`",
    ),
    "generation_num_beams": Refused(
        (None, 1), "is the old place of a generation setting", "set `training_args.generation_config.num_beams`"
    ),
    "ignore_data_skip": Refused(
        (None, False),
        "a resumed run would train some rows twice and others never",
        "leave it out: no time goes into skipping rows here",
    ),
    "liger_kernel_config": Refused(
        (None,),
        "Liger's layers are not put into the model: `fused_layers` are what it is trained with",
        "leave it out; `loss_kernel: liger` takes Liger's loss",
    ),
    "parallelism_config": Refused(
        (None,),
        "tensor, context and sequence parallelism are not supported",
        "shard the model by ZeRO-3 (`--deepspeed configs/ds_zero3.json`) or FSDP",
    ),
    "prediction_loss_only": Refused(
        (None, False),
        "whether evaluations write answers has another key here",
        "set `training_args.predict_with_generate: false`",
    ),
    "push_to_hub": Refused(
        (None, False),
        "a run uploads nothing: its checkpoints are moved into place once they are verified",
        "upload the result: `glmtune export RUN_DIR OUTPUT_DIR --push OWNER/NAME`",
    ),
    "resume_from_checkpoint": Refused(
        (None, False),
        "`glmtune train` begins anew",
        "to go on with a run: `glmtune resume RUN_DIR`; to begin with a checkpoint's weights: "
        "`glmtune train DATA_DIR MODEL CONFIG --init-from CHECKPOINT`",
    ),
    "save_on_each_node": Refused(
        (None, False),
        "all machines share the run's folder, and one process writes into it",
        "leave it out, and set `output_dir` to a folder that all machines share",
    ),
    "use_liger_kernel": Refused(
        (None, False),
        "Liger's layers are not put into the model: `fused_layers` are what it is trained with",
        "leave it out; `loss_kernel: liger` takes Liger's loss",
    ),
}


class Noted(NamedTuple):
    """A key that changes nothing, and whose absence nobody would miss."""

    harmless: tuple[Any, ...]
    reason: str


_UPLOADS = "a run uploads nothing; `glmtune export RUN_DIR OUTPUT_DIR --push OWNER/NAME` does"
_EVALUATION = "evaluations keep neither logits nor labels, row by row"
_PRECISION = "evaluations compute in the types that the training computes in"

NOTED = {
    "batch_eval_metrics": Noted((None, False), _EVALUATION),
    "bf16_full_eval": Noted((None, False), _PRECISION),
    "fp16_full_eval": Noted((None, False), _PRECISION),
    "eval_accumulation_steps": Noted((None,), _EVALUATION),
    "eval_do_concat_batches": Noted((None, True), _EVALUATION),
    "eval_use_gather_object": Noted((None, False), _EVALUATION),
    "hub_always_push": Noted((None, False), _UPLOADS),
    "hub_model_id": Noted((None,), _UPLOADS),
    "hub_private_repo": Noted((None,), _UPLOADS),
    "hub_revision": Noted((None,), _UPLOADS),
    "hub_strategy": Noted((None,), _UPLOADS),
    "hub_token": Noted((None,), _UPLOADS),
    "include_for_metrics": Noted((None, []), "the metrics are computed from the answers and their references"),
    "label_names": Noted((None,), "the labels are made from the rows' messages"),
    "length_column_name": Noted((None, "length"), "the lengths of the encoded rows are known"),
    "local_rank": Noted((None, -1), "the launcher says which process is which"),
    "logging_nan_inf_filter": Noted((None, False), "a loss that is not a finite number ends the run, unaveraged"),
    "remove_unused_columns": Noted((None, False), "batches hold what the training needs, and nothing else"),
    "restore_callback_states_from_checkpoint": Noted((None, False), "a resumed run restores all that it needs"),
    "sortish_sampler": Noted((None, False), "transformers itself no longer reads it"),
    "use_cache": Noted((None, False), "training has no use for a cache of keys and values; generation has its own"),
}
"""Keys that are taken, and said to do nothing."""

DECIDED_BY_OTHERS = frozenset({"do_eval", "do_predict"})
"""Keys that say once more, or otherwise, what another key decides; noted where they say otherwise."""

REPORTER_OF = {
    **dict.fromkeys(("project", "trackio_bucket_id", "trackio_space_id", "trackio_static_space_id"), "trackio")
}
"""Keys that only one tracker reads."""

WITHOUT_WARM_UP = ("constant", "reduce_lr_on_plateau", "greedy")
"""Schedules of the learning rate that no `warmup_steps` begin."""

DICTIONARIES = (
    *("activation_checkpointing_kwargs", "gradient_checkpointing_kwargs", "lr_scheduler_kwargs", "fsdp_config"),
)
"""Keys with keys and values below them, which transformers reads from text in quotes, too, where that is JSON."""

FILE = "fsdp_config"
"""The one of them that transformers takes for the name of a file, too."""

ACCELERATOR_HONOURED = ("non_blocking",)

ACCELERATOR_REFUSED = {
    "split_batches": Refused(
        (None, False),
        "batches are distributed over the processes by their tokens, not split",
        "leave it out: `per_device_train_batch_size` counts the rows of one process",
    ),
    "dispatch_batches": Refused(
        (None, False), "every process reads its own batches, in an order that all of them know", "leave it out"
    ),
    "even_batches": Refused(
        (None, True), "a step waits for every process, so each has as many batches", "leave it out"
    ),
    "use_configured_state": Refused(
        (None, False), "a run sets up accelerate by itself, so that a resumed run is set up alike", "leave it out"
    ),
}

ACCELERATOR_NOTED = {
    "use_seedable_sampler": Noted((None, True), "`seed` and `data_seed` decide the order of the rows in any case"),
}

ACCUMULATION = "gradient_accumulation_kwargs"
ACCUMULATION_HONOURED = ("sync_each_batch",)
ACCUMULATION_REFUSED = {
    "num_steps": Refused(
        (None, 1), "is another name of `gradient_accumulation_steps`", "set `training_args.gradient_accumulation_steps`"
    ),
}
ACCUMULATION_NOTED = {
    "adjust_scheduler": Noted((None, True), "the learning rate is set once for each optimizer step"),
    "sync_with_dataloader": Noted((None, True), "the last step of an epoch is taken with the rows that are left"),
}


def settle_refused(source: Source, given: Mapping[str, Any]) -> dict[str, Any]:
    """Complain to `source` of keys that are refused; returns the others, whose types are still to be looked at."""
    _settle(source, "training_args", given, REFUSED, {})
    return {name: value for name, value in given.items() if name not in REFUSED}


def settle_noted(source: Source, arguments: Mapping[str, Any]) -> None:
    """Note those keys that do nothing; complain of what is wrong below `accelerator_config`.

    Args:
        source: What the user wrote.
        arguments: The keys of `training_args` that were written and are not refused, with values of the right types.
    """
    _settle(source, "training_args", arguments, {}, NOTED)
    for name in arguments:
        if name not in HONOURED | NOTED.keys() | DECIDED_BY_OTHERS:
            _note(source, name, "is new in the installed transformers and passed on to it; it may do nothing here")
    _settle_dictionaries(source, arguments)
    _settle_evaluation(source, arguments)
    _settle_dependent(source, arguments)
    _settle_sampling(source, arguments)
    _settle_reporters(source, arguments)
    _settle_accelerator(source, arguments.get("accelerator_config"))


def without_effect(arguments: Mapping[str, Any]) -> list[str]:
    """Return those keys that a run does not pass on to transformers, where some would half do something."""
    return [name for name in arguments if name in NOTED]


def _settle(
    source: Source,
    section: str,
    values: Mapping[str, Any],
    refused: Mapping[str, Refused],
    noted: Mapping[str, Noted],
) -> None:
    for name, value in values.items():
        if name in refused and not _is_among(value, refused[name].harmless):
            source.complain(f"{section}.{name}", refused[name].message, refused[name].fix)
        elif name in noted and not _is_among(value, noted[name].harmless):
            key = f"{section}.{name}"
            source.notices.append(f"{source.where(key)}: `{key}` does nothing: {noted[name].reason}")


def _is_among(value: Any, options: tuple[Any, ...]) -> bool:
    return any(value == option and type(value) is type(option) for option in options)


def _note(source: Source, name: str, text: str) -> None:
    key = f"training_args.{name}"
    source.notices.append(f"{source.where(key)}: `{key}` {text}")


def _settle_dictionaries(source: Source, arguments: Mapping[str, Any]) -> None:
    """Complain of text in the place of keys and values, where it is no JSON and no file."""
    for name in DICTIONARIES:
        value, key = arguments.get(name), f"training_args.{name}"
        if not isinstance(value, str):
            continue
        if not value.startswith("{"):
            if name != FILE or not arguments.get("fsdp"):  # where it is on, it is refused with a reason of its own
                source.complain(key, f"expected keys and values, found {found(value)}")
            continue
        try:
            json.loads(value)
        except ValueError as error:
            source.complain(
                key,
                f"expected keys and values, found {found(value)}, which is no JSON: {error}",
                "take the quotes away",
            )


def _settle_evaluation(source: Source, arguments: Mapping[str, Any]) -> None:
    """Note where `do_eval` and `do_predict` say something else than the keys that decide."""
    data = source.section("data_config")
    evaluates = arguments.get("eval_strategy", "no") != "no"
    tests = data.get("test_file") is not None
    for name, happens, key in (
        ("do_eval", evaluates, "training_args.eval_strategy"),
        ("do_predict", tests, "data_config.test_file"),
    ):
        value = arguments.get(name)
        if value is not None and value != happens:
            done = "is evaluated" if happens else "is not evaluated"
            _note(source, name, f"does nothing: `{key}` decides, by which a run {done}")
    if arguments.get("eval_steps") == 0 and arguments.get("eval_strategy") == "steps":
        _note(source, "eval_steps", "is 0, which stands for `logging_steps`: a run is evaluated as often as it logs")


def _settle_dependent(source: Source, arguments: Mapping[str, Any]) -> None:
    """Note keys that other keys leave nothing to say."""
    evaluates = str(arguments.get("eval_strategy", "no"))
    saves = str(arguments.get("save_strategy", "steps"))
    logs = str(arguments.get("logging_strategy", "steps"))
    schedule = str(arguments.get("lr_scheduler_type", "linear"))
    recomputes = any(arguments.get(f"{what}_checkpointing") for what in ("gradient", "activation"))
    stops_early = source.values.get("early_stopping_patience") is not None
    chooses = bool(arguments.get("load_best_model_at_end")) or saves == "best" or stops_early
    for name, is_read, reason in (
        ("eval_steps", evaluates == "steps", f"`eval_strategy` is `{evaluates}`"),
        ("eval_delay", evaluates != "no", "`eval_strategy` is `no`"),
        ("eval_on_start", evaluates != "no", "`eval_strategy` is `no`"),
        ("save_steps", saves == "steps", f"`save_strategy` is `{saves}`"),
        ("logging_steps", logs == "steps" or evaluates == "steps", f"`logging_strategy` is `{logs}`"),
        ("warmup_steps", schedule not in WITHOUT_WARM_UP, f"`lr_scheduler_type` is `{schedule}`"),
        (
            "greater_is_better",
            chooses,
            "none of `load_best_model_at_end`, `save_strategy: best`, `early_stopping_patience` asks for a best one",
        ),
        ("optim_target_modules", _optimizer_takes_modules(arguments), "only GaLore, APOLLO and LOMO read it"),
        ("gradient_checkpointing_kwargs", recomputes, "`gradient_checkpointing` is off"),
        ("activation_checkpointing_kwargs", recomputes, "`activation_checkpointing` is off"),
    ):
        if arguments.get(name) and not is_read:
            _note(source, name, f"does nothing: {reason}")
    metric, is_greater = arguments.get("metric_for_best_model"), arguments.get("greater_is_better")
    is_loss = metric is None or str(metric).removeprefix("eval_") == "loss"
    if chooses and is_greater is not None and is_greater == is_loss:
        _note(
            source, "greater_is_better", f"is {found(is_greater)}, by which the worst `{metric or 'loss'}` is the best"
        )


def _optimizer_takes_modules(arguments: Mapping[str, Any]) -> bool:
    return any(name in str(arguments.get("optim", "")) for name in ("galore", "apollo", "lomo"))


def _settle_sampling(source: Source, arguments: Mapping[str, Any]) -> None:
    if arguments.get("train_sampling_strategy", "random") not in ("random", "sequential"):
        _note(
            source,
            "train_sampling_strategy",
            "is taken for `random`: rows of like length meet in any case where rows are padded, and packed batches "
            "hold about as many tokens each",
        )


def _settle_reporters(source: Source, arguments: Mapping[str, Any]) -> None:
    """Note the keys that are read by a tracker which the run does not report to."""
    names = arguments.get("report_to") or []
    names = [names] if isinstance(names, str) else names
    swanlab = source.values.get("swanlab") in ("local", "cloud")
    for name, reporter in REPORTER_OF.items():
        if arguments.get(name) is not None and reporter not in names and "all" not in names:
            _note(
                source, name, f"does nothing: only the tracker `{reporter}` reads it, which `report_to` does not name"
            )
    if arguments.get("run_name") and not swanlab and all(name == "none" for name in names):
        _note(source, "run_name", "does nothing: only trackers show it, and `report_to` names none")


def _settle_accelerator(source: Source, given: Any) -> None:
    """Check the keys below `accelerator_config`, which transformers leaves to accelerate."""
    if given is None:
        return
    section = "training_args.accelerator_config"
    if not isinstance(given, dict):
        source.complain(
            section,
            f"expected keys and values, found {found(given)}",
            "write what the file says below `accelerator_config`: a resumed run has to know it",
        )
        return
    from transformers.trainer_pt_utils import AcceleratorConfig

    known = [each.name for each in fields(AcceleratorConfig)]
    _complain_of_unknown(source, section, given, known)
    _settle(source, section, given, ACCELERATOR_REFUSED, ACCELERATOR_NOTED)
    accumulation = given.get(ACCUMULATION)
    if accumulation is None:
        return
    section = f"{section}.{ACCUMULATION}"
    if not isinstance(accumulation, dict):
        source.complain(section, f"expected keys and values, found {found(accumulation)}")
        return
    known = [*ACCUMULATION_HONOURED, *ACCUMULATION_REFUSED, *ACCUMULATION_NOTED]
    _complain_of_unknown(source, section, accumulation, known)
    _settle(source, section, accumulation, ACCUMULATION_REFUSED, ACCUMULATION_NOTED)


def _complain_of_unknown(source: Source, section: str, given: Mapping[str, Any], known: list[str]) -> None:
    for name in given:
        if name not in known:
            complain_unknown(source, f"{section}.{name}", known, {})
