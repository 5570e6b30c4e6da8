"""A run that is stopped by a signal and resumed is the uninterrupted run: same figures, same weights."""

from __future__ import annotations

import io
import multiprocessing
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from json_lines import json_lines

from glmtune import resume, train
from glmtune.errors import EXIT_PREEMPTED, GlmtuneError
from glmtune.processes.signals import Preempted, _say_from_handler
from glmtune.training.folder import checkpoint
from glmtune.training.setup import preparation
from glmtune.training.trainer import GlmTrainer

SCHEDULES: dict[str, dict[str, Any]] = {
    "steps": {"logging_steps": 3, "save_steps": 8, "eval_steps": 4, "load_best_model_at_end": True},
    "epochs": {"logging_strategy": "epoch", "save_strategy": "epoch", "eval_strategy": "epoch"},
    "best": {"save_strategy": "best", "eval_steps": 4, "metric_for_best_model": "rouge-l"},
    "evaluations steer the rate": {"lr_scheduler_type": "reduce_lr_on_plateau", "lr_scheduler_kwargs": {"patience": 0},
                                   "eval_steps": 4, "metric_for_best_model": "rouge-1"},
}  # fmt: skip
TEST_ROWS = {"data_config": {"train_file": "train.jsonl", "val_file": "dev.jsonl", "test_file": "test.jsonl"}}
TIMES = ("runtime", "per_second", "seconds", "time", "memory_bytes")


def figures(run: Path) -> list[dict[str, Any]]:
    """Return what a run has logged, but for how long it took and the loss of its last part."""
    lines = json_lines(run / "metrics.jsonl")
    return [
        {key: value for key, value in line.items() if not key.endswith(TIMES)}
        for line in lines
        if "train_runtime" not in line
    ]


def best_of(run: Path) -> tuple[Any, ...]:
    state = checkpoint.read_state(run / "checkpoint-16")
    best = state["best_model_checkpoint"]
    return state["best_metric"], state["best_global_step"], best and Path(best).name


