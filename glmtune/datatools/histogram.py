"""How long the rows of a file are: bars for a terminal, and a PNG."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from glmtune.errors import GlmtuneError
from glmtune.files.cache_files import require_matplotlib
from glmtune.files.new_file import check_new
from glmtune.files.user_paths import user_path

ROUND_STEPS = (1, 1.5, 2, 2.5, 3, 4, 5, 6, 8)  # close enough that at least two thirds of the bars asked for are drawn
MAX_TEXT_BARS = 11  # and one more for what lies beyond the 99th percentile
MAX_DRAWN_BARS = 60
TEXT_BAR_COLUMNS = 44
LONG_TAIL = 10  # a row so many times longer than the median one leaves no room for the others on an even axis
LIMIT_COLOR = "#d94801"


def round_edges(low: int, high: int, max_bars: int) -> list[int]:
    """Return edges at multiples of a round step, in at most `max_bars` bars that together hold `low` to `high`."""
    for power in itertools.count():
        for factor in ROUND_STEPS:
            step = factor * 10**power
            if step == int(step) and high // step - low // step + 1 <= max_bars:
                return [int(step) * place for place in range(int(low // step), int(high // step) + 2)]
    raise AssertionError("some step is large enough")


def text_bars(lengths: Sequence[int]) -> list[str]:
    """Return a line of `#` for every range of lengths; the longest hundredth of the rows may share the last one."""
    values = np.asarray(lengths)
    longest = int(values.max())
    edges = round_edges(int(values.min()), int(np.percentile(values, 99, method="higher")), MAX_TEXT_BARS)
    labels = [f"{low:,}-{high - 1:,}" if high - low > 1 else f"{low:,}" for low, high in itertools.pairwise(edges)]
    if longest >= edges[-1]:
        labels.append(f"{edges[-1]:,}+")
        edges.append(longest + 1)
    # The last of numpy's ranges holds its right edge, too: no length stands there.
    counts, _ = np.histogram(values, edges)
    width = max(map(len, labels))
    digits = len(f"{counts.max():,}")
    bars = ["#" * int(np.ceil(TEXT_BAR_COLUMNS * count / counts.max())) for count in counts]
    return [f"{label:>{width}}  {count:>{digits},}  {bar}".rstrip() for label, count, bar in zip(labels, counts, bars)]


def draw_lengths(path: Path, lengths: Sequence[int], limit: int | None = None) -> None:
    """Draw how many rows have how many tokens as a PNG of 800 x 500 pixels, with a line at the length limit.

    Raises:
        GlmtuneError: matplotlib is not installed, there is no length to draw, or something stands at `path` already.
    """
    path = user_path(path)
    require_matplotlib()
    from matplotlib.figure import Figure  # a Figure of its own: pyplot would keep global state and choose a backend
    from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, StrMethodFormatter

    values = np.asarray(lengths)
    if not values.size:
        raise GlmtuneError("no row has tokens, so there is no histogram to draw")
    low, high, median = int(values.min()), int(values.max()), float(np.median(values))
    is_long_tailed = high > LONG_TAIL * median
    edges = _growing_edges(low, high) if is_long_tailed else round_edges(low, high, MAX_DRAWN_BARS)
    counts, _ = np.histogram(values, edges)
    figure = Figure(figsize=(8, 5), dpi=100, layout="constrained")
    rows = "1 row" if values.size == 1 else f"{values.size:,} rows"
    figure.suptitle(f"{rows}: median {median:,.0f} tokens, longest {high:,}")
    axes = figure.add_subplot()
    # Half a token to the left, so that the bar of one length stands over its number.
    axes.margins(x=0.03)
    axes.stairs(counts, np.asarray(edges) - 0.5, fill=True, color="#6baed6")
    if limit is not None:
        _draw_limit(axes, values, limit)
    axes.set(xlabel="tokens in a row", ylabel="rows")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10], min_n_ticks=1))
    axes.yaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10], min_n_ticks=1))
    if is_long_tailed:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.grid(axis="y", alpha=0.3)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    check_new(path)
    figure.savefig(path, format="png")


def _growing_edges(low: int, high: int) -> list[int]:
    """Return whole numbers as edges, each the same factor above the one before, where whole numbers allow."""
    edges = np.geomspace(low, high + 1, MAX_DRAWN_BARS)
    return sorted(set(np.rint(edges).astype(int).tolist()))


def _draw_limit(axes: Any, values: np.ndarray, limit: int) -> None:
    """Say how many rows are longer than the limit, and draw it unless it is so far away that it squeezes the bars."""
    longer = int((values > limit).sum())
    rows = f"{longer:,} longer ({longer / values.size:.1%})" if longer else "no row is longer"
    axes.set_title(f"limit of {limit:,} tokens: {rows}", color=LIMIT_COLOR, fontsize="medium")
    if limit <= 1.25 * values.max():
        axes.axvline(limit + 0.5, color=LIMIT_COLOR, linewidth=2, linestyle="--")
        axes.update_datalim([(limit + 0.5, 0)])  # a line alone does not widen the axis by its margin
