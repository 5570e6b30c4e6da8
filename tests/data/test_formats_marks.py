"""Rows and messages that are marked as good or bad, weighed, or hold two answers."""

from __future__ import annotations

from typing import Any

import pytest

from glmtune.data.conversation import Conversation, RowError
from glmtune.data.formats import RowFormat, read_row, to_conversations

USER = {"role": "user", "content": "a"}
ASSISTANT = {"role": "assistant", "content": "b"}
REJECTED = {"role": "assistant", "content": "c"}

SHAPES: dict[str, dict[str, Any]] = {
    "messages": {"messages": [USER, ASSISTANT]},
    "sharegpt": {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]},
    "chatglm3": {"conversations": [USER, ASSISTANT]},
    "alpaca": {"instruction": "a", "output": "b"},
    "advertisegen": {"content": "a", "summary": "b"},
    "prompt-completion": {"prompt": "a", "completion": "b"},
    "prompt-completion-lists": {"prompt": [USER], "completion": [ASSISTANT]},
    "prompt-response": {"prompt": "a", "response": "b"},
    "preference": {"prompt": "a", "chosen": "b", "rejected": "c"},
}
SHAPE = pytest.mark.parametrize("row", SHAPES.values(), ids=SHAPES)


def reason_of(row: dict[str, Any]) -> str:
    with pytest.raises(RowError) as caught:
        to_conversations(row)
    return str(caught.value)


@SHAPE
@pytest.mark.parametrize(
    ("key", "value", "shown"),
    [
        ("label", False, "false"),
        ("label", 0, "0"),
        ("label", 0.0, "0.0"),
        ("label", -1, "-1"),
        ("label", "False", "False"),
        ("label", " bad ", " bad "),
        ("Label", "0", "0"),
        ("kto_tag", False, "false"),
        ("kto_tag", "false", "false"),
        ("is_good", False, "false"),
        ("is_correct", "no", "no"),
        ("is_bad", True, "true"),
        ("is_rejected", 1, "1"),
        ("feedback", "thumbs down", "thumbs down"),
        ("rating", "差", "差"),
        ("vote", -1, "-1"),
        ("deleted", True, "true"),
        ("train", False, "false"),
        ("loss", 0, "0"),
    ],
)
def test_a_row_that_is_marked_as_bad_is_refused(row: dict[str, Any], key: str, value: Any, shown: str) -> None:
    assert reason_of(row | {key: value}) == f"the answer is marked as bad (`{key}` is `{shown}`), so it is not trained"


@SHAPE
@pytest.mark.parametrize(
    ("key", "value"),
    [("label", True), ("label", 1), ("label", "true"), ("kto_tag", "True"), ("is_bad", False), ("feedback", "good")],
)
def test_a_row_that_is_marked_as_good_is_read_as_without_the_mark(row: dict[str, Any], key: str, value: Any) -> None:
    read = read_row(row | {key: value})
    assert read.parts == read_row(row).parts
    assert read.unread == ()


@SHAPE
@pytest.mark.parametrize("value", [2, 0.7, "sports", "negative", [1, 0]])
def test_a_label_that_judges_nothing_is_told(row: dict[str, Any], value: Any) -> None:
    read = read_row(row | {"label": value})
    assert (read.parts, read.unread) == (read_row(row).parts, ("label",))


def test_the_label_of_plain_text_is_a_class() -> None:
    assert read_row({"text": "a", "label": 0}).unread == ("label",)


def test_a_tag_of_kto_that_is_neither_is_refused() -> None:
    assert reason_of(SHAPES["alpaca"] | {"kto_tag": "maybe"}) == "`kto_tag` is `maybe`; expected true or false"


@SHAPE
@pytest.mark.parametrize("key", ["weight", "sample_weight", "loss_weight"])
def test_the_weight_of_a_row_is_that_of_its_answers(row: dict[str, Any], key: str) -> None:
    for value, weight in ((0.5, 0.5), ("2", 2.0)):
        [conversation] = to_conversations(row | {key: value})
        assert conversation.messages[-1].loss == weight
    assert read_row(row | {key: 1}).parts == read_row(row).parts
    assert read_row(row | {key: "2 kg"}).unread == (key,)
    for value in (0, False, "0"):
        shown = "false" if value is False else value
        assert reason_of(row | {key: value}) == f"the row is not to be trained (`{key}` is `{shown}`)"
    assert "expected a weight of at least 0" in reason_of(row | {key: -1})


def test_the_weight_of_a_row_multiplies_that_of_its_messages_and_leaves_context_untrained() -> None:
    row = {"prompt": [USER, ASSISTANT, USER], "completion": [ASSISTANT | {"weight": 0.5}], "weight": 4}
    assert [message.loss for message in to_conversations(row)[0].messages] == [None, 0.0, None, 2.0]
    assert (
        reason_of(row | {"sample_weight": 2})
        == "the row has `weight` 4.0 and `sample_weight` 2.0; expected one of them"
    )


