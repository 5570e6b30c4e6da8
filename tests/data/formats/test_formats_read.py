"""What a row of each format becomes."""

from __future__ import annotations

import json
from typing import Any

import pytest

from glmtune.data.conversation import TEXT, Conversation, Message
from glmtune.data.formats import FORMATS, RowFormat, read_row, to_conversation, to_conversations, to_row


def system(content: str = "", **more: Any) -> Message:
    return Message(role="system", content=content, **more)


def user(content: str) -> Message:
    return Message(role="user", content=content)


def assistant(content: str, **more: Any) -> Message:
    return Message(role="assistant", content=content, **more)


def observation(content: str) -> Message:
    return Message(role="observation", content=content)


def text(content: str, **more: Any) -> Message:
    return Message(role=TEXT, content=content, **more)


def role(name: str, content: Any, /, **more: Any) -> dict[str, Any]:
    return {"role": name, "content": content, **more}


def turn(name: str, value: Any, /, **more: Any) -> dict[str, Any]:
    return {"from": name, "value": value, **more}


def part(kind: str, value: str) -> dict[str, Any]:
    return {"type": kind, "value": value}


F_TOOL = '[{"type": "function", "function": {"name": "f"}}]'
PARTS = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]

ROWS: list[tuple[str, dict[str, Any], list[Message]]] = [
    ("messages", {"messages": [role("user", PARTS), role("assistant", "c")]}, [user("ab"), assistant("c")]),
    (
        "messages",
        {"messages": [role("user", "a", loss=False), role("assistant", "b", loss=0.5, reasoning_content="r\n")]},
        [user("a"), assistant("b", loss=0.5, reasoning="r\n")],
    ),
    (
        "messages",  # as a table gives it, whose rows have every key
        {
            "messages": [
                role("user", "a", tool_calls=None, loss=None, weight=None, name=None, reasoning_content=None),
                role("assistant", "b", tool_calls=None, function_call=None, tools=None, metadata=None),
                role("tool", "c", parameters=None, observation=None),
                role("assistant", "d", tool_calls=[]),
            ],
            "tools": None,
        },
        [user("a"), assistant("b"), observation("c"), assistant("d")],
    ),
    (
        "messages",
        {"messages": [role("user", "a"), role("assistant", "b")], "conversations": 5},
        [user("a"), assistant("b")],
    ),
    (
        "messages",  # ms-swift's roles
        {
            "messages": [
                role("user", "a"),
                role("assistant", "t"),
                role("tool_call", '{"name": "f", "arguments": {"x": 1}}'),
                role("tool_call", {"name": "g", "arguments": {}}, loss=False),
                role("tool_response", "o"),
                role("tool_response", "p"),
                role("assistant", "b"),
            ],
            "tools": F_TOOL,
        },
        [
            system(tools=F_TOOL),
            user("a"),
            assistant("t"),
            assistant('{"x": 1}', metadata="f"),
            assistant("{}", metadata="g", loss=0.0),
            observation("o"),
            observation("p"),
            assistant("b"),
        ],
    ),
    (
        "messages",  # LLaMA-Factory's parts
        {
            "messages": [
                role("system", [part("text", "s")], loss_weight=0.0),
                role("user", [part("text", "a")], loss_weight=0.0),
                role(
                    "assistant",
                    [
                        part("reasoning", "r"),
                        part("text", "t"),
                        part("tool_call", '{"name": "f", "arguments": {"x": 1}}'),
                        part("tool_call", '{"name": "g", "arguments": {}}'),
                    ],
                    loss_weight=1.0,
                ),
                role("tool", [part("text", "o")]),
                role("tool", [part("text", "p")]),
                role("assistant", [part("reasoning", "q"), part("tool_call", '{"name": "f", "arguments": {}}')]),
                role("tool", [part("text", "u")]),
                role("assistant", [part("text", "b")], loss_weight=0.0),
            ],
            "tools": F_TOOL,
        },
        [
            system("s", tools=F_TOOL),
            user("a"),
            assistant("t", reasoning="r", loss=1.0),
            assistant('{"x": 1}', metadata="f", loss=1.0),
            assistant("{}", metadata="g", loss=1.0),
            observation("o"),
            observation("p"),
            assistant("{}", metadata="f", reasoning="q"),
            observation("u"),
            assistant("b", loss=0.0),
        ],
    ),
    (
        "instruction-response",
        {"instruction": "a", "context": "x", "response": "b", "category": "closed_qa"},
        [user("a\nx"), assistant("b")],
    ),
    ("instruction-response", {"instruction": "a", "response": "b"}, [user("a"), assistant("b")]),
    (
        "query-response",
        {"query": "a", "response": "b", "history": [["c", "d"]], "system": "s"},
        [system("s"), user("c"), assistant("d"), user("a"), assistant("b")],
    ),
    ("query-response", {"query": "a", "response": "b", "rejected_response": "c"}, [user("a"), assistant("b")]),
    ("input-output", {"input": "a", "output": "b", "source": "x", "subset": "y"}, [user("a"), assistant("b")]),
    ("firefly", {"kind": "NLI", "input": "a", "target": "b"}, [user("a"), assistant("b")]),
    (
        "turns",
        {"system": "s", "conversation": [{"human": "a", "assistant": "b"}, {"human": "c", "assistant": "d"}]},
        [system("s"), user("a"), assistant("b"), user("c"), assistant("d")],
    ),
    (
        "turns",  # xtuner's
        {"conversation": [{"system": "s", "input": "a", "output": "b"}, {"input": "c", "output": "d"}]},
        [system("s"), user("a"), assistant("b"), user("c"), assistant("d")],
    ),
    (
        "turns",  # COIG's
        {"instruction": "i", "conversations": [{"question": "a", "answer": "b"}, {"question": "c", "answer": "d"}]},
        [user("i\na"), assistant("b"), user("c"), assistant("d")],
    ),
    (
        "turns",
        {"conversation": [{"user": "a", "assistant": "b", "loss": 0}, {"user": "c", "assistant": "d"}]},
        [user("a"), assistant("b", loss=0.0), user("c"), assistant("d")],
    ),
    (
        "moss",
        {
            "meta_instruction": "You are MOSS.",
            "num_turns": 1,
            "chat": {
                "turn_1": {
                    "Human": "<|Human|>: a<eoh>\n",
                    "Inner Thoughts": "<|Inner Thoughts|>: None<eot>\n",
                    "Commands": "<|Commands|>: None<eoc>\n",
                    "Tool Responses": "<|Results|>: None<eor>\n",
                    "MOSS": "<|MOSS|>: b<eom>\n",
                }
            },
        },
        [system("You are MOSS."), user("a"), assistant("b")],
    ),
    (
        "moss",
        {"prefix": "p", "plain_text": "[Human]: a<eoh> [MOSS]: b<eoa> [Human]: c<eoh> [MOSS]: d<eoa>"},
        [system("p"), user("a"), assistant("b"), user("c"), assistant("d")],
    ),
    (
        "preference",  # pairs of answers of Stack Exchange
        {"question": "a", "response_j": "b", "response_k": "c"},
        [user("a"), assistant("b")],
    ),
    ("sharegpt", {"conversations": [turn("human", "a"), turn("gpt", "b")]}, [user("a"), assistant("b")]),
    (
        "sharegpt",
        {
            "conversations": [turn("user", "a"), turn("assistant", "b"), turn("human", "c"), turn("bing", "d")],
            "system": "",
        },
        [user("a"), assistant("b"), user("c"), assistant("d")],
    ),
    (
        "sharegpt",
        {
            "conversations": [
                turn("system", "s"),
                turn("human", "a"),
                turn("function_call", '{"name": "f", "arguments": {"z": null, "a": [[1], "京"]}}'),
                turn("observation", "o"),
                turn("gpt", "b"),
            ],
            "tools": '[{"name": "f"}]',
        },
        [
            system("s", tools=F_TOOL),
            user("a"),
            assistant('{"z": null, "a": [[1], "京"]}', metadata="f"),
            observation("o"),
            assistant("b"),
        ],
    ),
    (
        "sharegpt",
        {
            "conversations": [
                turn("human", "a"),
                turn("tool_call", '[{"name": "f", "arguments": "{ }"}, {"name": "g", "parameters": {"k": 1}}]', loss=0),
                turn("tool", "o"),
                turn("function_response", "p"),
                turn("gpt", "b", weight=2, reasoning_content="r"),
            ],
            "system": "s",
            "tools": "",
        },
        [
            system("s"),
            user("a"),
            assistant("{ }", metadata="f", loss=0.0),
            assistant('{"k": 1}', metadata="g", loss=0.0),
            observation("o"),
            observation("p"),
            assistant("b", loss=2.0, reasoning="r"),
        ],
    ),
    (
        "sharegpt",
        {"conversations": [turn("system", "s"), turn("human", "a"), turn("gpt", "b")], "system": "s", "tools": "[]"},
        [system("s"), user("a"), assistant("b")],
    ),
    (
        "sharegpt",
        {
            "conversations": [
                turn("human", "a"),
                turn("function_call", {"name": "f"}),
                turn("observation", "o"),
                turn("gpt", "b"),
            ]
        },
        [user("a"), assistant("{}", metadata="f"), observation("o"), assistant("b")],
    ),
    (
        "chatglm3",
        {
            "tools": [{"name": "f"}],
            "conversations": [
                role("system", "s"),
                role("user", "a", loss=False),
                role("assistant", "I look.", loss=False),
                {"role": "tool", "name": "f", "parameters": {"市": "北京"}, "observation": "o", "loss": True},
                role("assistant", "b"),
            ],
        },
        [
            system("s", tools=F_TOOL),
            user("a"),
            assistant("I look.", loss=0.0),
            assistant('{"市": "北京"}', metadata="f", loss=1.0),
            observation("o"),
            assistant("b"),
        ],
    ),
    (
        "chatglm3",
        {
            "conversations": [
                role("user", "a"),
                {"role": "tool", "name": "f", "parameters": {}, "observation": {"温度": [22, None]}},
                {"role": "tool", "name": "g", "observation": False},
                role("assistant", "b"),
            ]
        },
        [
            user("a"),
            assistant("{}", metadata="f"),
            observation('{"温度": [22, null]}'),
            assistant("{}", metadata="g"),
            observation("false"),
            assistant("b"),
        ],
    ),
    ("alpaca", {"instruction": "a", "input": "", "output": "b"}, [user("a"), assistant("b")]),
    ("alpaca", {"instruction": "a", "output": "b"}, [user("a"), assistant("b")]),
    ("alpaca", {"instruction": "", "input": "a", "output": "b", "history": ""}, [user("a"), assistant("b")]),
    (
        "alpaca",
        {
            "instruction": "a",
            "input": "x",
            "output": "b",
            "system": "s",
            "history": [["c", "d"], ["e", "f"]],
            "tools": '[{"name": "f"}]',
        },
        [
            system("s", tools=F_TOOL),
            user("c"),
            assistant("d"),
            user("e"),
            assistant("f"),
            user("a\nx"),
            assistant("b"),
        ],
    ),
    ("advertisegen", {"content": "类型#裙", "summary": "好看。"}, [user("类型#裙"), assistant("好看。")]),
    ("prompt-response", {"prompt": "a", "response": "b"}, [text("a", loss=0.0), text("b")]),
    ("prompt-completion", {"prompt": "a", "completion": " b"}, [user("a"), assistant(" b")]),
    (
        "prompt-completion",
        {
            "prompt": [role("user", "a"), role("assistant", "b"), role("assistant", "c", loss=1), role("user", "d")],
            "completion": [role("assistant", "e")],
            "tools": [{"name": "f"}],
        },
        [
            system(tools=F_TOOL),
            user("a"),
            assistant("b", loss=0.0),
            assistant("c", loss=1.0),
            user("d"),
            assistant("e"),
        ],
    ),
    ("prompt-completion", {"prompt": PARTS, "completion": "c"}, [user("ab"), assistant("c")]),
    (
        "preference",
        {
            "conversations": [turn("system", "s"), turn("human", "a")],
            "chosen": turn("gpt", "b"),
            "rejected": turn("gpt", "c"),
        },
        [system("s"), user("a"), assistant("b")],
    ),
    (
        "preference",
        {
            "conversations": [turn("human", "a"), turn("gpt", "x"), turn("human", "c")],
            "chosen": turn("gpt", "b"),
            "rejected": None,
        },
        [user("a"), assistant("x", loss=0.0), user("c"), assistant("b")],
    ),
    (
        "preference",
        {"instruction": "a", "input": "x", "chosen": "b", "rejected": "c", "history": [["d", "e"]]},
        [user("d"), assistant("e", loss=0.0), user("a\nx"), assistant("b")],
    ),
    (
        "preference",
        {"prompt": "a", "chosen": "b", "rejected": "c", "system": "s"},
        [system("s"), user("a"), assistant("b")],
    ),
    (
        "preference",
        {"prompt": [role("user", "a")], "chosen": [role("assistant", "b")], "rejected": [role("assistant", "c")]},
        [user("a"), assistant("b")],
    ),
    (
        "preference",
        {"messages": [role("user", "a")], "chosen": role("assistant", "b"), "rejected": role("assistant", "c")},
        [user("a"), assistant("b")],
    ),
    (
        "preference",  # each answer repeats what comes before it
        {
            "prompt": "c",
            "chosen": [role("user", "a"), role("assistant", "x"), role("user", "c"), role("assistant", "b")],
            "rejected": [],
        },
        [user("a"), assistant("x", loss=0.0), user("c"), assistant("b")],
    ),
    ("text", {"text": "从前\n有座山", "meta": {"id": 1}}, [text("从前\n有座山")]),
]


