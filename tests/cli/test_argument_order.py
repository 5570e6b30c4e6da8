"""Arguments in each other's place: one line, and the command in its order."""

from __future__ import annotations

from pathlib import Path

import pytest
from command_line import command_line

CONFIG = "training_args: {output_dir: run}\n"


@pytest.fixture
def folder(tmp_path: Path, demo_model: str) -> Path:
    """Rows as a file and in a folder, a model in a folder, and a configuration."""
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "response": "b"}\n', encoding="utf-8")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.jsonl").write_text('{"prompt": "a", "response": "b"}\n', encoding="utf-8")
    (tmp_path / "lora.yaml").write_text(CONFIG, encoding="utf-8")
    (tmp_path / "glm").symlink_to(demo_model)
    return tmp_path


@pytest.mark.parametrize(
    ("typed", "wrong", "expected", "right"),
    [
        ("train demo rows.jsonl", "demo", "the rows are", "train rows.jsonl demo"),
        ("train demo data lora.yaml", "demo", "the rows are", "train data demo lora.yaml"),
        ("train glm data lora.yaml", "glm", "the rows are", "train data glm lora.yaml"),
        ("train data lora.yaml demo", "lora.yaml", "the model is", "train data demo lora.yaml"),
        ("train lora.yaml demo data", "lora.yaml", "the rows are", "train data demo lora.yaml"),
        ("train lora.yaml data glm", "lora.yaml", "the rows are", "train data glm lora.yaml"),
        ("eval rows.jsonl demo", "rows.jsonl", "the model is", "eval demo rows.jsonl"),
        ("estimate lora.yaml demo", "lora.yaml", "the model is", "estimate demo lora.yaml"),
        ("data check demo rows.jsonl", "demo", "the rows are", "data check rows.jsonl demo"),
        ("data check glm data", "glm", "the rows are", "data check data glm"),
        ("data inspect demo data", "demo", "the rows are", "data inspect data demo"),
        ("data prepare demo data lora.yaml", "demo", "the rows are", "data prepare data demo lora.yaml"),
    ],
)
def test_the_command_is_told_in_its_order(typed: str, wrong: str, expected: str, right: str, folder: Path) -> None:
    done = command_line(*typed.split(), cwd=folder)
    assert done.returncode == 2
    assert done.stderr == f"error: `{wrong}` stands where {expected} expected\nhint: `glmtune {right}`\n"


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("train none demo", "data file `none` does not exist"),
        ("train none data lora.yaml", "data folder `none` does not exist"),
        ("train none glm lora.yaml", "data folder `none` does not exist"),
        ("eval none rows.jsonl", "model `none` does not exist"),
        ("data check rows.jsonl none", "model `none` does not exist"),
        ("estimate demo none.yaml", "there is no configuration `none.yaml`"),
    ],
)
def test_what_fits_in_no_order_is_told_as_it_is(typed: str, message: str, folder: Path) -> None:
    done = command_line(*typed.split(), cwd=folder)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {message}")
