"""TensorBoard and SwanLab write into the run's folder."""

from __future__ import annotations

import os
from pathlib import Path

from transformers.integrations import TensorBoardCallback

from glmtune.training.trainer import GlmTrainer


def start_reports(trainer: GlmTrainer, run_folder: Path, swanlab_mode: str | None) -> None:
    """Let TensorBoard and SwanLab write into the run folder."""
    board = trainer.pop_callback(TensorBoardCallback)
    if isinstance(board, TensorBoardCallback):
        board.logging_dir = board.logging_dir or str(run_folder / "runs")  # the user's TENSORBOARD_LOGGING_DIR first
        trainer.add_callback(board)
    if "swanlab" in (trainer.args.report_to or ()) and trainer.is_world_process_zero():
        import swanlab

        # Begun here: transformers' callback asks for the active run, which is an error in SwanLab where there is none.
        swanlab.init(
            project=os.environ.get("SWANLAB_PROJECT", "glmtune"),
            log_dir=str(run_folder / "swanlog"),
            mode=swanlab_mode,
            reinit=True,
        )