@pytest.mark.parametrize(("name", "row", "messages"), ROWS, ids=[f"{name}-{i}" for i, (name, *_) in enumerate(ROWS)])
def test_a_row_is_found_out_and_read_and_comes_back_from_its_glm4_form(
    name: str, row: dict[str, Any], messages: list[Message]
) -> None:
    before = json.dumps(row)
    [conversation] = to_conversations(row)
    assert list(conversation.messages) == messages
    assert to_conversations(row, RowFormat(name=name)) == [conversation]
    assert to_conversations(to_row(conversation)) == [conversation]
    assert json.dumps(row) == before


def test_every_format_is_read_here() -> None:
    assert {name for name, *_ in ROWS} | {"toolalpaca"} == set(FORMATS)


@pytest.mark.parametrize(
    ("first", "more"),
    [
        ("preference", {"messages": [role("user", "a")], "chosen": "b", "rejected": "c"}),
        (
            "messages",
            {"messages": [role("user", "a"), role("assistant", "b")], "text": "c", "prompt": "d", "response": "e"},
        ),
        ("sharegpt", {"conversations": [turn("human", "a"), turn("gpt", "b")], "instruction": "c", "output": "d"}),
        ("alpaca", {"instruction": "a", "output": "b", "text": "c"}),
    ],
)
def test_of_two_formats_in_one_row_the_first_in_the_list_is_taken(first: str, more: dict[str, Any]) -> None:
    [conversation] = to_conversations(more)
    assert [message.content for message in conversation.messages] == ["a", "b"]
    assert to_conversations(more, RowFormat(name=first)) == [conversation]


