"""Keys of transformers 4 that transformers 5 calls by another name, or no longer has.

Established by comparing the fields of `Seq2SeqTrainingArguments` in transformers 4.40, 4.57, 5.17 and 5.23.
The tables can go when nobody brings a configuration of the GLM-4 or ChatGLM3 demos any more.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any, NamedTuple

from glmtune.compat import CHECKPOINTING

from .field_types import Mismatch, fit
from .yaml_source import Source, found, is_override_place


class Renamed(NamedTuple):
    new: str
    convert: Callable[[Any], Any] = lambda value: value


def _switch(*, on: Any, off: Any) -> Callable[[Any], Any]:
    return lambda value: on if fit(value, bool) else off


def _share_of_all_steps(value: Any) -> float:
    # Transformers 5 takes `warmup_steps` below 1 for a share; from 1 on it would be a number of steps.
    share: float = fit(value, float)
    if not 0 <= share < 1:
        raise Mismatch("a share of all steps, from 0 to below 1")
    return share


RENAMED = {
    "evaluation_strategy": Renamed("eval_strategy"),
    "no_cuda": Renamed("use_cpu"),
    "per_gpu_train_batch_size": Renamed("per_device_train_batch_size"),
    "per_gpu_eval_batch_size": Renamed("per_device_eval_batch_size"),
    "warmup_ratio": Renamed("warmup_steps", _share_of_all_steps),
    "group_by_length": Renamed("train_sampling_strategy", _switch(on="group_by_length", off="random")),
    "adafactor": Renamed("optim", _switch(on="adafactor", off="adamw_torch_fused")),
    "torchdynamo": Renamed("torch_compile_backend"),
    "include_inputs_for_metrics": Renamed("include_for_metrics", _switch(on=["inputs"], off=[])),
    "push_to_hub_token": Renamed("hub_token"),
    "push_to_hub_model_id": Renamed("hub_model_id"),
    "dispatch_batches": Renamed("accelerator_config.dispatch_batches"),
    "split_batches": Renamed("accelerator_config.split_batches"),
    "fsdp_min_num_params": Renamed("fsdp_config.min_num_params"),
    "fsdp_transformer_layer_cls_to_wrap": Renamed("fsdp_config.transformer_layer_cls_to_wrap"),
}
"""Old key of `training_args` to its present one; a dot leads into a section below `training_args`."""

RETIRED = {
    "overwrite_output_dir": "transformers 5 dropped it; no run empties a folder",
    "save_safetensors": "weights are always saved as safetensors",
    "include_tokens_per_second": "transformers 5 dropped it; `include_num_input_tokens_seen` counts tokens",
    "logging_dir": "TensorBoard's folder is the environment variable TENSORBOARD_LOGGING_DIR now",
    "half_precision_backend": "PyTorch's own mixed precision is the only one",
    "fp16_backend": "PyTorch's own mixed precision is the only one",
    "fp16_opt_level": "it was for Apex, which transformers 5 does not use",
    "jit_mode_eval": "transformers 5 does not trace models; `torch_compile` is what came after",
    "use_ipex": "PyTorch itself holds Intel's optimizations",
    "use_mps_device": "an Apple GPU is used where there is one; `use_cpu: true` says no",
    "use_legacy_prediction_loop": "there is only one evaluation loop",
    "past_index": "models keep their cache themselves",
    "ray_scope": "it was for hyperparameter search, which this program does not do",
    "mp_parameters": "it was for SageMaker's model parallelism, which transformers 5 dropped",
    "tpu_num_cores": "the launcher decides",
    "tpu_metrics_debug": "write `debug: tpu_metrics_debug`",
}
"""Old key of `training_args` to the reason why it no longer does anything."""


def modernize(source: Source, known: Collection[str]) -> None:
    """Give old keys of `training_args` their present names, in place, and note each use.

    Args:
        source: what the user wrote.
        known: the fields of the installed `Seq2SeqTrainingArguments`; they are left as they are.
    """
    for gradient, activation in CHECKPOINTING.items():
        old, new = (gradient, activation) if activation in known else (activation, gradient)
        if old in source.section("training_args"):
            _rename(source, old, Renamed(new))
    for old in [key for key in source.section("training_args") if key not in known]:
        key = f"training_args.{old}"
        place = source.where(key)
        if old in RETIRED:
            source.remove(key)
            source.notices.append(f"{place}: `{key}` no longer does anything: {RETIRED[old]}")
        elif old in RENAMED and source.section("training_args")[old] is None:
            source.remove(key)
            source.notices.append(f"{place}: `{key}` is called `{RENAMED[old].new}` now; its `null` was left out")
        elif old in RENAMED and _rename(source, old, RENAMED[old]):
            source.notices.append(f"{place}: `{key}` is called `{RENAMED[old].new}` now and was taken for it")


def _rename(source: Source, old: str, renamed: Renamed) -> bool:
    """Move one value to its new key; return whether that was possible."""
    old_key, new_key = f"training_args.{old}", f"training_args.{renamed.new}"
    section, _, name = new_key.rpartition(".")
    place, value = source.where(old_key), source.remove(old_key)
    if name in source.section(section) and source.is_override(new_key) == is_override_place(place):
        message = f"is another name of `{renamed.new}`, which is given too ({source.where(new_key)})"
        source.complain(old_key, message, f"keep `{renamed.new}` alone", where=place)
        return False
    if name in source.section(section) and source.is_override(new_key):
        return True  # `--set` with the new name over the file's old one
    try:
        source.set(new_key, renamed.convert(value), place)
    except Mismatch as mismatch:
        source.complain(old_key, f"expected {mismatch}, found {found(value)}", where=place)
        return False
    return True
