"""What a run on a CPU multiplies in: chosen by the main process at its beginning, and kept for as long as it lives."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from transformers import Seq2SeqTrainingArguments

from glmtune.console import is_main_process, notice
from glmtune.errors import GlmtuneError
from glmtune.kernels.arithmetic import TYPES, Arithmetic, choose, seconds_here, shapes_of
from glmtune.modeling.config_loading import load_model_config
from glmtune.training.folder.run_folder import ARITHMETIC

from .arguments import load_dtype
from .preparation import Prepared


def arithmetic_of_run(
    prepared: Prepared, arguments: Seq2SeqTrainingArguments, record: Mapping[str, Any] | None = None
) -> Arithmetic | None:
    """Return what the run multiplies in; None where there is nothing to choose: on a GPU, and in float32.

    All processes of a group have to call this: they wait for what the main process finds.

    Args:
        prepared: The run.
        arguments: Of its trainer.
        record: The `run.yaml` of a run that goes on; None for one that begins.
    """
    if arguments.device.type != "cpu" or not arguments.bf16:
        return None
    if record is not None:
        return recorded_arithmetic(record)
    chosen = [_chosen(prepared, load_dtype(prepared.request.config, arguments)) if is_main_process() else None]
    if torch.distributed.is_initialized():
        torch.distributed.broadcast_object_list(chosen)
    return chosen[0]


def _chosen(prepared: Prepared, dtype: torch.dtype) -> Arithmetic:
    config = prepared.request.config
    shapes = shapes_of(
        load_model_config(prepared.source, trust_remote_code=config.trust_remote_code),
        row_tokens=float(prepared.data["train"].numbers("length").mean()),
        head_dtype=dtype,
        is_head_trained=config.peft_config is None,
    )
    return choose(seconds_here(shapes, notice))


def recorded_arithmetic(record: Mapping[str, Any]) -> Arithmetic:
    """Return what a run was begun with; one of old, whose `run.yaml` says nothing of it, did as `Arithmetic` says."""
    names = record.get(ARITHMETIC) or {}
    parts = vars(Arithmetic()).keys()
    if not isinstance(names, Mapping) or any(
        part not in parts or not isinstance(name, str) or name not in TYPES for part, name in names.items()
    ):
        raise GlmtuneError(
            f"`run.yaml` has `{ARITHMETIC}: {names}`; expected {', '.join(f'`{part}`' for part in parts)}, each of "
            + " or ".join(f"`{name}`" for name in TYPES),
            fix="write back what stood there: a run goes on in the types that it began with",
        )
    return Arithmetic(**{part: TYPES[name] for part, name in names.items()})
