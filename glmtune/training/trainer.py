"""The trainer: transformers' `Seq2SeqTrainer` with public hooks overridden, nothing else.

For a run that is stopped there is no public way: it and `unfinished.py` call four methods of transformers' own
(`_save_checkpoint`, `_evaluate`, `_determine_best_metric`, `_load_best_model`);
`tests/training/callbacks/test_stopping.py` holds them with the lowest and the newest version.
"""

from __future__ import annotations

import functools
import json
import math
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerBase, Seq2SeqTrainer

from glmtune.config.argument_rules import METRICS
from glmtune.encoded.collating import Collator
from glmtune.encoded.dataset import EncodedData
from glmtune.errors import GlmtuneError, RunFailure
from glmtune.evaluation.evaluate import Scores, score_model
from glmtune.evaluation.own_metrics import MetricsFailed, OwnMetrics
from glmtune.evaluation.predictions import GenerationPlan
from glmtune.files.durable import replace_file
from glmtune.kernels.arithmetic import Arithmetic
from glmtune.kernels.fused_layers import FusedLayers
from glmtune.kernels.loss import LabelledLoss
from glmtune.modeling.adapting.ptuning import save_sharded_prefix
from glmtune.modeling.out_of_memory import LESS_IN_EVALUATION, LESS_IN_TRAINING, memory_errors_explained
from glmtune.operating_system import peak_resident_bytes
from glmtune.processes import group_watch
from glmtune.processes.signals import collate_in_reader, stop_request
from glmtune.training.distributed.fsdp import load_weights, no_pickled_copy
from glmtune.training.distributed.zero_state import reshardable_checkpoints
from glmtune.training.folder.changes import ASKED
from glmtune.training.folder.loss_window import LossWindow
from glmtune.training.folder.saved_state import state_explained
from glmtune.training.methods.method import LossFunction
from glmtune.training.setup.epochs import step_batches

from .events import AlreadyTrained, EvaluationBrokenOff, RunCallback
from .folder import checkpoint

NUM_FIRST_EVALUATION_ROWS = 2
NUM_FIRST_EVALUATION_TOKENS = 512
"""Of an answer at most: a model that has not been trained yet seldom ends one by itself."""
EVALUATION_ERRORS = (ValueError, TypeError, LookupError, AttributeError, NotImplementedError, RuntimeError, ImportError)
"""What transformers raises where it cannot generate with the options that it is given."""


