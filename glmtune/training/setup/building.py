"""What a run trains with: the model with its adapter, the trainer, and transformers' loop."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import Seq2SeqTrainingArguments

from glmtune.console import notice, say
from glmtune.encoded.collating import Collator
from glmtune.errors import GlmtuneError
from glmtune.evaluation.evaluate import GenerationPlan
from glmtune.generation.generate import generation_config
from glmtune.kernels.arithmetic import Arithmetic
from glmtune.modeling.adapting.adapters import adapt, freeze_vision, prepare
from glmtune.modeling.finding.model_source import ModelSource, find_model
from glmtune.modeling.loading import load_adapter, load_adapter_weights, load_base_model, set_stop_tokens
from glmtune.modeling.out_of_memory import LESS_IN_TRAINING, memory_errors_explained
from glmtune.training.distributed.zero_state import divisible_checkpoints
from glmtune.training.folder import checkpoint
from glmtune.training.folder.changes import asked_settings
from glmtune.training.trainer import GlmTrainer

from .arguments import checkpointing_is_on, load_dtype
from .machine import check_optimizer_settings
from .packed_rows import attention_of_run, reason_to_pad
from .preparation import Prepared


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
        # Before DeepSpeed divides the weights; without DeepSpeed transformers loads them once more.
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
    # Under ZeRO-3 a weight is dealt out when it is loaded and keeps its size in `ds_numel`.
    sizes = [(getattr(weight, "ds_numel", weight.numel()), weight.requires_grad) for weight in model.parameters()]
    return sum(size for size, is_trained in sizes if is_trained), sum(size for size, _ in sizes)


def build_trainer(prepared: Prepared, arguments: Seq2SeqTrainingArguments, model: Any, run_folder: Path) -> GlmTrainer:
    """Return the trainer of a run."""
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
            data_collator=Collator(
                pad_token_id=prepared.tokenizer.pad_token_id,
                is_packed=config.packing and reason_to_pad(config, base.config) is None,
            ),
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
            save_total_limit=config.training_args.get("save_total_limit"),
            swanlab=config.swanlab,
        )
    except (ValueError, ImportError, RuntimeError) as error:
        # A scheduler without evaluations, a report to a package that is not there: all of them the configuration's.
        if isinstance(error, RuntimeError) and "requires" not in str(error):
            raise
        raise GlmtuneError(f"transformers refuses `training_args`: {error}") from error
    check_optimizer_settings(arguments, model)
    return trainer


def fit(trainer: GlmTrainer, run_folder: Path, resume_from: Path | None) -> None:
    """Run transformers' training loop; a full disk or a full GPU becomes one clear error."""
    with (
        checkpoint.disk_errors_explained(run_folder),
        memory_errors_explained("training", LESS_IN_TRAINING),
        divisible_checkpoints() if trainer.is_deepspeed_enabled else nullcontext(),
    ):
        trainer.resumed_from = trainer.hyperparameters.resumed_from = resume_from
        if resume_from is not None:
            trainer.loss_window.restore(resume_from, trainer.args.process_index, trainer.args.world_size)
        trainer.train(resume_from_checkpoint=str(resume_from) if resume_from else None)
        # At its end transformers looks into the staging folder, which the main process is about to remove.
        trainer.accelerator.wait_for_everyone()
