"""Kills a small run at random moments until it is done, and again, and prints what came of it.

`python tests/faults/soak.py --kills 100 --seed 1`; `make soak` calls it.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path

from lives import Life, warm_up

MAX_KILLS_OF_A_RUN = 15
"""Then it may come to its end."""


def soak(num_kills: int, seed: int, room: Path) -> dict[str, float]:
    """Kill runs until there have been as many kills; returns the figures.

    Raises:
        AssertionError: A checkpoint was lost or damaged, a run could not go on, or it differs from the undisturbed one.
    """
    from killed_run import STAGES, WHILE_SAVING, Figures, KilledRun
    from small_run import write_config, write_rows

    from glmtune import train

    started = time.monotonic()
    rows = write_rows(room / "rows")
    reference = room / "undisturbed"
    config = write_config(room / "undisturbed.yaml", reference)
    life = Life(lambda: train(rows, "demo", config), room / "undisturbed.log")
    assert life.end() == 0, life.told()

    chance = random.Random(seed)
    figures = Figures()
    aimed = KilledRun(rows, room / "run-1", reference, chance, figures)
    aimed.be_killed_before_the_first_checkpoint()
    shutil.rmtree(aimed.folder)
    aimed.be_killed_while_evaluating()
    aimed.end()
    while (done := figures.kills.total()) < num_kills:
        run = KilledRun(rows, room / f"run-{figures.runs + 1}", reference, chance, figures)
        while figures.kills.total() < min(num_kills, done + MAX_KILLS_OF_A_RUN) and run.live_and_be_killed():
            print(f"kill {figures.kills.total()}: {run.stage()}; newest checkpoint: {run.newest()}", flush=True)
        run.end()
        print(f"run {figures.runs} ended, and equals the undisturbed one", flush=True)
    return {
        "kills": figures.kills.total(),
        "kills while saving": sum(figures.kills[stage] for stage in WHILE_SAVING),
        **{stage: figures.kills[stage] for stage in STAGES},
        "lives that went on from a checkpoint": figures.resumed,
        "begun anew: no checkpoint yet": figures.begun_anew,
        "runs that were killed and then came to their end": figures.runs,
        "of them equal to the undisturbed run, bit for bit": figures.equal_runs,
        "seconds": round(time.monotonic() - started),
    }


def main() -> None:
    """Read the command line, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--figures", type=Path, help="a JSON file for the figures")
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="glmtune-soak-") as folder:
        os.environ["GLMTUNE_CACHE"] = f"{folder}/cache"
        warm_up()
        figures = soak(options.kills, options.seed, Path(folder))
    for name, figure in figures.items():
        print(f"{name:52} {figure:>5}")
    if options.figures:
        options.figures.write_text(json.dumps({"seed": options.seed, **figures}), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
