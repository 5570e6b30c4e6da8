"""The demo reaches its goals: what `make demo` shows is real learning."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from glmtune.cli.tour import run_tour
from glmtune.errors import GlmtuneError


@pytest.mark.slow
def test_the_demo_learns_adapts_resumes_and_answers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_tour(tmp_path / "demo")
    shown = capsys.readouterr().out
    bleu = {}
    for line in shown.splitlines():
        match = re.match(r"(random weights|full SFT|LoRA|P-Tuning v2) +(plain|lively) +([\d.]+) ", line)
        if match:
            bleu[match[1], match[2]] = float(match[3])
    assert bleu["full SFT", "plain"] >= 60 > bleu["random weights", "plain"]
    base = bleu["full SFT", "lively"]
    assert bleu["LoRA", "lively"] >= 2 * base
    assert bleu["P-Tuning v2", "lively"] >= 4 / 3 * base
    equal, total = re.search(r"(\d+) of (\d+) logged losses are equal to the last digit", shown).groups()
    assert equal == total
    assert (tmp_path / "demo" / "sft" / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_the_demo_never_writes_into_a_folder_that_is_in_use(tmp_path: Path) -> None:
    (tmp_path / "note.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(GlmtuneError) as caught:
        run_tour(tmp_path)
    assert (
        str(caught.value)
        == f"`{tmp_path}` is not empty\nhint: choose another with `--output`, one that is not there yet"
    )
