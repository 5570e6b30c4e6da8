"""The dry run: everything that could fail late, done once on the longest rows, in a folder that goes away again."""

from __future__ import annotations

import shutil
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import PeftModel, get_peft_model_state_dict
from safetensors.torch import load_file
from torch.distributed.fsdp import FSDPModule

from glmtune.console import is_main_process, notice, say
from glmtune.errors import RunFailure
from glmtune.modeling.finding.model_source import ADAPTER_WEIGHTS, last_checkpoint
from glmtune.training.folder.checkpoint import verify
from glmtune.training.folder.run_folder import check_shared
from glmtune.training.setup.arguments import training_arguments
from glmtune.training.setup.preparation import Prepared
from glmtune.training.setup.run_arithmetic import arithmetic_of_run

from .building import build_model, build_trainer


def preflight(prepared: Prepared, run_folder: Path) -> Path:
    """Train one step on the longest rows, evaluate two, save, reload and compare; returns the folder planned for."""
    # Beside the run, so that the same disk is tried; the same name on every process of a group.
    trial_folder = run_folder.with_name(f".{run_folder.name}-preflight")
    config = prepared.request.config
    one_step = {
        "max_steps": 1,
        "save_strategy": "steps",
        "save_steps": 1,
        "eval_strategy": "no",
        "logging_steps": 1,
        "warmup_steps": 0,
    }
    settings = {**config.training_args, **one_step, "load_best_model_at_end": False, "report_to": ["none"]}
    trial = replace(
        prepared,
        request=replace(prepared.request, config=replace(config, training_args=settings, swanlab=None)),
        data={**prepared.data, "train": _longest(prepared, settings)},
    )
    arguments = training_arguments(trial.request.config, trial_folder, notice)
    trial = replace(trial, arithmetic=arithmetic_of_run(trial, arguments))
    new_parents = [folder for folder in trial_folder.parents if not folder.exists()]
    try:
        if is_main_process():
            shutil.rmtree(trial_folder, ignore_errors=True)
            trial_folder.mkdir(parents=True)
        check_shared(trial_folder)
        trainer = build_trainer(trial, arguments, build_model(trial, arguments, None), trial_folder)
        started = time.monotonic()
        trainer.train()
        elapsed = time.monotonic() - started
        if is_main_process():
            saved = last_checkpoint(trial_folder)
            verify(saved)
            num_compared = _compare(trainer.accelerator.unwrap_model(trainer.model), saved)
            size = sum(path.stat().st_size for path in saved.rglob("*") if path.is_file())
            say(
                f"preflight passed in {elapsed:.1f} s: a step on the longest batch, an evaluation of two rows, "
                f"a checkpoint of {size / 1e6:,.1f} MB; {num_compared} saved tensors equal the trained ones"
                + _peak_memory()
            )
    finally:
        if is_main_process():
            shutil.rmtree(trial_folder, ignore_errors=True)
            for folder in new_parents:
                with suppress(OSError):  # something else is kept there by now
                    folder.rmdir()
    return run_folder


def _longest(prepared: Prepared, settings: dict[str, Any]) -> Any:
    """Return the rows of the largest batch that one step can meet."""
    data = prepared.data["train"]
    num_batches = settings.get("gradient_accumulation_steps", 1)
    tokens = prepared.request.config.tokens_per_batch
    if tokens is None:
        return data.longest(settings.get("per_device_train_batch_size", 8) * num_batches)
    totals = np.sort(data.numbers("length"))[::-1].cumsum()
    return data.longest(int(np.searchsorted(totals, tokens * num_batches)) + 1)


def _compare(model: Any, saved: Path) -> int:
    """Return how many saved tensors were found equal to the model's; raises at the first that is not."""
    if isinstance(model, FSDPModule):
        return 0  # this process holds a part of each
    live = get_peft_model_state_dict(model) if isinstance(model, PeftModel) else model.state_dict()
    paths = [saved / ADAPTER_WEIGHTS] if isinstance(model, PeftModel) else sorted(saved.glob("*.safetensors"))
    num_compared = 0
    for path in paths:
        for name, tensor in load_file(path).items():
            if name in live and live[name].numel() == tensor.numel():  # under ZeRO-3 the live ones are sharded
                if not torch.equal(live[name].cpu().to(tensor.dtype), tensor):
                    raise RunFailure(f"weight `{name}` does not come back as it was saved", where=str(path))
                num_compared += 1
    return num_compared


def _peak_memory() -> str:
    if not torch.cuda.is_available():
        return ""
    return f"; peak GPU memory {torch.cuda.max_memory_allocated() / 1e9:.1f} GB"
