"""Whatever text is put anywhere into a row is in the conversation, or the row is refused, or its key is told."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_formats_properties import CALL, TOOL, VALID, places_in

from glmtune.data.conversation import Conversation, RowError
from glmtune.data.formats import read_row, to_row
from glmtune.data.formats.unread import HARMLESS
from glmtune.data.parts.calls import RESULT_ROLES

USER = {"role": "user", "content": "a"}
ASSISTANT = {"role": "assistant", "content": "b"}
REJECTED = {"role": "assistant", "content": "c"}
MARK = "Überschuss"

ROWS: list[dict[str, Any]] = [
    *VALID,
    {"messages": [USER, ASSISTANT], "system": "s", "functions": [TOOL]},
    {
        "messages": [
            USER,
            {"role": "assistant", "function_call": CALL},
            {"role": "function", "name": "f", "content": "o"},
        ]
    }
    | {"rejected_response": "c"},
    {"conversations": [USER, ASSISTANT], "system_prompt": "s"},
    {"prompt": "a", "response": "b", "history": [["c", "d"]], "system": "s", "tools": [TOOL]},
    {"prompt": "a", "completion": "b", "label": True, "history": [["c", "d"]]},
    {"content": "a", "summary": "b", "system": "s"},
    {"prompt": "a", "chosen": [USER, ASSISTANT], "rejected": [USER, REJECTED], "score_chosen": 2},
    {"chosen_messages": [USER, ASSISTANT], "rejected_messages": [USER, REJECTED]},
    {"instruction": "a", "input": "x", "chosen_response": "b", "rejected_response": "c", "history": [["d", "e"]]},
    {"system": "s", "question": "a", "chosen": "b", "rejected": "c"},
    {
        "input": {"messages": [USER], "tools": [TOOL]},
        "preferred_output": [ASSISTANT],
        "non_preferred_output": [REJECTED],
    },
    {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: a\n\nAssistant: c"},
    {"instruction": "a", "context": "x", "response": "b", "category": "c"},
    {"query": "a", "response": "b", "history": [["c", "d"]], "system": "s", "tools": [TOOL]},
    {"input": "a", "output": "b", "source": "c"},
    {"kind": "k", "input": "a", "target": "b"},
    {"conversation": [{"human": "a", "assistant": "b"}, {"human": "c", "assistant": "d"}], "system": "s"},
    {"instruction": "i", "conversations": [{"question": "a", "answer": "b"}]},
    {"meta_instruction": "s", "chat": {"turn_1": {"Human": "a", "MOSS": "b", "Inner Thoughts": "r"}}},
    {"prefix": "s", "plain_text": "[Human]: a<eoh> [MOSS]: b<eoa>"},
    {"question": "a", "response_j": "b", "response_k": "c"},
    {
        "messages": [
            USER,
            {"role": "tool_call", "content": '{"name": "f", "arguments": {}}'},
            {"role": "tool_response", "content": "o"},
            ASSISTANT,
        ],
    },
    {
        "messages": [
            USER,
            {
                "role": "assistant",
                "content": [
                    {"type": "reasoning", "value": "r"},
                    {"type": "text", "value": "t"},
                    {"type": "tool_call", "value": {"name": "f", "arguments": {"x": 1}}},
                ],
            },
            {"role": "tool", "content": "o"},
            ASSISTANT,
        ],
    },
    {"messages": [{"role": "user", "content": [{"type": "text", "value": "a"}]}, ASSISTANT | {"thinking": "r"}]},
]
KEYS = """
    role content from value name metadata loss weight label kto_tag score system system_prompt tools functions
    history function_call tool_calls parameters arguments observation reasoning reasoning_content thinking refusal
    audio image images videos prefix annotations messages conversations prompt instruction input output response
    completion answer target text chosen rejected rejected_response Instances input_audio strict cache_control type
    function id whatever query context kind chat conversation plain_text meta_instruction human
"""


def is_told(key: str, unread: tuple[str, ...]) -> bool:
    return any(name == key or name.endswith(f".{key}") for name in unread)


def holders_in(row: dict[str, Any]) -> list[dict[str, Any]]:
    """Return every object inside a row, but for those of rejected answers."""
    kept = {key: value for key, value in row.items() if not key.startswith(("rejected", "non_preferred"))}
    return [row, *(holder[key] for holder, key in places_in(kept) if isinstance(holder[key], dict))]


@settings(max_examples=2500, deadline=None)
@given(st.sampled_from(ROWS), st.integers(0, 60), st.sampled_from(KEYS.split()), st.booleans())
def test_no_text_of_a_row_vanishes(valid: dict[str, Any], at: int, key: str, is_list: bool) -> None:
    row = copy.deepcopy(valid)
    holders = holders_in(row)
    holder = holders[at % len(holders)]
    if key.startswith("rejected") and holder is row:
        return  # a rejected answer, which is counted as such
    holder[key] = [MARK] if is_list else MARK
    read = read_row(row)
    if any(isinstance(part, RowError) for part in read.parts):
        return
    written = [to_row(part) for part in read.parts if isinstance(part, Conversation)]
    is_kept = MARK in json.dumps(written, ensure_ascii=False)
    # The name of what was called stands in the call; a type says that a part is text, or a call one of a function.
    speakers = (holder.get("role"), holder.get("from"))
    is_named = key == "name" and any(each in RESULT_ROLES for each in speakers)
    is_typed = key in ("type", "index") and not {"function", "name"}.isdisjoint(holder)
    assert is_kept or is_told(key, read.unread) or key in HARMLESS or is_named or is_typed


@pytest.mark.parametrize("row", ROWS)
def test_nothing_of_these_rows_is_left_over(row: dict[str, Any]) -> None:
    row = copy.deepcopy(row)
    row.pop("score_chosen", None)
    if "functions" not in row or "rejected_response" not in row:
        assert read_row(row).unread == ()
