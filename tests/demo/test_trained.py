"""`demo-sft`: trained once, whole or absent, and able to do what it was trained for."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from glmtune.demo import trained
from glmtune.demo.model import DIGESTS, demo_model_path, digests
from glmtune.demo.trained import trained_model_path
from glmtune.errors import GlmtuneError
from glmtune.modeling.finding.model_source import find_model

USE = "from glmtune.demo.trained import trained_model_path; print(trained_model_path())"


@pytest.fixture
def short_training(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Train two steps instead of all, into a cache of its own."""
    monkeypatch.setattr(trained, "FIRST_TRAINING", {"max_steps": 2, "learning_rate": 3e-3, "save_steps": 200})
    monkeypatch.setenv("GLMTUNE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_it_is_made_once_and_is_another_model_than_the_random_one(
    short_training: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "nowhere"}.items():
        monkeypatch.setenv(name, value)  # each process of a group may ask for it, and the training is none of them
    folder = Path(find_model("demo-sft").base)
    assert folder == trained_model_path()
    assert folder.parent == short_training
    assert {path.name for path in folder.iterdir()} == {*trained.MODEL_FILES, DIGESTS}
    weights = [path / "model.safetensors" for path in (folder, demo_model_path())]
    assert weights[0].read_bytes() != weights[1].read_bytes()
    assert not list(short_training.glob(f"{trained.BUILDING}*"))
    assert "`demo-sft` is made" not in capsys.readouterr().err  # rank 1 does not speak


def test_its_shape_and_its_tokenizer_need_no_training(short_training: Path) -> None:
    assert find_model("demo-sft", needs_weights=False).base == str(demo_model_path())
    assert not list(short_training.glob("demo-sft-*"))


def test_a_folder_of_that_name_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo-sft").mkdir()
    with pytest.raises(GlmtuneError, match="is neither a model nor a checkpoint"):
        find_model("demo-sft")


def test_a_training_that_fails_leaves_nothing_and_says_why(
    short_training: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trained, "FIRST_TRAINING", {"max_steps": 2, "learning_rate": -1.0})
    with pytest.raises(GlmtuneError) as caught:
        trained_model_path()
    assert caught.value.what == (
        "the demo model could not be trained: `training_args.learning_rate`: expected a finite number above 0, "
        "found `-1.0`"
    )
    assert [path.name for path in short_training.iterdir() if path.suffix != ".lock" and "sft" in path.name] == []


@pytest.mark.slow
def test_what_is_damaged_is_made_anew_and_two_at_once_make_it_once(short_training: Path) -> None:
    folder = trained_model_path()
    (folder / "model.safetensors").write_bytes(b"")
    code = f"from glmtune.demo import trained; trained.FIRST_TRAINING = {trained.FIRST_TRAINING!r}; {USE}"
    two = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    told = [process.communicate(timeout=300) for process in two]
    assert {out.strip() for out, _ in told} == {str(folder)}
    assert sum(err.count("`demo-sft` is made") for _, err in told) == 1
    assert json.loads((folder / DIGESTS).read_text(encoding="utf-8")) == digests(folder)


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux ends a process with its parent")
def test_the_training_ends_with_the_one_that_waits_for_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("GLMTUNE_CACHE", str(tmp_path / "cache"))
    with subprocess.Popen([sys.executable, "-c", USE], stderr=subprocess.DEVNULL) as process:
        while not (found := list((tmp_path / "cache").glob(f"{trained.BUILDING}*/run/metrics.jsonl"))):
            assert process.poll() is None
            time.sleep(0.5)
        process.send_signal(signal.SIGKILL)
    time.sleep(15)
    size = found[0].stat().st_size
    time.sleep(5)
    assert found[0].stat().st_size == size


@pytest.mark.slow
@pytest.mark.long
def test_it_writes_the_copy_that_it_was_trained_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, demo_data: Path
) -> None:
    from glmtune import evaluate

    monkeypatch.setenv("GLMTUNE_CACHE", str(tmp_path / "cache"))
    assert evaluate("demo-sft", demo_data / "dev.jsonl", max_new_tokens=80).metrics["bleu-4"] > 50
    assert os.listdir(tmp_path / "cache")
