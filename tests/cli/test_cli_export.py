"""`glmtune export` as a user meets it."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import pytest

from glmtune.cli import app as cli


def run(monkeypatch, *arguments: str) -> int:
    """Run the command line in this process; returns its exit code."""
    monkeypatch.setattr(sys, "argv", ["glmtune", *arguments])
    with pytest.raises(SystemExit) as ended, warnings.catch_warnings():
        cli.main()
    return int(ended.value.code or 0)


def test_an_export_tells_its_figures_on_stdout(tmp_path: Path, monkeypatch, capfd) -> None:
    monkeypatch.chdir(tmp_path)
    Path("prompts.jsonl").write_text('{"prompt": "你好"}\n{"prompt": "Hello"}\n', encoding="utf-8")
    assert run(monkeypatch, "export", "demo", "out", "--prompts", "prompts.jsonl", "--dtype", "bfloat16") == 0
    shown = capfd.readouterr()
    assert shown.out == (
        "out: a full model in bfloat16, 1 file of 2.2 MB\n"
        "greedy answers: 2 of 2 are the same as before (2 rows of prompts.jsonl)\n"
        "largest logit difference: 0\n"
        "it can be served with `glmtune serve out`, `vllm serve out` or `transformers serve out`\n"
    )
    assert "Warning" not in shown.err
    assert (tmp_path / "out" / "config.json").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["demo", "used"], "error: `{here}/used` is not empty\nhint: choose another folder, or empty it\n"),
        (["demo", "link"], "error: `link` is a link that leads nowhere\n"
         "hint: choose another name, or remove it first\n"),
        (["demo", "out", "--push", "me/model"], "error: cannot push to `me/model`: `HF_HUB_OFFLINE` is set\n"
         "hint: unset it, or leave out `--push` and upload the folder later with `hf upload`\n"),
        (["demo", "out", "--gguf-type", "q4"], "error: the converter writes no GGUF of type `q4`; expected one of "
         "`auto`, `f32`, `f16`, `bf16`, `q8_0`\n"
         "hint: convert to `bf16`, then `llama-quantize MODEL-bf16.gguf MODEL-q4.gguf q4`\n"),
        (["nowhere", "out"], "error: model `nowhere` does not exist\nhint: give a model folder, a checkpoint, a "
         "hub name such as `zai-org/glm-4-9b-chat-hf`, or `demo`\n"),
    ],
)  # fmt: skip
def test_a_mistake_is_told_before_any_work(arguments, message, tmp_path: Path, monkeypatch, capfd) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "file").touch()
    (tmp_path / "link").symlink_to("absent")
    assert run(monkeypatch, "export", *arguments) == 2
    assert capfd.readouterr().err == message.format(here=tmp_path)
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "absent").exists()