@pytest.mark.parametrize("mark", [{"label": False}, {"is_good": 0}, {"rating": "bad"}, {"weight": 0}, {"train": False}])
def test_a_message_that_is_marked_as_bad_is_context(mark: dict[str, Any]) -> None:
    said = {"from": "gpt", "value": "b"}
    rows = [
        {"messages": [USER, ASSISTANT | mark, USER, ASSISTANT]},
        {"conversations": [{"from": "human", "value": "a"}, said | mark, {"from": "human", "value": "a"}, said]},
    ]
    for row in rows:
        read = read_row(row)
        [conversation] = [part for part in read.parts if isinstance(part, Conversation)]
        assert [message.loss for message in conversation.messages] == [None, 0.0, None, None]
        assert read.unread == ()


@pytest.mark.parametrize("key", ["rejected_response", "rejected_messages", "rejected", "rejected_output"])
@pytest.mark.parametrize("value", ["c", [USER, REJECTED], REJECTED])
def test_a_rejected_answer_beside_a_good_one_is_not_used(key: str, value: Any) -> None:
    for name in ("messages", "sharegpt", "alpaca", "prompt-completion"):
        read = read_row(SHAPES[name] | {key: value})
        assert read.parts == read_row(SHAPES[name]).parts
        assert (read.unread, read.has_rejected) == ((), True)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (
            SHAPES["messages"] | {"rejected_response": "b"},
            "`rejected_response` is the same as the chosen answer; which one is good is not clear",
        ),
        (
            {"prompt": "a", "chosen": "b", "rejected": "b"},
            "`rejected` is the same as the chosen answer; which one is good is not clear",
        ),
        (
            {"prompt": "a", "chosen": "b", "rejected": "c", "score_chosen": 1, "score_rejected": 2},
            "`score_chosen` is 1, below `score_rejected`, 2; which answer is good is not clear",
        ),
        (
            SHAPES["alpaca"] | {"chosen": "c"},
            "the row has `chosen` but no rejected answer; which answer is good is not clear",
        ),
        (
            {"messages": [USER, ASSISTANT], "chosen": "c", "rejected": "d"},
            "`messages` ends with an answer and `chosen` is another; expected one of them",
        ),
        (
            {"prompt": "x", "chosen": [USER, ASSISTANT], "rejected": [USER, REJECTED]},
            "`prompt` is not what the chosen answer repeats; expected one question",
        ),
        (
            SHAPES["alpaca"] | {"response": "c"},
            "`output` and `response` are two answers; expected one of them, or a `format` that says which",
        ),
        (
            SHAPES["prompt-completion"] | {"answer": "c"},
            "`completion` and `answer` are two answers; expected one of them, or a `format` that says which",
        ),
        ({"prompt": "a", "chosen": "b", "rejected": True}, "`rejected` is a boolean; expected an answer"),
        (
            SHAPES["messages"] | {"rejected": True},
            "the answer is marked as bad (`rejected` is `true`), so it is not trained",
        ),
    ],
)
def test_a_row_that_does_not_say_which_answer_is_good_is_refused(row: dict[str, Any], reason: str) -> None:
    assert reason_of(row) == reason


def test_a_format_that_is_named_says_which_of_two_answers_is_read() -> None:
    read = read_row(SHAPES["alpaca"] | {"response": "c"}, RowFormat(name="alpaca"))
    assert (read.parts, read.unread) == (read_row(SHAPES["alpaca"]).parts, ("response",))
    assert read_row(SHAPES["alpaca"] | {"response": "b"}).unread == ()


@SHAPE
@pytest.mark.parametrize("key", ["image", "images", "Images", "videos", "audios", "image_path", "input_audio"])
def test_what_the_model_would_not_see_or_hear_is_refused(row: dict[str, Any], key: str) -> None:
    reason = "expected text alone: the model would not see or hear it"
    assert reason_of(row | {key: ["a.jpg"]}) == f"the row has `{key}`; {reason}"
    for nothing in (None, [], "", "[]", [None]):
        assert read_row(row | {key: nothing}) == read_row(row)


@pytest.mark.parametrize("message", [{"image": "a.jpg"}, {"audio": {"id": "x"}}])
def test_a_message_with_something_to_see_or_hear_is_refused(message: dict[str, Any]) -> None:
    [key] = message
    reason = f"message 0 has `{key}`; expected text alone: the model would not see or hear it"
    assert reason_of({"messages": [USER | message, ASSISTANT]}) == reason
    said = [{"from": "human", "value": "a"} | message, {"from": "gpt", "value": "b"}]
    assert reason_of({"conversations": said}) == reason
