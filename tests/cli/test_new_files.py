"""No verb overwrites a file that is there, by whatever name it is called; and it says so before it works."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from command_line import command_line

ROW = '{"messages": [{"role": "user", "content": "问"}, {"role": "assistant", "content": "答"}]}\n'
VERBS = {
    "eval": ["eval", "demo", "dev.jsonl", "--max-new-tokens", "2", "--output"],
    "convert": ["data", "convert", "dev.jsonl"],
    "inspect": ["data", "inspect", "dev.jsonl", "demo", "--html"],
    "plot": ["data", "check", "dev.jsonl", "demo", "--plot"],
}
TAKEN = {
    "the rows themselves": "dev.jsonl",
    "another spelling": "folder/../dev.jsonl",
    "a link": "link.jsonl",
    "a hard link": "hard.jsonl",
    "a link that leads nowhere": "nowhere.jsonl",
    "another file": "other.jsonl",
    "a folder": "folder.jsonl",
    "a device": "device.jsonl",
}


@pytest.fixture
def files(tmp_path: Path) -> Path:
    (tmp_path / "dev.jsonl").write_text(ROW, encoding="utf-8")
    (tmp_path / "other.jsonl").write_text("mine", encoding="utf-8")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder.jsonl").mkdir()
    (tmp_path / "link.jsonl").symlink_to("dev.jsonl")
    (tmp_path / "nowhere.jsonl").symlink_to("absent.jsonl")
    (tmp_path / "device.jsonl").symlink_to(os.devnull)
    (tmp_path / "hard.jsonl").hardlink_to(tmp_path / "dev.jsonl")
    return tmp_path


def state(folder: Path) -> dict[str, object]:
    """Return what every entry is, and what it holds."""
    return {
        entry.name: (entry.is_symlink(), entry.is_dir(), entry.read_bytes() if entry.is_file() else None)
        for entry in folder.iterdir()
    }


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("name", TAKEN.values(), ids=TAKEN)
def test_a_file_that_is_there_is_refused_and_stays_as_it_is(verb: str, name: str, files: Path) -> None:
    before = state(files)
    done = command_line(*VERBS[verb], name, cwd=files)
    assert done.returncode == 2
    problem = "is a folder" if name.startswith("folder.") else "exists already"
    assert f"error: `{name}` {problem}" in done.stderr
    assert "\nhint: " in done.stderr
    assert "Traceback" not in done.stderr
    assert state(files) == before


def test_an_evaluation_that_fails_leaves_no_empty_file(files: Path) -> None:
    (files / "bad.jsonl").write_text("{", encoding="utf-8")
    done = command_line("eval", "demo", "bad.jsonl", "--output", "new.jsonl", cwd=files)
    assert done.returncode == 2
    assert not (files / "new.jsonl").exists()


def test_a_name_that_cannot_be_written_is_told_before_the_model_is_loaded(files: Path) -> None:
    done = command_line("eval", "demo", "dev.jsonl", "--output", "dev.jsonl/new.jsonl", cwd=files)
    assert done.returncode == 2
    assert "error: `dev.jsonl/new.jsonl` cannot be written: " in done.stderr


def test_predictions_go_to_a_free_name_by_default(files: Path) -> None:
    (files / "predictions-dev.jsonl").symlink_to("absent")
    done = command_line("eval", "demo", "dev.jsonl", "--max-new-tokens", "2", cwd=files)
    assert done.returncode == 0
    assert "1 predictions in predictions-dev-2.jsonl" in done.stderr
    assert not (files / "absent").exists()
    assert not [entry.name for entry in files.iterdir() if entry.name.startswith(".")]


def test_no_split_is_drawn_over_a_file(files: Path) -> None:
    (files / "c.yaml").write_text(
        "data_config: {train_file: dev.jsonl, val_file: dev.jsonl}\nmax_input_length: 64\nmax_output_length: 64\n"
        "training_args: {output_dir: out}\n",
        encoding="utf-8",
    )
    (files / "lengths-val.png").write_text("mine", encoding="utf-8")
    arguments = ["data", "check", ".", "demo", "--config", "c.yaml", "--plot", "lengths.png"]
    done = command_line(*arguments, cwd=files)
    assert done.returncode == 2
    assert "error: `lengths-val.png` exists already" in done.stderr
    assert not (files / "lengths-train.png").exists()


def test_a_link_to_an_empty_folder_is_filled_by_an_export(files: Path) -> None:
    (files / "disk").mkdir()
    (files / "out").symlink_to("disk")
    (files / "q.jsonl").write_text('{"prompt": "你好"}\n', encoding="utf-8")
    assert command_line("export", "demo", "out", "--prompts", "q.jsonl", cwd=files).returncode == 0
    assert (files / "disk" / "config.json").is_file()


@pytest.mark.parametrize("name", ["dev.jsonl", "nowhere.jsonl"])
def test_the_demo_takes_no_file_for_its_folder(name: str, files: Path) -> None:
    before = state(files)
    done = command_line("demo", "--output", name, cwd=files)
    assert done.returncode == 2
    assert f"error: `{name}` is no folder" in done.stderr
    assert state(files) == before


@pytest.mark.parametrize("verb", VERBS)
def test_a_tilde_is_the_home_folder(verb: str, files: Path, monkeypatch) -> None:
    monkeypatch.setenv("HOME", str(files))
    before = state(files)
    done = command_line(*VERBS[verb], "~/other.jsonl", cwd=files)
    assert done.returncode == 2
    assert f"error: `{files / 'other.jsonl'}` exists already" in done.stderr
    assert state(files) == before
