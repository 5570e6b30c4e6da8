"""Batches of an evaluation: bounded memory, every row once, and as many batches for each process."""

from __future__ import annotations

import itertools

import pytest

from glmtune.evaluation.mean_loss import plan_batches

LENGTHS = [30, *([10] * 40), 29, 2, 1, *([3] * 17)]


@pytest.mark.parametrize("num_processes", [1, 2, 3, 4, 7, 100])
def test_every_row_is_planned_once_and_each_process_gets_as_many_batches(num_processes: int) -> None:
    batches = plan_batches(LENGTHS, 4, num_processes)
    assert sorted(itertools.chain(*batches)) == list(range(len(LENGTHS)))
    assert len(batches) % num_processes == 0


@pytest.mark.parametrize("num_processes", [1, 2, 3])
def test_no_batch_has_more_tokens_than_the_longest_rows_would_have(num_processes: int) -> None:
    batches = [batch for batch in plan_batches(LENGTHS, 4, num_processes) if batch]
    assert max(len(batch) * max(LENGTHS[row] for row in batch) for batch in batches) <= 4 * max(LENGTHS)


def test_short_rows_are_taken_together_in_greater_number_but_shared_between_processes() -> None:
    lengths = [100] + [1] * 20
    assert [len(batch) for batch in plan_batches(lengths, 4)] == [4, 17]
    assert [len(batch) for batch in plan_batches(lengths, 4, 2)] == [4, 11, 6, 0]