@pytest.mark.parametrize(
    ("raw", "loss"),
    [
        ({"loss": True}, 1.0),
        ({"loss": False}, 0.0),
        ({"loss": 2}, 2.0),
        ({"loss": 0.25}, 0.25),
        ({"weight": 0}, 0.0),
        ({"weight": 1, "loss": True}, 1.0),
        ({"loss": None}, None),
        ({}, None),
    ],
)
def test_the_loss_of_an_assistant_message_is_a_weight_in_every_list_of_messages(
    raw: dict[str, Any], loss: float | None
) -> None:
    rows = [
        {"messages": [role("user", "a"), role("assistant", "b", **raw)]},
        {"conversations": [role("user", "a"), role("assistant", "b", **raw)]},
        {"conversations": [turn("human", "a"), turn("gpt", "b", **raw)]},
        {"prompt": [role("user", "a")], "completion": [role("assistant", "b", **raw)]},
        {"conversations": [turn("human", "a")], "chosen": turn("gpt", "b", **raw), "rejected": "c"},
    ]
    for row in rows:
        [conversation] = to_conversations(row)
        assert conversation.messages[-1].loss == loss
        assert type(conversation.messages[-1].loss) in (float, type(None))


def test_text_calls_tools_and_reasoning_of_one_message_keep_its_number() -> None:
    calls = [{"name": "f", "arguments": {}}, {"name": "g", "arguments": {}}]
    row = {
        "messages": [
            role("user", "a"),
            role("assistant", "", tool_calls=calls, reasoning_content="r", loss=0, tools=[{"name": "f"}]),
            role("assistant", "b"),
        ]
    }
    _, first, second, last = to_conversation(row).messages
    assert first == assistant("{}", metadata="f", reasoning="r", loss=0.0, tools=F_TOOL)
    assert second == assistant("{}", metadata="g", loss=0.0)
    assert [message.number for message in (first, second, last)] == [1, 1, 2]


