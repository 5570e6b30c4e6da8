"""Tool calls against those of the references: figures counted by hand."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from json_lines import json_lines
from transformers import PreTrainedTokenizerBase

from glmtune import evaluate
from glmtune.chatformat.encoding import Encoder
from glmtune.chatformat.replies import ARGUMENT_TAGS, JSON_TAGS, ROLE_LINE, ReplyLayout, ToolCall, reply_layout
from glmtune.encoded.dataset import encode_file
from glmtune.evaluation import predictions
from glmtune.evaluation.tool_calls import (
    FALSE_CALL,
    NO_CALL,
    OTHER_ARGUMENTS,
    OTHER_FUNCTION,
    SAME,
    CallReader,
    call_metrics,
    compare_calls,
)
from glmtune.family import GLM
from glmtune.generation.decoding import decode_sections
from glmtune.modeling.finding.model_source import find_model
from glmtune.modeling.loading import LoadedModel, load_model

CALL = ToolCall(name="find", arguments='{"city": "Bath", "days": 2}')


def find(arguments: str) -> ToolCall:
    return ToolCall(name="find", arguments=arguments)


@pytest.mark.parametrize(
    "arguments",
    ['{"city": "Bath", "days": 2}', '{"days":2,"city":"Bath"}', '{"city": "B\\u0061th", "days": 2.0}'],
    ids=["as written", "other order", "other spelling"],
)
def test_arguments_are_equal_as_json_values(arguments: str) -> None:
    assert compare_calls([CALL], [find(arguments)]) == SAME


@pytest.mark.parametrize(
    "arguments",
    ['{"city": "Bath"}', '{"city": "Bath", "days": "2"}', '{"city": "Bath", "days": 2, "unit": null}',
     '{"city": "bath", "days": 2}', '{"city": "Bath", "days": 2.5}', '{"city": "Bath", "days": 1e400}'],
)  # fmt: skip
def test_arguments_that_differ_are_found(arguments: str) -> None:
    assert compare_calls([CALL], [find(arguments)]) == OTHER_ARGUMENTS


def test_true_is_not_one() -> None:
    assert compare_calls([find('{"a": [true, 1]}')], [find('{"a": [1, true]}')]) == OTHER_ARGUMENTS


def test_a_turn_is_judged_by_both_sides() -> None:
    other = ToolCall(name="ask", arguments=CALL.arguments)
    assert compare_calls([], []) is None
    assert compare_calls([], [CALL]) == FALSE_CALL
    assert compare_calls([CALL], []) == NO_CALL
    assert compare_calls([CALL], [other]) == OTHER_FUNCTION


def test_the_order_of_calls_in_one_answer_does_not_count_but_their_number_does() -> None:
    second = find('{"city": "York"}')
    assert compare_calls([CALL, second], [second, CALL]) == SAME
    assert compare_calls([CALL, second], [CALL, CALL]) == OTHER_ARGUMENTS
    assert compare_calls([CALL, second], [CALL]) == OTHER_FUNCTION
    assert compare_calls([CALL], [CALL, CALL]) == OTHER_FUNCTION


def test_the_figures_are_shares_of_turns() -> None:
    outcomes = [SAME, SAME, OTHER_ARGUMENTS, OTHER_FUNCTION, NO_CALL, None, None, None, FALSE_CALL]
    assert call_metrics(outcomes) == {
        "tool-name-accuracy": 100 * 3 / 5,
        "tool-call-accuracy": 100 * 2 / 5,
        "false-call-rate": 100 * 1 / 4,
    }


def test_without_calls_to_make_there_are_no_figures_whatever_the_model_writes() -> None:
    assert call_metrics([]) == call_metrics([None, FALSE_CALL]) == {}
    assert call_metrics([NO_CALL]) == {"tool-name-accuracy": 0, "tool-call-accuracy": 0}


@pytest.mark.parametrize(
    ("layout", "sections"),
    [
        (ROLE_LINE, ["\n好的。", '查 天气\n{"城市": "杭州"}']),
        (ARGUMENT_TAGS, ["好的。<tool_call>查 天气\n<arg_key>城市</arg_key><arg_value>杭州</arg_value></tool_call>"]),
        (JSON_TAGS, ['好的。<tool_call>\n{"name": "查 天气", "arguments": {"城市": "杭州"}}\n</tool_call>']),
    ],
)  # fmt: skip
def test_functions_that_the_data_calls_may_have_any_name(layout: str, sections: list[str]) -> None:
    wanted = [ToolCall(name="查 天气", arguments='{"城市": "杭州"}')]
    reader = CallReader.for_references(ReplyLayout(calls=layout), [["\n你好。"], sections])
    assert compare_calls(wanted, reader.read(sections, "<|assistant|>")) == SAME
    assert reader.read(["\n你好。"], "<|assistant|>") == ()


@pytest.mark.parametrize(
    ("prompt", "written"),
    [("<|assistant|>\n<think>", "看。</think>\n"), ("<|assistant|>", "<think>看。</think>\n"), ("<|assistant|>", "")],
)
def test_reasoning_before_a_call_is_passed_over(prompt: str, written: str) -> None:
    layout = ReplyLayout(calls=ARGUMENT_TAGS, has_reasoning=True, prompt_opens_reasoning=True)
    calls = CallReader(layout).read([written + "<tool_call>look\n</tool_call>"], prompt)
    assert calls == (ToolCall(name="look", arguments="{}"),)


def test_every_call_of_published_rows_is_counted_and_equals_itself(
    shared_data: Path, glm_tokenizer: PreTrainedTokenizerBase
) -> None:
    path = shared_data / "glaive_toolcall_zh_1k.json"
    encoder = Encoder(glm_tokenizer, GLM)
    turns = [turn for _, turn in encode_file(path, encoder).turns()]
    references = [decode_sections(glm_tokenizer, turn.answer_ids) for turn in turns]
    reader = CallReader.for_references(reply_layout(encoder.renderer), references)
    calls = [reader.read(sections, "<|assistant|>") for sections in references]
    said = [
        json.loads(turn["value"])
        for row in json.loads(path.read_text(encoding="utf-8"))
        for turn in row["conversations"]
        if turn["from"] == "function_call"
    ]
    assert [call.name for made in calls for call in made] == [call["name"] for call in said]
    assert [json.loads(call.arguments) for made in calls for call in made] == [call["arguments"] for call in said]
    metrics = call_metrics([compare_calls(made, made) for made in calls])
    assert metrics == {"tool-name-accuracy": 100, "tool-call-accuracy": 100, "false-call-rate": 0}


@pytest.fixture(scope="module")
def loaded(demo_model: str) -> LoadedModel:
    return load_model(find_model(demo_model), dtype=torch.float32)


@pytest.fixture
def say(monkeypatch: pytest.MonkeyPatch, demo_tokenizer: Any) -> Callable[[Sequence[str]], None]:
    """Return a function that sets what the model answers, one text a turn."""

    def set_answers(texts: Sequence[str]) -> None:
        def answer_prompts(*_: Any, on_answers: Any, **__: Any) -> None:
            for place, text in enumerate(texts):
                on_answers([(place, demo_tokenizer.encode(text, add_special_tokens=False))])

        monkeypatch.setattr(predictions, "answer_prompts", answer_prompts)

    return set_answers


def write_rows(folder: Path, rows: Sequence[Sequence[dict[str, Any]]]) -> Path:
    path = folder / "rows.jsonl"
    lines = [json.dumps({"messages": messages}, ensure_ascii=False) + "\n" for messages in rows]
    path.write_text("".join(lines), encoding="utf-8")
    return path


def asks(content: str) -> dict[str, Any]:
    return {"role": "user", "content": content}


def calls(item: str) -> dict[str, Any]:
    return {"role": "assistant", "metadata": "get_stock", "content": json.dumps({"item": item}, ensure_ascii=False)}


def test_an_evaluation_counts_calls_and_says_of_every_turn_what_became_of_it(
    loaded: LoadedModel, say: Callable[[Sequence[str]], None], tmp_path: Path
) -> None:
    row = [asks("风衣有货吗？"), calls("风衣"), {"role": "observation", "content": '{"stock": 8}'},
           {"role": "assistant", "content": "有8件。"}]  # fmt: skip
    path = write_rows(tmp_path, [row, row, row])
    say(['get_stock\n{"item":"风衣"}', "\n有8件。",
         'get_stock\n{"item": "裙"}', 'get_stock\n{"item": "裙"}',
         'get_stock\n{"item": "风衣"', "\nget_stock\n{}"])  # fmt: skip
    output = tmp_path / "predictions.jsonl"
    metrics = evaluate(loaded, path, output=output).metrics
    assert metrics["tool-name-accuracy"] == pytest.approx(100 * 2 / 3)
    assert metrics["tool-call-accuracy"] == pytest.approx(100 * 1 / 3)
    assert metrics["false-call-rate"] == pytest.approx(100 * 1 / 3)
    lines = json_lines(output)
    assert [line.get("tool_call") for line in lines] == [SAME, None, OTHER_ARGUMENTS, FALSE_CALL, NO_CALL, None]
    assert "tool_call" not in lines[1]


def test_rows_without_calls_have_the_figures_that_they_had(
    loaded: LoadedModel, say: Callable[[Sequence[str]], None], tmp_path: Path
) -> None:
    path = write_rows(tmp_path, [[asks("有货吗？"), {"role": "assistant", "content": "有8件。"}]])
    say(['get_stock\n{"item": "裙"}'])
    names = ["loss", "perplexity", "generation_seconds", "bleu-4", "rouge-1", "rouge-2", "rouge-l"]
    assert list(evaluate(loaded, path).metrics) == names
