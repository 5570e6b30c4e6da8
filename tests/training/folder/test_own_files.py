"""A run writes into a folder that was there before it, and overwrites nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from glmtune import generate, train
from glmtune.errors import GlmtuneError
from glmtune.training.folder.run_folder import OWN_FILES


@pytest.mark.parametrize("name", OWN_FILES)
def test_a_file_that_a_run_would_write_is_refused(name: str, write_config, demo_data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / name).write_text("mine", encoding="utf-8")
    with pytest.raises(GlmtuneError) as caught:
        train(demo_data, "demo", write_config())
    assert caught.value.what == f"`{run}` holds a `{name}`, and a run writes one of its own there"
    assert [(path.name, path.read_text(encoding="utf-8")) for path in run.iterdir()] == [(name, "mine")]


def test_every_name_that_a_run_writes_is_known(write_config, demo_data: Path, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    rows = (demo_data / "train.jsonl").read_text(encoding="utf-8")
    (tmp_path / "data" / "train.jsonl").write_text(rows + "{}\n", encoding="utf-8")
    (tmp_path / "data" / "dev.jsonl").write_text((demo_data / "dev.jsonl").read_text(encoding="utf-8"), "utf-8")
    run = train(tmp_path / "data", "demo", write_config(max_steps=2, save_steps=2, eval_steps=2))
    names = {path.name for path in run.iterdir() if not path.name.startswith((".", "checkpoint-"))}
    assert names <= {"run.yaml", *OWN_FILES}
    assert {"metrics.jsonl", "rejects.jsonl", "predictions"} <= names


def test_a_run_that_does_not_begin_leaves_the_folder_as_it_was(write_config, demo_data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "notes.txt").write_text("mine", encoding="utf-8")
    path = write_config(lr_scheduler_type="cosine_with_min_lr")
    for _ in range(2):
        with pytest.raises((ValueError, GlmtuneError), match="min_lr"):
            train(demo_data, "demo", path)
        assert [entry.name for entry in run.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("name", ["config.json", "adapter_config.json", "manifest.json", "model.safetensors"])
def test_a_folder_that_holds_a_model_takes_no_run(name: str, write_config, demo_data: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / name).write_text("{}", encoding="utf-8")
    with pytest.raises(GlmtuneError, match=f"holds a model \\(`{name}`\\), which a run in the same folder would hide"):
        train(demo_data, "demo", write_config())
    assert [path.name for path in (tmp_path / "run").iterdir()] == [name]


def test_a_finished_run_s_checkpoint_takes_no_run(write_config, demo_data: Path, tmp_path: Path) -> None:
    run = train(demo_data, "demo", write_config(max_steps=1, eval_strategy="no"))
    with pytest.raises(GlmtuneError, match="holds a model"):
        train(demo_data, "demo", write_config(output_dir=str(run / "checkpoint-1")))
    assert len(generate(run / "checkpoint-1", ["a"], max_new_tokens=1)) == 1


def test_a_folder_with_the_user_s_rows_is_not_to_be_removed(
    write_config, demo_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "rows.jsonl").write_text("", encoding="utf-8")
    (tmp_path / "run.yaml").write_text("", encoding="utf-8")
    (tmp_path / "metrics.jsonl").write_text("", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(GlmtuneError) as caught:
        train(demo_data, "demo", write_config(output_dir="."))
    assert caught.value.fix == (
        "remove what it has left there (`run.yaml`, `metrics.jsonl`), or choose another folder: "
        f"`--set training_args.output_dir={tmp_path.name}-2`"
    )
