"""Answers are taken apart exactly: what is a call becomes one, all else stays text, however it arrives."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glmtune.chatformat.encoding import Encoder
from glmtune.chatformat.rendering import ChatRenderer
from glmtune.chatformat.replies import (
    ARGUMENT_TAGS,
    JSON_TAGS,
    ROLE_LINE,
    Delta,
    Reply,
    ReplyLayout,
    ReplyReader,
    ToolCall,
    parse_reply,
    reply_layout,
)
from glmtune.data.formats import to_conversation
from glmtune.family import GLM, IGNORE_INDEX

GLM_4 = ReplyLayout(calls=ROLE_LINE)
GLM_45 = ReplyLayout(calls=ARGUMENT_TAGS, has_reasoning=True)
CHATML = ReplyLayout(calls=JSON_TAGS)


def tool(name: str, **properties: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": {"properties": properties}}}


WEATHER = tool("get_weather", city={"type": "string"}, days={"type": "integer"})
CALL = 'get_weather\n{"city": "Bath", "days": 2}'
PARSED = ToolCall(name="get_weather", arguments='{"city": "Bath", "days": 2}')


def test_a_name_above_an_object_is_a_call() -> None:
    assert parse_reply(CALL, GLM_4, [WEATHER]) == Reply(tool_calls=(PARSED,))


def test_arguments_stay_as_the_model_wrote_them() -> None:
    written = '{"b":1,  "a": [1.0, "雾"]}'
    assert parse_reply(f"f\n{written}\n", GLM_4).tool_calls[0].arguments == written


@pytest.mark.parametrize(
    "text",
    [
        "The answer is\n42",
        "answer\n42",
        "get_weather",
        "get_weather\n",
        "get_weather\n[1, 2]",
        'get_weather\n{"city": "Bath"',
        'get_weather\n{"city": NaN}',
        'get_weather\n{"city": "Bath"} and more',
        'get weather\n{"city": "Bath"}',
        "get_weather\n" + "[" * 100_000,
        '{"city": "Bath"}',
        "天气\n{}",
    ],
)
def test_what_is_not_exactly_a_call_is_text(text: str) -> None:
    assert parse_reply(text, GLM_4, [WEATHER]) == Reply(content=text.strip())


def test_a_newline_behind_the_role_token_begins_a_plain_answer() -> None:
    assert parse_reply("\n" + CALL, GLM_4, [WEATHER]) == Reply(content=CALL)


def test_without_tools_nothing_is_a_call() -> None:
    assert parse_reply(CALL, GLM_4, []) == Reply(content=CALL)


def test_a_name_that_is_no_identifier_is_a_call_where_it_was_offered() -> None:
    reply = parse_reply("查天气\n{}", GLM_4, [tool("查天气")])
    assert reply == Reply(tool_calls=(ToolCall(name="查天气", arguments="{}"),))


def test_a_text_and_two_calls_are_sections_of_one_answer() -> None:
    reply = parse_reply(["\nI will look. ", CALL, 'f\n{"x": 1}'], GLM_4, [WEATHER])
    assert reply == Reply(content="I will look.", tool_calls=(PARSED, ToolCall(name="f", arguments='{"x": 1}')))


def test_texts_of_two_sections_stand_on_lines_of_their_own() -> None:
    assert parse_reply(["\na\n\n", "\n\n b"], GLM_4).content == "a\nb"


def test_calls_between_tags_leave_the_text_around_them() -> None:
    first = '<tool_call>\n{"name": "f", "arguments": {"x": "雾"}}\n</tool_call>'
    text = f'Let me see.\n{first}\n<tool_call>\n{{"name": "g"}}\n</tool_call>'
    calls = (ToolCall(name="f", arguments='{"x": "雾"}'), ToolCall(name="g", arguments="{}"))
    assert parse_reply(text, CHATML) == Reply(content="Let me see.", tool_calls=calls)


@pytest.mark.parametrize(
    "body", ['{"name": "f", "arguments": 3}', '{"name": 3}', "{", '{"name": "f", "arguments": "x"}']
)
def test_a_broken_call_between_tags_is_text(body: str) -> None:
    text = f"a <tool_call>{body}</tool_call> b"
    assert parse_reply(text, CHATML) == Reply(content=text)


def test_a_tag_that_is_never_closed_is_text() -> None:
    assert parse_reply("a <tool_call>{", CHATML) == Reply(content="a <tool_call>{")


def test_glm_45_writes_arguments_in_pairs_of_tags() -> None:
    text = (
        "<think>Which city?</think>\nOne moment."
        "<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>42</arg_value>\n"
        "<arg_key>days</arg_key>\n<arg_value>2</arg_value>\n</tool_call>"
    )
    call = ToolCall(name="get_weather", arguments='{"city": "42", "days": 2}')
    expected = Reply(content="One moment.", reasoning="Which city?", tool_calls=(call,))
    assert parse_reply(text, GLM_45, [WEATHER]) == expected


def test_glm_45_may_call_without_arguments() -> None:
    assert parse_reply("<tool_call>f\n</tool_call>", GLM_45).tool_calls == (ToolCall(name="f", arguments="{}"),)


def test_an_argument_without_a_value_is_text() -> None:
    text = "<tool_call>f\n<arg_key>a</arg_key></tool_call>"
    assert parse_reply(text, GLM_45) == Reply(content=text)


def test_reasoning_that_the_prompt_opened_ends_at_its_tag() -> None:
    layout = ReplyLayout(has_reasoning=True, prompt_opens_reasoning=True)
    assert parse_reply("\nHm.\n</think>\n\nYes.", layout) == Reply(content="Yes.", reasoning="Hm.")


def test_a_call_may_follow_reasoning() -> None:
    layout = ReplyLayout(calls=ROLE_LINE, has_reasoning=True)
    assert parse_reply(f"<think>Hm.</think>\n{CALL}", layout) == Reply(reasoning="Hm.", tool_calls=(PARSED,))


def test_a_plain_answer_is_given_out_at_once() -> None:
    reader = ReplyReader(GLM_4, [WEATHER])
    assert reader.feed("\nHello") == [Delta(text="Hello")]
    assert reader.feed(" \n") == []
    assert reader.feed("you") == [Delta(text=" \nyou")]


def test_what_may_become_a_call_is_held_back_until_it_is_one() -> None:
    reader = ReplyReader(GLM_4, [WEATHER])
    assert [reader.feed(text) for text in ("get_", "weather", '\n{"city": "Bath", "days": 2}')] == [[], [], []]
    assert reader.finish() == [PARSED]


def test_what_can_no_longer_become_a_call_is_given_out() -> None:
    reader = ReplyReader(GLM_4, [WEATHER])
    assert reader.feed("get_") == []
    assert reader.feed("well soon!") == [Delta(text="get_well soon!")]


def test_a_name_with_something_other_than_arguments_below_is_given_out_at_once() -> None:
    reader = ReplyReader(GLM_4, [WEATHER])
    assert reader.feed("get_weather\n") == []
    assert reader.feed("is") == [Delta(text="get_weather\nis")]


@pytest.mark.parametrize("section", [' f\n{"a": 1}', ' \t f \n{"a": 1}', " f", "  雾", " ", " \n f"])
@pytest.mark.parametrize("tools", [None, [{"type": "function", "function": {"name": "f"}}], []], ids=["", "f", "none"])
def test_blanks_before_a_name_are_read_alike_however_they_arrive(section: str, tools: Any) -> None:
    reader = ReplyReader(GLM_4, tools)
    for character in section:
        reader.feed(character)
    reader.finish()
    assert reader.reply == parse_reply(section, GLM_4, tools)


@pytest.mark.parametrize(
    ("layout", "alphabet"),
    [
        (GLM_4, ["f", "\n", " ", '{"a": 1}', "{", "雾", "|"]),
        (CHATML, ["<tool_call>", "</tool_call>", '{"name": "f"}', "<", "\n", " ", "x"]),
        (GLM_45, ["<think>", "</think>", "<tool_call>f", "</tool_call>", "<arg_key>k</arg_key>",
                  "<arg_value>1</arg_value>", "\n", "x", "<"]),
    ],
)  # fmt: skip
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_however_an_answer_arrives_it_is_the_same(
    layout: ReplyLayout, alphabet: list[str], data: st.DataObject
) -> None:
    sections = data.draw(st.lists(st.lists(st.sampled_from(alphabet), max_size=8).map("".join), min_size=1, max_size=3))
    whole = parse_reply(sections, layout)
    reader = ReplyReader(layout)
    events = []
    for number, section in enumerate(sections):
        if number:
            events += reader.border()
        for character in section:
            events += reader.feed(character)
    events += reader.finish()
    assert reader.reply == whole
    texts = [event for event in events if isinstance(event, Delta)]
    assert "".join(piece.text for piece in texts if not piece.is_reasoning) == whole.content
    assert whole.content == whole.content.strip()
    assert tuple(event for event in events if isinstance(event, ToolCall)) == whole.tool_calls
    for call in whole.tool_calls:
        assert isinstance(json.loads(call.arguments), dict)


def test_every_call_of_published_rows_is_read_again_from_its_labels(shared_data: Path, glm_tokenizer: Any) -> None:
    """What a model is trained to write is what a server reads: each answer's trained tokens, taken apart."""
    encoder = Encoder(glm_tokenizer, GLM)
    border = glm_tokenizer.convert_tokens_to_ids("<|assistant|>")
    num_calls = 0
    for row in json.loads((shared_data / "glaive_toolcall_zh_1k.json").read_text(encoding="utf-8"))[:200]:
        conversation = to_conversation(row)
        example = encoder.encode(conversation)
        answers: list[list[int]] = []
        for token, label, before in zip(example.input_ids, example.labels, [border, *example.labels]):
            if label != IGNORE_INDEX:
                answers += [[]] if before == IGNORE_INDEX else []
                answers[-1].append(token)
        replies = [parse_reply(glm_tokenizer.decode(answer[:-1]), GLM_4, conversation.tools) for answer in answers]
        expected = [
            Reply(tool_calls=(ToolCall(name=message.metadata, arguments=message.content),))
            if message.metadata
            else Reply(content=message.content.strip())
            for message in conversation.messages
            if message.role == "assistant"
        ]
        assert replies == expected
        num_calls += sum(bool(reply.tool_calls) for reply in replies)
    assert num_calls > 100


def test_the_layout_is_read_off_the_template(demo_tokenizer: Any) -> None:
    assert reply_layout(ChatRenderer(demo_tokenizer, GLM)) == GLM_4


@pytest.mark.parametrize("layout", [GLM_4, GLM_45, CHATML])
def test_an_opening_begins_a_call(layout: ReplyLayout) -> None:
    rest = {ROLE_LINE: "{}", JSON_TAGS: "{}}\n</tool_call>", ARGUMENT_TAGS: "</tool_call>"}[str(layout.calls)]
    call = ToolCall(name="get_weather", arguments="{}")
    assert parse_reply(layout.opening("get_weather") + rest, layout).tool_calls == (call,)
