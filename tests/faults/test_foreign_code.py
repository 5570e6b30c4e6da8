"""Code in a checkpoint's files does not run: the file is named, and the run does not go on from it."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from small_run import hashes
from test_damaged_checkpoints import seal

from glmtune import resume
from glmtune.errors import GlmtuneError


class Bomb:
    """Makes a folder when it is unpickled."""

    def __init__(self, crater: Path) -> None:
        self.crater = crater

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.crater),)


def save_with_torch(bomb: Bomb, path: Path) -> None:
    """Put the bomb among what belongs there."""
    torch.save(torch.load(path, weights_only=False) | {"bomb": bomb}, path)


def save_with_pickle(bomb: Bomb, path: Path) -> None:
    path.write_bytes(pickle.dumps(bomb))


@pytest.mark.parametrize("name", ["optimizer.pt", "rng_state.pth", "scheduler.pt"])
@pytest.mark.parametrize(
    ("save", "problem"),
    [
        (save_with_torch, "names `posix.mkdir`, which could run code"),
        (save_with_pickle, "is not a file of tensors"),
    ],
)
def test_a_pickle_with_code_is_refused_and_does_not_run(
    save: Callable[[Bomb, Path], None], problem: str, name: str, run: Path, tmp_path: Path
) -> None:
    crater = tmp_path / "crater"
    path = run / "checkpoint-4" / name
    save(Bomb(crater), path)
    seal(run / "checkpoint-4")
    before = hashes(run)
    with pytest.raises(GlmtuneError) as caught:
        resume(run)
    assert str(caught.value) == (
        f"checkpoint `checkpoint-4` is refused: `{name}` {problem}\n  --> {path}\n"
        "hint: glmtune did not write it; choose another with `--checkpoint STEP`, and find out who changed it"
    )
    assert hashes(run) == before
    assert not crater.exists()
    # The bomb is a real one.
    torch.load(path, weights_only=False) if save is save_with_torch else pickle.loads(path.read_bytes())
    assert crater.is_dir()


def test_the_files_of_a_real_checkpoint_pass(run: Path) -> None:
    resume(run)
    assert (run / "checkpoint-6").is_dir()
