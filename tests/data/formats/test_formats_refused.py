"""Rows of other formats than messages that are refused: the full text of every reason."""

from __future__ import annotations

from typing import Any

import pytest

from glmtune.data.conversation import RowError
from glmtune.data.formats import FORMATS, RowFormat, to_conversation, to_conversations
from glmtune.errors import GlmtuneError

HUMAN = {"from": "human", "value": "a"}
GPT = {"from": "gpt", "value": "b"}
USER = {"role": "user", "content": "a"}
ASSISTANT = {"role": "assistant", "content": "b"}
NAMES = (
    "preference (`chosen` and `rejected`), messages (`messages`), sharegpt (`conversations`), "
    "chatglm3 (`conversations`), alpaca (`instruction` and `output`), "
    "instruction-response (`instruction` and `response`), query-response (`query` and `response`), "
    "input-output (`input` and `output`), firefly (`input` and `target`), turns (`conversation`), moss (`chat`), "
    "advertisegen (`content` and `summary`), "
    "prompt-response (`prompt` and `response`), prompt-completion (`prompt` and `completion`), "
    "toolalpaca (`Function_Description` and `Instances`), text (`text`)"
)


def sharegpt(*turns: Any, **more: Any) -> dict[str, Any]:
    return {"conversations": [HUMAN, *turns], **more}


def call(value: Any) -> dict[str, Any]:
    return sharegpt({"from": "function_call", "value": value})


def chatglm3(**item: Any) -> dict[str, Any]:
    return {
        "conversations": [USER, {"role": "tool", "name": "f", "parameters": {}, "observation": "o"} | item, ASSISTANT]
    }


def alpaca(**more: Any) -> dict[str, Any]:
    return {"instruction": "a", "input": "", "output": "b"} | more


def preference(**more: Any) -> dict[str, Any]:
    return {"conversations": [HUMAN], "chosen": GPT, "rejected": GPT} | more


def toolalpaca(instance: Any = None, **more: Any) -> dict[str, Any]:
    step = [["f", "{}", "I look.\nAction: f\nAction Input: {}"], "o"]
    good = {"input": "a", "output": "b", "intermediate_steps": [step]}
    instances = [good | instance if isinstance(instance, dict) else instance]
    return {"Function_Description": {"f": "Does.", "components": ""}, "Instances": instances} | more


