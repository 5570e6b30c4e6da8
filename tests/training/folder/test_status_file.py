"""`status.json` follows a run, says how it ended, and goes where the run leaves nothing else."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from glmtune import resume, train
from glmtune.errors import EXIT_INTERRUPTED, EXIT_PREEMPTED, EXIT_USER_ERROR, GlmtuneError
from glmtune.processes.signals import Preempted, heed_signals, stop_request
from glmtune.reports.run_status import STATUS_FILE, STOP_FILE, RunStatus, read_status
from glmtune.training.callbacks.status_updates import StatusUpdates
from glmtune.training.folder import status_file
from glmtune.training.folder.status_file import StatusFile, told_status
from glmtune.training.trainer import GlmTrainer


def wait_until(holds: Callable[[], Any], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def status_of(folder: Path) -> RunStatus:
    status = read_status(folder)
    assert status is not None
    return status


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int, int]]:
    """Return the list to which every phase of a run is added, with its step and what it counts up to."""
    heard: list[tuple[str, int, int]] = []
    tell = StatusFile.tell

    def listening(self: StatusFile, phase: str | None = None, **values: Any) -> None:
        tell(self, phase, **values)
        now = (self.status.phase, self.status.step, self.status.total)
        if not heard or heard[-1] != now:
            heard.append(now)

    monkeypatch.setattr(StatusFile, "tell", listening)
    return heard


def test_a_run_tells_where_it_is(write_config, demo_data: Path, told: list[tuple[str, int, int]]) -> None:
    run = train(demo_data, "demo", write_config(max_steps=2, eval_steps=2, save_steps=2))
    phases = [phase for phase, _, _ in told]
    assert phases[:3] == ["loading the model", "trying", "training"]
    assert ("training", 1, 0) in told
    assert ("saving", 2, 0) in told
    assert any(phase == "evaluating" and step == 2 and total > 0 for phase, step, total in told)
    status = status_of(run)
    assert (status.phase, status.outcome, status.exit_code, status.error) == ("ended", "finished", 0, None)
    assert (status.step, status.total_steps) == (2, 2)
    assert status.memory_bytes is not None
    assert status.memory_bytes > 10**7


def test_a_resumed_run_begins_with_the_step_of_its_checkpoint(
    write_config, demo_data: Path, told: list[tuple[str, int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = write_config(max_steps=4, save_steps=2, eval_strategy="no")
    step = GlmTrainer.training_step

    def breaking(self: GlmTrainer, *arguments: Any, **options: Any) -> Any:
        if self.state.global_step == 3:
            raise GlmtuneError("it broke", where="rows.jsonl:3", fix="mend it")
        return step(self, *arguments, **options)

    monkeypatch.setattr(GlmTrainer, "training_step", breaking)
    with pytest.raises(GlmtuneError):
        train(demo_data, "demo", config)
    monkeypatch.setattr(GlmTrainer, "training_step", step)
    run = config.parent / "run"
    status = status_of(run)
    assert (status.outcome, status.exit_code, status.step) == ("failed", EXIT_USER_ERROR, 3)
    assert status.error == {"what": "it broke", "where": "rows.jsonl:3", "fix": "mend it"}

    told.clear()
    resume(run)
    assert ("training", 2, 0) in told
    assert ("training", 1, 0) not in told
    assert (status_of(run).outcome, status_of(run).step) == ("finished", 4)


def test_a_run_that_cannot_start_leaves_no_status(write_config, demo_data: Path, tmp_path: Path) -> None:
    with pytest.raises(GlmtuneError):
        train(demo_data, "demo", write_config(warmup_steps=-1))
    assert not (tmp_path / "run").exists()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine.txt").write_text("", encoding="utf-8")
    with pytest.raises(GlmtuneError):
        train(demo_data, "demo", write_config(max_steps=1, eval_strategy="no", generation_config={"top_p": 7}))
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["mine.txt"]


def test_the_status_of_a_run_that_was_killed_early_is_no_obstacle(
    write_config, demo_data: Path, tmp_path: Path
) -> None:
    (tmp_path / "run").mkdir()
    file = StatusFile(tmp_path / "run", num_processes=1)
    file.start()
    file.end(is_kept=True)
    assert status_of(tmp_path / "run").phase == "reading rows"
    assert train(demo_data, "demo", write_config(max_steps=1, eval_strategy="no")) == tmp_path / "run"


@pytest.mark.parametrize("content", ["", "{}x", '{"phase": "mine"}'])
def test_a_file_of_the_user_with_that_name_is_kept(content: str, write_config, demo_data: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / STATUS_FILE).write_text(content, encoding="utf-8")
    with pytest.raises(GlmtuneError, match=r"holds a `status\.json`"):
        train(demo_data, "demo", write_config(max_steps=1, eval_strategy="no"))
    assert (tmp_path / "run" / STATUS_FILE).read_text(encoding="utf-8") == content


@pytest.mark.parametrize(
    ("error", "outcome", "code", "what"),
    [
        (KeyboardInterrupt(), "stopped", EXIT_INTERRUPTED, None),
        (Preempted(signal.SIGTERM), "stopped", EXIT_PREEMPTED, None),
        (ValueError("Authorization: Bearer aB3dE5aB3dE5"), "failed", 1, "ValueError: "),
        (SystemExit(7), "failed", 7, "SystemExit: 7"),
    ],
)
def test_how_a_run_ended(error: BaseException, outcome: str, code: int, what: str | None, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("", encoding="utf-8")
    with pytest.raises(type(error)), told_status(tmp_path, num_processes=1):
        raise error
    status = status_of(tmp_path)
    assert (status.phase, status.outcome, status.exit_code) == ("ended", outcome, code)
    assert status.error is None if what is None else str((status.error or {})["what"]).startswith(what)
    assert "aB3dE5" not in (tmp_path / STATUS_FILE).read_text(encoding="utf-8")


def test_the_file_follows_and_beats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(status_file, "HEARTBEAT_SECONDS", 0.2)
    monkeypatch.setattr(status_file, "SHORTEST_PAUSE_SECONDS", 0.05)
    with told_status(tmp_path, num_processes=3) as file:
        assert status_of(tmp_path).num_processes == 3
        file.tell("training", step=4, total_steps=9)
        wait_until(lambda: status_of(tmp_path).step == 4)
        before = status_of(tmp_path).updated
        wait_until(lambda: status_of(tmp_path).updated > before)  # with no news
        file.tell("evaluating", done=1, total=2)
        file.tell("training")
        wait_until(lambda: status_of(tmp_path).phase == "training")
        assert (status_of(tmp_path).done, status_of(tmp_path).total) == (0, 0)
    assert not list(tmp_path.iterdir())  # no run was written beside it


def test_a_folder_that_is_gone_ends_no_run(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    with told_status(folder, num_processes=1) as file:
        (folder / STATUS_FILE).unlink()
        folder.rmdir()
        file.tell("training", step=1)
        time.sleep(0.1)
    assert not folder.exists()


def test_a_word_in_the_folder_stops_a_run_in_its_steps(
    write_config, demo_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(status_file, "SHORTEST_PAUSE_SECONDS", 0.02)
    step_end = StatusUpdates.on_step_end

    def asking(self: StatusUpdates, args: Any, state: Any, control: Any, **more: Any) -> None:
        step_end(self, args, state, control, **more)
        if state.global_step == 2:
            (tmp_path / "run" / STOP_FILE).touch()
            wait_until(lambda: stop_request().received is not None)

    monkeypatch.setattr(StatusUpdates, "on_step_end", asking)
    with pytest.raises(Preempted):
        train(demo_data, "demo", write_config(max_steps=16, eval_strategy="no", save_steps=16))
    status = status_of(tmp_path / "run")
    assert (status.outcome, status.exit_code) == ("stopped", EXIT_PREEMPTED)
    assert status.step < 16
    assert not (tmp_path / "run" / STOP_FILE).exists()
    monkeypatch.undo()
    resume(tmp_path / "run")
    assert (status_of(tmp_path / "run").outcome, status_of(tmp_path / "run").step) == ("finished", 16)


def test_a_run_in_a_thread_is_stopped_as_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The signals belong to the program then, so the request is noted without one, once steps are taken."""
    monkeypatch.setattr(status_file, "SHORTEST_PAUSE_SECONDS", 0.02)
    seen: list[bool] = []

    def run() -> None:
        with heed_signals(), told_status(tmp_path, num_processes=1):
            (tmp_path / STOP_FILE).touch()
            time.sleep(0.2)
            seen.append(stop_request().received is not None)
            stop_request().is_stepping = True
            wait_until(lambda: stop_request().received is not None)
            seen.append(True)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [False, True]
