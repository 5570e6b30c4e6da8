"""Intervals of differences: against values that can be computed by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from glmtune.comparing.bootstrap import FEWEST_ROWS, difference

NAN = float("nan")


def rows(count: int) -> list[str]:
    return [f"a.jsonl:{number}" for number in range(count)]


def test_the_same_gain_everywhere_is_certain() -> None:
    found = difference([10.0] * 20, [12.5] * 20, rows(20))
    assert (found.value, found.low, found.high, found.is_clear) == (2.5, 2.5, 2.5, True)


def test_no_gain_is_no_difference() -> None:
    found = difference([1.0, 7.0] * 20, [1.0, 7.0] * 20, rows(40))
    assert (found.value, found.is_clear) == (0.0, False)


def test_the_interval_is_that_of_the_normal_distribution_where_there_are_many_rows() -> None:
    drawn = np.random.default_rng(1)
    gains = drawn.normal(0.3, 2.0, size=1500)
    found = difference([0.0] * 1500, list(gains), rows(1500))
    error = gains.std() / math.sqrt(1500)
    assert found.value == pytest.approx(gains.mean())
    assert found.low == pytest.approx(gains.mean() - 1.96 * error, abs=0.15 * error)
    assert found.high == pytest.approx(gains.mean() + 1.96 * error, abs=0.15 * error)


def test_turns_of_one_row_are_one_chance() -> None:
    """Each of 30 rows has ten turns that go the same way: as uncertain as 30 turns, not as 300."""
    gains = [(-1.0) ** number for number in range(30)]
    alone = difference([0.0] * 30, gains, rows(30))
    repeated = [gain for gain in gains for _ in range(10)]
    together = difference([0.0] * 300, repeated, [row for row in rows(30) for _ in range(10)])
    assert (together.value, together.low, together.high) == pytest.approx((alone.value, alone.low, alone.high))


def test_turns_without_the_figure_do_not_count() -> None:
    first, second = [0.0, NAN] * 10, [3.0, NAN] * 10
    assert difference(first, second, rows(20)).value == 3.0
    only_there = difference([0.0, NAN] * 10, [3.0, 50.0] * 10, rows(20))
    assert (only_there.low, only_there.high) == (3.0, 3.0)


def test_too_few_rows_have_no_interval_and_none_no_difference() -> None:
    few = difference([0.0] * 4, [1.0] * 4, rows(FEWEST_ROWS - 1))
    assert (few.value, few.is_clear) == (1.0, False)
    assert math.isnan(few.low)
    none = difference([NAN] * 30, [NAN] * 30, rows(30))
    assert math.isnan(none.value)
    assert not none.is_clear


def test_the_same_seed_draws_the_same() -> None:
    values = list(np.random.default_rng(0).normal(size=50))
    assert difference([0.0] * 50, values, rows(50)) == difference([0.0] * 50, values, rows(50))
    other = difference([0.0] * 50, values, rows(50), seed=1)
    assert other.value == difference([0.0] * 50, values, rows(50)).value