REFUSED: list[tuple[Any, str]] = [
    # no known format
    ({}, f"unknown row format (keys: none); expected the keys of one of these: {NAMES}"),
    (
        {"prompt": "a", "answer": "b"},
        f"unknown row format (keys: `prompt`, `answer`); expected the keys of one of these: {NAMES}; or `columns` that "
        "say what the file calls them, such as `{instruction: prompt, output: answer}` "
        "(`--column instruction=prompt --column output=answer`)",
    ),
    (
        {"mesages": []},
        f"unknown row format (keys: `mesages` (did you mean `messages`?)); expected the keys of one of these: {NAMES}",
    ),
    (
        dict.fromkeys("abcdefgh"),
        f"unknown row format (keys: `a`, `b`, `c`, `d`, `e`, `f`); expected the keys of one of these: {NAMES}; or "
        "`columns` that say what the file calls them, such as `{instruction: a, output: b}` "
        "(`--column instruction=a --column output=b`)",
    ),
    (
        {"response": "a", "id": 5},
        "the row has `response` and no question; expected `query`, `instruction` or `prompt` beside it, or, for plain "
        "text that a base model learns to continue, `columns` that say so, such as `{text: response}` "
        "(`--column text=response`)",
    ),
    # a question and its answer under other names
    ({"instruction": "a", "response": ""}, "`response` is empty; expected text"),
    (
        {"instruction": "a", "input": "x", "context": "y", "response": "b"},
        "the row has `context` and `input`; expected one of them below the `instruction`",
    ),
    ({"query": "", "response": "b"}, "`query` is empty; expected text"),
    ({"query": "a", "response": ["b", "c"]}, "`response` has parts of type text alone; expected text only"),
    (
        {"query": "<img>https://a/b.jpeg</img>c", "response": "b"},
        "a question has `<img>` with a file; expected text alone: the model would not see or hear it",
    ),
    ({"input": "a", "output": None}, "`output` is null; expected text"),
    (
        {"input": "a", "output": "b", "image": "c.png"},
        "the row has `image`; expected text alone: the model would not see or hear it",
    ),
    ({"kind": "x", "input": "a", "target": " "}, "`target` is blank; expected text"),
    (
        {"kind": "x", "input": "a", "target": "b", "response": "c"},
        "`target` and `response` are two answers; expected one of them, or a `format` that says which",
    ),
    # turns of a question and its answer
    (
        {"conversation": [{"human": "a", "assistant": "b"}, {"human": "c"}]},
        "turn 1 has `human`; expected `human` and `assistant`, or other names of the two",
    ),
    (
        {"conversation": [{"human": "a", "assistant": "b"}, None]},
        "turn 1 has null; expected `human` and `assistant`, or other names of the two",
    ),
    ({"conversation": [{"human": "a", "assistant": ""}]}, "`assistant` of turn 0 is empty; expected text"),
    (
        {"conversation": [{"human": "a", "assistant": "b"}, {"human": "c", "assistant": "d", "system": "s"}]},
        "turn 1 has a `system` text; expected one before all turns",
    ),
    # MOSS
    ({"chat": {}}, "`chat` is empty; expected `turn_1`, `turn_2` and so on"),
    (
        {"chat": {"turn_1": "a"}},
        "`turn_1` of `chat` is text; expected an object with `Human` and `MOSS`",
    ),
    ({"chat": {"turn_1": {"Human": "<|Human|>: a<eoh>\n"}}}, "`MOSS` of `turn_1` is empty; expected text"),
    (
        {
            "chat": {
                "turn_1": {
                    "Human": "<|Human|>: a<eoh>\n",
                    "Commands": '<|Commands|>: Search("a")<eoc>\n',
                    "MOSS": "<|MOSS|>: b<eom>\n",
                }
            }
        },
        "`turn_1` of `chat` has `Commands`, calls of plugins in words of MOSS's own; expected messages with "
        "`tool_calls`, and `tools` that describe them",
    ),
    (
        {"plain_text": "Human: a"},
        "`plain_text` is not of the form `[Human]: ...<eoh> [MOSS]: ...<eoa>` throughout",
    ),
    # ShareGPT
    ({"conversations": []}, "`conversations` is empty; expected a list of messages"),
    ({"conversations": None}, "`conversations` is null; expected a list of messages"),
    ({"conversations": "a"}, "`conversations` is text; expected a list of messages"),
    (sharegpt(None), "message 1 is null; expected an object with `from` and `value`"),
    (sharegpt(["gpt", "b"]), "message 1 is a list; expected an object with `from` and `value`"),
    (
        sharegpt({"from": "robot", "value": "b"}),
        "message 1 is from `robot`; expected human, gpt, system, function_call or observation",
    ),
    (
        sharegpt({"value": "b"}),
        "message 1 is from `None`; expected human, gpt, system, function_call or observation",
    ),
    (
        sharegpt({"from": ["gpt"], "value": "b"}),
        "message 1 is from `['gpt']`; expected human, gpt, system, function_call or observation",
    ),
    (sharegpt({"from": "human", "value": None}), "message 1, of role `user`, has no content"),
    (sharegpt({"from": "observation", "value": ""}), "message 1, of role `observation`, has no content"),
    (sharegpt({"from": "gpt", "value": 5}), "`value` of message 1 is a number; expected text"),
    (sharegpt({"from": "gpt", "value": {"text": "b"}}), "`value` of message 1 is an object; expected text"),
    (sharegpt({"from": "gpt", "value": "\udc00"}), "message 1 holds `\\udc00`, which is half of a character"),
    (sharegpt(GPT, HUMAN), "message 2, the last, has role `user`; expected an assistant message at the end"),
    ({"conversations": [GPT, HUMAN, GPT]}, "message 0 has role `assistant`; expected a user message first"),
    (
        {"conversations": [{"from": "observation", "value": "o"}, GPT]},
        "message 0 has role `observation`; expected a user message first",
    ),
    (sharegpt({"from": "observation", "value": "o"}, GPT), "message 1 is an observation without a tool call before it"),
    (
        sharegpt({"from": "system", "value": "s"}, GPT, system="t"),
        "message 1 is another system message; expected one at the beginning only",
    ),
    (
        {"conversations": [{"from": "system", "value": "s"}, HUMAN, GPT], "system": "t"},
        "the row has a `system` text and another in its first message; expected one of them",
    ),
    (sharegpt(GPT, system=5), "`system` is a number; expected text"),
    (
        sharegpt({"from": "human", "value": "a", "loss": 1}, GPT),
        "message 1 has `loss` 1.0 but role `user`; only assistant messages are trained",
    ),
    (sharegpt(GPT | {"loss": "no"}), "`loss` of message 1 is text; expected true, false or a weight of at least 0"),
    # its tool calls and tools
    (
        call("f()"),
        "`value` of message 1, a function call, is text that is not JSON: Expecting value: line 1 column 1 (char 0)",
    ),
    (
        call(""),
        "`value` of message 1, a function call, is text that is not JSON: Expecting value: line 1 column 1 (char 0)",
    ),
    (
        call('{"name": "f", "arguments": {"a": 1, "a": 2}}'),
        "`value` of message 1, a function call, is text that is not JSON: key `a` stands twice in one object",
    ),
    (
        call('{"name": "f", "arguments": {"a": NaN}}'),
        "`value` of message 1, a function call, is text that is not JSON: `NaN` is no number of JSON",
    ),
    (
        call("null"),
        "`value` of message 1, a function call, is null; "
        "expected an object with `name` and `arguments`, or a list of them",
    ),
    (
        call("[]"),
        "`value` of message 1, a function call, is an empty list; "
        "expected an object with `name` and `arguments`, or a list of them",
    ),
    (
        call('["f"]'),
        "`value` of message 1, a function call, is a list; "
        "expected an object with `name` and `arguments`, or a list of them",
    ),
    (call('{"arguments": {}}'), "a tool call of message 1 has no function name"),
    (call('{"name": null}'), "a tool call of message 1 has no function name"),
    (
        call('{"name": "f", "arguments": [1]}'),
        "message 1 calls `f` with a list; expected arguments as an object or JSON text",
    ),
    (call('{"name": "f", "arguments": {"a": "\\ud83d"}}'), "message 1 holds `\\ud83d`, which is half of a character"),
    (
        sharegpt(GPT, tools="[{"),
        "`tools` is text that is not JSON: Expecting property name enclosed in double quotes: line 1 column 3 (char 2)",
    ),
    (sharegpt(GPT, tools="no"), "`tools` is text that is not JSON: Expecting value: line 1 column 1 (char 0)"),
    (sharegpt(GPT, tools='[{"name": ""}]'), "tool 0 of `tools` has no function name"),
    (sharegpt(GPT, tools=[["f"]]), "tool 0 of `tools` is a list; expected an object"),
    # ChatGLM3
    ({"conversations": [USER, "b"]}, "message 1 is text; expected an object with `role` and `content`"),
    (
        {"conversations": [{"role": "human", "content": "a"}]},
        "message 0 has role `human`; expected system, user, assistant or observation",
    ),
    (
        {"conversations": [{"role": None, "content": "a"}]},
        "message 0 has role `None`; expected system, user, assistant or observation",
    ),
    (chatglm3(name=None), "a tool call of message 1 has no function name"),
    (chatglm3(name=" "), "a tool call of message 1 has no function name"),
    (chatglm3(parameters=[1]), "message 1 calls `f` with a list; expected arguments as an object or JSON text"),
    (chatglm3(observation=None), "`observation` of message 1 is null or missing; expected what the tool answered"),
    (chatglm3(observation=""), "`observation` of message 1 is empty; expected what the tool answered"),
    (chatglm3(parameters=None, observation=None), "message 1, of role `observation`, has no content"),
    (chatglm3(loss="x"), "`loss` of message 1 is text; expected true, false or a weight of at least 0"),
    (
        {"conversations": chatglm3()["conversations"][:2]},
        "message 2, the last, has role `observation`; expected an assistant message at the end",
    ),
    (
        chatglm3() | {"tools": ["Tells the time."]},
        "tool 0 of `tools` is text without a function's name and a colon at its beginning",
    ),
    (chatglm3() | {"tools": [""]}, "tool 0 of `tools` is text without a function's name and a colon at its beginning"),
    (
        chatglm3() | {"tools": ["get time: Tells it."]},
        "tool 0 of `tools` is text without a function's name and a colon at its beginning",
    ),
    (
        chatglm3() | {"tools": ["f: Does.", '{"name": "g"']},
        "tool 1 of `tools` is text that is not JSON: Expecting ',' delimiter: line 1 column 13 (char 12)",
    ),
    (chatglm3() | {"tools": [5]}, "tool 0 of `tools` is a number; expected an object"),
    # Alpaca
    (alpaca(instruction=""), "`instruction` and `input` are empty; expected text in one of them"),
    (alpaca(instruction=None, input=None), "`instruction` and `input` are empty; expected text in one of them"),
    (alpaca(instruction=5), "`instruction` is a number; expected text"),
    (alpaca(input={"x": 1}), "`input` is an object; expected text"),
    (alpaca(output=""), "`output` is empty; expected text"),
    (alpaca(output=None), "`output` is null; expected text"),
    (alpaca(output=True), "`output` is a boolean; expected text"),
    (alpaca(output="\ud83d"), "message 1 holds `\\ud83d`, which is half of a character"),
    (alpaca(system=["s"]), "`system` has parts of type text alone; expected text only"),
    (alpaca(history="a"), "`history` is text; expected a list of pairs: question, answer"),
    (alpaca(history=[["a"]]), "item 0 of `history` is no pair of texts; expected [question, answer]"),
    (alpaca(history=[["a", "b"], ["c", None]]), "item 1 of `history` is no pair of texts; expected [question, answer]"),
    (alpaca(history=["ab"]), "item 0 of `history` is no pair of texts; expected [question, answer]"),
    # AdvertiseGen
    ({"content": None, "summary": "b"}, "`content` is null; expected text"),
    ({"content": "a", "summary": ""}, "`summary` is empty; expected text"),
    ({"content": "a", "summary": ["b"]}, "`summary` has parts of type text alone; expected text only"),
    # pairs and plain text
    ({"prompt": "", "response": "b"}, "`prompt` is empty; expected text"),
    ({"prompt": "a", "response": None}, "`response` is null; expected text"),
    ({"prompt": 1, "response": "b"}, "`prompt` is a number; expected text"),
    ({"prompt": "a", "completion": ""}, "`completion` is empty; expected text"),
    ({"prompt": "a", "completion": 0.5}, "`completion` is a number; expected text"),
    (
        {"prompt": "a", "completion": [ASSISTANT]},
        "`prompt` is text and `completion` a list; expected two texts or two lists of messages",
    ),
    ({"prompt": [], "completion": [ASSISTANT]}, "`prompt` is empty; expected a list of messages"),
    ({"prompt": [USER], "completion": []}, "`completion` is empty; expected a list of messages"),
    (
        {"prompt": [USER], "completion": [{"role": "robot"}]},
        "message 1 has role `robot`; expected system, user, assistant or observation",
    ),
    (
        {"prompt": [ASSISTANT], "completion": [ASSISTANT]},
        "message 0 has role `assistant`; expected a user message first",
    ),
    ({"text": ""}, "`text` is empty; expected text"),
    ({"text": None}, "`text` is null; expected text"),
    ({"text": {"a": 1}}, "`text` is an object; expected text"),
    ({"text": "a\udfff"}, "message 0 holds `\\udfff`, which is half of a character"),
    # preferences
    (preference(chosen=""), "`chosen` is empty; expected the answer to train on"),
    (preference(chosen=None), "`chosen` is empty; expected the answer to train on"),
    (preference(chosen=5), "`chosen` is a number; expected text"),
    (preference(chosen=[]), "`chosen` is empty; expected a list of messages"),
    (
        {"chosen": "b", "rejected": "c"},
        "`chosen` answers nothing; expected `conversations`, `messages`, `instruction` or `prompt` beside it",
    ),
    (
        {"chosen": [ASSISTANT], "rejected": [ASSISTANT]},
        "`chosen` answers nothing; expected `conversations`, `messages`, `instruction` or `prompt` beside it",
    ),
    (preference(conversations="a"), "`conversations` is text; expected a list of messages"),
    ({"prompt": "", "chosen": "b", "rejected": "c"}, "`prompt` is empty; expected text"),
    # ToolAlpaca
    (toolalpaca(Instances=None), "`Instances` is null; expected a list of instances"),
    (toolalpaca(Instances=[]), "`Instances` is empty; expected a list of instances"),
    (
        toolalpaca(Function_Description=None),
        "`Function_Description` is null; expected an object of names and descriptions",
    ),
    (toolalpaca(Function_Description={"f": 5}), "`f` is a number; expected text"),
    (
        toolalpaca(Function_Description={"components": "x"}),
        "`Function_Description` is empty; expected names and descriptions",
    ),
    (
        toolalpaca("{'input': 'a'}"),
        "instance 0: it is text; expected an object with `input`, `intermediate_steps` and `output`",
    ),
    (toolalpaca({"input": None}), "instance 0: `input` is null; expected text"),
    (toolalpaca({"output": ""}), "instance 0: `output` is empty; expected text"),
    (toolalpaca({"intermediate_steps": []}), "instance 0: `intermediate_steps` is empty; expected a list of steps"),
    (toolalpaca({"intermediate_steps": None}), "instance 0: `intermediate_steps` is null; expected a list of steps"),
    (
        toolalpaca({"intermediate_steps": [["f", "{}", "o"]]}),
        "instance 0: step 0 is not of the form [[function, input, log], observation]",
    ),
    (
        toolalpaca({"intermediate_steps": [[["f", "city: Paris", "x"], "o"]]}),
        "instance 0: input of step 0 is text that is not JSON: Expecting value: line 1 column 1 (char 0)",
    ),
    (toolalpaca({"intermediate_steps": [[["f", "[1]", "x"], "o"]]}), "instance 0: input of step 0 is no object"),
    (
        toolalpaca({"intermediate_steps": [[["f", "{}", "x"], None]]}),
        "instance 0: message 2, of role `observation`, has no content",
    ),
    (
        toolalpaca({"intermediate_steps": [[[" ", "{}", "x"], "o"]]}),
        "instance 0: a tool call of message 1 has no function name",
    ),
]


