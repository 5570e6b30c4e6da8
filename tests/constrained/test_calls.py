"""Calls in each family's syntax: whatever is read as one is of a function that was offered, and fits its schema."""

from __future__ import annotations

import json
from typing import Any

import pytest
from chat_layouts import GLM_TOKENS, base_tokenizer
from constrained_answers import RandomModel
from tokenizers import AddedToken
from transformers import PreTrainedTokenizerFast

from glmtune.chatformat.replies import ARGUMENT_TAGS, JSON_TAGS, ROLE_LINE, TAGS, ReplyLayout, parse_reply
from glmtune.constrained.compiling import CompiledGrammar
from glmtune.constrained.grammars import IS_REASONING, MAY_REASON, NO_REASONING, Grammar
from glmtune.constrained.schemas import GrammarError
from glmtune.constrained.wanted import chat_grammar, tags_of

jsonschema = pytest.importorskip("jsonschema", reason="needs the `dev` extra")

LAYOUTS = {
    "GLM-4": ReplyLayout(calls=ROLE_LINE),
    "GLM-Z1": ReplyLayout(calls=ROLE_LINE, has_reasoning=True),
    "GLM-4.5": ReplyLayout(calls=ARGUMENT_TAGS, has_reasoning=True),
    "GLM-4.7": ReplyLayout(calls=ARGUMENT_TAGS, has_reasoning=True, gap=""),
    "Qwen2.5": ReplyLayout(calls=JSON_TAGS),
    "Qwen3": ReplyLayout(calls=JSON_TAGS, has_reasoning=True),
}
PARAMETERS: dict[str, Any] = {
    "weather": {
        "type": "object",
        "properties": {
            "city": {"type": "string", "maxLength": 8},
            "days": {"type": "integer", "minimum": 1, "maximum": 14},
            "unit": {"type": "string", "enum": ["celsius", "华氏"]},
            "note": {"anyOf": [{"type": "string", "maxLength": 5}, {"type": "null"}]},
            "places": {"type": "array", "items": {"$ref": "#/$defs/place"}, "maxItems": 2},
        },
        "required": ["city", "days"],
        "additionalProperties": False,
        "$defs": {"place": {"enum": ["a", 1, {"b": None}]}},
    },
    "查时间": {"type": "object", "properties": {"when": {"type": "string", "format": "date"}}, "required": ["when"]},
    "now": {"type": "object", "properties": {}, "additionalProperties": False},
    "free": None,
}
TOOLS = [
    {"type": "function", "function": {"name": name, "strict": True, **({"parameters": held} if held else {})}}
    for name, held in PARAMETERS.items()
]
BORDER = "<|assistant|>"


@pytest.fixture(scope="module", params=["spelled", "tokens"])
def model(request: pytest.FixtureRequest) -> RandomModel:
    """One whose tags are spelled in letters, and one where each is a token, as GLM-4.5 has them."""
    backend = base_tokenizer(GLM_TOKENS)
    if request.param == "tokens":
        backend.add_tokens([AddedToken(tag, special=False) for tag in TAGS])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, extra_special_tokens=list(GLM_TOKENS))
    return RandomModel(tokenizer, ["<|endoftext|>", "<|user|>", "<|observation|>"])


def grammar(model: RandomModel, layout: ReplyLayout, reasoning: str = NO_REASONING, **wanted: Any) -> Grammar:
    border = model.tokenizer.convert_tokens_to_ids(BORDER)
    tags = tags_of(model.tokenizer)
    made = chat_grammar(layout=layout, border=border, tags=tags, reasoning=reasoning, **{"tools": TOOLS, **wanted})
    assert made is not None
    return made


def check_calls(text: str, layout: ReplyLayout, tools: list[Any] = TOOLS) -> Any:
    """Return what is read of an answer; raises where a call in it does not fit."""
    reply = parse_reply(text.split(BORDER), layout, tools)
    for call in reply.tool_calls:
        held = PARAMETERS[call.name] or {"type": "object"}
        jsonschema.validate(json.loads(call.arguments), held, cls=jsonschema.Draft202012Validator)
    return reply


def as_written(layout: ReplyLayout, name: str, arguments: dict[str, Any]) -> str:
    """Return a call as a model with the layout writes it."""
    if layout.calls == ROLE_LINE:
        return f"{name}\n{json.dumps(arguments, ensure_ascii=False)}"
    if layout.calls == JSON_TAGS:
        told = json.dumps({"name": name, "arguments": arguments}, ensure_ascii=False)
        return f"<tool_call>{layout.gap}{told}{layout.gap}</tool_call>"
    pairs = [
        f"<arg_key>{key}</arg_key>{layout.gap}<arg_value>"
        f"{value if isinstance(value, str) else json.dumps(value)}</arg_value>{layout.gap}"
        for key, value in arguments.items()
    ]
    return f"<tool_call>{name}{layout.gap}{''.join(pairs)}</tool_call>"


