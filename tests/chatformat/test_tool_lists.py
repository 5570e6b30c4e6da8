"""Tools that are written without the template equal what the template writes."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from chat_layouts import CHATML_TOKENS, encoder_of, with_template
from hypothesis import given, settings
from hypothesis import strategies as st
from test_skeletons import assert_both_ways_agree, filled, texts
from transformers import PreTrainedTokenizerBase

from glmtune.chatformat.encoding import Encoder
from glmtune.chatformat.tool_lists import FIRST, SECOND
from glmtune.data.conversation import Conversation, Message
from glmtune.family import GENERIC, GLM

LAYOUTS = ("qwen", "glm-0414", "glm-4.5")

values = st.recursive(
    st.one_of(texts, st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(texts, inner, max_size=3)),
    max_leaves=6,
)
functions = st.fixed_dictionaries(
    {"name": filled, "description": filled, "parameters": st.dictionaries(filled, values, max_size=3)}
)
odd_functions = st.one_of(
    functions.map(lambda function: {**function, "strict": True}),
    functions.map(lambda function: {key: function[key] for key in ("name", "description")}),
    functions.map(lambda function: dict(reversed(function.items()))),
    functions.map(lambda function: {**function, "description": ""}),
)
tools = st.one_of(functions, functions, functions, odd_functions).map(lambda f: {"type": "function", "function": f})


def offering(offered: list[dict[str, Any]], content: str = "") -> Conversation:
    turns = (Message(role="user", content="a"), Message(role="assistant", content="b"))
    text = json.dumps(offered, ensure_ascii=False)
    return Conversation(messages=(Message(role="system", content=content, tools=text), *turns))


def usual(name: str = "查询", description: str = "d", **parameters: Any) -> dict[str, Any]:
    function = {"name": name, "description": description, "parameters": {"type": "object", **parameters}}
    return {"type": "function", "function": function}


def pieces_and_renderings(encoder: Encoder, conversation: Conversation) -> tuple[Any, int]:
    """Return the row's pieces, and how often the template was asked for them."""
    skeletons = encoder._skeletons
    assert skeletons is not None
    asked: list[Conversation] = []
    slow_pieces = skeletons._slow_pieces
    skeletons._slow_pieces = lambda row, weights: asked.append(row) or slow_pieces(row, weights)
    try:
        return skeletons.pieces(conversation, [0.0, 0.0, 1.0]), len(asked)
    finally:
        skeletons._slow_pieces = slow_pieces


@pytest.fixture(params=["demo_tokenizer", "glm_tokenizer", *LAYOUTS])
def encoder(request: pytest.FixtureRequest) -> Encoder:
    if request.param in LAYOUTS:
        return encoder_of(request.param)
    tokenizer: PreTrainedTokenizerBase = request.getfixturevalue(request.param)
    return Encoder(tokenizer, GLM)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(offered=st.lists(tools, min_size=1, max_size=3), content=texts)
def test_any_tools_are_written_as_the_template_writes_them(offered: list[dict[str, Any]], content: str) -> None:
    for layout in LAYOUTS:
        assert_both_ways_agree(encoder_of(layout), offering(offered, content))


@pytest.mark.parametrize("text", ["\ufdef0\ufdef", "\ufdef1\ufdef", "a\ufdef"])
def test_what_marks_a_place_may_stand_in_a_tool(text: str) -> None:
    for layout in LAYOUTS:
        for content in ("", "Be brief."):
            for parameters in ({}, {"type": "object"}):  # left to the template, and not
                function = {"name": "a", "description": text, "parameters": parameters}
                row = offering([{"type": "function", "function": function}], content)
                assert_both_ways_agree(encoder_of(layout), row)


def test_once_learnt_the_template_is_not_asked_again(encoder: Encoder) -> None:
    pieces_and_renderings(encoder, offering([usual("f", "d")], "Be brief."))
    for offered in ([usual("g", "e", properties={"x": {"type": "integer"}})], [usual("h"), usual("i", "é<&>'")]):
        pieces, num_renderings = pieces_and_renderings(encoder, offering(offered, "Rhyme."))
        assert num_renderings == 0
        assert pieces == encoder.without_skeletons().plan([offering(offered, "Rhyme.")]).rows[0]


@pytest.mark.parametrize(
    "tool",
    [
        {**usual(), "strict": True},
        {"type": "function", "function": {"name": "f", "description": "d"}},
        {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}},
        {"type": "function", "function": {**usual()["function"], "strict": True}},
        {"type": "function", "function": {"name": "f", "description": "", "parameters": {"type": "object"}}},
        {"type": "function", "function": {"name": "f", "description": "d", "parameters": {}}},
        {"type": "function", "function": {"name": "f", "description": "d", "parameters": [1]}},
        {"type": "function", "function": {"name": "f", "description": ["d"], "parameters": {"type": "object"}}},
        {"type": "other", "function": usual()["function"]},
        usual("name"),  # a word of the template's own
    ],
    ids=json.dumps,
)
def test_a_tool_unlike_the_probes_is_left_to_the_template(tool: dict[str, Any], demo_tokenizer) -> None:
    encoder = Encoder(demo_tokenizer, GLM)
    pieces_and_renderings(encoder, offering([usual()]))
    _, num_renderings = pieces_and_renderings(encoder, offering([usual("other"), tool]))
    assert num_renderings > 0
    assert_both_ways_agree(encoder, offering([usual("other"), tool]))