@pytest.mark.parametrize(("row", "reason"), REFUSED, ids=[str(number) for number in range(len(REFUSED))])
def test_a_row_is_refused_with_the_reason_in_full(row: Any, reason: str) -> None:
    with pytest.raises(RowError) as caught:
        to_conversations(row)
    assert str(caught.value) == reason


NOT_THE_FORMAT: list[tuple[str, Any, str]] = [
    (
        "alpaca",
        {"instruction": "a", "ouput": "b"},
        "the row has no `output` (did you mean `ouput`?), which the format `alpaca` needs "
        "(keys: `instruction`, `ouput`)",
    ),
    ("text", {}, "the row has no `text`, which the format `text` needs (keys: none)"),
    (
        "sharegpt",
        {"messages": [USER]},
        "the row has no `conversations`, which the format `sharegpt` needs (keys: `messages`)",
    ),
    (
        "sharegpt",
        {"conversations": [USER]},
        "message 0 is from `None`; expected human, gpt, system, function_call or observation",
    ),
    (
        "chatglm3",
        {"conversations": [HUMAN]},
        "message 0 has role `None`; expected system, user, assistant or observation",
    ),
]


@pytest.mark.parametrize(("name", "row", "reason"), NOT_THE_FORMAT)
def test_a_row_of_another_format_than_the_one_asked_for_is_refused(name: str, row: Any, reason: str) -> None:
    with pytest.raises(RowError) as caught:
        to_conversations(row, RowFormat(name=name))
    assert str(caught.value) == reason