def test_a_call_and_its_observation_from_one_chatglm3_message_do_not_share_a_number() -> None:
    item = {"role": "tool", "name": "f", "parameters": {}, "observation": "o"}
    conversation = to_conversation({"conversations": [role("user", "a"), item, role("assistant", "b")]})
    assert [message.number for message in conversation.messages] == [0, 1, None, 2]


def test_results_come_in_the_order_of_their_calls() -> None:
    calls = [{"id": name, "function": {"name": name, "arguments": "{}"}} for name in "fgh"]
    results = [role("tool", f"of {name}", tool_call_id=name) for name in "hfg"]
    row = {"messages": [role("user", "a"), role("assistant", None, tool_calls=calls), *results, role("assistant", "b")]}
    messages = to_conversation(row).messages
    assert [message.content for message in messages] == ["a", "{}", "{}", "{}", "of f", "of g", "of h", "b"]
    assert [message.number for message in messages] == [0, 1, 1, 1, 3, 4, 2, 5]
    row["messages"][3]["tool_call_id"] = "unknown"
    assert [message.content for message in to_conversation(row).messages][4:7] == ["of h", "of f", "of g"]


def functions(row: dict[str, Any]) -> list[dict[str, Any]]:
    tools = to_conversation(row).tools or []
    assert all(tool["type"] == "function" and set(tool) == {"type", "function"} for tool in tools)
    return [tool["function"] for tool in tools]


