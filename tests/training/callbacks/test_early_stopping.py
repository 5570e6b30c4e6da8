"""A run ends where its evaluations get no better, at the same step whether it was interrupted or not."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from glmtune import load_config, resume, train
from glmtune.errors import GlmtuneError
from glmtune.processes.signals import Preempted
from glmtune.training.trainer import GlmTrainer

FIRST_BEST = """
from pathlib import Path


def compute(predictions, references):
    counter = Path({counter!r})
    calls = int(counter.read_text()) + 1 if counter.is_file() else 0  # 0 is the trial before the first step
    counter.write_text(str(calls))
    return {{"score": {scores}[calls]}}
"""


@pytest.fixture
def by_scores(write_config, tmp_path: Path):
    """Return a function that writes a configuration whose evaluations, every second step, have given scores."""

    def write(scores: list[float], patience: int = 2, name: str = "run", **top: object) -> Path:
        metrics = tmp_path / f"{name}.py"
        code = FIRST_BEST.format(counter=str(tmp_path / f"{name}.calls"), scores=[0.0, *scores])
        metrics.write_text(code, encoding="utf-8")
        return write_config(
            top={"metrics": str(metrics), "early_stopping_patience": patience} | top,
            output_dir=str(tmp_path / name), save_steps=2, eval_steps=2, metric_for_best_model="score",
        )  # fmt: skip

    return write


def steps_evaluated(run: Path) -> list[int]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [line["step"] for line in lines if "eval_score" in line]


def test_a_run_ends_after_so_many_evaluations_without_a_better_one(
    demo_data: Path, by_scores, capsys: pytest.CaptureFixture[str]
) -> None:
    run = train(demo_data, "demo", by_scores([1.0, 3.0, 2.0, 4.0, 4.0, 3.0, 9.0, 9.0]))
    assert steps_evaluated(run) == [2, 4, 6, 8, 10, 12]
    assert (
        "stopped early at step 12 of 16: `score` got no better in 2 evaluations; the best was 4 at step 8 "
        "(`checkpoint-8`)\n"
    ) in capsys.readouterr().err
    with pytest.raises(GlmtuneError) as caught:
        resume(run)
    assert caught.value.what == "the run has stopped early, at `checkpoint-12`: its evaluations got no better"


def test_a_threshold_asks_for_more(demo_data: Path, by_scores) -> None:
    run = train(demo_data, "demo", by_scores([1.0, 1.2, 1.4, 9.0], early_stopping_threshold=0.5))
    assert steps_evaluated(run) == [2, 4, 6]


def test_the_stop_is_saved_where_no_checkpoint_was_due(demo_data: Path, by_scores) -> None:
    run = train(demo_data, "demo", load_config(by_scores([2.0, 1.0], patience=1), ["training_args.save_steps=16"]))
    assert [path.name for path in run.glob("checkpoint-*")] == ["checkpoint-4"]


@pytest.mark.parametrize("kept", [2, 6, 8])
def test_a_resumed_run_stops_where_the_uninterrupted_one_does(
    kept: int, demo_data: Path, by_scores, read_losses, tmp_path: Path
) -> None:
    run = train(demo_data, "demo", by_scores([3.0, 4.0, 2.0, 3.0, 1.0, 9.0], patience=3))
    expected = read_losses(run)
    assert steps_evaluated(run) == [2, 4, 6, 8, 10]
    for path in run.glob("checkpoint-*"):
        if int(path.name.partition("-")[2]) > kept:
            shutil.rmtree(path)
    # The trial before the first step of the resumed run is a call, too.
    (tmp_path / "run.calls").write_text(str(kept // 2 - 1), encoding="utf-8")
    resume(run)
    assert steps_evaluated(run) == [2, 4, 6, 8, 10]
    assert read_losses(run) == expected


def test_the_evaluation_that_ends_a_run_may_be_made_up_for_by_a_resumed_one(
    demo_data: Path, by_scores, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train_step, num_batches = GlmTrainer.training_step, 0

    def stopped_at_step_six(*arguments: Any, **options: Any) -> Any:
        nonlocal num_batches
        num_batches += 1
        if num_batches == 12:  # two batches a step
            signal.raise_signal(signal.SIGTERM)
        return train_step(*arguments, **options)

    monkeypatch.setattr(GlmTrainer, "training_step", stopped_at_step_six)
    with pytest.raises(Preempted):
        train(demo_data, "demo", by_scores([3.0, 2.0, 1.0, 9.0, 9.0, 9.0]))
    run = tmp_path / "run"
    assert steps_evaluated(run) == [2, 4]
    (tmp_path / "run.calls").write_text("1", encoding="utf-8")
    resume(run)
    assert steps_evaluated(run) == [2, 4, 6]
    assert "stopped early at step 6 of 16" in capsys.readouterr().err
    assert max(int(path.name.partition("-")[2]) for path in run.glob("checkpoint-*")) == 6
    with pytest.raises(GlmtuneError, match="the run has stopped early, at `checkpoint-6`"):
        resume(run)


def test_what_has_stopped_goes_on_without_the_key(demo_data: Path, by_scores) -> None:
    run = train(demo_data, "demo", by_scores([2.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0], patience=1))
    resume(run, overrides=["early_stopping_patience=null"], accept_changes=True)
    assert (run / "checkpoint-16").is_dir()


@pytest.mark.parametrize(
    ("top", "arguments", "what"),
    [
        ({"early_stopping_patience": 3}, {"eval_strategy": "no"},
         "`early_stopping_patience`: needs evaluations; found `eval_strategy: no`"),
        ({"early_stopping_patience": 0}, {}, "`early_stopping_patience`: expected 1 or more, found `0`"),
        ({"early_stopping_threshold": 0.1}, {},
         "`early_stopping_threshold`: does nothing without `early_stopping_patience`"),
        ({"early_stopping_patience": 3, "early_stopping_threshold": -1.0}, {},
         "`early_stopping_threshold`: expected a finite number, 0 or more, found `-1.0`"),
    ],
)  # fmt: skip
def test_settings_that_cannot_work_are_refused(top: dict, arguments: dict, what: str, write_config) -> None:
    with pytest.raises(GlmtuneError) as caught:
        load_config(write_config(top=top, **arguments))
    assert caught.value.what == what


def test_without_a_metric_it_goes_by_the_loss_and_says_so(write_config) -> None:
    path = write_config(top={"early_stopping_patience": 3})
    config = load_config(path)
    assert config.training_args["metric_for_best_model"] == "loss"
    assert [line.partition(": ")[2] for line in config.notices] == [
        "`early_stopping_patience` goes by the loss of the evaluations; `metric_for_best_model` names another metric"
    ]
