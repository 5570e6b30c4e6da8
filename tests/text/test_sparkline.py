"""Small bars for numbers."""

from __future__ import annotations

import io
import math

import pytest

from glmtune.text.sparkline import can_show_bars, sparkline


@pytest.mark.parametrize(
    ("values", "shown"),
    [
        ([], ""),
        ([2.0], "▁"),
        ([1.0, 1.0, 1.0], "▁▁▁"),
        ([7, 6, 5, 4, 3, 2, 1], "▇▆▅▄▃▂▁"),
        ([math.nan, 3.0, math.inf, 1.0], "▇▁"),
        ([4.0] * 8 + [1.0] * 8 + [2.5] * 8, "▇▇▇▇▇▁▁▁▁▁▁▄▄▄▄▄"),
    ],
)
def test_the_lowest_value_is_the_lowest_bar_and_the_highest_the_highest(values: list[float], shown: str) -> None:
    assert sparkline(values) == shown


@pytest.mark.parametrize("count", [1, 15, 16, 17, 1000])
def test_there_are_never_more_bars_than_columns(count: int) -> None:
    assert len(sparkline(range(count, 0, -1))) == min(count, 16)


@pytest.mark.parametrize(
    ("encoding", "can"), [("utf-8", True), ("UTF8", True), ("gbk", False), ("ascii", False), ("latin-1", False)]
)
def test_only_a_stream_in_unicode_shows_bars(encoding: str, can: bool) -> None:
    assert can_show_bars(io.TextIOWrapper(io.BytesIO(), encoding=encoding)) is can


@pytest.mark.parametrize("stream", [None, io.StringIO()], ids=["closed", "of a program"])
def test_a_stream_without_an_encoding_shows_none(stream: object) -> None:
    assert not can_show_bars(stream)