def accepts(model: RandomModel, made: CompiledGrammar, text: str) -> bool:
    """Return whether an answer may be this text, and end there."""
    state = made.first.deep_copy()
    ids = model.tokenizer.encode(text, add_special_tokens=False)
    return bool(state.try_consume_tokens(ids) == len(ids) and state.is_accepting())


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_required_call_is_one_and_its_arguments_fit(name: str, model: RandomModel) -> None:
    layout = LAYOUTS[name]
    made = grammar(model, layout, tool_choice="required")
    called = set()
    for seed in range(8):
        text, has_ended = model.answer(made, seed)
        reply = check_calls(text, layout)
        if has_ended:
            assert reply.tool_calls, text
            assert reply.content == ""
            called |= {call.name for call in reply.tool_calls}
    assert len(called) >= 2


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("is_parallel", [True, False])
def test_several_calls_may_come_where_they_are_allowed(name: str, is_parallel: bool, model: RandomModel) -> None:
    layout = LAYOUTS[name]
    made = model.compiled(grammar(model, layout, tool_choice="required", is_parallel=is_parallel))
    border = BORDER if layout.calls == ROLE_LINE else "\n"
    call = as_written(layout, "now", {})
    assert accepts(model, made, call)
    assert accepts(model, made, f"{call}{border}{call}{border}{call}") is is_parallel
    assert not accepts(model, made, "")
    assert not accepts(model, made, f"{call} and more")


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("chosen", ["weather", "查时间"])
def test_a_named_function_is_called(name: str, chosen: str, model: RandomModel) -> None:
    layout = LAYOUTS[name]
    made = grammar(model, layout, tool_choice=chosen, is_named=True, is_parallel=False)
    for seed in range(2):
        text, has_ended = model.answer(made, seed)
        if has_ended:
            assert [call.name for call in check_calls(text, layout).tool_calls] == [chosen], text


@pytest.mark.parametrize("name", [name for name, layout in LAYOUTS.items() if layout.has_reasoning])
@pytest.mark.parametrize("reasoning", [IS_REASONING, MAY_REASON])
def test_a_call_comes_behind_the_reasoning(name: str, reasoning: str, model: RandomModel) -> None:
    layout = LAYOUTS[name]
    made = model.compiled(grammar(model, layout, reasoning, tool_choice="now", is_named=True))
    begun = "" if reasoning == IS_REASONING else "\n<think>"
    call = as_written(layout, "now", {})
    assert accepts(model, made, f"{begun}hm <tool_call> {{</think>\n\n{call}")
    assert accepts(model, made, f"{begun}</think>{call}")
    assert not accepts(model, made, f"{begun}hm{call}")
    assert accepts(model, made, call) is (reasoning == MAY_REASON)


@pytest.mark.parametrize("name", LAYOUTS)
def test_where_a_strict_function_is_offered_text_is_free_and_calls_are_not(name: str, model: RandomModel) -> None:
    layout = LAYOUTS[name]
    reasoning = MAY_REASON if layout.has_reasoning else NO_REASONING
    made = model.compiled(grammar(model, layout, reasoning, tool_choice="auto"))
    border = BORDER if layout.calls == ROLE_LINE else "\n"
    call = as_written(layout, "weather", {"city": "北京", "days": 2})
    thought = "\n<think>Which? weather\n{</think>\n" if layout.has_reasoning else ""

    for text in (
        "", "\nHello.", "Hello, 北京.", "a\nb", "weather", f"{thought}\nfine", f"{thought}{call}", call,
        f"\nI look.{border}{call}{border}{as_written(layout, 'now', {})}",
        as_written(layout, "free", {"a": [1, {"b": "c"}]}) if layout.calls != ARGUMENT_TAGS else call,
    ):  # fmt: skip
        assert accepts(model, made, text), text
    for broken in (
        as_written(layout, "weather", {"city": "北京"}),
        as_written(layout, "weather", {"city": "北京", "days": 0}),
        as_written(layout, "weather", {"city": "北京", "days": 1, "other": 1}),
        as_written(layout, "absent", {}),
        f"{thought}{as_written(layout, 'now', {'a': 1})}",
        f"\nI look.{border}{as_written(layout, 'weather', {})}",
    ):
        assert not accepts(model, made, broken), broken


@pytest.mark.parametrize("name", LAYOUTS)
def test_whatever_is_read_as_a_call_of_a_strict_function_fits(name: str, model: RandomModel) -> None:
    """A model that is about to call, but writes at random from there on."""
    layout = LAYOUTS[name]
    made = model.compiled(grammar(model, layout, tool_choice="auto"))
    begun = {ROLE_LINE: "weather\n{", JSON_TAGS: "well <tool_call>", ARGUMENT_TAGS: "<tool_call>"}[str(layout.calls)]
    num_calls = 0
    for seed in range(4):
        text, _ = model.answer(made.grammar, seed, written=begun)
        num_calls += len(check_calls(text, layout).tool_calls)
    assert num_calls


