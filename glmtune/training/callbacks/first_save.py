"""The first checkpoint, tried before the first step: what cannot be written would be found after hours, and all lost.

A small checkpoint is written as a whole, sealed and read back, beside the real ones' staging folder, and removed. Of a
large one the weights are left out: writing 19 GB at each start would cost more than it can find.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors import SafetensorError
from transformers.training_args import OptimizerNames

from glmtune.errors import GlmtuneError, RunFailure
from glmtune.training.folder import checkpoint
from glmtune.training.folder.changes import ASKED
from glmtune.training.folder.weight_check import check_weights, saved_names, saved_shapes
from glmtune.training.trainer import GlmTrainer

LARGEST_TRIAL_BYTES = 256_000_000
"""An adapter of rank 8 for GLM-4-9B has 80 MB in float32."""

ADAM = (OptimizerNames.ADAMW_TORCH, OptimizerNames.ADAMW_TORCH_FUSED)
"""Optimizers that keep two numbers of 32 bits for each that is trained."""

SAVING_ERRORS = (OSError, ValueError, TypeError, LookupError, AttributeError, RuntimeError, SafetensorError)
"""What transformers and PEFT raise where something cannot be written."""


def try_saving(trainer: GlmTrainer) -> None:
    """Write what a checkpoint holds into a folder that goes away again; raises on every process where that fails."""
    failure: Exception | None = None
    if trainer.is_world_process_zero():
        folder = trainer.run_folder / checkpoint.STAGING / "trial"
        try:
            checkpoint.check_space(trainer.run_folder)
            _save(trainer, folder)
            _check_room(trainer, folder)
        except GlmtuneError as error:
            failure = error
        except SAVING_ERRORS as error:
            failure = _explained(error, trainer.run_folder)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    if trainer.has_failed(failure):
        raise failure or RunFailure("the main process could not save a checkpoint", where=str(trainer.run_folder))


def _save(trainer: GlmTrainer, folder: Path) -> None:
    """Write the parts of a checkpoint, with the weights where they are whole in this process and not large."""
    model: Any = trainer.accelerator.unwrap_model(trainer.model)
    folder.mkdir(parents=True)
    (folder / ASKED).write_text(json.dumps(trainer.asked, ensure_ascii=False, indent=1), encoding="utf-8")
    checkpoint.write_state(folder, trainer.state)
    trainer.tokenizer.save_pretrained(str(folder))
    model.generation_config.save_pretrained(str(folder))
    is_sharded = trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled
    if not is_sharded and _weight_bytes(model) <= LARGEST_TRIAL_BYTES:
        model.save_pretrained(str(folder))
        check_weights(folder, saved_shapes(model))
    else:
        settings = model.active_peft_config if isinstance(model, PeftModel) else model.config
        settings.save_pretrained(str(folder))
    checkpoint.seal(folder)
    if problem := checkpoint.find_damage(folder):
        raise RunFailure(f"what is written into the run's folder does not come back: {problem}", where=str(folder))


def _check_room(trainer: GlmTrainer, folder: Path) -> None:
    """Raise where the disk has no room for a whole checkpoint, once the trial has been written, which goes again."""
    model: Any = trainer.accelerator.unwrap_model(trainer.model)
    written = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    needed = max(written, _weight_bytes(model))
    if trainer.args.optim in ADAM and not trainer.args.save_only_model:
        needed += sum(8 * _size(weight) for weight in model.parameters() if weight.requires_grad)
    needed = needed * 11 // 10
    free = shutil.disk_usage(trainer.run_folder).free + written
    if free < needed:
        raise RunFailure(
            f"the disk has {free / 1e6:,.1f} MB left, and a checkpoint of this run needs {needed / 1e6:,.1f} MB",
            where=str(trainer.run_folder),
            fix="free some space, or choose another folder: `--set training_args.output_dir=...`",
        )


def _weight_bytes(model: Any) -> int:
    """Return how large the weights of a checkpoint are."""
    weights = dict(model.named_parameters())
    return sum(_size(weights[name]) * weights[name].element_size() for name in saved_names(model))


def _size(weight: torch.Tensor) -> int:
    # Under ZeRO-3 a weight is sharded and keeps its size in `ds_numel`.
    return getattr(weight, "ds_numel", weight.numel())


def _explained(error: Exception, run_folder: Path) -> Exception:
    """Return the error to end the run with; a full disk is explained where the training loop is called."""
    if checkpoint.is_disk_full(error):
        return error
    reason = " ".join(str(error).split()) or type(error).__name__
    explained = GlmtuneError(
        f"a checkpoint of this run could not be saved, as a trial before the first step shows: {reason}",
        where=str(run_folder),
        fix="run with `--debug` for the whole story",
    )
    explained.__cause__ = error
    return explained