@pytest.mark.parametrize(
    ("tool", "schemas"),
    [
        ("f: Does.\nParameters: {}", [{"name": "f", "description": "Does.\nParameters: {}"}]),
        ("  获取天气：查询\n", [{"name": "获取天气", "description": "查询\n"}]),
        ("获取天气: 查询\n", [{"name": "获取天气", "description": "查询\n"}]),
        ("a.b-c_d:", [{"name": "a.b-c_d", "description": ""}]),
        (
            'f: A: b.\nParameters: {"x": "string."}\nOutput: y.\n - Format: z\n'
            "g: C.\nParameters: {}\nOutput: d.\nNote: e",
            [
                {"name": "f", "description": 'A: b.\nParameters: {"x": "string."}\nOutput: y.\n - Format: z'},
                {"name": "g", "description": "C.\nParameters: {}\nOutput: d.\nNote: e"},
            ],
        ),
        ('{"name": "f", "parameters": {"z": null, "a": 1}}', [{"name": "f", "parameters": {"z": None, "a": 1}}]),
        ({"name": "f", "x": 1}, [{"name": "f", "x": 1}]),
        ({"function": {"name": "f"}}, [{"name": "f"}]),
    ],
)
def test_a_tool_of_chatglm3_may_be_plain_text(tool: Any, schemas: list[dict[str, Any]]) -> None:
    row = {"conversations": [role("user", "a"), role("assistant", "b")], "tools": [tool]}
    assert functions(row) == schemas


