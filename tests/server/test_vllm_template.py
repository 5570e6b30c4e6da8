"""The template that vLLM is given, fed as vLLM feeds it, against the rendering that training knows."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from glmtune.chatformat.rendering import ChatRenderer
from glmtune.data.conversation import Conversation
from glmtune.data.formats import to_conversation
from glmtune.family import GLM
from glmtune.server.vllm_template import glm4_template

# As GLM-4-0414's: tools beside the messages, and still the name of a call on the role line. It begins with a line
# break, which must not be lost behind what is put before it.
TOOLS_BESIDE = """
[gMASK]<sop>{% if tools %}<|system|>
{{ tools | tojson }}{% endif %}{% for item in messages %}<|{{ item.role }}|>{{ item.metadata or '' }}
{{ item.content }}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"""

TOOLS: list[dict[str, Any]] = [
    {"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object"}}},
    {"type": "function", "function": {"name": "g", "parameters": {"type": "object", "properties": {}}}},
]
HI = {"role": "user", "content": "hi"}
AGAIN = {"role": "user", "content": "and now?"}


def call(*names: str, content: str | None = None) -> dict[str, Any]:
    arguments = json.dumps({"a": "墨绿 <&> '", "b": [1, {"c": None}]}, ensure_ascii=False)
    calls = [{"id": f"id-{name}", "type": "function", "function": {"name": name}} for name in names]
    for one in calls:
        one["function"]["arguments"] = arguments  # type: ignore[index]
    return {"role": "assistant", "content": content, "tool_calls": calls}


def result(name: str, content: str) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": f"id-{name}", "content": content}


CASES: dict[str, tuple[list[dict[str, Any]], list[dict[str, Any]] | None]] = {
    "a question": ([HI], None),
    "a system message": ([{"role": "system", "content": "be\n brief"}, HI], None),
    "turns": ([HI, {"role": "assistant", "content": " ho "}, AGAIN], None),
    "tools": ([HI], TOOLS),
    "tools and a system message": ([{"role": "system", "content": "be brief"}, HI], TOOLS),
    "tools and a developer's message": ([{"role": "developer", "content": "be brief"}, HI], TOOLS),
    "a call and its result": ([HI, call("f"), result("f", "{}")], TOOLS),
    "a text, a call, its result, an answer": (
        [HI, call("f", content="I look."), result("f", "1"), {"role": "assistant", "content": "one"}, AGAIN],
        TOOLS,
    ),
    "two calls": ([HI, call("f", "g"), result("f", "1"), result("g", "2")], TOOLS),
    "results in another order than the calls": ([HI, call("f", "g"), result("g", "2"), result("f", "1")], TOOLS),
    "two rounds": ([HI, call("g", "f"), result("f", "1"), result("g", "2"), call("f"), result("f", "3")], TOOLS),
}


@pytest.fixture(params=["demo", "GLM-4-9B-Chat", "tools beside"])
def renderer(request: pytest.FixtureRequest) -> ChatRenderer:
    if request.param == "GLM-4-9B-Chat":
        return ChatRenderer(request.getfixturevalue("glm_tokenizer"), GLM)
    tokenizer = request.getfixturevalue("demo_tokenizer")
    if request.param == "tools beside":
        tokenizer = copy.deepcopy(tokenizer)
        tokenizer.chat_template = TOOLS_BESIDE
    return ChatRenderer(tokenizer, GLM)


def as_vllm_gives(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the messages as vLLM hands them to a template: arguments parsed, no content as no text."""
    given = copy.deepcopy(messages)
    for message in given:
        message["content"] = message["content"] or ""
        for one in message.get("tool_calls", ()):
            one["function"]["arguments"] = json.loads(one["function"]["arguments"])
    return given


def tools_of_vllm(tools: list[dict[str, Any]] | None) -> list[dict[str, Any]] | None:
    """Return the tools as vLLM's own class gives them: what a function leaves out is null."""
    if tools is None:
        return None
    empty = {"name": None, "description": None, "parameters": None}
    return [{**tool, "function": {**empty, **tool["function"]}} for tool in tools]


def rendered(renderer: ChatRenderer, messages: list[dict[str, Any]], tools: Any) -> str:
    text = renderer.tokenizer.apply_chat_template(
        as_vllm_gives(messages), tools=tools, chat_template=glm4_template(renderer), tokenize=False
    )
    assert isinstance(text, str)
    return text


@pytest.mark.parametrize("case", CASES)
def test_a_request_is_written_as_a_training_row(renderer: ChatRenderer, case: str) -> None:
    messages, tools = CASES[case]
    row = {"messages": messages, **({"tools": tools} if tools else {})}
    # Where the model's template takes the tools itself, it gets vLLM's, nulls and all.
    given = tools if renderer.facts.takes_tools_argument else tools_of_vllm(tools)
    assert rendered(renderer, messages, given) == renderer.plain_text(to_conversation(row))


def test_the_prompt_asks_for_an_answer(renderer: ChatRenderer) -> None:
    template = glm4_template(renderer)
    text = renderer.tokenizer.apply_chat_template(
        [HI], chat_template=template, tokenize=False, add_generation_prompt=True
    )
    assert str(text).endswith("<|user|>\nhi<|assistant|>")


def test_arguments_that_came_as_text_stay_as_they_are(renderer: ChatRenderer) -> None:
    messages = [HI, call("f"), result("f", "1")]
    messages[1]["tool_calls"][0]["function"]["arguments"] = '{"a":1,  "b" :2}'
    text = renderer.tokenizer.apply_chat_template(
        messages, tools=TOOLS, chat_template=glm4_template(renderer), tokenize=False
    )
    assert str(text).endswith('<|assistant|>f\n{"a":1,  "b" :2}<|observation|>\n1')


def test_published_tool_calls_are_written_as_training_rows(glm_tokenizer: Any, shared_data: Path) -> None:
    renderer = ChatRenderer(glm_tokenizer, GLM)
    rows = json.loads((shared_data / "glaive_toolcall_zh_1k.json").read_text(encoding="utf-8"))
    num_calls = 0
    for row in rows:
        conversation = to_conversation(row)
        messages = as_client_sends(conversation)
        assert rendered(renderer, messages, tools_of_vllm(conversation.tools)) == renderer.plain_text(conversation)
        num_calls += sum("tool_calls" in message for message in messages)
    assert num_calls == 696


def as_client_sends(conversation: Conversation) -> list[dict[str, Any]]:
    """Return OpenAI's messages for a conversation with single calls; its tools travel beside them."""
    messages: list[dict[str, Any]] = []
    for number, message in enumerate(conversation.messages):
        if message.metadata:
            function = {"name": message.metadata, "arguments": message.content}
            calls = [{"id": str(number), "type": "function", "function": function}]
            messages.append({"role": "assistant", "content": None, "tool_calls": calls})
        elif message.role == "observation":
            messages.append({"role": "tool", "tool_call_id": str(number - 1), "content": message.content})
        elif message.content:
            messages.append({"role": message.role, "content": message.content})
    return messages
