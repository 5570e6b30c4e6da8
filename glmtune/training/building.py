"""What a run trains with: the model with its adapter, and the trainer with what happens around its steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import PrinterCallback, ProgressCallback, Seq2SeqTrainingArguments
from transformers.trainer import DEFAULT_PROGRESS_CALLBACK

from glmtune.config.run_config import RunConfig
from glmtune.console import notice, say
from glmtune.errors import GlmtuneError
from glmtune.evaluation.predictions import GenerationPlan
from glmtune.generation.generate import generation_config
from glmtune.kernels.arithmetic import Arithmetic
from glmtune.modeling.adapting.adapters import adapt, freeze_vision, prepare
from glmtune.modeling.finding.model_source import ModelSource, find_model
from glmtune.modeling.loading import load_adapter, load_adapter_weights, load_base_model, set_stop_tokens
from glmtune.reports.metrics_file import METRICS_FILE
from glmtune.training.callbacks.around_steps import (
    CheckpointMover,
    FirstEvaluation,
    LastStep,
    MetricsFile,
    ProgressLine,
)
from glmtune.training.callbacks.early_stopping import EarlyStopping
from glmtune.training.callbacks.hyperparameters import Hyperparameters
from glmtune.training.callbacks.learning import Learning
from glmtune.training.callbacks.stopping import StopAtSignal
from glmtune.training.callbacks.tracking import start_reports
from glmtune.training.callbacks.unfinished import Unfinished
from glmtune.training.folder.changes import asked_settings
from glmtune.training.setup.arguments import checkpointing_is_on, load_dtype
from glmtune.training.setup.machine import check_optimizer_settings
from glmtune.training.setup.packed_rows import attention_of_run, reason_to_pad
from glmtune.training.setup.preparation import Prepared

from .trainer import GlmTrainer


def build_model(prepared: Prepared, arguments: Seq2SeqTrainingArguments, resume_from: Path | None) -> Any:
    """Return the model with what the configuration trains made trainable."""
    config = prepared.request.config
    source = prepared.source
    if resume_from is not None and config.peft_config is None:
        # A full checkpoint holds the whole model; the one it came from may be gone.
        source = find_model(resume_from)
    model = load_base_model(
        source,
        dtype=load_dtype(config, arguments),
        trust_remote_code=config.trust_remote_code,
        attn_implementation=attention_of_run(config, source, (prepared.arithmetic or Arithmetic()).attention),
        quantization=config.quantization,
        device=arguments.device,
    )
    set_stop_tokens(model, prepared.tokenizer, prepared.family, prepared.stop_ids)
    _check_generation_file(model, source)
    if config.freezeV:
        freeze_vision(model, notice)
    checkpointing = checkpointing_is_on(config.training_args)
    if prepared.source.adapter is not None:
        notice("the adapter keeps the shape that it has in its checkpoint; `peft_config` does not change it")
        adapted: Any = load_adapter(model, prepared.source.adapter, is_trainable=True)
        prepare(adapted, gradient_checkpointing=checkpointing)
    else:
        adapted = adapt(model, config.peft_config, prepared.family, gradient_checkpointing=checkpointing, notify=notice)
    if resume_from is not None and config.peft_config is not None:
        # Before DeepSpeed shards the weights; without DeepSpeed transformers loads them once more.
        load_adapter_weights(adapted, resume_from)
    trained, total = count_weights(adapted)
    if not trained:
        raise GlmtuneError("no weight of the model is trained", fix="look at `peft_config` and `freezeV`")
    say(f"{config.method}: {trained:,} of {total:,} parameters are trained ({100 * trained / total:.2f} %)")
    return adapted


def _check_generation_file(model: Any, source: ModelSource) -> None:
    """Raise where transformers would not save the model's generation settings with a checkpoint."""
    try:
        model.generation_config.validate(strict=True)
    except ValueError as error:
        raise GlmtuneError(
            f"the model's `generation_config.json` cannot be saved with a checkpoint: {' '.join(str(error).split())}",
            where=str(source.base),
            fix="correct `generation_config.json` in a copy of the model's folder, and train from that",
        ) from error


