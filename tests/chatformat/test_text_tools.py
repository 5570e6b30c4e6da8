"""GLM-4's tools that are called with a text: rows in both forms, their labels, prompts, and answers taken apart."""

from __future__ import annotations

import json
from typing import Any

import pytest

from glmtune.chatformat.encoding import Encoder
from glmtune.chatformat.examples import turns_of
from glmtune.chatformat.rendering import ChatRenderer
from glmtune.chatformat.replies import Reply, ReplyLayout, ReplyReader, ToolCall, parse_reply, reply_layout
from glmtune.data.conversation import RowError
from glmtune.data.formats import to_conversation, to_row
from glmtune.data.parts.text_tools import arguments_of
from glmtune.evaluation.tool_calls import CallReader
from glmtune.family import GLM, TEXT_TOOLS
from glmtune.generation.generate import encode_messages

CODE = "import math\nfor n in range(3):\n    print(math.sqrt(n))"
OFFERED = [{"type": name} for name in TEXT_TOOLS]
FUNCTION = {"type": "function", "function": {"name": "python", "description": "", "parameters": {"type": "object"}}}
GLM_4 = ReplyLayout(calls="role line", text_tools=TEXT_TOOLS)
CALL = ToolCall(name="python", arguments=json.dumps({"input": CODE}))


def row(call: dict[str, Any], tools: list[Any] | None = None) -> dict[str, Any]:
    return {
        "tools": OFFERED if tools is None else tools,
        "messages": [
            {"role": "user", "content": "三个数的平方根？"},
            {"role": "assistant", "content": "", **call},
            {"role": "tool", "content": "0.0\n1.0\n1.4", "tool_call_id": "a"},
            {"role": "assistant", "content": "0、1 和 1.4。"},
        ],
    }


def openai(arguments: Any, name: str = "python") -> dict[str, Any]:
    return {"tool_calls": [{"id": "a", "type": "function", "function": {"name": name, "arguments": arguments}}]}


FORMS = {
    "GLM-4's": {"metadata": "python", "content": CODE},
    "the text alone": openai(CODE),
    "input": openai(arguments_of(CODE)),
    "an object": openai({"input": CODE}),
    "another key": openai({"code": CODE}),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_the_call_that_glm_4_writes(form: str) -> None:
    conversation = to_conversation(row(FORMS[form]))
    assert [(each.metadata, each.content) for each in conversation.messages if each.metadata] == [("python", CODE)]
    assert to_conversation(to_row(conversation)).messages == conversation.messages


def test_the_labels_are_those_of_the_templates_own_text(glm_tokenizer: Any) -> None:
    encoder = Encoder(glm_tokenizer, GLM)
    example = encoder.encode(to_conversation(row(FORMS["input"])))
    trained = [glm_tokenizer.decode(turn.answer_ids) for turn in turns_of(example.input_ids, example.labels)]
    assert trained == [f"python\n{CODE}<|observation|>", "\n0、1 和 1.4。<|user|>"]
    whole = glm_tokenizer.decode(example.input_ids)
    assert all(f"## {name}" in whole for name in TEXT_TOOLS)


def test_a_prompt_writes_calls_as_rows_do(glm_tokenizer: Any) -> None:
    encoder = Encoder(glm_tokenizer, GLM)
    asked = row(FORMS["input"])["messages"][:3]
    ids = encode_messages(encoder, asked, tools=OFFERED)
    trained = list(encoder.encode(to_conversation(row(FORMS["GLM-4's"]))).input_ids)
    assert trained[: len(ids)] == ids


def test_a_function_of_that_name_is_a_function(glm_tokenizer: Any) -> None:
    called = to_conversation(row(openai({"input": "1"}), [FUNCTION])).messages[2]
    assert json.loads(called.content) == {"input": "1"}
    with pytest.raises(RowError, match="message 1 calls the function `python` with arguments that are no JSON object"):
        to_conversation(row(openai(CODE), [FUNCTION]))


@pytest.mark.parametrize("arguments", [{}, {"a": "1", "b": "2"}, {"input": 1}, {"input": ""}])
def test_arguments_that_are_no_text_are_told(arguments: dict[str, Any]) -> None:
    with pytest.raises(RowError, match="message 1 calls `python`, which takes one text, with"):
        to_conversation(row(openai(arguments)))


@pytest.mark.parametrize("tool", [{"type": "no_such"}, {"type": "web_search", "web_search": {"enable": True}}])
def test_a_tool_that_the_template_leaves_out_is_told(tool: dict[str, Any], glm_tokenizer: Any) -> None:
    encoder = Encoder(glm_tokenizer, GLM)
    with pytest.raises(RowError, match=f"tool 3, of type `{tool['type']}`, is one that this model's chat template"):
        encoder.encode(to_conversation(row(FORMS["GLM-4's"], [*OFFERED, tool])))


def test_the_template_says_which_tools_it_has(glm_tokenizer: Any, demo_tokenizer: Any) -> None:
    assert reply_layout(ChatRenderer(glm_tokenizer, GLM)).text_tools == TEXT_TOOLS
    assert reply_layout(ChatRenderer(demo_tokenizer, GLM)).text_tools == ()


@pytest.mark.parametrize("tools", [OFFERED, None], ids=["offered", "unknown"])
def test_an_answer_is_read_however_it_arrives(tools: list[Any] | None) -> None:
    text = f"python\n{CODE}"
    assert parse_reply(text, GLM_4, tools) == Reply(tool_calls=(CALL,))
    reader = ReplyReader(GLM_4, tools)
    assert [event for character in text for event in reader.feed(character)] == []
    assert reader.take_complete_call() == []  # more of it may follow
    assert reader.finish() == [CALL]


def test_an_answer_and_a_call_behind_it() -> None:
    reply = parse_reply(["\n我来算。", f"python\n{CODE}"], GLM_4, OFFERED)
    assert reply == Reply(content="我来算。", tool_calls=(CALL,))


@pytest.mark.parametrize(
    ("text", "tools"),
    [
        ("python\n", OFFERED),
        ("python", OFFERED),
        ("\npython\nprint(1)", OFFERED[1:]),
        ("python\nprint(1)", OFFERED[1:]),
        ("python\nprint(1)", [FUNCTION]),
        ("python\nprint(1)", []),
        ("Python\nprint(1)", OFFERED),
    ],
)
def test_what_is_no_such_call_stays_text(text: str, tools: list[Any]) -> None:
    assert parse_reply(text, GLM_4, tools) == Reply(content=text.strip())


def test_json_below_the_name_is_the_text_where_a_text_is_taken() -> None:
    [call] = parse_reply('python\n{"a": 1}', GLM_4, OFFERED).tool_calls
    assert json.loads(call.arguments) == {"input": '{"a": 1}'}
    [call] = parse_reply('python\n{"a": 1}', GLM_4, [FUNCTION]).tool_calls
    assert json.loads(call.arguments) == {"a": 1}


def test_evaluation_compares_the_texts() -> None:
    reader = CallReader.for_references(GLM_4, [[f"python\n{CODE}"]])
    assert reader.read([f"python\n{CODE}"], "") == (CALL,)
