"""`demo-sft`: the embedded model after its first training of all weights, made on first use and kept in the cache.

It is what `glmtune demo` begins with: `demo` learns the plain copy in about half a minute. What stands on random
weights learns little; an adapter on this one learns as it would on a real base model.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from filelock import FileLock

from glmtune.console import notice
from glmtune.errors import GlmtuneError, RunFailure
from glmtune.files.cache_files import ELSEWHERE, cache_folder, lock_mode, make_folder, remove, share
from glmtune.processes.launching import LAUNCHER_VARIABLE
from glmtune.processes.own_path import path_for_children

from .model import DIGESTS, demo_model_path, digests, fingerprint, is_whole
from .rows import FOLDERS, PLAIN, write_rows

COMMON = {
    "per_device_train_batch_size": 16,
    "per_device_eval_batch_size": 40,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 20,
    "logging_steps": 10,
    "save_strategy": "steps",
    "eval_strategy": "no",
}
"""Of every training of the demo."""

FIRST_TRAINING = {"num_train_epochs": 3, "learning_rate": 3e-3, "save_steps": 200}
"""Found by trying: it reaches BLEU-4 60 and more on held-out rows, with room to spare."""

LENGTHS = {"max_input_length": 192, "max_output_length": 128}
"""In tokens, of every training of the demo."""

MODEL_FILES = (
    *("config.json", "generation_config.json", "model.safetensors"),
    *("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"),
)
"""What is kept of the training's last checkpoint."""

BUILDING = "demo-sft-building-"
"""How folders begin in which the model is being made."""

OF_A_GROUP = (
    "RANK",
    "WORLD_SIZE",
    "MASTER_",
    "LOCAL_",
    "GROUP_",
    "ROLE_",
    "TORCHELASTIC",
    "GLMTUNE_LAUNCHER",
    "ACCELERATE",
)
"""How variables begin by which a process takes itself for one of several."""


def trained_model_path() -> Path:
    """Return the folder of the trained demo model in the user's cache; the first call trains it, without a network.

    Whoever else asks for it meanwhile, waits; where the training is ended half-way, nothing of it stays.
    """
    folder = cache_folder() / f"demo-sft-{_fingerprint()}"
    if is_whole(folder):
        return folder
    try:
        make_folder(folder.parent)
        rights: dict[str, Any] = {"mode": lock_mode()} if "fchmod" in vars(os) else {}
        with FileLock(f"{folder}.lock", **rights):
            if not is_whole(folder):
                if os.path.lexists(folder):
                    remove(folder)
                _make(folder)
    except OSError as error:
        raise GlmtuneError(f"the demo model cannot be written: {error}", where=str(folder), fix=ELSEWHERE) from error
    return folder


def _make(folder: Path) -> None:
    """Train aside, and rename: the folder is complete or absent."""
    notice("`demo-sft` is made: the demo model is trained once, which takes about half a minute, and kept in the cache")
    demo_model_path()  # here, so that what is wrong with the cache is told as it is
    for left in folder.parent.glob(f"{BUILDING}*"):  # by a process that was killed: the lock is held here
        remove(left)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=BUILDING) as building:
        write_rows(Path(building) / "data")
        run = _train(Path(building))
        built = Path(building) / "model"
        built.mkdir()
        for name in MODEL_FILES:
            shutil.copyfile(run / name, built / name)
        (built / DIGESTS).write_text(json.dumps(digests(built)), encoding="utf-8")
        share(built)
        os.rename(built, folder)


def _train(room: Path) -> Path:
    """Train in a process of its own, and return the last checkpoint: this one may be about to train something else."""
    config = {
        "data_config": {"train_file": "train.jsonl"},
        **LENGTHS,
        # On the CPU, where it takes as long on every machine, and a GPU that is busy is left alone.
        "training_args": {**COMMON, **FIRST_TRAINING, "output_dir": str(room / "run"), "use_cpu": True},
    }
    path = room / "config.yaml"
    path.write_text(json.dumps(config), encoding="utf-8")  # which is YAML, too
    command = [sys.executable, "-m", "glmtune", "train", str(room / "data" / FOLDERS[PLAIN]), "demo", str(path)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(OF_A_GROUP)}
    with subprocess.Popen(
        command,
        # With this one, it ends, too, however that happens.
        env={**environment, **path_for_children(), LAUNCHER_VARIABLE: str(os.getpid())},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        cwd=room,
        start_new_session=True,  # Ctrl-C is for the one that waits, which ends this one
        creationflags=vars(subprocess).get("CREATE_NEW_PROCESS_GROUP", 0),
    ) as process:
        try:
            said, _ = process.communicate()
        finally:
            process.kill()
    if process.returncode:
        lines = said.decode("utf-8", "replace").splitlines()
        told = next((line for line in reversed(lines) if line.startswith("error: ")), lines[-1] if lines else "")
        raise RunFailure(
            f"the demo model could not be trained: {told.removeprefix('error: ') or f'exit code {process.returncode}'}",
            where=str(room.parent),
        )
    return max((room / "run").glob("checkpoint-*"), key=lambda path: int(path.name.partition("-")[2]))


def _fingerprint() -> str:
    """Return a hash of all that decides the weights, but for the machine's arithmetic."""
    settings = json.dumps([fingerprint(), COMMON, FIRST_TRAINING, LENGTHS], sort_keys=True)
    return hashlib.sha256(settings.encode()).hexdigest()[:16]