@pytest.fixture
def send(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Return a function that sends this process a signal, once, when one of our functions is called for the n-th time.

    The function then does its work as always.
    """

    def send(owner: Any, name: str, *, call: int, number: int = signal.SIGTERM, after: bool = False) -> None:
        original, count = getattr(owner, name), 0

        def called(*arguments: Any, **options: Any) -> Any:
            nonlocal count
            count += 1
            if count == call and not after:
                signal.raise_signal(number)
            result = original(*arguments, **options)
            if count == call and after:
                signal.raise_signal(number)
            return result

        monkeypatch.setattr(owner, name, called)

    return send


@pytest.fixture(scope="module")
def undisturbed(demo_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], Path]:
    """Return a function that trains as a configuration says, in a folder of its own; once for each configuration."""
    runs: dict[str, Path] = {}

    def run(config: Path) -> Path:
        key = config.read_text(encoding="utf-8").replace(str(config.parent), "")
        if key not in runs:
            folder = tmp_path_factory.mktemp("undisturbed") / "run"
            runs[key] = train(demo_data, "demo", config, overrides=[f"training_args.output_dir={folder}"])
        return runs[key]

    return run


@pytest.mark.parametrize(
    ("schedule", "step"),
    [
        ("steps", 5),
        ("steps", 4),
        ("epochs", 10),
        *(
            pytest.param(schedule, step, marks=[pytest.mark.slow, pytest.mark.long])
            for schedule, step in [("steps", 8), ("steps", 10), ("steps", 16), ("epochs", 4), ("epochs", 16),
                                   ("best", 4), ("best", 15), ("evaluations steer the rate", 8)]
        ),
    ],
)  # fmt: skip
def test_a_run_stopped_at_any_step_and_resumed_is_the_uninterrupted_one(
    schedule: str, step: int, demo_data: Path, write_config, read_weights, send, undisturbed, tmp_path: Path, capsys
) -> None:
    config = write_config("lora", top=TEST_ROWS, **SCHEDULES[schedule])
    expected = undisturbed(config)
    send(GlmTrainer, "training_step", call=2 * step)  # two batches a step
    run = tmp_path / "run"
    capsys.readouterr()
    with pytest.raises(Preempted) as stopped:
        train(demo_data, "demo", config)
    said = capsys.readouterr().err
    assert stopped.value.code == EXIT_PREEMPTED
    assert "received SIGTERM: saving after this step\n" in said
    assert said.endswith(f"stopped at step {step}: `glmtune resume {run}` goes on from checkpoint-{step}\n")
    resume(run)
    assert figures(run) == figures(expected)
    assert best_of(run) == best_of(expected)
    resumed, weights = read_weights(run / "checkpoint-16"), read_weights(expected / "checkpoint-16")
    assert all(resumed[name].equal(tensor) for name, tensor in weights.items())


def test_an_evaluation_that_is_broken_off_is_made_up_for(
    demo_data: Path, write_config, read_weights, send, undisturbed, tmp_path: Path
) -> None:
    config = write_config("lora", top=TEST_ROWS, **SCHEDULES["steps"])
    expected = undisturbed(config)
    # Three batches an evaluation, two of them of answers; the first evaluation, of two rows, takes two.
    send(GlmTrainer, "_count_batch", call=5)
    run = tmp_path / "run"
    with pytest.raises(Preempted):
        train(demo_data, "demo", config)
    assert [line["step"] for line in figures(run)] == [3]
    assert not (run / "predictions" / "step-4.jsonl").exists()
    assert [path.name for path in run.glob("checkpoint-*")] == ["checkpoint-4"]
    resume(run)
    assert figures(run) == figures(expected)
    assert best_of(run) == best_of(expected)
    assert_same_files(run / "predictions", expected / "predictions")
    resumed, weights = read_weights(run / "checkpoint-16"), read_weights(expected / "checkpoint-16")
    assert all(resumed[name].equal(tensor) for name, tensor in weights.items())


def assert_same_files(one: Path, other: Path) -> None:
    files = [{path.name: path.read_bytes() for path in folder.iterdir()} for folder in (one, other)]
    assert files[0] == files[1]


@pytest.mark.slow
def test_a_checkpoint_that_stands_before_its_evaluation_is_not_saved_again(
    demo_data: Path, write_config, send, undisturbed, tmp_path: Path
) -> None:
    """Saved by steps, evaluated by epochs: the checkpoint of the epoch's last step comes first."""
    settings = {"max_steps": 12, "save_steps": 5, "eval_strategy": "epoch"}
    config = write_config("lora", **settings)
    expected = undisturbed(config)
    send(GlmTrainer, "_count_batch", call=4)
    run = tmp_path / "run"
    with pytest.raises(Preempted):
        train(demo_data, "demo", config)
    assert sorted(path.name for path in run.glob("checkpoint-*")) == ["checkpoint-10", "checkpoint-5"]
    resume(run)
    assert figures(run) == figures(expected)


@pytest.mark.slow
def test_an_evaluation_made_up_for_again_stands_once(demo_data: Path, write_config, send, tmp_path: Path) -> None:
    """Killed after it made up for an evaluation, the run makes up for it again where it is resumed."""
    config = write_config("lora", max_steps=6, eval_steps=4, save_strategy="no")
    send(GlmTrainer, "training_step", call=8)
    run = tmp_path / "run"
    with pytest.raises(Preempted):
        train(demo_data, "demo", config)
    for _ in range(2):
        resume(run)
        shutil.rmtree(run / "checkpoint-6")  # the checkpoint of the stop is the last once more
    evaluations = [line["step"] for line in figures(run) if "eval_loss" in line]
    assert evaluations.count(4) == 1


def test_a_signal_during_saving_lets_it_finish_and_saves_nothing_else(
    demo_data: Path, write_config, send, tmp_path: Path
) -> None:
    config = write_config("lora", eval_strategy="no")
    send(checkpoint, "publish", call=1)
    with pytest.raises(Preempted):
        train(demo_data, "demo", config)
    run = tmp_path / "run"
    assert sorted(path.name for path in run.glob("checkpoint-*")) == ["checkpoint-4"]
    checkpoint.verify(run / "checkpoint-4")
    assert figures(run)[-1]["step"] == 4


def test_a_signal_in_the_last_step_changes_nothing_where_nothing_else_is_due(
    demo_data: Path, write_config, send, tmp_path: Path
) -> None:
    config = write_config("lora", eval_strategy="no", max_steps=2)
    send(GlmTrainer, "training_step", call=4)
    train(demo_data, "demo", config)
    assert (tmp_path / "run" / "checkpoint-2").is_dir()


@pytest.mark.slow
def test_a_run_stopped_in_its_test_rows_scores_them_when_it_is_resumed(
    demo_data: Path, write_config, send, undisturbed, tmp_path: Path
) -> None:
    config = write_config("lora", top=TEST_ROWS, max_steps=2, eval_strategy="no", predict_with_generate=False)
    expected = undisturbed(config)
    send(GlmTrainer, "_count_batch", call=2)
    with pytest.raises(Preempted):
        train(demo_data, "demo", config)
    run = tmp_path / "run"
    resume(run)
    assert figures(run) == figures(expected)
    with pytest.raises(GlmtuneError, match="the run has finished"):
        resume(run)


@pytest.mark.parametrize("is_there", [False, True])
@pytest.mark.parametrize(("number", "error"), [(signal.SIGTERM, Preempted), (signal.SIGINT, KeyboardInterrupt)])
def test_a_signal_before_the_first_step_leaves_nothing_behind(
    number: int, error: type, is_there: bool, demo_data: Path, write_config, send, tmp_path: Path, capsys
) -> None:
    config = write_config("lora", max_steps=1)
    run = tmp_path / "run"
    if is_there:
        run.mkdir()
    send(GlmTrainer, "first_evaluation", call=1, number=number)
    with pytest.raises(error):
        train(demo_data, "demo", config)
    said = capsys.readouterr().err
    if number == signal.SIGTERM:
        assert "received SIGTERM while no step was being taken: stopping at once\n" in said
    assert said.endswith("stopped at step 0: no checkpoint yet, so the run begins anew\n")
    assert run.exists() == is_there
    train(demo_data, "demo", config)


def test_a_signal_while_rows_are_encoded_ends_at_once(demo_data: Path, write_config, send, tmp_path: Path) -> None:
    send(preparation, "load_data", call=1, number=signal.SIGUSR1)
    with pytest.raises(Preempted) as stopped:
        train(demo_data, "demo", write_config("lora"))
    assert stopped.value.code == 75
    assert not (tmp_path / "run").exists()


def test_ctrl_c_saves_and_a_second_one_stops_at_once(
    demo_data: Path, write_config, send, tmp_path: Path, capsys
) -> None:
    config = write_config("lora", eval_strategy="no")
    send(GlmTrainer, "training_step", call=4, number=signal.SIGINT)
    run = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        train(demo_data, "demo", config)
    assert [path.name for path in run.glob("checkpoint-*")] == ["checkpoint-2"]

    # The first in step 3, the second while its checkpoint is written.
    send(GlmTrainer, "training_step", call=1, number=signal.SIGINT)
    send(checkpoint, "publish", call=1, number=signal.SIGINT)
    capsys.readouterr()
    with pytest.raises(KeyboardInterrupt):
        resume(run)
    assert [path.name for path in run.glob("checkpoint-*")] == ["checkpoint-2"]
    assert capsys.readouterr().err.endswith(f"stopped at step 3: `glmtune resume {run}` goes on from checkpoint-2\n")


def test_a_second_sigterm_changes_nothing(demo_data: Path, write_config, send, tmp_path: Path, capsys) -> None:
    config = write_config("lora", eval_strategy="no")
    for call in (1, 2):
        send(GlmTrainer, "training_step", call=call)
    send(checkpoint, "publish", call=1)
    with pytest.raises(Preempted):
        train(demo_data, "demo", config)
    assert [path.name for path in (tmp_path / "run").glob("checkpoint-*")] == ["checkpoint-1"]
    assert capsys.readouterr().err.count("received SIGTERM") == 1


def test_handlers_are_put_back(demo_data: Path, write_config, send) -> None:
    def of_a_notebook(number: int, frame: object) -> None:
        raise AssertionError("not called while the run handles signals")

    numbers = (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP, signal.SIGINT)
    former = [signal.signal(number, of_a_notebook) for number in numbers]
    try:
        send(GlmTrainer, "training_step", call=2)
        with pytest.raises(Preempted):
            train(demo_data, "demo", write_config("lora", max_steps=2))
        assert [signal.getsignal(number) for number in numbers] == [of_a_notebook] * 4
    finally:
        for number, handler in zip(numbers, former):
            signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT], ids=lambda number: number.name)
