"""The mean loss of a log: of its steps alone, over all processes, an interruption within it or not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from glmtune.training.folder.loss_window import LOSS_WINDOW, LossWindow


def window(*losses: float) -> LossWindow:
    made = LossWindow(torch.device("cpu"))
    for loss in losses:
        made.add(torch.tensor(loss))
    return made


def test_a_mean_is_that_of_the_steps_since_the_last_one() -> None:
    made = window(2.0, 4.0, 6.0)
    assert made.mean(3) == 4.0
    made.add(torch.tensor(5.0))
    made.add(torch.tensor(8.0))
    assert made.mean(5) == 6.5


def test_the_batches_of_a_step_are_shares_of_its_loss() -> None:
    assert window(1.0, 2.0, 3.0, 4.0).mean(2) == 5.0


def test_a_window_goes_on_where_it_was_saved(tmp_path: Path) -> None:
    made = window(9.0)
    made.mean(4)
    made.add(torch.tensor(2.0))
    made.save(tmp_path, is_writer=True)
    again = window(100.0)
    again.restore(tmp_path, 0, 1)
    again.add(torch.tensor(4.0))
    assert again.mean(6) == 3.0


@pytest.mark.parametrize(("process", "num_processes", "expected"), [(0, 2, 2.0), (1, 2, 6.0), (0, 1, 4.0), (2, 4, 4.0)])
def test_another_number_of_processes_shares_what_was_summed_up(
    process: int, num_processes: int, expected: float, tmp_path: Path
) -> None:
    (tmp_path / LOSS_WINDOW).write_text(json.dumps({"first_step": 3, "sums": [2.0, 6.0]}), encoding="utf-8")
    made = window(100.0)
    made.restore(tmp_path, process, num_processes)
    assert made.mean(4) == expected
