"""Properties of the formats on made-up rows."""

from __future__ import annotations

import copy
import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from glmtune.data import json_text
from glmtune.data.conversation import TEXT, Conversation, Message, RowError, is_blank
from glmtune.data.formats import to_conversations, to_row

TEXTS = st.text(max_size=12)
FULL = st.text(min_size=1, max_size=12).filter(lambda text: not is_blank(text))
NAMES = st.from_regex(r"[^\W\d][\w.-]{0,8}", fullmatch=True)
LOSSES = st.none() | st.sampled_from([0.0, 1.0]) | st.floats(0, 1e6)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)
OBJECTS = st.dictionaries(TEXTS, JSON, max_size=3)
SCHEMAS = st.builds(lambda name, parameters: {"name": name, "parameters": parameters}, NAMES, OBJECTS)
TOOLS = st.lists(SCHEMAS.map(lambda schema: {"type": "function", "function": schema}), min_size=1, max_size=2).map(
    lambda tools: json.dumps(tools, ensure_ascii=False)
)
QUICK = settings(max_examples=60, deadline=None)


@st.composite
def conversations(draw: st.DrawFn) -> Conversation:
    """Anything that a row of some format may become."""
    if draw(st.integers(0, 4)) == 0:
        prompt = draw(st.none() | FULL)
        texts = [] if prompt is None else [Message(role=TEXT, content=prompt, loss=0.0)]
        return Conversation(messages=(*texts, Message(role=TEXT, content=draw(FULL))))
    messages = [Message(role="user", content=draw(FULL))]
    if draw(st.booleans()):
        messages.insert(0, Message(role="system", content=draw(TEXTS), tools=draw(st.none() | TOOLS)))
    for kind in draw(st.lists(st.sampled_from(["question", "answer", "call", "json"]), max_size=4)):
        if kind == "question":
            messages.append(Message(role="user", content=draw(FULL)))
        elif kind == "answer":
            messages.append(draw(answers()))
        else:
            arguments = draw(TEXTS) if kind == "call" else json.dumps(draw(OBJECTS))
            call = Message(role="assistant", content=arguments, metadata=draw(NAMES), loss=draw(LOSSES))
            messages += [call, Message(role="observation", content=draw(FULL), metadata=draw(st.just("") | NAMES))]
    return Conversation(messages=(*messages, draw(answers())))


def answers() -> st.SearchStrategy[Message]:
    return st.builds(lambda **fields: Message(role="assistant", **fields), content=TEXTS, reasoning=TEXTS, loss=LOSSES)


@QUICK
@given(conversations())
def test_a_conversation_is_read_again_from_its_glm4_form(conversation: Conversation) -> None:
    line = json.dumps(to_row(conversation), ensure_ascii=False)
    assert to_conversations(json_text.parse(line)) == [conversation]


TURNS = st.lists(st.tuples(FULL, TEXTS), min_size=1, max_size=3)


@QUICK
@given(TURNS, TEXTS, st.lists(SCHEMAS, max_size=2))
def test_rows_of_sharegpt_and_openai_keep_every_text_and_say_the_same(
    turns: list[tuple[str, str]], system: str, tools: list[Any]
) -> None:
    texts = [text for turn in turns for text in turn]
    openai: list[dict[str, Any]] = [{"role": "system", "content": system}] if system else []
    openai += [{"role": ("user", "assistant")[index % 2], "content": text} for index, text in enumerate(texts)]
    spoken = [{"from": ("human", "gpt")[index % 2], "value": text} for index, text in enumerate(texts)]
    [conversation] = to_conversations({"messages": openai, "tools": tools})
    assert [message.content for message in conversation.messages if message.role != "system"] == texts
    assert [tool["function"] for tool in conversation.tools or []] == tools
    assert conversation.messages[0].role != "system" or conversation.messages[0].content == system
    row = {"conversations": spoken, "system": system, "tools": json.dumps(tools)}
    assert to_conversations(row) == [conversation]
    assert to_conversations({"conversations": openai, "tools": tools}) == [conversation]


@QUICK
@given(FULL, TEXTS, FULL, TEXTS, st.lists(st.tuples(FULL, FULL), max_size=2))
def test_rows_of_alpaca_keep_every_text(
    instruction: str, extra: str, output: str, system: str, history: list[tuple[str, str]]
) -> None:
    pairs = [list(pair) for pair in history]
    row = {"instruction": instruction, "input": extra, "output": output, "system": system, "history": pairs}
    [conversation] = to_conversations(row)
    question = f"{instruction}\n{extra}" if extra else instruction
    expected = [*([system] if system else []), *(text for pair in history for text in pair), question, output]
    assert [message.content for message in conversation.messages] == expected