def test_what_was_ignored_at_the_start_stays_ignored(number: int, demo_data: Path, write_config, send, capsys) -> None:
    """As `nohup` wants it, and a shell for programs in the background."""
    former = signal.signal(number, signal.SIG_IGN)
    try:
        send(GlmTrainer, "training_step", call=1, number=number)
        run = train(demo_data, "demo", write_config(max_steps=2, eval_strategy="no"))
        assert signal.getsignal(number) is signal.SIG_IGN
    finally:
        signal.signal(number, former)
    assert (run / "checkpoint-2").is_dir()
    assert "received" not in capsys.readouterr().err


def test_a_signal_in_the_middle_of_printing_loses_no_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (tmp_path / "log").open("wb", buffering=0) as log:

        class Terminal(io.RawIOBase):
            was_met = False

            def writable(self) -> bool:
                return True

            def fileno(self) -> int:
                return log.fileno()

            def write(self, content: Any) -> int:
                if not self.was_met:
                    self.was_met = True
                    _say_from_handler("received SIGTERM: saving after this step")
                return log.write(content) or 0

        stream = io.TextIOWrapper(io.BufferedWriter(Terminal()), encoding="utf-8", line_buffering=True)
        monkeypatch.setattr(sys, "stderr", stream)
        print("step 1/2", file=sys.stderr)
        monkeypatch.undo()
    lines = (tmp_path / "log").read_text(encoding="utf-8").splitlines()
    assert lines == ["received SIGTERM: saving after this step", "step 1/2"]


