"""Calls while they are written: parts whose sum is the whole call."""

from __future__ import annotations

import itertools
import json
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glmtune.chatformat.call_parts import CallPart
from glmtune.chatformat.replies import (
    ARGUMENT_TAGS,
    JSON_TAGS,
    ROLE_LINE,
    Delta,
    Found,
    ReplyLayout,
    ReplyReader,
    ToolCall,
    parse_reply,
)

PROPERTIES = {"city": {"type": "string"}, "days": {"type": "integer"}}
PARAMETERS = {"type": "object", "properties": PROPERTIES}
TOOLS = [
    {"type": "function", "function": {"name": name, "description": "d", "parameters": PARAMETERS}}
    for name in ("weather", "查询 价格")
]
GLM_4, GLM_45, CHATML = (ReplyLayout(calls=calls) for calls in (ROLE_LINE, ARGUMENT_TAGS, JSON_TAGS))
PAIR = "<arg_key>{}</arg_key>\n<arg_value>{}</arg_value>\n"


def streamed(layout: ReplyLayout, sections: list[str], cuts: list[int]) -> list[Found]:
    reader = ReplyReader(layout, TOOLS, streams_calls=True)
    events: list[Found] = []
    for number, section in enumerate(sections):
        events += reader.border() if number else []
        places = sorted({0, len(section), *(cut % (len(section) + 1) for cut in cuts)})
        for start, end in itertools.pairwise(places):
            events += reader.feed(section[start:end])
    return [*events, *reader.finish()]


def accumulated(events: list[Found]) -> tuple[str, list[tuple[str, str]]]:
    """Return text and calls as a client puts them together."""
    text, calls = "", []
    for event in events:
        if isinstance(event, Delta):
            text += event.text
        elif isinstance(event, CallPart):
            if event.name is not None:
                calls.append([event.name, ""])
            calls[-1][1] += event.arguments
        elif not event.is_streamed:
            calls.append([event.name, event.arguments])
    return text, [(name, arguments) for name, arguments in calls]


WHOLE = {
    "one": (GLM_4, ['weather\n{"city": "Bath", "in": [1, {"a": "}"}]}']),
    "blanks": (GLM_4, ['weather \n  {"city" : "Bath \\" {",\n "days": 2 }\n ']),
    "text first": (GLM_4, ["\nI look.", 'weather\n{"city": "Bath"}', "查询 价格\n{}"]),
    "not offered": (GLM_4, ['other\n{"city": "Bath"}']),
    "no call": (GLM_4, ["\nweather\nis fine {"]),
    "arguments": (
        GLM_45,
        ["So.\n<tool_call>weather\n" + PAIR.format("city", "Bath <b>") + PAIR.format("days", " 2") + "</tool_call>"],
    ),
    "two calls": (
        GLM_45,
        [f"<tool_call>weather\n{PAIR.format('city', '1')}</tool_call>\n<tool_call>weather\n</tool_call>"],
    ),
    "one key twice": (
        GLM_45,
        [f"<tool_call>weather{PAIR.format('days', '1')}{PAIR.format('days', '[2, 3]')}</tool_call>"],
    ),
    "text and tags": (
        CHATML,
        [
            'So.\n<tool_call>\n{ "name":"weather" , "arguments" : {"city": "Bath \\" }", "in": [{}]} }\n</tool_call>\n'
            '<tool_call>{"name": "\\u67e5\\u8be2 价格", "parameters": {}}</tool_call>'
        ],
    ),
    "name behind": (CHATML, ['<tool_call>\n{"arguments": {"city":"Bath"}, "name": "weather"}\n</tool_call>']),
    "arguments twice": (
        CHATML,
        ['<tool_call>{"name": "weather", "arguments": {"days":1}, "arguments": {"days":2}}</tool_call>'],
    ),
    "arguments as a text": (CHATML, ['<tool_call>{"name": "weather", "arguments": "{\\"days\\":1}"}</tool_call>']),
    "tags": (CHATML, ['<tool_call>\n{"name": "weather", "arguments": {"city":"Bath"}}\n</tool_call>']),
    "not offered in tags": (GLM_45, [f"<tool_call>other\n{PAIR.format('city', '1')}</tool_call>"]),
}