def count_weights(model: Any) -> tuple[int, int]:
    """Return how many numbers are trained, and how many the model has."""
    if isinstance(model, PeftModel):
        return model.get_nb_trainable_parameters()  # which knows that four bits are half a byte
    # Under ZeRO-3 a weight is sharded when it is loaded and keeps its size in `ds_numel`.
    sizes = [(getattr(weight, "ds_numel", weight.numel()), weight.requires_grad) for weight in model.parameters()]
    return sum(size for size, is_trained in sizes if is_trained), sum(size for size, _ in sizes)


def build_trainer(prepared: Prepared, arguments: Seq2SeqTrainingArguments, model: Any, run_folder: Path) -> GlmTrainer:
    """Return the trainer of a run, with everything that happens around its steps."""
    config = prepared.request.config
    base: Any = model.get_base_model() if isinstance(model, PeftModel) else model

    def plan() -> GenerationPlan:
        options = {"do_sample": False, "max_new_tokens": config.max_output_length} | dict(config.generation_config)
        return GenerationPlan(
            config=generation_config(base, options),
            max_input_length=config.max_input_length,
            batch_size=arguments.per_device_eval_batch_size,
            layout=prepared.layout,
            synced_gpus=torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1,
        )

    try:
        trainer = GlmTrainer(
            model=model,
            args=arguments,
            data_collator=prepared.method.collator(
                pad_token_id=prepared.tokenizer.pad_token_id,
                is_packed=config.packing and reason_to_pad(config, base.config) is None,
            ),
            loss_function=prepared.method.loss,
            tokens_per_batch=config.tokens_per_batch,
            # What is compiled must not change from call to call, as the output layer does.
            arithmetic=prepared.arithmetic,
            loss_kernel="logits" if arguments.torch_compile else config.loss_kernel,
            # What is compiled is fused by the compiler.
            may_fuse_layers=config.fused_layers and not arguments.torch_compile,
            run_folder=run_folder,
            tokenizer=prepared.tokenizer,
            train_data=prepared.data["train"],
            eval_data=prepared.data.get("val"),
            test_data=prepared.data.get("test"),
            asked=asked_settings(config),
            plan=plan if arguments.predict_with_generate else None,
            own_metrics=prepared.own_metrics,
        )
        add_callbacks(trainer, config, run_folder)
    except (ValueError, ImportError, RuntimeError) as error:
        # A scheduler without evaluations, a report to a package that is not there: all of them the configuration's.
        if isinstance(error, RuntimeError) and "requires" not in str(error):
            raise
        raise GlmtuneError(f"transformers refuses `training_args`: {error}") from error
    check_optimizer_settings(arguments, model)
    return trainer


def add_callbacks(trainer: GlmTrainer, config: RunConfig, run_folder: Path) -> None:
    """Hand the trainer what happens around its steps; in this order, each hears of an event."""
    # In a notebook transformers has a table of its own.
    for callback in (DEFAULT_PROGRESS_CALLBACK, ProgressCallback, PrinterCallback):
        trainer.remove_callback(callback)
    start_reports(trainer, run_folder, config.swanlab)
    unfinished = Unfinished(trainer, run_folder)
    patience, threshold = config.early_stopping_patience, config.early_stopping_threshold
    for each in (
        Hyperparameters(trainer),
        Learning(trainer),  # before a checkpoint and an evaluation are tried, which take their time
        FirstEvaluation(trainer),
        ProgressLine(trainer),
        MetricsFile(trainer, run_folder / METRICS_FILE),
        LastStep(),
        # Before an evaluation that is due is made up for.
        *([] if patience is None else [EarlyStopping(trainer, patience, threshold)]),
        CheckpointMover(trainer, run_folder, config.training_args.get("save_total_limit")),
        # Last: what a stopped run must make up for is known before it is stopped.
        unfinished,
        StopAtSignal(trainer, unfinished),
    ):
        trainer.add_callback(each)
