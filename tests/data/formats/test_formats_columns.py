"""`data_config.columns`: other people's names of columns."""

from __future__ import annotations

from typing import Any

import pytest

from glmtune.data.conversation import RowError
from glmtune.data.formats import RowFormat, to_conversations
from glmtune.errors import GlmtuneError

SPEAKERS = [{"speaker": "user", "text": "a"}, {"speaker": "assistant", "text": "b", "w": 0}]
INSIDE = {"role": "speaker", "content": "text"}
TURNS = [{"who": "human", "says": "a"}, {"who": "gpt", "says": "b"}]

READ: list[tuple[str | None, dict[str, str], dict[str, Any]]] = [
    (None, {"instruction": "question", "output": "answer"}, {"question": "a", "answer": "b"}),
    ("alpaca", {"instruction": "question", "output": "answer"}, {"question": "a", "answer": "b", "output": "x"}),
    (None, {"instruction": "input", "input": "extra"}, {"instruction": "x", "input": "a", "extra": "", "output": "b"}),
    (None, {"instruction": "output", "output": "instruction"}, {"output": "a", "instruction": "b"}),
    (None, {"content": "title", "summary": "text"}, {"title": "a", "text": "b"}),
    (None, {"prompt": "q", "completion": "messages"}, {"q": "a", "messages": "b"}),
    (None, INSIDE, {"messages": SPEAKERS}),
    (None, INSIDE, {"conversations": SPEAKERS}),
    (None, INSIDE, {"messages": SPEAKERS, "text": "x"}),
    ("messages", {"messages": "dialog", **INSIDE}, {"dialog": SPEAKERS, "text": "x"}),
    ("messages", {"messages": "dialog", **INSIDE, "loss": "w", "tool_calls": "calls"}, {"dialog": SPEAKERS}),
    (None, {"from": "who", "value": "says"}, {"conversations": TURNS}),
    ("sharegpt", {"conversations": "turns", "from": "who", "value": "says"}, {"turns": TURNS}),
    (
        None,
        {"chosen": "good", "rejected": "bad", **INSIDE},
        {"messages": SPEAKERS[:1], "good": SPEAKERS[1], "bad": "x"},
    ),
    (None, INSIDE, {"prompt": SPEAKERS[:1], "completion": SPEAKERS[1:]}),
    (
        "chatglm3",
        {"conversations": "messages"},
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
    ),
]


@pytest.mark.parametrize(("name", "columns", "row"), READ, ids=[str(number) for number in range(len(READ))])
def test_columns_give_the_keys_of_a_format_the_files_own_names(
    name: str | None, columns: dict[str, str], row: dict[str, Any]
) -> None:
    before = repr(row)
    [conversation] = to_conversations(row, RowFormat(name=name, columns=columns))
    assert [message.content for message in conversation.messages] == ["a", "b"]
    assert repr(row) == before


def test_a_loss_may_have_another_name() -> None:
    row_format = RowFormat(columns={**INSIDE, "loss": "w"})
    [conversation] = to_conversations({"messages": SPEAKERS}, row_format)
    assert [message.loss for message in conversation.messages] == [None, 0.0]


@pytest.mark.parametrize(
    ("columns", "row", "reason"),
    [
        (
            {"instruction": "question"},
            {"instruction": "a", "output": "b"},
            "the row has no `question`, which `columns` names for `instruction`",
        ),
        (
            {"system": "persona"},
            {"instruction": "a", "output": "b"},
            "the row has no `persona`, which `columns` names for `system`",
        ),
        (INSIDE, {"messages": [{"text": "a"}]}, "the row has no `speaker`, which `columns` names for `role`"),
        (
            {"instruction": "text"},
            {"messages": SPEAKERS},
            "the row has no `text`, which `columns` names for `instruction`",
        ),
        (INSIDE, {"messages": None}, "the row has no `speaker`, which `columns` names for `role`"),
        (INSIDE, {"messages": ["a"]}, "the row has no `speaker`, which `columns` names for `role`"),
        (
            INSIDE,
            {"messages": [{"speaker": "user", "text": "a"}, {"text": "b"}]},
            "message 1 has role `None`; expected system, user, assistant or observation",
        ),
    ],
)
def test_a_renamed_column_that_the_row_lacks_is_named(
    columns: dict[str, str], row: dict[str, Any], reason: str
) -> None:
    with pytest.raises(RowError) as caught:
        to_conversations(row, RowFormat(columns=columns))
    assert str(caught.value) == reason


@pytest.mark.parametrize(
    ("name", "columns", "what"),
    [
        (
            None,
            {"instuction": "question"},
            "`columns` renames a column to `instuction`, which is no key of any format (did you mean `instruction`?)",
        ),
        (
            "text",
            {"instruction": "question"},
            "`columns` renames a column to `instruction`, which is no key of the format `text`",
        ),
        (None, {"instruction": 5}, "`columns` names a number for `instruction`; expected the name of a column"),
    ],
)
def test_columns_that_no_format_has_are_a_users_mistake(name: str | None, columns: dict[str, Any], what: str) -> None:
    with pytest.raises(GlmtuneError) as caught:
        RowFormat(name=name, columns=columns)
    assert caught.value.what == what