@pytest.mark.parametrize("name", LAYOUTS)
def test_an_answer_is_json_or_calls_where_both_are_wanted(name: str, model: RandomModel) -> None:
    layout = LAYOUTS[name]
    schema = {
        "type": "object",
        "properties": {"a": {"type": "integer"}},
        "required": ["a"],
        "additionalProperties": False,
    }
    wanted = {"type": "json_schema", "json_schema": {"schema": schema}}
    made = grammar(model, layout, response_format=wanted)
    kinds = set()
    for seed in range(12):
        text, has_ended = model.answer(made, seed)
        if has_ended:
            reply = check_calls(text, layout)
            kinds.add(bool(reply.tool_calls))
            if not reply.tool_calls:
                jsonschema.validate(json.loads(reply.content), schema)
    assert kinds == {True, False}


def test_non_strict_functions_leave_the_answer_free() -> None:
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"not": {}}}}]
    assert chat_grammar(layout=LAYOUTS["GLM-4"], border=1, tools=tools, tool_choice="auto") is None


REFUSED: dict[str, tuple[dict[str, Any], str, str]] = {
    "a call and a format": (
        {"tool_choice": "required", "response_format": {"type": "json_object"}}, "tool_choice",
        "`tool_choice` demands a call, and `response_format` another answer: leave one of them out",
    ),
    "a call and a structure": (
        {"tool_choice": "now", "is_named": True, "structured_outputs": {"regex": "a"}}, "tool_choice",
        "`tool_choice` demands a call, and `structured_outputs` another answer: leave one of them out",
    ),
    "a format and a structure": (
        {"response_format": {"type": "json_object"}, "structured_outputs": {"regex": "a"}}, "structured_outputs",
        "`structured_outputs` and `response_format` are both given: leave one of them out",
    ),
    "an unknown function": (
        {"tool_choice": "absent", "is_named": True}, "tool_choice", "`tools` has no function `absent`",
    ),
    "no functions": (
        {"tool_choice": "required", "tools": []}, "tool_choice", "`tool_choice` wants a call, but there are no `tools`",
    ),
    "an unknown format": (
        {"response_format": {"type": "xml"}}, "response_format",
        "`type` is not one of: `text`, `json_object`, `json_schema`",
    ),
    "a format without a schema": (
        {"response_format": {"type": "json_schema"}}, "response_format", "`json_schema` holds no `schema`",
    ),
    "two structures": (
        {"structured_outputs": {"regex": "a", "choice": ["b"]}}, "structured_outputs",
        "expected one of: `json`, `regex`, `choice`, `grammar`, `json_object`",
    ),
    "an unknown structure": (
        {"structured_outputs": {"structural_tag": "a"}}, "structured_outputs", "`structural_tag` is not supported",
    ),
    "no choice": ({"structured_outputs": {"choice": []}}, "structured_outputs", "the choice is no list of texts"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_wanted_together_is_refused(case: str, model: RandomModel) -> None:
    wanted, param, message = REFUSED[case]
    with pytest.raises(GrammarError) as raised:
        grammar(model, LAYOUTS["GLM-4"], **wanted)
    assert (raised.value.param, str(raised.value)) == (param, message)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"anyOf": [{}]}, "`anyOf` cannot be held where arguments stand between tags"),
        ({"properties": {"a": {"type": "string", "format": "iri"}}},
         "`format: iri` cannot be held in a text between tags"),
        ({"properties": {"a<b": {}}}, "`a<b` cannot stand between tags"),
        ({"properties": {"a": {"$ref": "#/properties/b"}}},
         "`$ref: #/properties/b` cannot be followed where arguments stand between tags"),
        ({"properties": {"a": {"type": "string", "enum": ["</tool_call>"]}}},
         "a text of `enum` or `const` cannot stand between tags"),
        ({"required": ["a"], "additionalProperties": False}, "`a` is required, but not allowed"),
    ],
    ids=str,
)  # fmt: skip
def test_what_tags_cannot_hold_is_refused(parameters: Any, message: str, model: RandomModel) -> None:
    tools = [{"type": "function", "function": {"name": "f", "parameters": parameters}}]
    with pytest.raises(GrammarError) as raised:
        grammar(model, LAYOUTS["GLM-4.5"], tools=tools, tool_choice="required")
    assert str(raised.value) == f"the parameters of `f`: {message}"
    assert raised.value.param == "tools"


def test_a_tool_that_takes_a_text_is_called_with_one(model: RandomModel) -> None:
    layout = ReplyLayout(calls=ROLE_LINE, text_tools=("python",))
    tools = [*TOOLS, {"type": "python"}]
    for wanted in ({"tool_choice": "required"}, {"tool_choice": "python", "is_named": True}, {"tool_choice": "auto"}):
        made = model.compiled(grammar(model, layout, tools=tools, **wanted))
        assert accepts(model, made, "python\nprint({})")
        assert accepts(model, made, "python\n{1: 2}")
        assert accepts(model, made, "weather\n{}") is False
