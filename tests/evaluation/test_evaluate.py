"""Evaluation against plain computations."""

from __future__ import annotations

import json
import math
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from json_lines import json_lines

from glmtune import evaluate
from glmtune.chatformat.encoding import Encoder
from glmtune.chatformat.replies import ReplyLayout
from glmtune.encoded.dataset import encode_file
from glmtune.errors import RunFailure
from glmtune.evaluation.evaluate import _perplexity, score_model
from glmtune.evaluation.mean_loss import mean_loss
from glmtune.evaluation.metrics import METRIC_NAMES
from glmtune.evaluation.predictions import GenerationPlan
from glmtune.generation.generate import generation_config
from glmtune.kernels.loss import LabelledLoss
from glmtune.modeling.finding.model_source import find_model
from glmtune.modeling.loading import LoadedModel, load_model


@pytest.fixture(scope="module")
def loaded(demo_model: str) -> LoadedModel:
    return load_model(find_model(demo_model), dtype=torch.float64)


@pytest.fixture(scope="module")
def encoder(loaded: LoadedModel) -> Encoder:
    return Encoder(loaded.tokenizer, loaded.family)


def plan_for(loaded: LoadedModel, max_input_length: int | None = None) -> GenerationPlan:
    config = generation_config(loaded.model, {"max_new_tokens": 3})
    return GenerationPlan(config=config, max_input_length=max_input_length, batch_size=4, layout=ReplyLayout())


def test_the_loss_is_the_mean_over_trained_tokens(loaded: LoadedModel, encoder: Encoder, demo_data: Path) -> None:
    data = encode_file(demo_data / "dev.jsonl", encoder)
    total = count = 0.0
    for row in data.dataset:
        with torch.no_grad():
            logits = loaded.model(torch.tensor([row["input_ids"]])).logits[0, :-1].float()
        labels = torch.tensor(row["labels"][1:])
        total += torch.nn.functional.cross_entropy(logits, labels, reduction="sum").item()
        count += (labels != -100).sum().item()
    loss = mean_loss(loaded.model, loaded.tokenizer, data, batch_size=4)
    assert loss == pytest.approx(total / count, rel=1e-6)
    scores = score_model(loaded.model, loaded.tokenizer, data, batch_size=4, plan=None)
    assert scores.metrics == pytest.approx({"loss": loss, "perplexity": math.exp(loss)})


@pytest.mark.parametrize("batch_size", [1, 4, 50])
def test_padding_changes_no_figure(loaded: LoadedModel, demo_data: Path, batch_size: int) -> None:
    scores = evaluate(loaded, demo_data / "dev.jsonl", batch_size=batch_size, max_new_tokens=6)
    expected = evaluate(loaded, demo_data / "dev.jsonl", batch_size=3, max_new_tokens=6)
    for name in ("loss", *METRIC_NAMES):
        assert scores.metrics[name] == pytest.approx(expected.metrics[name], rel=1e-6), name
    assert scores.predictions == expected.predictions


def test_every_assistant_turn_gets_a_prompt_without_its_reference(loaded: LoadedModel, tmp_path: Path) -> None:
    messages = [
        {"role": "user", "content": "第一"},
        {"role": "assistant", "content": "答一"},
        {"role": "user", "content": "第二"},
        {"role": "assistant", "content": "答二"},
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"messages": messages}), encoding="utf-8")
    scores = evaluate(loaded, path, max_new_tokens=2)
    assert [(p.turn, p.reference) for p in scores.predictions] == [(0, "答一"), (1, "答二")]
    assert scores.predictions[0].prompt == "[gMASK]<sop><|user|>\n第一<|assistant|>"
    assert scores.predictions[1].prompt == "[gMASK]<sop><|user|>\n第一<|assistant|>\n答一<|user|>\n第二<|assistant|>"
    last = evaluate(loaded, path, max_new_tokens=2, combine=True)
    assert [p.reference for p in last.predictions] == ["答二"]


def test_predictions_are_written_as_lines_of_json(loaded: LoadedModel, demo_data: Path, tmp_path: Path) -> None:
    output = tmp_path / "folder" / "predictions.jsonl"
    scores = evaluate(loaded, demo_data / "dev.jsonl", output=output, max_new_tokens=2)
    lines = json_lines(output)
    fields = ("where", "turn", "prompt", "reference", "prediction")
    assert lines == [{name: getattr(made, name) for name in fields} for made in scores.predictions]


