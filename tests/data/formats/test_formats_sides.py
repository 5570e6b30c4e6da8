"""Columns whose names say that their answers were rejected, or are one of two."""

from __future__ import annotations

from typing import Any

import pytest

from glmtune.data.conversation import RowError
from glmtune.data.formats import RowFormat, read_row, to_conversations
from glmtune.data.verdicts.sides import says_rejected, side_of
from glmtune.errors import GlmtuneError

TURNS = [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]
MESSAGES = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "x", "rejected_response": "y"},
        {"question": "x", "rejected": "y"},
        {"prompt": "x", "bad_response": "y"},
        {"query": "x", "worse_answer": "y"},
        {"question": "x", "answerRejected": "y"},
        {"question": "x", "response_rejected_1": "y"},
        {"question": "x", "错误回答": "y"},
        {"bad_messages": MESSAGES},
        {"rejected_conversations": TURNS},
        {"loser_messages": MESSAGES},
        {"winner": "model_b", "conversation_a": MESSAGES, "conversation_b": MESSAGES},
        {"question": {"text": "x"}, "answer_0": "y", "answer_1": "z"},
        {"question": "x", "answer1": "y", "answer2": "z"},
        {"question": "x", "responseA": "y", "responseB": "z"},
        {"history": "x", "human_ref_A": "y", "human_ref_B": "z"},
        {"premise": "x", "hypothesis": "y", "label": 0},
        {"sentence1": "x", "sentence2": "y"},
    ],
    ids=str,
)
def test_no_column_is_suggested_that_was_rejected_or_is_one_of_two(row: dict[str, Any]) -> None:
    [error] = read_row(row).parts
    assert isinstance(error, RowError)
    assert "unknown row format" in str(error)
    assert "`columns`" not in str(error)


@pytest.mark.parametrize(
    ("row", "hint"),
    [
        ({"question": "x", "reply": "y"}, "{instruction: question, output: reply}"),
        ({"question": "x", "answer": "y", "rejected": "z"}, "{instruction: question, output: answer}"),
        ({"question": "x", "answer": "y", "answer_a": "z"}, "{instruction: question, output: answer}"),
        ({"dialog": MESSAGES, "bad_dialog": MESSAGES}, "{messages: dialog}"),
    ],
    ids=str,
)
def test_the_good_column_is_still_suggested(row: dict[str, Any], hint: str) -> None:
    assert f"such as `{hint}`" in str(read_row(row).parts[0])


@pytest.mark.parametrize(
    ("key", "own"),
    [
        ("output", "rejected_response"),
        ("output", "rejected"),
        ("completion", "bad_response"),
        ("response", "worse"),
        ("messages", "bad_messages"),
        ("conversations", "rejected_conversations"),
        ("text", "rejected_text"),
        ("chosen", "rejected"),
        ("content", "wrong_answer"),
        ("summary", "non_preferred_output"),
    ],
)
def test_a_column_of_rejected_answers_cannot_be_renamed_to_an_answer(key: str, own: str) -> None:
    with pytest.raises(GlmtuneError) as caught:
        RowFormat(columns={key: own})
    assert caught.value.what == (f"`columns` renames `{own}` to `{key}`, which would train answers that were rejected")


@pytest.mark.parametrize(
    ("key", "own"),
    [
        ("rejected", "bad_response"),
        ("output", "answer_a"),
        ("output", "bad_words"),
        ("output", "negative_prompt"),
        ("output", "wrong_question"),
        ("instruction", "bad_answer"),
        ("prompt", "rejected_code"),
        ("output", "label"),
    ],
)
def test_other_columns_may_be_renamed(key: str, own: str) -> None:
    assert RowFormat(columns={key: own}).columns == {key: own}


def test_the_answer_that_lost_cannot_be_read_as_the_answer() -> None:
    row = {"conversation_a": MESSAGES, "conversation_b": MESSAGES}
    columns = RowFormat(columns={"messages": "conversation_a"})
    for winner in ("model_b", "B", "Response B", "tie (bothbad)", "both_bad"):
        with pytest.raises(RowError) as caught:
            to_conversations(row | {"winner": winner}, columns)
        assert str(caught.value) == (
            f"`winner` is `{winner}`, so `conversation_a`, which `columns` names, is not the good answer"
        )
    for winner in ("model_a", "tie", "a", "gpt-4"):
        assert len(to_conversations(row | {"winner": winner}, columns)) == 1


@pytest.mark.parametrize(
    ("beside", "is_refused"),
    [
        ({"better_response_id": 1}, True),
        ({"better_response_id": 0}, False),
        ({"winner": 1}, True),
        ({"winner": "0"}, False),
        ({"loser": "response_0"}, True),
        ({"loser": 1}, False),
        ({"winner_response_1": 1}, True),
        ({"winner_response_1": 0}, False),
        ({"response_1_wins": True}, True),
        ({"winner": "b"}, False),
        ({"response_1": "z"}, False),
    ],
)
def test_whatever_says_which_answer_lost_is_heeded(beside: dict[str, Any], is_refused: bool) -> None:
    columns = RowFormat(columns={"instruction": "prompt", "output": "response_0"})
    [part] = read_row({"prompt": "x", "response_0": "y"} | beside, columns).parts
    assert isinstance(part, RowError) is is_refused


@pytest.mark.parametrize("key", ["answer", "data", "ab", "a", "0", "gpt", "media", "Q", "question", "schema", "qa"])
def test_ordinary_names_say_nothing_of_a_side(key: str) -> None:
    assert not side_of(key)
    assert not says_rejected(key)
