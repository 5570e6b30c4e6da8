"""Which rows are trained together: every row once an epoch, the same rows a step however they are distributed."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from glmtune.encoded.batching import StepBatches, best_fit
from glmtune.encoded.collating import collate, collate_packed
from glmtune.family import IGNORE_INDEX

LENGTHS = np.random.default_rng(0).integers(10, 500, 203)


def make(
    *,
    rows: int = 2,
    accumulation: int = 3,
    processes: int = 2,
    epoch: int = 0,
    packed: bool = True,
    tokens=None,
    **more,
) -> StepBatches:
    return StepBatches(
        LENGTHS, rows_per_batch=rows, batches_per_step=accumulation * processes, num_processes=processes, seed=7,
        epoch=lambda: epoch, is_packed=packed, tokens_per_batch=tokens, **more,
    )  # fmt: skip


def steps_of(batches: StepBatches) -> list[list[int]]:
    """Return the rows of every step, sorted."""
    made = list(batches)
    size = batches.batches_per_step
    return [sorted(itertools.chain(*made[start : start + size])) for start in range(0, len(made), size)]


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("epoch", [0, 1])
def test_every_row_comes_once_in_an_epoch(packed: bool, epoch: int) -> None:
    rows = list(itertools.chain(*make(packed=packed, epoch=epoch, processes=1, accumulation=1)))
    assert sorted(rows) == list(range(len(LENGTHS)))


@pytest.mark.parametrize("packed", [True, False])
def test_a_step_has_the_same_rows_whoever_trains_them(packed: bool) -> None:
    expected = steps_of(make(rows=12, accumulation=1, processes=1, packed=packed))
    for rows, accumulation, processes in ((1, 12, 1), (1, 1, 12), (2, 3, 2), (3, 4, 1)):
        steps = steps_of(make(rows=rows, accumulation=accumulation, processes=processes, packed=packed))
        assert steps[:-1] == expected[:-1]
        # At the end of the epoch each process gets a batch, if need be of a row it had before.
        assert set(expected[-1]) <= set(steps[-1])


def test_packed_or_not_a_step_of_an_epoch_has_different_rows_in_another_epoch() -> None:
    assert steps_of(make(epoch=0)) != steps_of(make(epoch=1))
    assert steps_of(make(epoch=1)) == steps_of(make(epoch=1))


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize(("rows", "processes"), [(1, 1), (1, 3), (2, 2), (4, 5), (300, 2)])
def test_the_length_is_the_number_of_batches_and_each_process_gets_as_many(
    packed: bool, rows: int, processes: int
) -> None:
    batches = make(rows=rows, processes=processes, packed=packed)
    made = list(batches)
    assert len(made) == len(batches)
    assert len(made) % processes == 0
    assert all(made)


def test_the_batches_of_a_step_have_about_as_many_tokens() -> None:
    batches = make(rows=8, accumulation=2, processes=2)
    made = list(batches)[:24]
    for start in range(0, len(made), 4):
        totals = [LENGTHS[batch].sum() for batch in made[start : start + 4]]
        assert max(totals) - min(totals) <= 0.1 * max(totals)


def test_padded_batches_hold_rows_of_like_length() -> None:
    def padding(batches) -> float:
        return sum(max(LENGTHS[batch]) * len(batch) for batch in batches) / LENGTHS.sum() - 1

    grouped = padding(make(rows=4, accumulation=1, processes=1, packed=False))
    assert grouped < 0.05
    assert padding(make(rows=4, accumulation=1, processes=1)) > 0.4


@pytest.mark.parametrize("packed", [True, False])
def test_unshuffled_rows_come_as_they_stand_in_the_data(packed: bool) -> None:
    batches = make(rows=4, accumulation=1, processes=1, is_shuffled=False, epoch=3, packed=packed)
    assert [sorted(batch) for batch in batches] == [
        list(range(start, min(start + 4, len(LENGTHS)))) for start in range(0, len(LENGTHS), 4)
    ]


@pytest.mark.parametrize("options", [{}, {"packed": False}, {"tokens": 600}])
def test_the_rest_of_an_epoch_is_dropped_where_that_is_asked_for(options) -> None:
    batches = make(drops_rest=True, **options)
    assert len(list(batches)) == len(batches)
    assert len(batches) % batches.batches_per_step == 0
    assert len(make(**options)) - len(batches) in range(1, batches.batches_per_step + 1)


def test_bins_hold_each_row_once_and_no_more_tokens_than_they_may() -> None:
    bins = best_fit(LENGTHS, np.arange(len(LENGTHS)), 512)
    assert sorted(itertools.chain(*bins)) == list(range(len(LENGTHS)))
    assert max(LENGTHS[rows].sum() for rows in bins) <= 512
    fewest = -(-LENGTHS.sum() // 512)
    assert len(bins) <= fewest * 1.05


def test_best_fit_puts_the_longest_first_each_into_the_fullest_bin() -> None:
    lengths = np.array([3, 7, 5, 2, 8, 1])
    # 8, then 7, then 5; 3 fits best behind 7; 2 behind 8; 1 behind 5.
    assert best_fit(lengths, np.arange(6), 10) == [[4, 3], [1, 0], [2, 5]]


def test_a_row_longer_than_a_bin_stands_alone() -> None:
    assert best_fit(np.array([20, 4, 5]), np.arange(3), 10) == [[0], [2, 1]]


@pytest.mark.parametrize("processes", [1, 2, 3, 5, 7])
def test_each_process_gets_as_many_bins_as_the_others(processes: int) -> None:
    batches = make(tokens=1000, rows=1, processes=processes)
    made = list(batches)
    assert len(made) == len(batches)
    assert len(made) % processes == 0
    assert sorted({row for batch in made for row in batch}) == list(range(len(LENGTHS)))


def test_epochs_of_bins_have_as_many_steps_in_another_order() -> None:
    first, second = (make(tokens=1000, rows=1, processes=1, epoch=epoch) for epoch in (0, 1))
    assert len(first) == len(second) == len(list(first))
    assert sorted(map(sorted, first)) == sorted(map(sorted, second))
    assert list(first) != list(second)


def test_padding_is_behind_a_row_and_masked_by_its_length() -> None:
    pad = 0
    long = {"input_ids": [5, pad, 7], "labels": [IGNORE_INDEX, pad, 7], "row": 4}
    batch = collate([long, {"input_ids": [8], "labels": [8], "weights": [0.5]}], pad)
    assert {name: tensor.tolist() for name, tensor in batch.items()} == {
        "input_ids": [[5, pad, 7], [8, pad, pad]],
        "attention_mask": [[1, 1, 1], [1, 0, 0]],
        "labels": [[IGNORE_INDEX, pad, 7], [8, IGNORE_INDEX, IGNORE_INDEX]],
        "weights": [[1.0, 1.0, 1.0], [0.5, 1.0, 1.0]],
        "rows": [4, -1],
        "lengths": [3, 1],
    }


def test_packed_rows_keep_their_positions_labels_and_weights() -> None:
    batch = collate_packed(
        [
            {"input_ids": [5, 6, 7], "labels": [5, IGNORE_INDEX, 7], "row": 3},
            {"input_ids": [8, 9], "labels": [IGNORE_INDEX, 9], "weights": [0.0, 2.0], "row": 1},
        ]
    )
    shown = {name: value.tolist() if hasattr(value, "tolist") else value for name, value in batch.items()}
    assert shown == {
        "input_ids": [[5, 6, 7, 8, 9]],
        "position_ids": [[0, 1, 2, 0, 1]],
        "labels": [[IGNORE_INDEX, IGNORE_INDEX, 7, IGNORE_INDEX, 9]],
        "weights": [[1.0, 1.0, 1.0, 0.0, 2.0]],
        "cu_seq_lens_q": [0, 3, 5],
        "cu_seq_lens_k": [0, 3, 5],
        "max_length_q": 3,
        "max_length_k": 3,
        "rows": [3, 1],
        "lengths": [3, 2],
    }


def test_another_seed_fills_other_bins_where_lengths_are_equal() -> None:
    """Rows of one length keep the places of a shuffle: with one seed for all, they would always meet the same rows."""

    def bins(seed: int) -> list[list[int]]:
        return StepBatches(
            np.full(40, 10), rows_per_batch=1, batches_per_step=1, num_processes=1, seed=seed, epoch=lambda: 0,
            is_packed=True, tokens_per_batch=40,
        ).bins or []  # fmt: skip

    assert bins(1) == bins(1)
    assert sorted(map(sorted, bins(1))) != sorted(map(sorted, bins(2)))


@pytest.mark.parametrize("epoch", [0, 1])
def test_padded_steps_come_in_no_order_of_their_lengths(epoch: int) -> None:
    made = list(make(rows=4, accumulation=1, processes=1, packed=False, epoch=epoch))
    means = [float(LENGTHS[batch].mean()) for batch in made]
    rises = sum(later > earlier for earlier, later in itertools.pairwise(means))
    assert 0.25 * len(means) < rises < 0.75 * len(means)
    others = list(make(rows=4, accumulation=1, processes=1, packed=False, epoch=1 - epoch))
    assert sorted(map(sorted, made)) != sorted(map(sorted, others))