def test_processes_that_read_rows_do_not_die_of_the_signal(
    demo_data: Path, write_config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slurm signals every process of a job; the run needs its readers until it is saved."""
    training_step = GlmTrainer.training_step

    def signal_all(self: GlmTrainer, *arguments: Any, **options: Any) -> Any:
        if self.state.global_step == 1:
            readers = [child.pid for child in multiprocessing.active_children()]
            assert len(readers) == 1
            for process in [*readers, os.getpid()]:
                os.kill(process, signal.SIGTERM)
            time.sleep(0.2)
        return training_step(self, *arguments, **options)

    monkeypatch.setattr(GlmTrainer, "training_step", signal_all)
    config = write_config("lora", eval_strategy="no", gradient_accumulation_steps=4, dataloader_num_workers=1)
    with pytest.raises(Preempted):
        train(demo_data, "demo", config)
    assert [path.name for path in (tmp_path / "run").glob("checkpoint-*")] == ["checkpoint-2"]
    assert not multiprocessing.active_children()


def test_a_checkpoint_that_only_a_stop_made_is_not_the_best_one(
    demo_data: Path, write_config, send, undisturbed, tmp_path: Path
) -> None:
    """Its evaluation was due, its checkpoint was not: an uninterrupted run has none there to be the best."""
    config = write_config(save_steps=8, eval_steps=4, load_best_model_at_end=True, metric_for_best_model="loss",
                          greater_is_better=True, predict_with_generate=False)  # fmt: skip
    expected = undisturbed(config)
    assert best_of(expected)[1:] == (4, None)
    send(GlmTrainer, "training_step", call=8)
    with pytest.raises(Preempted):
        train(demo_data, "demo", config)
    run = tmp_path / "run"
    assert (run / "checkpoint-4").is_dir()
    resume(run)
    assert best_of(run) == best_of(expected)