API = {
    "Name": "Weather",
    "Function_Description": {
        "now": 'Tells the weather.\nParameters: {"city": "Required. string. The city.", "days": "integer. How many.", '
        '"where": "#Place"}\nOutput: It.\n - Format: json',
        "list": "Lists cities.\nParameters: {no JSON}\nOutput: Them.",
        "none": "Nothing more.",
        "components": "#Place: Object{x, y}\n",
    },
    "Function_Projection": {"now": ["/now", "get"]},
    "Instructions": ["Is it warm?"],
    "Instances": [
        {
            "input": "Is it warm in 北京?",
            "output": "It is 22 degrees.",
            "Final Thought": " I know.\n",
            "intermediate_steps": [
                [
                    ["now", '{"city":"北京",\n "n": 1e2}', " I look.\nAction: now\nAction Input: {}"],
                    "Status Code: 200.",
                ],
                [["getDetails", "", "Action: getDetails"], {"x": None}],
            ],
        },
        {"input": "b", "output": "c", "intermediate_steps": [[["none", "{}", ""], "d"]]},
    ],
}


def test_every_instance_of_toolalpaca_is_a_conversation_with_the_tools_of_its_api() -> None:
    first, second = to_conversations(API)
    assert first.messages[1:] == (
        user("Is it warm in 北京?"),
        assistant("I look."),
        assistant('{"city":"北京",\n "n": 1e2}', metadata="now"),
        observation("Status Code: 200."),
        assistant("{}", metadata="getDetails"),
        observation('{"x": null}'),
        assistant("I know.\nIt is 22 degrees."),
    )
    assert [message.number for message in first.messages] == [None, 0, 1, 1, 2, 3, 4, 5]
    assert second.messages[1:] == (user("b"), assistant("{}", metadata="none"), observation("d"), assistant("c"))
    assert first.messages[0] == second.messages[0]
    assert to_conversations(API, RowFormat(name="toolalpaca")) == [first, second]
    assert [to_conversations(to_row(one)) for one in (first, second)] == [[first], [second]]


def test_the_functions_of_toolalpaca_keep_all_of_their_text() -> None:
    tools = to_conversations(API)[0].tools
    assert [tool["function"] for tool in tools or []] == [
        {
            "name": "now",
            "description": "Tells the weather.\nOutput: It.\n - Format: json",
            "parameters": {
                "type": "object",
                "properties": {
                    "city": {"type": "string", "description": "Required. string. The city."},
                    "days": {"type": "integer", "description": "integer. How many."},
                    "where": {"description": "#Place"},
                },
                "required": ["city"],
            },
        },
        {"name": "list", "description": "Lists cities.\nParameters: {no JSON}\nOutput: Them."},
        {"name": "none", "description": "Nothing more.\n#Place: Object{x, y}"},
    ]