class GlmTrainer(Seq2SeqTrainer):
    """Trains with the loss of a method, evaluates by generation, stops at the first loss that is not a number."""

    def __init__(
        self,
        *,
        run_folder: Path,
        tokenizer: PreTrainedTokenizerBase,
        train_data: EncodedData,
        eval_data: EncodedData | None,
        test_data: EncodedData | None,
        plan: Callable[[], GenerationPlan] | None,
        own_metrics: OwnMetrics | None = None,
        asked: Mapping[str, Any],
        loss_function: LossFunction,
        tokens_per_batch: int | None = None,
        loss_kernel: str = "auto",
        arithmetic: Arithmetic | None = None,
        may_fuse_layers: bool = True,
        **kwargs: Any,
    ) -> None:
        """Keep what the run is made of.

        Args:
            run_folder: Where metrics, predictions and checkpoints go.
            tokenizer: Saved with every checkpoint.
            train_data: Rows to train on.
            eval_data: Rows to evaluate on.
            test_data: Rows to evaluate on after the training.
            plan: Makes the plan of generation at evaluation time; None evaluates the loss alone.
            own_metrics: The user's, for evaluations.
            asked: The configuration, saved with every checkpoint: what a later one is compared with.
            loss_function: Of the method.
            tokens_per_batch: Tokens to fill a micro-batch with; None for a number of rows.
            loss_kernel: As in the configuration.
            arithmetic: What a CPU multiplies in, where there was something to choose.
            may_fuse_layers: Whether layers are trained in a cheaper way where there is one.
            kwargs: For `Seq2SeqTrainer`; its `data_collator` is a `Collator`.
        """
        if kwargs["args"].ddp_find_unused_parameters is None and _uses_every_trained_weight(kwargs["model"]):
            # transformers looks for unused weights of every adapter: a walk over the graph each step, and a warning.
            kwargs["args"].ddp_find_unused_parameters = False
        self.collator: Collator = kwargs["data_collator"]
        kwargs["data_collator"] = functools.partial(collate_in_reader, self.collator)
        super().__init__(
            train_dataset=train_data.dataset,
            eval_dataset=eval_data.dataset if eval_data else None,
            **kwargs,
        )
        self.run_folder = run_folder
        self.tokenizer = tokenizer
        self.train_data = train_data
        self.eval_data = eval_data
        self.trial_data = eval_data or test_data
        self.plan = plan
        self.own_metrics = own_metrics
        self.asked = asked
        self.loss_function = loss_function
        self.resumed_from: Path | None = None
        # The loss below is divided by `num_items_in_batch`, whatever the model's own forward can do.
        self.model_accepts_loss_kwargs = True
        self.arithmetic = arithmetic
        self.loss = LabelledLoss(self.model, kernel=loss_kernel, cpu_dtype=(arithmetic or Arithmetic()).loss)
        self.may_fuse_layers = may_fuse_layers
        self.fused_layers: FusedLayers | None = None  # known once the loop has prepared the model
        self.tokens_per_batch = tokens_per_batch
        self._num_tokens = torch.zeros((), dtype=torch.long, device=self.args.device)
        self._speed_since = time.monotonic()
        self.speed = 0.0
        """Tokens per second, over all processes, between the last two losses that were logged."""
        self._num_evaluations = 0
        self.loss_window = LossWindow(self.args.device)

    @property
    def run_callbacks(self) -> list[RunCallback]:
        """Those that hear more of the run than transformers tells them."""
        return [callback for callback in self.callback_handler.callbacks if isinstance(callback, RunCallback)]

    def write(self, text: str) -> None:
        """Show a line to whoever watches the run."""
        for callback in self.run_callbacks:
            callback.on_message(text)

    def train(self, resume_from_checkpoint: str | Path | None = None, **kwargs: Any) -> Any:  # type: ignore[override]
        """Run transformers' loop to its end; a full disk or a full GPU becomes one clear error.

        Args:
            resume_from_checkpoint: The checkpoint to go on from.
            kwargs: For transformers.

        Returns:
            What transformers returns; None where the checkpoint's step was the last, and nothing was due but its end.
        """
        self.resumed_from = Path(resume_from_checkpoint) if resume_from_checkpoint else None
        with (
            checkpoint.disk_errors_explained(self.run_folder),
            memory_errors_explained("training", LESS_IN_TRAINING),
            reshardable_checkpoints() if self.is_deepspeed_enabled else nullcontext(),
        ):
            if self.resumed_from is not None:
                self.loss_window.restore(self.resumed_from, self.args.process_index, self.args.world_size)
            try:
                output = super().train(str(resume_from_checkpoint) if resume_from_checkpoint else None, **kwargs)
            except AlreadyTrained:
                output = None
            else:
                # At its end transformers looks into the staging folder, which the main process is about to remove.
                self.accelerator.wait_for_everyone()
        if output is None:
            self._finish()
            return None
        for callback in self.run_callbacks:
            callback.on_trained()
        return output

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Return the mean loss of the whole global batch, as far as it is in these inputs.

        `num_items_in_batch` counts over accumulation steps and devices; each device adds its own share, and the
        average that DDP and DeepSpeed take of the gradients is undone by the number of processes.
        """
        smoothing = self.args.label_smoothing_factor
        loss = self.loss_function(self.loss, model, inputs, num_items_in_batch, label_smoothing=smoothing)
        if num_items_in_batch is not None and self.args.average_tokens_across_devices:
            loss = loss * self.accelerator.num_processes
        return (loss, {}) if return_outputs else loss

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> torch.Tensor:
        """Train on one batch; a loss that is not a number ends the run before it reaches the weights."""
        rows = inputs.pop("rows")
        lengths = inputs.pop("lengths")  # (B,)
        self._num_tokens += lengths.sum()

        def sizes() -> str:
            return ", ".join(
                f"{place} ({length} tokens)" for place, length in zip(self._places(rows), lengths.tolist())
            )

        with (
            memory_errors_explained(f"training on {len(rows)} rows", LESS_IN_TRAINING, where=sizes),
            self.fused_layers.in_use() if self.fused_layers else nullcontext(),
        ):
            loss = super().training_step(model, inputs, num_items_in_batch)
        if not torch.isfinite(loss):
            raise RunFailure(
                f"the loss became {loss.item()} at step {self.state.global_step + 1}; nothing of this step was saved",
                where=", ".join(self._places(rows)),
                fix="look at these rows with `glmtune data inspect`, lower the learning rate, or use bf16",
            )
        self.loss_window.add(loss)
        return loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log with the mean loss of all steps since the last log, those before an interruption among them."""
        if "loss" in logs:
            logs = logs | {"loss": self.loss_window.mean(self.state.global_step)}
            self.speed = self.tokens_per_second()
        super().log(logs, start_time)

    def _places(self, rows: torch.Tensor) -> list[str]:
        """Return `file:line` of each row of a batch."""
        return [self.train_data.dataset[row]["where"] for row in rows.tolist()]

    def peak_memory(self) -> int | None:
        """Return the most bytes that this process has used of its GPU, else of memory; None where nobody counts."""
        if self.args.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.args.device)
        return peak_resident_bytes()

    def tokens_per_second(self) -> float:
        """Return how fast tokens were trained since this was last asked, over all processes, padding not counted."""
        now = time.monotonic()
        speed: float = self._num_tokens.item() / max(1e-9, now - self._speed_since)
        self._num_tokens.zero_()
        self._speed_since = now
        return speed * int(self.accelerator.num_processes)

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Return the micro-batches of this process, one epoch after the other."""
        args = self.args
        self.batches = step_batches(
            self.train_data,
            args,
            tokens_per_batch=self.tokens_per_batch,
            is_packed=self.collator.is_packed,
            epoch=self._epoch,
        )
        self._steps_per_epoch = max(1, math.ceil(len(self.batches) / self.batches.batches_per_step))
        loader: DataLoader[Any] = DataLoader(
            self.train_dataset,  # type: ignore[arg-type]
            batch_sampler=self.batches,
            collate_fn=self.data_collator,
            num_workers=args.dataloader_num_workers,
            pin_memory=args.dataloader_pin_memory,
            persistent_workers=args.dataloader_persistent_workers,
            prefetch_factor=args.dataloader_prefetch_factor,
        )
        prepared: DataLoader[Any] = self.accelerator.prepare_data_loader(loader)
        return prepared

    def pad_rows(self) -> None:
        """Lay rows side by side from here on, and batch them by their lengths, as rows that are padded."""
        self.collator.is_packed = False
        self.batches.is_packed = False

    def _epoch(self) -> int:
        return self.state.global_step // self._steps_per_epoch

    def first_evaluation(self) -> None:
        """Evaluate two rows, of the test rows where there are no others; what fails here ends the run."""
        if self.trial_data is not None:
            try:
                plan = self.plan() if self.plan else None
                rows = self.trial_data.first(NUM_FIRST_EVALUATION_ROWS)
                scores = self._score(rows, plan.shortened(NUM_FIRST_EVALUATION_TOKENS) if plan else None, output=None)
            except EVALUATION_ERRORS as error:
                reason = " ".join(str(error).split()) or type(error).__name__
                raise GlmtuneError(
                    f"an evaluation of two rows, tried before the first step, fails: {reason}",
                    where="training_args.generation_config" if self.plan else "",
                    fix="look at `training_args.generation_config`, or set `training_args.predict_with_generate: false`"
                    if self.plan
                    else None,
                ) from error
            self._check_own_metrics(scores)
        self._speed_since = time.monotonic()

    def _check_own_metrics(self, scores: Scores) -> None:
        """Raise where the user's own metrics fail, or the best model is to be told by one that they do not return."""
        if scores.failed is not None:
            raise scores.failed
        metric = (self.args.metric_for_best_model or "loss").removeprefix("eval_")
        if self.own_metrics is not None and metric not in (*METRICS, *self.own_metrics.names):
            returned = ", ".join(f"`{name}`" for name in self.own_metrics.names) or "nothing"
            raise GlmtuneError(
                f"`training_args.metric_for_best_model`: nothing measures `{metric}`; `compute` returns {returned}",
                where=str(self.own_metrics.path),
                fix="choose one of these, or one that glmtune measures: " + ", ".join(f"`{name}`" for name in METRICS),
            )

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval", **gen_kwargs: Any
    ) -> dict[str, float]:
        """Return what an evaluation measures; a failure of all processes is reported, and training goes on."""
        data = eval_dataset if isinstance(eval_dataset, EncodedData) else self.eval_data
        assert data is not None, "transformers evaluates only where there are rows to evaluate on"
        self._num_evaluations += 1
        step = self.state.global_step
        name = f"step-{step}" if metric_key_prefix == "eval" else metric_key_prefix
        predictions = self.run_folder / "predictions" / f"{name}.jsonl"
        try:
            scores = self._score(data, self.plan() if self.plan else None, output=predictions)
        except EvaluationBrokenOff:
            if self.is_world_process_zero():
                predictions.unlink(missing_ok=True)
            for callback in self.run_callbacks:
                callback.on_evaluation_broken_off()
            raise
        except Exception as error:  # whatever it is, a night's training must not die of it
            # By its number: at one step, the validation rows and the test rows may both fail.
            if not group_watch.is_everywhere(f"failed evaluation number {self._num_evaluations}"):
                # The other processes are still in the evaluation, where they wait for this one.
                raise
            self._report_failure(step, error)
            self.control.should_evaluate = False  # or it would be made once more at the end of the epoch
            self._tell_evaluated()
            own = self.own_metrics.names if self.own_metrics else ()
            return {f"{metric_key_prefix}_{name}": math.nan for name in (*METRICS, *own)}
        finally:
            self._speed_since = time.monotonic()
        self._tell_evaluated()
        if scores.failed is not None:
            self._report_own_failure(step, scores.failed)
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in scores.metrics.items()}
        self.log(dict(metrics))
        shown = "  ".join(f"{name} {value:.4g}" for name, value in scores.metrics.items())
        self.write(f"{metric_key_prefix} at step {step}:  {shown}")
        if scores.left_out and self.is_world_process_zero():
            listing = self.run_folder / "predictions" / f"{name}-left-out.jsonl"
            lines = [json.dumps(vars(reject), ensure_ascii=False) + "\n" for reject in scores.left_out]
            replace_file(listing, "".join(lines).encode())
            self.write(f"  {len(scores.left_out)} rows or turns were left out; see `{listing}`")
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save weights, tokenizer and stop tokens; checks for room first, and leaves no pickled arguments behind."""
        folder = Path(output_dir or str(self.args.output_dir))
        if self.is_in_train:
            for callback in self.run_callbacks:
                callback.on_saving(self.state)
        if self.is_world_process_zero():
            checkpoint.check_space(self.run_folder)
        model = self.accelerator.unwrap_model(self.model)
        if not save_sharded_prefix(model, folder, is_writer=self.args.should_save):
            super().save_model(str(folder), _internal_call=_internal_call)
        self.loss_window.save(folder, is_writer=self.args.should_save)
        if not self.args.should_save:
            return
        # transformers pickles its arguments there, the hub token among them.
        (folder / "training_args.bin").unlink(missing_ok=True)
        (folder / ASKED).write_text(json.dumps(self.asked, ensure_ascii=False, indent=1), encoding="utf-8")
        self.tokenizer.save_pretrained(str(folder))
        model.generation_config.save_pretrained(str(folder))

    def create_optimizer(self, *arguments: Any, **options: Any) -> Any:
        """Return the optimizer, and tell of the settings that it is made with."""
        optimizer = super().create_optimizer(*arguments, **options)
        for callback in self.run_callbacks:
            callback.on_optimizer(optimizer)
        return optimizer

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        with no_pickled_copy() if self.is_fsdp_enabled else nullcontext():
            super()._save_optimizer_and_scheduler(output_dir)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        # Under FSDP the weights were loaded before they were sharded.
        if not self.is_fsdp_enabled:
            with state_explained(resume_from_checkpoint, "weights"):
                super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        with state_explained(checkpoint, "optimizer and schedule"):
            super()._load_optimizer_and_scheduler(checkpoint)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        with state_explained(checkpoint, "random states"):
            super()._load_rng_state(checkpoint)

    def _load_scaler(self, checkpoint: str | None) -> None:
        with state_explained(checkpoint, "scale of the loss"):
            super()._load_scaler(checkpoint)

    def _load_best_model(self) -> None:
        if self.is_fsdp_enabled:
            load_weights(self.model, Path(str(self.state.best_model_checkpoint)))
        else:
            super()._load_best_model()

    def _score(self, data: EncodedData, plan: GenerationPlan | None, output: Path | None) -> Scores:
        try:
            with (
                memory_errors_explained("evaluating", LESS_IN_EVALUATION),
                self.fused_layers.in_evaluation() if self.fused_layers else nullcontext(),
            ):
                model = self.accelerator.unwrap_model(self.model)
                return score_model(
                    model,
                    self.tokenizer,
                    data,
                    batch_size=self.args.per_device_eval_batch_size,
                    plan=plan,
                    output=output,
                    own_metrics=self.own_metrics,
                    on_batch=self._count_batch,
                    # A compiled model would be compiled once more for evaluations.
                    forward_model=model if self.args.torch_compile else self.model_wrapped,
                )
        finally:
            self._show_batches(0, 0)  # takes the count away, also where the evaluation failed

    def _count_batch(self, done: int, total: int) -> None:
        self._show_batches(done, total)

    def _show_batches(self, done: int, total: int) -> None:
        for callback in self.run_callbacks:
            callback.on_evaluation_batch(done, total)

    def _tell_evaluated(self) -> None:
        for callback in self.run_callbacks:
            callback.on_evaluated()

    def has_failed(self, failure: Exception | None) -> bool:
        """Tell every process whether the main process failed; all of them wait for it here."""
        if not torch.distributed.is_initialized():
            return failure is not None
        outcome = [failure is not None]
        torch.distributed.broadcast_object_list(outcome)
        return outcome[0]

    def stop(self) -> NoReturn:
        """Close the reports and raise what ends a run that was asked to stop."""
        self.callback_handler.on_train_end(self.args, self.state, self.control)
        raise stop_request().end()

    def _finish(self) -> None:
        """Do what transformers does after the last step, for a run that was stopped just there."""
        self.is_in_train = False
        if self.args.load_best_model_at_end and self.state.best_model_checkpoint is not None:
            self._load_best_model()
        self.control = self.callback_handler.on_train_end(self.args, self.state, self.control)

    def _report_own_failure(self, step: int, error: MetricsFailed) -> None:
        """Tell that the user's own metrics failed; what was measured besides stands."""
        if self.is_world_process_zero():
            log = self.run_folder / "evaluation-failures.log"
            with log.open("a", encoding="utf-8") as file:
                file.write(f"step {step}\n{error}\n")
        self.write(f"warning: your metrics failed at step {step} ({error.where}: {error.what}); training goes on")

    def _report_failure(self, step: int, error: Exception) -> None:
        """Tell the user that an evaluation failed and write its traceback into the run folder, a file a process."""
        process = "" if self.is_world_process_zero() else f"-{self.args.process_index}"
        log = self.run_folder / f"evaluation-failures{process}.log"
        with log.open("a", encoding="utf-8") as file:
            file.write(f"step {step}\n{traceback.format_exc()}\n")
        reason = str(error).replace("\n", "; ")
        self.write(f"warning: the evaluation at step {step} failed ({reason}); training goes on, see `{log}`")


def _uses_every_trained_weight(model: Any) -> bool:
    """Whether every trained weight takes part in each step; an expert or a vision tower may have nothing to do.

    LoRA's matrices, a prefix (it goes into every layer) and the weights of a dense model all do.
    """
    trained = [name for name, weight in model.named_parameters() if weight.requires_grad]
    return not any(part in name for name in trained for part in ("expert", "vision", "visual"))
