"""A file of metrics in a run: measured, recorded, chosen by, changed, failing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml

from glmtune import resume, train
from glmtune.errors import GlmtuneError
from glmtune.training.setup import consent as consent_module

LENGTHS = (
    "def compute(predictions, references):\n    return {'length': sum(map(len, predictions)) / len(predictions)}\n"
)
LATER = """
calls = []


def compute(predictions, references):
    calls.append(len(predictions))
    if len(calls) == 2:
        raise KeyError("a word")
    return {"calls": len(calls)}
"""


def logs(run: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [line for line in lines if "eval_loss" in line]


def short(write_config, metrics: Path, **training_args: object) -> Path:
    settings = {"max_steps": 4, "save_steps": 2, "eval_steps": 2} | training_args
    return write_config(top={"metrics": str(metrics)}, **settings)


def test_a_run_measures_them_and_can_choose_its_best_checkpoint_by_one(
    demo_data: Path, write_config, tmp_path: Path
) -> None:
    metrics = tmp_path / "lengths.py"
    metrics.write_text(LENGTHS, encoding="utf-8")
    config = short(write_config, metrics, metric_for_best_model="length", load_best_model_at_end=True)
    run = train(demo_data, "demo", config)
    lengths = [log["eval_length"] for log in logs(run)]
    assert len(lengths) == 2
    best = json.loads((run / "checkpoint-4" / "trainer_state.json").read_text(encoding="utf-8"))
    assert best["best_metric"] == max(lengths)
    record = yaml.safe_load((run / "run.yaml").read_text(encoding="utf-8"))
    assert record["metrics"].startswith("lengths.py (sha256 ")
    assert record["asked"]["config"]["metrics"] == str(metrics)


def test_a_metric_that_nothing_measures_is_told_before_the_first_step(
    demo_data: Path, write_config, tmp_path: Path
) -> None:
    metrics = tmp_path / "lengths.py"
    metrics.write_text(LENGTHS, encoding="utf-8")
    with pytest.raises(GlmtuneError) as caught:
        train(demo_data, "demo", short(write_config, metrics, metric_for_best_model="lenght"))
    assert caught.value.what == (
        "`training_args.metric_for_best_model`: nothing measures `lenght`; `compute` returns `length`"
    )
    assert not (tmp_path / "run").exists()


def test_a_function_that_fails_does_not_end_the_run(
    demo_data: Path, write_config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    metrics = tmp_path / "later.py"
    metrics.write_text(LATER, encoding="utf-8")
    run = train(demo_data, "demo", short(write_config, metrics))
    first, second = logs(run)
    assert first["eval_calls"] is None  # not a number
    assert first["eval_bleu-4"] >= 0
    assert second["eval_calls"] == 3
    told = f"{metrics}:8: `compute` fails with KeyError: 'a word'"
    assert f"warning: your metrics failed at step 2 ({told}); training goes on\n" in capsys.readouterr().err
    assert f"{metrics}:8" in (run / "evaluation-failures.log").read_text(encoding="utf-8")


def test_resume_says_when_the_file_has_changed_and_does_not_run_a_strangers(
    demo_data: Path, write_config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    metrics = tmp_path / "lengths.py"
    metrics.write_text(LENGTHS, encoding="utf-8")
    run = train(demo_data, "demo", short(write_config, metrics))
    shutil.rmtree(run / "checkpoint-4")

    crater = tmp_path / "crater"
    metrics.write_text(f"import os\nos.makedirs({str(crater)!r})\n{LENGTHS}", encoding="utf-8")
    with pytest.raises(GlmtuneError) as caught:
        resume(run)
    assert caught.value.what == (
        f"the run's folder asks for `metrics: {metrics}`, which runs code that lies in that file, and that is for you "
        "to allow"
    )
    with pytest.raises(GlmtuneError) as caught:
        resume(run, trust_remote_code=True)
    assert '  - `metrics` is "lengths.py (sha256 ' in caught.value.what
    assert not crater.exists()

    metrics.write_text(LENGTHS, encoding="utf-8")
    with monkeypatch.context() as patch:
        patch.setattr(consent_module, "cache_folder", lambda: tmp_path / "of another user")
        with pytest.raises(GlmtuneError, match="the run's folder asks for `metrics: "):
            resume(run)
    resume(run)
    assert [log["step"] for log in logs(run)] == [2, 4]


def test_a_run_whose_file_is_gone_goes_on_without_it(demo_data: Path, write_config, tmp_path: Path) -> None:
    metrics = tmp_path / "lengths.py"
    metrics.write_text(LENGTHS, encoding="utf-8")
    run = train(demo_data, "demo", short(write_config, metrics))
    shutil.rmtree(run / "checkpoint-4")
    metrics.unlink()
    with pytest.raises(GlmtuneError, match="the file of metrics"):
        resume(run, trust_remote_code=True, accept_changes=True)
    resume(run, overrides=["metrics=null"], accept_changes=True)
    assert "eval_length" not in logs(run)[-1]
