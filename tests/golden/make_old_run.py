"""Write `old-run/`: a LoRA run as an earlier version wrote it, without the checkpoint of its last step.

It is made by an earlier commit, never by the code of today:

    git worktree add ../old a934c13
    PYTHONPATH=../old python tests/golden/make_old_run.py

`tests/training/folder/test_old_runs.py` resumes a copy of it. `run.yaml` tells the versions that made it.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import yaml

HERE = Path(__file__).parent
WORK = Path("/tmp/glmtune-golden")
"""Always the same, since the run's files name it."""

SETTINGS = {
    "data_config": {"train_file": "train.jsonl"},
    "training_args": {
        "output_dir": "old-run",
        "max_steps": 4,
        "save_steps": 2,
        "logging_steps": 1,
        "learning_rate": 5e-3,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "gradient_checkpointing": False,
        "eval_strategy": "no",
    },
    "peft_config": {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "lora_dropout": 0.1, "target_modules": ["v_proj"]},
}
"""The run takes 0.14 MB, half of it the tokenizer."""


def write_rows(folder: Path) -> None:
    """Write the rows that the run is trained on; a test writes them again, and their hash must be the same."""
    from glmtune.demo.rows import PLAIN, build_rows, to_json

    folder.mkdir(parents=True)
    rows = build_rows(PLAIN)["train"][:24]
    (folder / "train.jsonl").write_text("".join(to_json(row) + "\n" for row in rows), encoding="utf-8")


def main() -> None:
    shutil.rmtree(WORK, ignore_errors=True)
    write_rows(WORK / "data")
    os.environ["GLMTUNE_CACHE"] = str(WORK / "cache")
    os.chdir(WORK)
    Path("lora.yaml").write_text(yaml.safe_dump(SETTINGS), encoding="utf-8")
    from glmtune import train

    run = train("data", "demo", "lora.yaml")
    shutil.rmtree(run / "checkpoint-4")
    (run / "loss.png").unlink(missing_ok=True)
    shutil.rmtree(HERE / "old-run", ignore_errors=True)
    shutil.copytree(run, HERE / "old-run")


if __name__ == "__main__":
    main()
