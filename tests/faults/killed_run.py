"""A run that is killed again and again, and what must hold after each kill and at its end."""

from __future__ import annotations

import random
import shutil
import signal
import time
from collections import Counter
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path

from lives import Life
from small_run import EVAL_STEPS, NUM_ROWS, NUM_STEPS, logged, write_config

from glmtune import resume, train
from glmtune.errors import EXIT_USER_ERROR
from glmtune.modeling.finding.model_source import checkpoints_of
from glmtune.training.folder.checkpoint import DELETED, MANIFEST, STAGING, verify

LIMIT = 2
"""Checkpoints that are kept, so that each save deletes one."""

WRITING, SEALED, DELETING = "a checkpoint's files are written", "it is sealed, not yet renamed", "an old one is deleted"
EVALUATING, TRAINING, STARTING = "evaluating", "training, loading", "before the first checkpoint"
STAGES = (WRITING, SEALED, DELETING, EVALUATING, TRAINING, STARTING)
WHILE_SAVING = (WRITING, SEALED, DELETING)


@dataclass
class Figures:
    """What came of the kills."""

    kills: Counter[str] = field(default_factory=Counter)
    """By stage."""
    resumed: int = 0
    begun_anew: int = 0
    runs: int = 0
    equal_runs: int = 0


class KilledRun:
    """One run from its first life to its last."""

    def __init__(self, rows: Path, room: Path, reference: Path, chance: random.Random, figures: Figures) -> None:
        """Take a folder for the run.

        Args:
            rows: What is trained on.
            room: A folder of its own.
            reference: The undisturbed run, with all of its checkpoints.
            chance: Decides on the moments.
            figures: Counted on here.
        """
        room.mkdir()
        self.rows, self.folder, self.reference = rows, room / "run", reference
        self.config = write_config(room / "config.yaml", self.folder, save_total_limit=LIMIT)
        self.log = room / "log"
        self.chance = chance
        self.figures = figures
        self.begun = 0

    def newest(self) -> int:
        """Return the step of the newest complete checkpoint; 0 where there is none."""
        found = checkpoints_of(self.folder) if self.folder.is_dir() else []
        return int(found[-1].name.partition("-")[2]) if found else 0

    def begin_life(self) -> Life:
        """Train or resume, as a user would."""
        self.begun = time.time_ns()
        if self.newest():
            return Life(lambda: resume(self.folder), self.log)
        shutil.rmtree(self.folder, ignore_errors=True)
        return Life(lambda: train(self.rows, "demo", self.config), self.log)

    def live_and_be_killed(self) -> bool:
        """Live until a random moment; returns whether the kill came before the end."""
        before = self.newest()
        life = self.begin_life()
        self._wait_for_a_moment(life, before)
        return self.kill(life, before)

    def kill(self, life: Life, before: int) -> bool:
        """Kill the process and look at what it leaves; returns whether the kill came before the end."""
        life.kill()
        self._look_at(life, before)
        if life.exit_code != -signal.SIGKILL:
            return False
        self.figures.kills[self.stage()] += 1
        if not self.newest():
            self.figures.begun_anew += 1
        return True

    def be_killed_while_evaluating(self) -> None:
        """Kill a run in the midst of an evaluation."""
        predictions = self.folder / "predictions" / f"step-{EVAL_STEPS}.jsonl"
        life = self.begin_life()
        assert life.wait_until(predictions.exists), life.told()
        assert self.kill(life, 0)
        assert self.stage() == EVALUATING

    def be_killed_before_the_first_checkpoint(self) -> None:
        """Kill a run that has logged a step and saved none; the commands say how to go on."""
        metrics = self.folder / "metrics.jsonl"
        life = self.begin_life()
        assert life.wait_until(lambda: metrics.exists() and metrics.stat().st_size > 0), life.told()
        assert self.kill(life, 0)
        assert self.stage() == STARTING
        life = Life(lambda: resume(self.folder), self.log)
        assert life.end() == EXIT_USER_ERROR
        assert life.told() == (
            f"error: the run `{self.folder}` has no complete checkpoint to resume from\n"
            "hint: train anew, into another folder\n"
        )
        life = Life(lambda: train(self.rows, "demo", self.config), self.log)
        assert life.end() == EXIT_USER_ERROR
        assert life.told() == (
            f"error: `{self.folder}` holds a run that ended before its first checkpoint\n"
            "hint: remove what it has left there (`run.yaml`, `metrics.jsonl`, `status.json`), "
            f"or choose another folder: `--set training_args.output_dir={self.folder}-2`\n"
        )

    def end(self) -> None:
        """Let the run come to its end, and compare it with the undisturbed one."""
        before = self.newest()
        life = self.begin_life()
        life.end()
        self._look_at(life, before)
        self.figures.runs += 1
        found, expected = logged(self.folder), logged(self.reference)
        assert found == expected, "\n".join(
            f"{line}\n{other}" for line, other in zip_longest(found, expected) if line != other
        )
        assert self.newest() == NUM_STEPS
        # A kill behind the last save leaves one more: no later save comes to delete it.
        allowed = {LIMIT, LIMIT + 1} if before == NUM_STEPS else {LIMIT}
        assert len(list(self.folder.glob("checkpoint-*"))) in allowed, "something half deleted stayed behind"
        self.figures.equal_runs += 1

    def stage(self) -> str:
        """Say what the process was about, from what it left."""
        staging = self.folder / STAGING
        if any(map(self._is_new, staging.glob(f"checkpoint-*/{MANIFEST}"))):
            return SEALED
        if any(map(self._is_new, staging.glob("checkpoint-*"))):
            return WRITING
        if any(map(self._is_new, staging.glob(f"{DELETED}*"))):
            return DELETING
        if not self.newest():
            return STARTING
        for predictions in self.folder.glob("predictions/step-*.jsonl"):
            if self._is_new(predictions) and predictions.read_bytes().count(b"\n") < NUM_ROWS["dev"]:
                return EVALUATING
        return TRAINING

    def _is_new(self, path: Path) -> bool:
        """Whether the present life made or changed this; what those before it left says nothing of it."""
        try:
            return path.stat().st_ctime_ns >= self.begun
        except FileNotFoundError:
            return False

    def _look_at(self, life: Life, before: int) -> None:
        """Raise unless the process did what it should, and left nothing damaged.

        Args:
            life: One that has ended.
            before: Step of the newest checkpoint that was there before it.
        """
        told = life.told()
        if f"resuming {self.folder} at step {before} of {NUM_STEPS}\n" in told:
            self.figures.resumed += 1
        else:
            assert "resuming" not in told, told
        was_finished = before == NUM_STEPS and "error: the run has finished" in told
        assert life.exit_code in (0, -signal.SIGKILL) or was_finished, told
        assert self.newest() >= before, "the newest checkpoint was lost"
        for checkpoint in (checkpoints_of(self.folder) if self.folder.is_dir() else [])[-LIMIT:]:
            verify(checkpoint)
            for name in ("adapter_model.safetensors", "scheduler.pt", "rng_state.pth"):
                is_equal = (checkpoint / name).read_bytes() == (self.reference / checkpoint.name / name).read_bytes()
                assert is_equal, f"`{name}` of `{checkpoint}` differs from the undisturbed run's"

    def _wait_for_a_moment(self, life: Life, before: int) -> None:
        chance = self.chance
        if chance.random() >= 0.7:
            life.wait(chance.uniform(0, 4))
            return
        target = min(NUM_STEPS, before + 2 * chance.randint(1, 3))
        staged = self.folder / STAGING / f"checkpoint-{target}"
        final = self.folder / staged.name
        signs = {"begun": staged, "sealed": staged / MANIFEST, "renamed": final}
        sign = signs[chance.choice(("begun", "begun", "sealed", "renamed"))]
        if life.wait_until(lambda: self._is_new(sign) or self._is_new(final)):
            longest = 0.03 if sign == staged else 0.003
            life.wait(chance.uniform(0, longest))
