"""Models over the same rows: figures of the turns that all have answered, what changed, reports that hide nothing."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
from command_line import command_line
from hostile_text import is_harmless

from glmtune import compare, evaluate
from glmtune.comparing.compare import compared_file
from glmtune.comparing.comparison import LENGTH, Comparison
from glmtune.comparing.html_report import html_report
from glmtune.comparing.report import as_dict, markdown, write_report
from glmtune.errors import GlmtuneError
from glmtune.evaluation.evaluate import Scores
from glmtune.evaluation.metrics import score_texts
from glmtune.evaluation.predictions import Prediction
from glmtune.evaluation.tool_calls import FALSE_CALL, NO_CALL, OTHER_ARGUMENTS, SAME, call_metrics

REFERENCE = "这件衣服的颜色是红色"


def scored(answers: list[str], calls: list[str | None] | None = None, **more: float) -> Scores:
    """Return the scores of a model that gave these answers, a row each."""
    outcomes = calls or [None] * len(answers)
    made = [
        Prediction(where=f"a.jsonl:{n}", turn=0, prompt=f"问{n}", reference=REFERENCE, prediction=text, tool_call=call)
        for n, (text, call) in enumerate(zip(answers, outcomes), start=1)
    ]
    texts = score_texts(answers, [REFERENCE] * len(answers))
    metrics = {"loss": 1.0, "perplexity": math.e, **texts.as_metrics(), **call_metrics(outcomes), **more}
    return Scores(metrics=metrics, predictions=tuple(made), text_scores=tuple(texts.per_text))


def test_figures_are_those_of_an_evaluation() -> None:
    first = scored([REFERENCE, "", "红色的衣服"], [SAME, NO_CALL, None])
    second = scored(["衣服", REFERENCE, "衣服"], [OTHER_ARGUMENTS, SAME, FALSE_CALL], own=4.0)
    found = compared_file("a.jsonl", {"one": first, "two": second})
    for name, scores in (("one", first), ("two", second)):
        expected = {key: value for key, value in scores.metrics.items() if key != "generation_seconds"}
        assert {key: value for key, value in found.metrics[name].items() if key != LENGTH} == pytest.approx(expected)
    assert found.metrics["one"][LENGTH] == pytest.approx((len(REFERENCE) + 0 + 5) / 3)
    [other] = found.others
    assert other.differences["tool-call-accuracy"].value == 0
    assert other.differences["tool-name-accuracy"].value == 50
    assert other.differences["false-call-rate"].value == 100


def test_what_got_better_and_worse() -> None:
    first = scored([REFERENCE, "", "衣服", REFERENCE, "同"], [None, NO_CALL, NO_CALL, SAME, None])
    second = scored(["", REFERENCE, REFERENCE, "", "同"], [None, SAME, OTHER_ARGUMENTS, NO_CALL, None])
    [other] = compared_file("a.jsonl", {"one": first, "two": second}).others
    assert [turn.where for turn in other.better] == ["a.jsonl:2", "a.jsonl:3"]  # by calls first
    assert [turn.where for turn in other.worse] == ["a.jsonl:4", "a.jsonl:1"]
    assert other.num_equal == 1
    assert other.calls == {(NO_CALL, SAME): 1, (NO_CALL, OTHER_ARGUMENTS): 1, (SAME, NO_CALL): 1}
    worst = other.worse[-1]
    assert (worst.answers, worst.rouge_l, worst.tool_calls) == ((REFERENCE, ""), (100.0, 0.0), (None, None))


def test_turns_that_one_model_has_not_answered_count_for_none() -> None:
    first = scored([REFERENCE, "", REFERENCE])
    second = scored(["", REFERENCE])  # the third row had no room
    found = compared_file("a.jsonl", {"one": first, "two": second, "three": scored([REFERENCE])})
    assert found.num_turns == 1
    assert found.metrics["one"]["rouge-l"] == 100
    with pytest.raises(GlmtuneError, match="no turn that every model has answered"):
        compared_file("a.jsonl", {"one": first, "two": scored([])})


HOSTILE = 'a|b <script>alert(1)</script> `c` ``d`` \x1b[2J\u202e "x" </dd>\n| new row |'


@pytest.fixture
def hostile() -> Comparison:
    first, second = scored(["", *[REFERENCE] * 8]), scored([HOSTILE, *["红色"] * 8])
    names = ["one|<b>", "two\x1b[2J"]
    file = compared_file(HOSTILE, dict(zip(names, (first, second))))
    return Comparison(names=names, files=[file])


def test_reports_show_hostile_text_harmlessly(hostile: Comparison) -> None:
    page, text = html_report(hostile, 10), markdown(hostile)
    for report in (page, text):
        assert "\x1b" not in report
        assert "\u202e" not in report
        assert is_harmless(report.replace("\n", ""))
    assert "<script" not in page
    assert "<b>" not in page
    assert len(re.findall("<dd>", page)) == len(re.findall("</dd>", page))
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in table} == {4}


def test_the_page_needs_nothing_from_elsewhere(hostile: Comparison) -> None:
    page = html_report(hostile, 10)
    assert "default-src 'none'" in page
    assert not re.search(r"(src|href)=|https?://|@import|url\(", page)
    assert page.count("<svg") == page.count("</svg>") == 1


@pytest.mark.parametrize("ending", [".md", ".json", ".html", ".HTML"])
def test_reports_are_written_once(ending: str, hostile: Comparison, tmp_path: Path) -> None:
    path = tmp_path / f"report{ending}"
    write_report(hostile, path)
    written = path.read_bytes()
    assert len(written) > 500
    with pytest.raises(GlmtuneError, match="exists already"):
        write_report(hostile, path)
    assert path.read_bytes() == written
    with pytest.raises(GlmtuneError, match="does not say what to write"):
        write_report(hostile, tmp_path / "report.txt")


def test_json_has_every_changed_turn(hostile: Comparison) -> None:
    [file] = json.loads(json.dumps(as_dict(hostile)))["files"]
    [other] = file["others"]
    assert len(other["worse"]) == 8
    assert other["differences"]["rouge-l"]["value"] < 0
    assert other["calls"] == []


def test_models_are_compared(demo_data: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"limit": 6, "max_new_tokens": 4}
    dev, test = demo_data / "dev.jsonl", demo_data / "test.jsonl"
    reports = [tmp_path / name for name in ("r.md", "r.json", "r.html")]
    found = compare(["demo", str(small_copy(tmp_path))], dev, retention=test, output=reports, **options)
    assert [Path(file.data_file) for file in found.files] == [dev, test]
    for file, path in zip(found.files, (dev, test)):
        alone = evaluate("demo", path, **options).metrics
        for name in ("loss", "bleu-4", "rouge-l"):
            assert file.metrics["demo"][name] == pytest.approx(alone[name], rel=1e-6)
        [other] = file.others
        assert other.num_equal == file.num_turns  # the same weights
        assert other.differences["rouge-l"].value == 0
        assert not other.better
        assert not other.worse
    assert all(path.stat().st_size > 500 for path in reports)


def small_copy(folder: Path) -> Path:
    """Return a folder with the embedded model's files."""
    from glmtune.generation.generate import as_loaded

    loaded = as_loaded("demo", base_model=None, trust_remote_code=False)
    loaded.model.save_pretrained(folder / "copy")
    loaded.tokenizer.save_pretrained(folder / "copy")
    return folder / "copy"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["demo", "{dev}"], "`compare` needs two models and a file of rows"),
        (["demo", "demo", "{dev}"], "`demo` is named twice"),
        (["demo", "demo-sft", "nowhere.jsonl"], "data file `nowhere.jsonl` does not exist"),
        (["demo", "./nowhere", "{dev}"], "model `./nowhere` does not exist"),
        (["demo", "demo-sft", "{dev}", "--output", "r.txt"], "`r.txt` does not say what to write"),
        (["demo", "demo-sft", "{dev}", "--output", "{dev}"], "`{dev}` does not say what to write"),
        (["demo", "demo-sft", "{dev}", "--output", "no/r.md"], "folder `no` does not exist"),
        (["demo", "demo-sft", "{dev}", "--retention", "nowhere.jsonl"], "data file `nowhere.jsonl` does not exist"),
    ],
)
def test_mistakes_are_told_before_anything_is_loaded(
    arguments: list[str], told: str, demo_data: Path, tmp_path: Path
) -> None:
    dev = str(demo_data / "dev.jsonl")
    done = command_line("compare", *(each.format(dev=dev) for each in arguments), cwd=tmp_path)
    assert done.returncode == 2
    assert told.format(dev=dev) in done.stderr
    assert "Traceback" not in done.stderr
