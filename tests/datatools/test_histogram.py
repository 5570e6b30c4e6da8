"""How long rows are, drawn as text and as a PNG."""

from __future__ import annotations

import itertools
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from glmtune.datatools.histogram import draw_lengths, round_edges, text_bars
from glmtune.errors import GlmtuneError


@pytest.mark.parametrize(
    ("low", "high", "edges"),
    [
        (7, 7, [7, 8]),
        (0, 3, [0, 1, 2, 3, 4]),
        (1, 20, [0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22]),
        (49, 184, [45, 60, 75, 90, 105, 120, 135, 150, 165, 180, 195]),
        (900, 3100, [750, 1000, 1250, 1500, 1750, 2000, 2250, 2500, 2750, 3000, 3250]),
    ],
)
def test_edges_are_multiples_of_a_round_step(low: int, high: int, edges: list[int]) -> None:
    assert round_edges(low, high, 11) == edges


def test_the_longest_hundredth_of_the_rows_shares_a_bar() -> None:
    bars = [bar.split()[:2] for bar in text_bars([*range(100, 398), 5000, 70_000])]
    assert bars[0] == ["90-119", "20"]
    assert bars[-2:] == [["390-419", "8"], ["420+", "2"]]


def test_a_wide_range_has_seven_to_eleven_bars_whatever_it_is() -> None:
    for low, high in itertools.product(range(0, 300, 7), range(320, 30_000, 301)):
        edges = round_edges(low, high, 11)
        assert edges[0] <= low
        assert edges[-1] > high
        assert 7 <= len(edges) - 1 <= 11


@pytest.mark.parametrize(
    ("lengths", "bars"),
    [
        ([5], ["5  1  " + "#" * 44]),
        ([5, 5, 6], ["5  2  " + "#" * 44, "6  1  " + "#" * 22]),
        ([5, 7], ["5  1  " + "#" * 44, "6  0", "7  1  " + "#" * 44]),
        ([3] * 1000 + [2000], ["3  1,000  " + "#" * 44, "4+  1  #"]),
    ],
)
def test_bars_of_text_are_as_long_as_their_share_of_the_highest(lengths: list[int], bars: list[str]) -> None:
    assert [bar.split() for bar in text_bars(lengths)] == [bar.split() for bar in bars]


def test_bars_of_text_stand_below_each_other() -> None:
    assert text_bars([995] * 1200 + [1004] * 600) == [
        f"  995  1,200  {'#' * 44}",
        "  996      0",
        "  997      0",
        "  998      0",
        "  999      0",
        "1,000      0",
        "1,001      0",
        "1,002      0",
        "1,003      0",
        f"1,004    600  {'#' * 22}",
    ]


# The PNG

LENGTHS = [10, 20, 20, 25, 40]


@pytest.mark.parametrize("lengths", [LENGTHS, [7], [1, 1, 1], [30] * 50 + [9000]])
@pytest.mark.parametrize("limit", [None, 1, 30, 100_000])
def test_a_histogram_is_800_by_500_pixels(lengths: list[int], limit: int | None, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="needs the `report` extra")
    draw_lengths(tmp_path / "lengths.png", lengths, limit)
    assert struct.unpack(">II", (tmp_path / "lengths.png").read_bytes()[16:24]) == (800, 500)


@pytest.mark.parametrize(("limit", "is_drawn"), [(None, False), (30, True), (45, True), (400, False)])
def test_a_limit_near_the_rows_is_a_line(limit: int | None, is_drawn: bool, tmp_path: Path) -> None:
    image = pytest.importorskip("matplotlib.image", reason="needs the `report` extra")
    draw_lengths(tmp_path / "lengths.png", LENGTHS, limit)
    pixels = image.imread(tmp_path / "lengths.png")[100:, :, :3]  # below the title
    orange = abs(pixels - (0xD9 / 255, 0x48 / 255, 0x01 / 255)).max(axis=2) < 0.05
    assert bool(orange.any()) is is_drawn


def test_drawing_a_histogram_leaves_pyplot_alone(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="needs the `report` extra")
    code = (
        "import sys; from pathlib import Path; from glmtune.datatools.histogram import draw_lengths\n"
        f"draw_lengths(Path({str(tmp_path / 'a.png')!r}), [1, 2]); print('matplotlib.pyplot' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "False\n"


def test_a_histogram_of_nothing_is_an_error(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="needs the `report` extra")
    with pytest.raises(GlmtuneError) as caught:
        draw_lengths(tmp_path / "lengths.png", [])
    assert str(caught.value) == "no row has tokens, so there is no histogram to draw"


def test_a_histogram_without_matplotlib_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(GlmtuneError) as caught:
        draw_lengths(tmp_path / "lengths.png", LENGTHS)
    assert str(caught.value) == (
        "`matplotlib` is not installed\nhint: run `pip install 'glmtune[report]'` and try again"
    )