def test_an_unknown_format_is_an_error_that_names_the_known_ones() -> None:
    with pytest.raises(GlmtuneError) as caught:
        RowFormat(name="share-gpt")
    names = ", ".join(f"`{name}`" for name in FORMATS)
    assert str(caught.value) == f"`share-gpt` is no row format (did you mean `sharegpt`?)\nhint: use one of {names}"


def test_every_format_is_refused_at_least_twice_here() -> None:
    keys = [set(row) for row, _ in REFUSED if isinstance(row, dict)]
    others = {name: one for name, one in FORMATS.items() if name != "messages"}
    assert all(sum(set(one.keys) <= row for row in keys) >= 2 for one in others.values())


def test_a_good_instance_of_toolalpaca_is_not_lost_with_its_bad_siblings() -> None:
    row = toolalpaca()
    good = toolalpaca({})["Instances"][0]
    row["Instances"] = [good, {"error": "broke off"}, good | {"input": "c"}, "broke off"]
    with pytest.raises(RowError) as caught:
        to_conversations(row)
    assert str(caught.value) == (
        "instance 1: `input` is missing; expected text; "
        "instance 3: it is text; expected an object with `input`, `intermediate_steps` and `output`"
    )
    assert [conversation.messages[1].content for conversation in caught.value.rest] == ["a", "c"]


def test_one_conversation_is_asked_of_a_row_that_holds_many() -> None:
    row = toolalpaca({})
    row["Instances"] *= 2
    with pytest.raises(RowError, match="the row holds 2 conversations; expected one"):
        to_conversation(row)
