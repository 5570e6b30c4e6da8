"""Weights of files: which rows an epoch shows."""

from __future__ import annotations

import numpy as np
import pytest

from glmtune.encoded.mixing import weighted_indices


def test_weights_of_one_show_every_row_once_in_order() -> None:
    indices = weighted_indices([3, 0, 2], [1, 1, 1], seed=42)
    assert indices.dtype == np.int64
    assert indices.tolist() == [0, 1, 2, 3, 4]


def test_a_whole_weight_repeats_every_row_of_its_file() -> None:
    assert weighted_indices([2, 3, 1], [2, 1, 3], seed=42).tolist() == [0, 0, 1, 1, 2, 3, 4, 5, 5, 5]


@pytest.mark.parametrize("weight", [0.25, 0.5, 1.5, 1.1, 2.75])
def test_the_part_behind_the_point_is_drawn_without_repeats(weight: float) -> None:
    times = np.bincount(weighted_indices([100], [weight], seed=42), minlength=100)
    assert times.sum() == round(100 * weight)
    assert set(times) == {int(weight), int(weight) + 1}


def test_what_is_drawn_is_pinned() -> None:
    """Another draw would send a resumed run on over other rows."""
    assert weighted_indices([10, 10], [0.5, 0.3], seed=42).tolist() == [0, 2, 4, 5, 6, 11, 12, 13]


def test_what_is_drawn_hangs_on_the_seed_and_not_on_other_files() -> None:
    first = weighted_indices([100, 50], [0.5, 1], seed=42)
    assert weighted_indices([100, 7], [0.5, 2.5], seed=42)[:50].tolist() == first[:50].tolist()
    assert weighted_indices([100, 50], [0.5, 1], seed=43)[:50].tolist() != first[:50].tolist()


def test_two_files_of_one_length_do_not_draw_the_same_places() -> None:
    indices = weighted_indices([100, 100], [0.5, 0.5], seed=42)
    assert (indices[50:] - 100).tolist() != indices[:50].tolist()


def test_a_file_with_rows_shows_one_at_least() -> None:
    indices = weighted_indices([3, 0, 1], [0.01, 0.01, 0.01], seed=42).tolist()
    assert len(indices) == 2
    assert indices[0] in (0, 1, 2)
    assert indices[1] == 3


def test_no_file_shows_no_row() -> None:
    assert weighted_indices([], [], seed=42).tolist() == []
