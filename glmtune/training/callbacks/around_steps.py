"""What happens around the steps: one progress line, `metrics.jsonl`, checkpoints moved into place."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from tqdm import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import SaveStrategy
from transformers.utils.logging import disable_progress_bar, enable_progress_bar, is_progress_bar_enabled

from glmtune.console import is_watched, notice, say, show_evaluation
from glmtune.errors import GlmtuneError, RunFailure
from glmtune.notebook import is_notebook
from glmtune.reports.metrics_file import append_log, keep_logs
from glmtune.text.sparkline import can_show_bars, sparkline
from glmtune.training.events import RunCallback
from glmtune.training.folder import checkpoint
from glmtune.training.folder.weight_check import saved_shapes
from glmtune.training.trainer import GlmTrainer

from .active import describe_active
from .first_save import try_saving
from .notebook_bar import NotebookBar
from .settling import fuse_layers, pad_unless_exact, settle_loss


class ProgressLine(RunCallback):
    """A line for each logged loss, and one bar with the course of the loss so far: below them on a terminal."""

    def __init__(self, trainer: GlmTrainer) -> None:
        self.trainer = trainer
        self.bar: tqdm | NotebookBar | None = None
        self.started = 0.0
        self.first_step = 0
        self.hides_others = False
        """Whether the bars of transformers are to be shown again once this one is gone."""

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.started = time.monotonic()
        self.first_step = state.global_step
        if state.is_world_process_zero and (is_notebook() or is_watched()) and not args.disable_tqdm:
            if is_notebook():
                self.bar = NotebookBar(total=state.max_steps, initial=state.global_step)
            else:
                self.bar = tqdm(total=state.max_steps, initial=state.global_step, unit="step", dynamic_ncols=True)
            # Each checkpoint would leave a bar of its own above this one.
            self.hides_others = is_progress_bar_enabled()
            disable_progress_bar()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if self.bar is not None:
            self.bar.update(state.global_step - self.bar.n)

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **_: Any
    ) -> None:
        if "loss" in logs and state.is_world_process_zero:
            if self.bar is not None:
                self.bar.set_postfix_str(f"loss {logs['loss']:.4f} {_course(state)}".rstrip(), refresh=False)
            done = state.global_step - self.first_step
            remaining = (time.monotonic() - self.started) / max(1, done) * (state.max_steps - state.global_step)
            self.on_message(
                f"step {state.global_step}/{state.max_steps}  loss {logs['loss']:.4f}  "
                f"lr {logs['learning_rate']:.2e}  {self.trainer.speed:,.0f} tokens/s  eta {_duration(remaining)}"
            )

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.on_given_up()

    def on_evaluation_batch(self, done: int, total: int) -> None:
        """Show how far an evaluation is, before the bar where there is one."""
        if self.bar is None:
            show_evaluation(done, total)
        else:
            self.bar.set_description(f"evaluating {done}/{total}" if done < total else None)

    def on_given_up(self) -> None:
        """Leave the bar as it stands and go to a fresh line."""
        if self.bar is not None:
            self.bar.close()
            self.bar = None
            if self.hides_others:
                enable_progress_bar()

    def on_message(self, text: str) -> None:
        """Print a line above the bar."""
        if self.bar is not None:
            self.bar.clear()
        say(text)
        if self.bar is not None:
            self.bar.refresh()


class FirstEvaluation(TrainerCallback):
    """Tries packing, a checkpoint and an evaluation of two rows: what fails there would have failed after hours."""

    def __init__(self, trainer: GlmTrainer) -> None:
        self.trainer = trainer

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        pad_unless_exact(self.trainer)
        settle_loss(self.trainer)
        fuse_layers(self.trainer)
        say(describe_active(self.trainer))
        try_saving(self.trainer)
        self.trainer.first_evaluation()


class MetricsFile(TrainerCallback):
    """Appends every log to `metrics.jsonl`, a line of JSON with its step and time, and with each loss what it took."""

    def __init__(self, trainer: GlmTrainer, path: Path) -> None:
        self.trainer = trainer
        self.path = path

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if state.is_world_process_zero:
            # Steps beyond the checkpoint are trained again, and logged again.
            keep_logs(self.path, lambda log: log["step"] <= state.global_step)

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **_: Any
    ) -> None:
        if state.is_world_process_zero:
            taken = {"tokens_per_second": round(self.trainer.speed, 1), "memory_bytes": self.trainer.peak_memory()}
            took = taken if "loss" in logs else {}
            append_log(self.path, state.global_step, {**logs, "time": round(time.time(), 3), **took})


class LastStep(TrainerCallback):
    """Saves the last step where `save_strategy: no` saves none: what the run has trained would be gone with it."""

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if args.save_strategy == SaveStrategy.NO:
            notice("`save_strategy: no`: the last step is saved all the same, and no other")

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if args.save_strategy == SaveStrategy.NO and state.global_step >= state.max_steps:
            control.should_save = True


class CheckpointMover(TrainerCallback):
    """Moves each checkpoint into the run once it is complete; deletes older ones only then."""

    def __init__(self, trainer: GlmTrainer, run_folder: Path, save_total_limit: int | None) -> None:
        self.trainer = trainer
        self.run_folder = run_folder
        self.save_total_limit = save_total_limit

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        # transformers forgets a best checkpoint that is no longer where it was saved.
        if self.trainer.resumed_from is not None:
            recorded = checkpoint.read_state(self.trainer.resumed_from)["best_model_checkpoint"]
            state.best_model_checkpoint = checkpoint.place_in(self.run_folder, recorded)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.trainer.accelerator.wait_for_everyone()
        staged = Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
        if state.best_model_checkpoint == str(staged):
            state.best_model_checkpoint = str(self.run_folder / staged.name)
        failure: Exception | None = None
        if state.is_world_process_zero:
            try:
                self._move(staged, state)
            except (GlmtuneError, OSError, SafetensorError) as error:
                failure = error
        # The others would wait for ever for a main process that has left.
        if self.trainer.has_failed(failure):
            raise failure or RunFailure("the main process could not complete the checkpoint", where=str(staged.name))

    def _move(self, staged: Path, state: TrainerState) -> None:
        """Seal and move the checkpoint, and delete what is beyond the limit; the main process does."""
        model = self.trainer.accelerator.unwrap_model(self.trainer.model)
        checkpoint.write_state(staged, state)
        checkpoint.publish(staged, self.run_folder, saved_shapes(model))
        checkpoint.rotate(self.run_folder, self.save_total_limit, state.best_model_checkpoint)


def _course(state: TrainerState) -> str:
    """Return the losses of the run so far as small bars; nothing where stderr cannot show them."""
    losses = [log["loss"] for log in state.log_history if "loss" in log]
    return sparkline(losses) if is_notebook() or can_show_bars(sys.stderr) else ""


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"