def test_json_keeps_key_order_nulls_nested_lists_big_integers_and_non_ascii_through_every_format() -> None:
    value = {"z": None, "a": [[1], [[]], {}], "n": 2**70, "词": "京 </s>", "f": 1.0, "b": [True, False]}
    plain = json.dumps(value, ensure_ascii=False)
    tool = {"name": "f", "parameters": value}
    schema = json.dumps([{"type": "function", "function": tool}], ensure_ascii=False)
    call = {"name": "f", "arguments": value}
    end = [role("tool", "o"), role("assistant", "b")]
    rows = [
        {
            "messages": [role("user", "a"), role("assistant", None, tool_calls=[{"function": call}]), *end],
            "tools": [tool],
        },
        {
            "messages": [
                role("system", "", tools=[tool]),
                role("user", "a"),
                role("assistant", plain, metadata="f"),
                *end,
            ]
        },
        {
            "conversations": [
                turn("human", "a"),
                turn("function_call", json.dumps(call)),
                turn("observation", "o"),
                turn("gpt", "b"),
            ],
            "tools": json.dumps([tool]),
        },
        {
            "conversations": [
                role("user", "a"),
                {"role": "tool", "name": "f", "parameters": value, "observation": "o"},
                role("assistant", "b"),
            ],
            "tools": [tool],
        },
    ]
    for row in rows:
        [conversation] = to_conversations(row)
        assert conversation.messages[0].tools == schema
        assert conversation.messages[2] == assistant(plain, metadata="f")
        [again] = to_conversations(json.loads(json.dumps(to_row(conversation))))
        assert again == conversation


def test_the_glm4_form_has_only_what_is_set() -> None:
    row = {
        "conversations": [
            turn("human", "a"),
            turn("function_call", '{"name": "f", "arguments": {}}'),
            turn("observation", "o"),
            turn("gpt", "b", loss=False, reasoning_content="r"),
        ],
        "tools": '[{"name": "f"}]',
    }
    assert to_row(to_conversation(row)) == {
        "messages": [
            {"role": "system", "content": "", "tools": [{"type": "function", "function": {"name": "f"}}]},
            {"role": "user", "content": "a"},
            {"role": "assistant", "metadata": "f", "content": "{}"},
            {"role": "observation", "content": "o"},
            {"role": "assistant", "content": "b", "reasoning_content": "r", "loss": 0.0},
        ]
    }
    assert to_row(to_conversation({"prompt": "a", "response": "b"})) == {"prompt": "a", "response": "b"}
    assert to_row(to_conversation({"text": "a"})) == {"text": "a"}


@pytest.mark.parametrize("key", ["args", "input", "params", "kwargs", "parameters", "tool_input", "action_input"])
@pytest.mark.parametrize("arguments", [{"x": 1}, '{"x": 1}'])
def test_the_arguments_of_a_call_are_read_whatever_they_are_called(key: str, arguments: Any) -> None:
    call = {"name": "f", key: arguments}
    answers = [
        {"tool_calls": [call | {"id": "1", "type": "tool_call"}]},
        {"tool_calls": [{"type": "function", "function": call}]},
        {"tool_calls": [{"function": {"name": "f"}, key: arguments}]},
        {"function_call": call},
    ]
    question, result = {"role": "user", "content": "a"}, {"role": "tool", "content": "o"}
    answer = {"role": "assistant", "content": "b"}
    rows = [{"messages": [question, {"role": "assistant"} | each, result, answer]} for each in answers]
    rows.append(
        {
            "conversations": [
                {"from": "human", "value": "a"},
                {"from": "function_call", "value": json.dumps(call)},
                {"from": "observation", "value": "o"},
                {"from": "gpt", "value": "b"},
            ]
        }
    )
    rows.append({"conversations": [question, {"role": "tool", "observation": "o"} | call, answer]})
    for row in rows:
        read = read_row(row)
        [conversation] = [part for part in read.parts if isinstance(part, Conversation)]
        called = conversation.messages[1]
        assert (called.metadata, called.content, read.unread) == ("f", '{"x": 1}', ())