@QUICK
@given(NAMES, OBJECTS, JSON.filter(lambda value: value not in (None, "")))
def test_calls_and_observations_keep_their_json(name: str, arguments: dict[str, Any], answer: Any) -> None:
    observation = answer if isinstance(answer, str) else json.dumps(answer, ensure_ascii=False)
    call = {"name": name, "arguments": arguments}
    rows = [
        {
            "messages": [
                {"role": "user", "content": "a"},
                {"role": "assistant", "tool_calls": [{"type": "function", "function": call}]},
                {"role": "tool", "content": observation},
                {"role": "assistant", "content": "b"},
            ]
        },
        {
            "conversations": [
                {"from": "human", "value": "a"},
                {"from": "function_call", "value": json.dumps(call)},
                {"from": "observation", "value": observation},
                {"from": "gpt", "value": "b"},
            ]
        },
        {
            "conversations": [
                {"role": "user", "content": "a"},
                {"role": "tool", "name": name, "parameters": arguments, "observation": answer},
                {"role": "assistant", "content": "b"},
            ]
        },
    ]
    first, second, third = [to_conversations(row) for row in rows]
    assert first == second == third
    _, made, seen, _ = first[0].messages
    assert (made.metadata, made.content) == (name, json.dumps(arguments, ensure_ascii=False))
    assert seen.content == observation


TOOL = {"name": "f", "parameters": {"type": "object"}}
CALL = {"name": "f", "arguments": {"k": [1]}}
VALID: list[dict[str, Any]] = [
    {
        "messages": [
            {"role": "system", "content": "s", "tools": [TOOL]},
            {"role": "user", "content": [{"type": "text", "text": "a"}], "loss": False},
            {
                "role": "assistant",
                "content": "b",
                "tool_calls": [{"id": "x", "function": CALL}],
                "reasoning_content": "r",
            },
            {"role": "tool", "content": "c", "tool_call_id": "x"},
            {"role": "assistant", "content": "{}", "metadata": "f", "weight": 1},
            {"role": "observation", "content": "d"},
            {"role": "assistant", "content": "e", "loss": 0.5},
        ],
        "tools": None,
    },
    {
        "conversations": [
            {"from": "human", "value": "a"},
            {"from": "function_call", "value": json.dumps(CALL)},
            {"from": "observation", "value": "o"},
            {"from": "gpt", "value": "b", "loss": True},
        ],
        "tools": json.dumps([TOOL]),
        "system": "s",
    },
    {
        "conversations": [
            {"role": "user", "content": "a"},
            {"role": "tool", "name": "f", "parameters": {"k": 1}, "observation": {"v": 1}, "loss": True},
            {"role": "assistant", "content": "b"},
        ],
        "tools": ["f: Does.", TOOL],
    },
    {"instruction": "a", "input": "b", "output": "c", "system": "s", "history": [["d", "e"]], "tools": [TOOL]},
    {"content": "a", "summary": "b"},
    {"prompt": "a", "response": "b"},
    {"prompt": [{"role": "user", "content": "a"}], "completion": [{"role": "assistant", "content": "b"}]},
    {"conversations": [{"from": "human", "value": "a"}], "chosen": {"from": "gpt", "value": "b"}, "rejected": "c"},
    {
        "Function_Description": {"f": 'Does. Parameters: {"x": "string."}', "components": "#C"},
        "Instances": [{"input": "a", "output": "b", "intermediate_steps": [[["f", "{}", "t\nAction: f"], "o"]]}],
    },
    {"text": "a"},
]
ODD = st.sampled_from(
    [None, True, 0, -1, 2**70, 1e999, "", "x", "{", "[]", "null", "\ud83d", "tool", [], [None], {}, {"a": []}]
)


def places_in(value: Any) -> list[tuple[Any, Any]]:
    """Return every place inside a JSON value, as the list or object and the key in it."""
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else []
    return [place for key in keys for place in [(value, key), *places_in(value[key])]]


@settings(max_examples=1500, deadline=None)
@given(st.sampled_from(VALID), st.lists(st.tuples(st.integers(0, 60), ODD | st.just(...)), min_size=1, max_size=2))
def test_a_row_with_odd_values_is_read_or_refused_and_what_is_read_comes_back(
    valid: dict[str, Any], changes: list[tuple[int, Any]]
) -> None:
    row = copy.deepcopy(valid)
    for at, value in changes:
        if places := places_in(row):
            holder, key = places[at % len(places)]
            if value is ...:
                del holder[key]
            else:
                holder[key] = copy.deepcopy(value)
    try:
        found = to_conversations(row)
    except RowError:
        return
    assert found
    for conversation in found:
        assert to_conversations(to_row(conversation)) == [conversation]


def test_the_rows_that_are_made_odd_are_good() -> None:
    assert all(to_conversations(row) for row in VALID)
