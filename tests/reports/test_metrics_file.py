"""`metrics.jsonl`: appended to, read with its damage, and never lost half-way."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from glmtune.files import durable
from glmtune.reports.metrics_file import append_log, keep_logs, read_logs
from glmtune.text.plain_json import plain_json
from glmtune.training.callbacks.unfinished import forget_evaluation
from glmtune.training.replay import logged_losses

DAMAGED = [
    b"[1, 2]\n",
    b"null\n",
    b"5\n",
    b'{"loss": 1.0}\n',
    b'{"step": "3", "loss": 1.0}\n',
    b"\xff\xfe\n",
    b"{\n",
    b"\n",
]


def no_constant(name: str) -> None:
    raise AssertionError(f"{name} is no JSON")


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_not_finite_is_null(number: float, tmp_path: Path) -> None:
    assert plain_json({"a": number, "b": [number, (1.5, number)], "c": {"d": number}, "e": "NaN"}) == (
        '{"a": null, "b": [null, [1.5, null]], "c": {"d": null}, "e": "NaN"}'
    )
    path = tmp_path / "metrics.jsonl"
    append_log(path, 3, {"loss": 1.5, "grad_norm": number})
    line = path.read_text(encoding="utf-8")
    assert json.loads(line, parse_constant=no_constant) == {"step": 3, "loss": 1.5, "grad_norm": None}


@pytest.mark.parametrize("line", DAMAGED)
def test_a_line_that_is_no_log_of_ours_is_passed_over_and_kept(line: bytes, tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    logs = [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.5}]
    first, second = ((json.dumps(log) + "\n").encode() for log in logs)
    path.write_bytes(first + line + second)
    assert list(read_logs(path)) == logs
    assert logged_losses(tmp_path) == {1: 2.0, 2: 1.5}
    keep_logs(path, lambda log: log["step"] < 2)
    assert path.read_bytes() == first + line
    forget_evaluation(path, 1)
    assert path.read_bytes() == first + line


def test_half_a_line_is_left_out_and_takes_no_other_with_it(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    whole = b'{"step": 1, "loss": 2.0}\n'
    path.write_bytes(whole + b'{"step": 2, "lo')
    append_log(path, 2, {"loss": 1.5})
    assert list(read_logs(path)) == [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.5}]
    path.write_bytes(whole + b'{"step": 2, "lo')
    keep_logs(path, lambda log: True)
    assert path.read_bytes() == whole


def test_what_an_evaluation_logged_is_taken_out_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    for step, logs in ((2, {"loss": 1.0}), (2, {"eval_loss": 2.0}), (4, {"loss": 0.5}), (4, {"eval_loss": 1.5})):
        append_log(path, step, logs)
    forget_evaluation(path, 4)
    assert [(log["step"], next(key for key in log if key != "step")) for log in read_logs(path)] == [
        (2, "loss"), (2, "eval_loss"), (4, "loss"),
    ]  # fmt: skip


def test_a_process_that_is_killed_while_the_file_is_rewritten_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "metrics.jsonl"
    for step in range(1, 5):
        append_log(path, step, {"loss": 1.0 / step})
    before = path.read_bytes()
    synced: list[Path] = []

    def sync_then_die(target: Path) -> None:
        synced.append(target)
        raise KeyboardInterrupt

    monkeypatch.setattr(durable, "sync", sync_then_die)
    with pytest.raises(KeyboardInterrupt):
        keep_logs(path, lambda log: log["step"] < 3)
    assert path.read_bytes() == before
    monkeypatch.setattr(durable, "sync", synced.append)
    keep_logs(path, lambda log: log["step"] < 3)
    assert [log["step"] for log in read_logs(path)] == [1, 2]
    # What is in the file has reached the disk before its name points there.
    assert synced[1:] == [tmp_path / ".metrics.jsonl", tmp_path]