@settings(max_examples=30, deadline=None)
@pytest.mark.parametrize("kind", WHOLE)
@given(cuts=st.lists(st.integers(0, 300), max_size=40))
def test_parts_are_the_whole_call_however_it_comes(kind: str, cuts: list[int]) -> None:
    layout, sections = WHOLE[kind]
    reply = parse_reply(sections, layout, TOOLS)
    text, calls = accumulated(streamed(layout, sections, cuts))
    assert calls == [(call.name, call.arguments) for call in reply.tool_calls]
    assert text == reply.content


def test_a_key_that_comes_twice_has_its_last_value() -> None:
    layout, sections = WHOLE["one key twice"]
    assert json.loads(parse_reply(sections, layout, TOOLS).tool_calls[0].arguments) == {"days": [2, 3]}


@pytest.mark.parametrize("kind", ["one", "arguments", "tags"])
def test_arguments_come_before_the_call_is_whole(kind: str) -> None:
    layout, sections = WHOLE[kind]
    events = streamed(layout, sections, list(range(200)))
    parts = [event.arguments for event in events if isinstance(event, CallPart)]
    assert parts[0] == ""  # the name alone
    assert len(parts) > {"one": 20, "arguments": 3, "tags": 10}[kind]
    assert isinstance(events[-1], ToolCall)


BROKEN = {
    "cut off": (GLM_4, ['weather\n{"city": "Ba'], "", '{"city": "Ba'),
    "text behind": (GLM_4, ['weather\n{"city": 1} and more'], "and more", '{"city": 1}'),
    "cut off in tags": (
        GLM_45, [f"<tool_call>weather\n{PAIR.format('days', '1')}<arg_key>ci"], "", '{"days": 1<arg_key>ci',
    ),
    "cut off in JSON": (
        CHATML, ['<tool_call>\n{"name": "weather", "arguments": {"city": "Ba'], "", '{"city": "Ba',
    ),
    "cut off behind JSON": (
        CHATML, ['<tool_call>\n{"name": "weather", "arguments": {"days": 1}}\n'], "", '{"days": 1}',
    ),
    "something behind JSON": (
        CHATML, ['<tool_call>\n{"name": "weather", "arguments": {"days": 1}} x</tool_call> end'], "x end",
        '{"days": 1}',
    ),
    "something between": (
        GLM_45, [f"<tool_call>weather\n{PAIR.format('days', '1')}x</tool_call> end"], "end", '{"days": 1x',
    ),
}  # fmt: skip


@settings(max_examples=20, deadline=None)
@pytest.mark.parametrize("kind", BROKEN)
@given(cuts=st.lists(st.integers(0, 200), max_size=40))
def test_of_a_broken_call_nothing_vanishes(kind: str, cuts: list[int]) -> None:
    layout, sections, text, arguments = BROKEN[kind]
    assert accumulated(streamed(layout, sections, cuts)) == (text, [("weather", arguments)])
    assert parse_reply(sections, layout, TOOLS).tool_calls == ()


ENDLESS = {
    "keys": "<arg_key>",
    "values": "<arg_key>a</arg_key><arg_value>",
    "ends": "<arg_key>a</arg_key>",
    "blanks": " <arg_key>a</arg_key>" + " " * 100,
    "pairs": PAIR.format("a", "1") + "x",
}


@pytest.mark.parametrize("size", [1000, 1_000_000])
@pytest.mark.parametrize("kind", ENDLESS)
def test_a_megabyte_of_broken_arguments_is_read_in_a_moment(kind: str, size: int) -> None:
    unit = ENDLESS[kind]
    body = f"<tool_call>weather\n{unit * (1_000_000 // len(unit))}"
    for text in (body, body + "</tool_call>"):
        for streams in (False, True):
            reader: Any = ReplyReader(GLM_45, TOOLS, streams_calls=streams)
            started = time.process_time()
            for start in range(0, len(text), size):
                reader.feed(text[start : start + size])
            reader.finish()
            assert time.process_time() - started < 5  # a moment; what is quadratic takes minutes
            assert reader.reply.tool_calls == ()