def test_a_prompt_over_the_limit_is_left_out_and_listed(loaded: LoadedModel, encoder: Encoder, demo_data: Path) -> None:
    data = encode_file(demo_data / "dev.jsonl", encoder)
    turns = [turn for _, turn in data.turns()]
    limit = sorted(len(turn.prompt_ids) for turn in turns)[len(turns) // 2]
    scores = score_model(loaded.model, loaded.tokenizer, data, batch_size=4, plan=plan_for(loaded, limit))
    fitting = sum(len(turn.prompt_ids) <= limit for turn in turns)
    assert len(scores.predictions) == fitting
    assert len(scores.left_out) == len(turns) - fitting
    assert all("over `max_input_length`" in reject.reason for reject in scores.left_out)


@pytest.mark.parametrize("count", [1, 5])
def test_small_files_are_no_special_case(loaded: LoadedModel, demo_data: Path, count: int) -> None:
    scores = evaluate(loaded, demo_data / "dev.jsonl", limit=count, max_new_tokens=2)
    assert len({p.where for p in scores.predictions}) == count
    assert all(math.isfinite(value) for value in scores.metrics.values())


def test_answers_that_are_empty_score_zero(loaded: LoadedModel, demo_data: Path) -> None:
    stops = list(range(len(loaded.tokenizer)))
    scores = evaluate(loaded, demo_data / "dev.jsonl", limit=2, max_new_tokens=2, eos_token_id=stops)
    assert {p.prediction for p in scores.predictions} == {""}
    assert [scores.metrics[name] for name in METRIC_NAMES] == [0.0, 0.0, 0.0, 0.0]


def test_evaluation_leaves_mode_and_random_numbers_as_they_were(loaded: LoadedModel, demo_data: Path) -> None:
    loaded.model.train()
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    evaluate(loaded, demo_data / "dev.jsonl", limit=1, max_new_tokens=2, do_sample=True)
    assert torch.rand(1) == expected
    assert loaded.model.training
    loaded.model.eval()


def test_every_batch_is_counted(loaded: LoadedModel, encoder: Encoder, demo_data: Path) -> None:
    data = encode_file(demo_data / "dev.jsonl", encoder)
    num_turns = len(data.turns())
    for plan, num_batches in ((None, 2), (plan_for(loaded), 2 + math.ceil(num_turns / 4))):
        seen: list[tuple[int, int]] = []

        def keep(done: int, total: int, seen: list[tuple[int, int]] = seen) -> None:
            seen.append((done, total))

        score_model(loaded.model, loaded.tokenizer, data, batch_size=4, plan=plan, on_batch=keep)
        assert seen == [(number, num_batches) for number in range(1, num_batches + 1)]


def test_an_evaluation_shows_on_a_terminal_how_far_it_is(
    loaded: LoadedModel, demo_data: Path, capsys, monkeypatch
) -> None:
    evaluate(loaded, demo_data / "dev.jsonl", limit=1, max_new_tokens=1)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    evaluate(loaded, demo_data / "dev.jsonl", limit=1, max_new_tokens=1)
    assert capsys.readouterr().err == "\r\x1b[Kevaluating 1/2\r\x1b[K"


def test_a_row_beyond_the_models_context_is_left_out_and_reported(
    loaded: LoadedModel, demo_data: Path, tmp_path: Path, monkeypatch
) -> None:
    rows = (demo_data / "dev.jsonl").read_text(encoding="utf-8")
    messages = [{"role": "user", "content": "长" * 300}, {"role": "assistant", "content": "答"}]
    path = tmp_path / "rows.jsonl"
    path.write_text(rows + json.dumps({"messages": messages}) + "\n", encoding="utf-8")
    monkeypatch.setattr(loaded.model.config, "max_position_embeddings", 250)
    scores = evaluate(loaded, path, max_new_tokens=2)
    [reject] = scores.left_out
    assert reject.where == f"{path}:7"
    assert re.fullmatch(r"\d+ tokens, over the limit of 250", reject.reason)
    assert scores.metrics["loss"] == evaluate(loaded, demo_data / "dev.jsonl", max_new_tokens=2).metrics["loss"]


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"prompt": "几点开门？", "completion": "九点。", "id": 1}, []),
        ({"prompt": "几点开门？", "completion": "九点。", "score": 1}, ["keys that are not read: `score` (2 rows)"]),
        (
            {"prompt": "几点开门？", "chosen": "九点。", "rejected": "不知道。"},
            ["2 rows have two answers: the chosen one is scored, the rejected answer is not used"],
        ),
    ],
)
def test_what_of_the_rows_is_not_used_is_told_before_the_scores(
    row: dict[str, Any], told: list[str], loaded: LoadedModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(2 * f"{json.dumps(row)}\n", encoding="utf-8")
    evaluate(loaded, path, max_new_tokens=1)
    lines = capsys.readouterr().err.splitlines()
    assert [line for line in lines if "not read" in line or "two answers" in line] == [f"note: {each}" for each in told]


def test_a_model_that_computes_no_numbers_has_no_score(demo_model: str, demo_data: Path) -> None:
    broken = load_model(find_model(demo_model), dtype=torch.float64)
    with torch.no_grad():
        broken.model.lm_head.weight[7] = math.nan
    with pytest.raises(RunFailure, match="the model computes no numbers: a weight of it is not finite"):
        evaluate(broken, demo_data / "dev.jsonl", max_new_tokens=2)


def test_a_loss_that_is_no_number_is_told_and_spoils_nothing_else(
    demo_model: str, demo_data: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    summed = LabelledLoss.summed
    monkeypatch.setattr(LabelledLoss, "summed", lambda *args, **options: summed(*args, **options) * math.nan)
    scores = evaluate(demo_model, demo_data / "dev.jsonl", max_new_tokens=2)
    assert math.isnan(scores.metrics["loss"])
    assert math.isnan(scores.metrics["perplexity"])
    assert all(math.isfinite(scores.metrics[name]) for name in METRIC_NAMES)
    assert "note: the loss over these rows is nan: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("loss", "perplexity"),
    [(0.0, 1.0), (2.0, math.e**2), (709.0, math.exp(709)), (710.0, math.inf), (math.inf, math.inf)],
)
def test_a_perplexity_beyond_all_numbers_is_infinite(loss: float, perplexity: float) -> None:
    assert _perplexity(loss) == pytest.approx(perplexity)
