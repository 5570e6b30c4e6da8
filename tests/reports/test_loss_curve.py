"""The loss curve."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from glmtune.errors import GlmtuneError
from glmtune.reports.loss_curve import draw_loss_curve, read_loss_history, smooth

REPOSITORY = Path(__file__).parents[2]
LOG = [
    {"step": 10, "loss": 2.5, "learning_rate": 5e-4, "epoch": 0.1},
    {"step": 20, "loss": 2.0, "learning_rate": 4e-4, "epoch": 0.2},
    {"step": 20, "eval_loss": 2.2, "eval_bleu-4": 3.1},
]


def write_log(path: Path, rows: list[dict], tail: str = "") -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + tail, encoding="utf-8")
    return path


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return write_log(tmp_path / "metrics.jsonl", LOG)


# Reading


def test_training_and_evaluation_losses_are_read_by_step(log):
    history = read_loss_history(log)
    assert history.training == {10: 2.5, 20: 2.0}
    assert history.evaluation == {20: 2.2}


@pytest.mark.parametrize(
    "tail", ['{"step": 30, "lo', "\n\n", '{"step": 30, "loss": NaN}\n', '{"train_loss": 2.2}\n', "\0\0"]
)
def test_a_tail_without_a_whole_loss_is_left_out(tmp_path, tail):
    history = read_loss_history(write_log(tmp_path / "metrics.jsonl", LOG, tail))
    assert history.training == {10: 2.5, 20: 2.0}


def test_a_resumed_run_replaces_what_the_interrupted_attempt_logged_after_the_checkpoint(tmp_path):
    interrupted = [{"step": 30, "loss": 9.0}, {"step": 40, "loss": 9.0}, {"step": 40, "eval_loss": 9.0}]
    log = write_log(tmp_path / "metrics.jsonl", [*LOG, *interrupted, {"step": 30, "loss": 1.9}])
    history = read_loss_history(log)
    assert history.training == {10: 2.5, 20: 2.0, 30: 1.9}
    assert history.evaluation == {20: 2.2}


def test_a_broken_line_before_the_last_names_its_place(tmp_path):
    log = write_log(tmp_path / "metrics.jsonl", LOG[:1], '{"step": 2\n{"step": 30, "loss": 1.0}\n')
    with pytest.raises(GlmtuneError) as caught:
        read_loss_history(log)
    assert str(caught.value) == f"this line is not JSON\n  --> {log}:2\nhint: remove the line and try again"


@pytest.mark.parametrize("broken", ['{"step": 15, "lo', "[1]", "\0\0", '{"step": "x"}', "[" * 100_000, "\udcff"])
def test_a_curve_is_drawn_without_lines_that_cannot_be_read_and_names_them(tmp_path, capsys, broken):
    lines = [json.dumps(LOG[0]), broken, *map(json.dumps, LOG[1:]), ""]
    log = tmp_path / "metrics.jsonl"
    log.write_bytes("\n".join(lines).encode(errors="surrogateescape"))
    damaged: list[str] = []
    assert read_loss_history(log, damaged).training == {10: 2.5, 20: 2.0}
    assert damaged == [f"{log}:2"]
    draw_loss_curve(log, tmp_path / "loss.png")
    assert (tmp_path / "loss.png").stat().st_size > 1000
    note = f"note: left out of the loss curve, because it cannot be read: `{log}:2`"
    assert capsys.readouterr().err == f"{note}\n"
    log.write_bytes("\n".join([broken, *lines]).encode(errors="surrogateescape"))
    draw_loss_curve(log, tmp_path / "loss.png")
    assert capsys.readouterr().err == f"{note.replace(':2', ':1')} and 1 more\n"


def test_a_missing_file_is_an_error(tmp_path):
    with pytest.raises(GlmtuneError) as caught:
        read_loss_history(tmp_path / "metrics.jsonl")
    path = tmp_path / "metrics.jsonl"
    assert str(caught.value) == f"there is no metrics file\n  --> {path}\nhint: give the output folder of a run"


@pytest.mark.parametrize("tail", ["", '{"step": 1, "lo'])
def test_a_file_without_a_loss_is_an_error(tmp_path, tail):
    log = write_log(tmp_path / "metrics.jsonl", [], tail)
    with pytest.raises(GlmtuneError) as caught:
        read_loss_history(log)
    assert str(caught.value) == f"no loss has been logged yet\n  --> {log}\nhint: wait for the first logged step"


# Smoothing


def test_smoothing_keeps_a_straight_line():
    line = [float(value) for value in range(100, 0, -1)]
    assert smooth(line)[:-2] == pytest.approx(line[:-2])


def test_smoothing_takes_the_mean_of_both_neighbours():
    assert smooth([4.0, 1.0, 1.0, 4.0]) == [4.0, 2.0, 2.0, 2.5]  # the last has a neighbour on one side only


# Drawing


def png_size(path: Path) -> tuple[int, int]:
    header = path.read_bytes()[:24]
    assert header[:8] == b"\x89PNG\r\n\x1a\n"
    return struct.unpack(">II", header[16:24])


@pytest.mark.parametrize("rows", [LOG, LOG[:1], LOG[2:], [{"step": at, "loss": 1 / at} for at in range(1, 300)]])
def test_a_curve_of_any_length_is_800_by_500_pixels(tmp_path, rows):
    pytest.importorskip("matplotlib", reason="needs the `report` extra")
    draw_loss_curve(write_log(tmp_path / "metrics.jsonl", rows), tmp_path / "loss.png")
    assert png_size(tmp_path / "loss.png") == (800, 500)


def test_the_curve_shows_training_and_evaluation_in_their_colours(log, tmp_path):
    image = pytest.importorskip("matplotlib.image", reason="needs the `report` extra")
    draw_loss_curve(log, tmp_path / "loss.png")
    pixels = {tuple(pixel) for pixel in (image.imread(tmp_path / "loss.png")[..., :3] * 255).round().reshape(-1, 3)}
    assert {(0x08, 0x51, 0x9C), (0xD9, 0x48, 0x01)} <= pixels


def test_drawing_leaves_pyplot_alone(log, tmp_path):
    pytest.importorskip("matplotlib", reason="needs the `report` extra")
    code = (
        "import sys; from pathlib import Path; from glmtune.reports.loss_curve import draw_loss_curve\n"
        "draw_loss_curve(Path(sys.argv[1]), Path(sys.argv[2])); print('matplotlib.pyplot' in sys.modules)"
    )
    command = [sys.executable, "-c", code, str(log), str(tmp_path / "loss.png")]
    assert subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True).stdout == "False\n"


def test_drawing_without_matplotlib_names_the_extra(log, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(GlmtuneError) as caught:
        draw_loss_curve(log, tmp_path / "loss.png")
    assert str(caught.value) == (
        "`matplotlib` is not installed\nhint: run `pip install 'glmtune[report]'` and try again"
    )