LAYOUT = (
    "{% if tools %}<|im_start|>system\nTools:{% for tool in tools %}TOOL{% endfor %}<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LEARNT = {
    "whole": " {{ tool | tojson }}",
    "the function": "\n{{ tool.function | tojson }};",
    "two blanks": "\n{{ tool.function | tojson(indent=2) }}",
    "a name twice": "\n{{ tool.function.name }}{{ tool | tojson(indent=4) }}{{ tool['function']['name'] }}",
}
NOT_LEARNT = {
    "a line between them": "{{ '\n' if loop.index0 }}{{ tool | tojson }}",
    "commas between them": "{{ ', ' if loop.index0 }}{{ tool | tojson }}",
    "numbers": "\n{{ loop.index }}. {{ tool | tojson }}",
    "names alone": "\n{{ tool.function.name }}",
    "a description": "\n{{ tool.function.description }}: {{ tool | tojson }}",
    "sorted keys": "\n{{ tool | tojson(sort_keys=true) }}",
    "what is required": "\n{{ tool | tojson }}{{ '!' if 'required' in tool.function.parameters }}",
    "short of blanks": "\n{{ tool | tojson(separators=(',', ':')) }}",
    "a long list otherwise": "\n{{ tool | tojson }}{{ '!' if tools | length > 2 }}",
    "the JSON twice": "\n{{ tool | tojson }}{{ tool | tojson }}",
}


@pytest.mark.parametrize("name", [*LEARNT, *NOT_LEARNT])
def test_what_a_template_does_to_tools_is_the_same_in_both_ways(name: str) -> None:
    template = LAYOUT.replace("TOOL", (LEARNT | NOT_LEARNT)[name])
    encoder = Encoder(with_template(template, CHATML_TOKENS), GENERIC)
    lists = [[usual("f")], [usual("f"), usual("g", required=["x"])], [usual("f"), usual("g"), usual("h")]]
    for offered in [*lists, [FIRST], [SECOND, FIRST]]:
        assert_both_ways_agree(encoder, offering(offered))
    _, num_renderings = pieces_and_renderings(encoder, offering([usual("i")]))
    assert (num_renderings == 0) == (name in LEARNT)


@pytest.mark.parametrize("content", ["", "Be brief."])
def test_tools_behind_a_question_are_left_to_the_template(content: str) -> None:
    listed = "{% for tool in tools %}{{ tool | tojson }}{% endfor %}"
    tools = "{% if tools and m['role'] == 'user' %}\nTools:" + listed + "{% endif %}"
    text = "{{ m['content'] }}"
    template = LAYOUT.replace("{% if tools %}", "{% if false %}").replace(text, text + tools)
    encoder = Encoder(with_template(template, CHATML_TOKENS), GENERIC)
    for offered in ([usual("f")], [usual("g")], [usual("f"), usual("g")]):
        assert_both_ways_agree(encoder, offering(offered, content))


def test_a_list_that_begins_with_a_comma_is_not_taken_for_one_without() -> None:
    template = LAYOUT.replace("Tools:", "Tools, ").replace("TOOL", NOT_LEARNT["commas between them"])
    encoder = Encoder(with_template(template, CHATML_TOKENS), GENERIC)
    for offered in ([usual("f")], [usual("f"), usual("g")], [usual("f"), usual("g"), usual("h")]):
        assert_both_ways_agree(encoder, offering(offered))


@pytest.mark.parametrize(
    ("test", "tool"),
    [
        ("'secret' in tool.function.parameters", usual(secret=1)),
        ("tool.function.name == 'browser'", usual("browser")),
        ("'Danger' in tool.function.description", usual(description="Danger!")),
    ],
)
def test_a_template_that_looks_into_tools_is_asked_where_it_may_find_something(test: str, tool: dict[str, Any]) -> None:
    template = LAYOUT.replace("TOOL", f"\n{{{{ tool | tojson }}}}{{{{ '!' if {test} }}}}")
    encoder = Encoder(with_template(template, CHATML_TOKENS), GENERIC)
    assert_both_ways_agree(encoder, offering([usual("f")]))
    assert_both_ways_agree(encoder, offering([tool]))
    assert pieces_and_renderings(encoder, offering([usual("g")]))[1] == 0


def test_an_empty_list_is_left_to_the_template() -> None:
    encoder = Encoder(with_template(LAYOUT.replace("TOOL", LEARNT["whole"]), CHATML_TOKENS), GENERIC)
    for offered in ([usual("f")], []):
        assert_both_ways_agree(encoder, offering(offered))


def test_the_probes_are_not_changed_by_what_is_learnt(encoder: Encoder) -> None:
    before = copy.deepcopy((FIRST, SECOND))
    pieces_and_renderings(encoder, offering([usual("j")]))
    assert before == (FIRST, SECOND)
