"""Checkpoints that are complete or absent: written aside, verified, renamed into place.

transformers writes a checkpoint file by file. It does so in a hidden folder of the run; when the last process is
done, the main process reopens the weights, writes `manifest.json` with every file's size and hash, makes sure that
all of it has reached the disk, and renames the folder. Older checkpoints are deleted only after that.

A manifest proves that a checkpoint is whole, not that it is friendly: whoever changes a file can write a manifest that
fits. What a stranger's checkpoint may hold is for `known_files.py`, `foreign_code.py` and `saved_state.py` to say.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from transformers import TrainerState

from glmtune.console import notice
from glmtune.encoded.store import file_hash
from glmtune.errors import DISK_FULL, GlmtuneError, RunFailure
from glmtune.files.durable import sync, sync_tree
from glmtune.modeling.finding.model_source import CHECKPOINT_NAME, MANIFEST, checkpoints_of
from glmtune.python_terms import in_python_terms
from glmtune.text.plain_json import plain_json

from .weight_check import Shapes, check_weights

STAGING = ".saving"
DELETED = "deleted-"


def publish(staged: Path, run_folder: Path, shapes: Shapes) -> Path:
    """Verify a staged checkpoint, seal it with a manifest and move it into the run; returns its new place.

    Args:
        staged: Where all processes have written it.
        run_folder: Where it goes.
        shapes: Of the weights that it has to hold.
    """
    check_weights(staged, shapes)
    seal(staged)
    final = run_folder / staged.name
    if final.exists():
        # A run that goes on from an older checkpoint passes this step again; what stood here is kept.
        final.rename(free_name(final))
    staged.rename(final)
    sync(run_folder)
    return final


def seal(staged: Path) -> None:
    """Write the manifest of a checkpoint and make sure that all of it has reached the disk."""
    files = sorted(path for path in staged.rglob("*") if path.is_file())
    manifest = {
        path.relative_to(staged).as_posix(): {"size": path.stat().st_size, "sha256": file_hash(path)} for path in files
    }
    (staged / MANIFEST).write_text(json.dumps({"files": manifest}, indent=1), encoding="utf-8")
    sync_tree(staged)


def verify(checkpoint: Path) -> None:
    """Raise unless every file of a checkpoint is there, whole and unchanged."""
    if problem := find_damage(checkpoint):
        raise GlmtuneError(f"checkpoint `{checkpoint.name}` is damaged: {problem}", where=str(checkpoint))


def find_damage(checkpoint: Path) -> str:
    """Return what is wrong with a checkpoint, in words; nothing where every file is as it was saved."""
    try:
        files = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))["files"]
        expected = [(name, int(facts["size"]), str(facts["sha256"])) for name, facts in files.items()]
    except FileNotFoundError:
        return f"it has no `{MANIFEST}`"
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"`{MANIFEST}` cannot be read"
    for name, size, sha256 in expected:
        path = checkpoint / name
        if not path.is_file():
            return f"`{name}` is missing"
        if path.stat().st_size != size:
            return f"`{name}` has {path.stat().st_size} bytes instead of {size}"
        if file_hash(path) != sha256:
            return f"`{name}` has changed since it was saved"
    return ""


def choose(run_folder: Path, step: int | None) -> Path:
    """Return the checkpoint to go on from: that of a step, or the newest that is whole.

    Says which newer ones were passed over, and why; raises where none is left.
    """
    candidates = _all_checkpoints(run_folder)
    if not candidates:
        raise GlmtuneError(
            f"the run `{run_folder}` has no complete checkpoint to resume from",
            fix="train anew, into another folder",
        )
    if step is not None:
        return _choose_step(run_folder, candidates, step)
    damage: list[tuple[Path, str]] = []
    for candidate in reversed(candidates):
        if problem := find_damage(candidate):
            damage.append((candidate, problem))
            continue
        for passed_over, reason in damage:
            notice(f"passed over `{passed_over.name}`: {reason}")
        return candidate
    raise GlmtuneError(
        "the run has no complete checkpoint to resume from:",
        details=[f"  - `{path.name}`: {problem}" for path, problem in damage],
        where=str(run_folder),
        fix="train anew, into another folder",
    )


def _choose_step(run_folder: Path, candidates: list[Path], step: int) -> Path:
    """Return the checkpoint of a step; raises with those that are there where it is missing or damaged."""
    names = ", ".join(f"`{path.name}`" for path in candidates)
    chosen = run_folder / f"checkpoint-{step}"
    if chosen not in candidates:
        raise GlmtuneError(f"`{run_folder}` has no `{chosen.name}`", fix=f"choose one of: {names}")
    try:
        verify(chosen)
    except GlmtuneError as error:
        error.fix = in_python_terms(f"choose another with `--checkpoint STEP`; the run has: {names}")
        raise
    return chosen


def rotate(run_folder: Path, limit: int | None, best: str | None) -> None:
    """Delete the oldest checkpoints beyond the limit; the newest and the best always stay.

    Checkpoints that were replaced, when a run went on from an older one, are the oldest of all. Nothing is deleted
    where the newest has lost a file since it was written.
    """
    complete = checkpoints_of(run_folder)
    if not limit or not complete or not _has_all_files(complete[-1]):
        return
    keep = {complete[-1].name} | ({Path(best).name} if best else set())
    replaced = sorted(run_folder.glob("checkpoint-*.replaced-*"))
    doomed = [path for path in complete if path.name not in keep][: max(0, len(complete) - limit)]
    for path in [*replaced, *doomed]:
        # Out of the way first: a process that is killed here leaves no half of a checkpoint under its name.
        dying = run_folder / STAGING / f"{DELETED}{path.name}"
        dying.parent.mkdir(exist_ok=True)
        path.rename(dying)
        shutil.rmtree(dying)


def step_of(checkpoint: Path) -> int:
    """Return the step that a checkpoint was saved at."""
    return int(checkpoint.name.rpartition("-")[2])


def place_in(run_folder: Path, checkpoint: str | None) -> str | None:
    """Return where a recorded checkpoint of the run is now, whose folder may have been moved; None where it is gone."""
    if checkpoint is None or not (run_folder / Path(checkpoint).name).is_dir():
        return None
    return str(run_folder / Path(checkpoint).name)


def _all_checkpoints(run_folder: Path) -> list[Path]:
    """Return everything that is named like a checkpoint, whole or not, in order of steps."""
    found = [(int(match[1]), path) for path in run_folder.iterdir() if (match := CHECKPOINT_NAME.fullmatch(path.name))]
    return [path for _, path in sorted(found)]


def _has_all_files(checkpoint: Path) -> bool:
    """Whether every file is there in its full size; what it holds is not read."""
    manifest = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))["files"]
    files = {name: checkpoint / name for name in manifest}
    return all(path.is_file() and path.stat().st_size == manifest[name]["size"] for name, path in files.items())


def check_space(run_folder: Path) -> None:
    """Raise before a checkpoint is begun that cannot fit: one as large as the last, with a tenth to spare."""
    complete = checkpoints_of(run_folder) if run_folder.is_dir() else []
    if not complete:
        return
    needed = sum(path.stat().st_size for path in complete[-1].rglob("*") if path.is_file()) * 11 // 10
    free = shutil.disk_usage(run_folder).free
    if free < needed:
        raise RunFailure(
            f"the disk has {_megabytes(free)} MB left, and a checkpoint needs {_megabytes(needed)} MB",
            where=str(run_folder),
            fix=f"free some space (or set `save_total_limit`), then `glmtune resume {run_folder}`",
        )


@contextmanager
def disk_errors_explained(run_folder: Path) -> Iterator[None]:
    """Turn the many faces of a full disk into one error; other errors pass."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        if not is_disk_full(error):
            raise
        raise RunFailure(
            "the disk is full: the checkpoint could not be written",
            where=str(run_folder),
            fix=f"free some space, then `glmtune resume {run_folder}`; earlier checkpoints are whole"
            if checkpoints_of(run_folder)
            else "free some space, or choose another folder: `--set training_args.output_dir=...`",
        ) from error


def is_disk_full(error: Exception) -> bool:
    """Whether an error is one of the faces of a full disk."""
    signs = ("No space left", "File too large", "Disk quota", "PytorchStreamWriter", "unexpected pos")
    return (isinstance(error, OSError) and error.errno in DISK_FULL) or any(sign in str(error) for sign in signs)


def discard_staging(run_folder: Path) -> None:
    """Remove what an interrupted save left behind."""
    shutil.rmtree(run_folder / STAGING, ignore_errors=True)


def _megabytes(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:,.1f}"


def free_name(path: Path) -> Path:
    number = 1
    while (candidate := path.with_name(f"{path.name}.replaced-{number}")).exists():
        number += 1
    return candidate


def write_state(checkpoint: Path, state: TrainerState) -> None:
    """Write transformers' record into a checkpoint as it does, without numbers that are no JSON."""
    text = plain_json(dataclasses.asdict(state), indent=2, sort_keys=True)
    (checkpoint / "trainer_state.json").write_text(text + "\n", encoding="utf-8")


def read_state(checkpoint: Path) -> dict[str, Any]:
    """Return transformers' record of a checkpoint: steps done, steps planned."""
    state: dict[str, Any] = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    return state
