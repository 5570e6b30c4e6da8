"""Answers that follow a grammar end within their tokens, however little their model thinks of ending."""

from __future__ import annotations

import json
from typing import Any

import pytest
from constrained_answers import RandomModel
from test_calls import LAYOUTS, PARAMETERS, TOOLS, model
from test_schemas_hold import SCHEMAS, schema_grammar

from glmtune import generate
from glmtune.chatformat.replies import parse_reply
from glmtune.constrained.closing import way_to_end
from glmtune.constrained.grammars import IS_REASONING, MAY_REASON, NO_REASONING
from glmtune.constrained.wanted import chat_grammar, tags_of

jsonschema = pytest.importorskip("jsonschema", reason="needs the `dev` extra")

__all__ = ["model"]  # the fixture


@pytest.fixture(scope="module")
def demo(demo_tokenizer: Any) -> RandomModel:
    return RandomModel(demo_tokenizer, ["<|endoftext|>", "<|user|>", "<|observation|>"])


def endless(model: RandomModel) -> dict[int, float]:
    """Return a bias by which a model never ends a text by itself."""
    closers = model.compiler.closers
    return dict.fromkeys([*closers.ordered(is_in_text=True, num_taken=0), *model.stops], -60.0)


# Which digits make a multiple of seven is luck here.
@pytest.mark.parametrize("name", sorted(SCHEMAS.keys() - {"a multiple"}))
def test_a_document_is_whole_when_its_tokens_end(name: str, demo: RandomModel) -> None:
    grammar = schema_grammar(SCHEMAS[name])
    shortest = way_to_end(demo.compiled(grammar).first.deep_copy(), demo.compiler.closers)
    assert shortest is not None
    for seed, more in enumerate((0, 1, 3, 9, 40)):
        text, _ = demo.answer(grammar, seed, max_tokens=len(shortest) + more, logit_bias=endless(demo))
        jsonschema.validate(json.loads(text), SCHEMAS[name], cls=jsonschema.Draft202012Validator)


@pytest.mark.parametrize("reasoning", [NO_REASONING, MAY_REASON, IS_REASONING])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_call_is_whole_when_its_tokens_end(layout: str, reasoning: str, model: RandomModel) -> None:
    if reasoning != NO_REASONING and not LAYOUTS[layout].has_reasoning:
        pytest.skip("this model does not reason")
    grammar = chat_grammar(
        layout=LAYOUTS[layout],
        border=model.tokenizer.convert_tokens_to_ids("<|assistant|>"),
        tags=tags_of(model.tokenizer),
        reasoning=reasoning,
        tools=TOOLS,
        tool_choice="required",
    )
    shortest = way_to_end(model.compiled(grammar).first.deep_copy(), model.compiler.closers)
    assert shortest is not None
    for seed, more in enumerate((0, 4, 30, 90)):
        ids, _ = model.ids(grammar, seed, max_tokens=len(shortest) + more, logit_bias=endless(model))
        text = model.tokenizer.decode(ids)
        if reasoning == IS_REASONING:
            text = "<think>" + text
        sections = text.split("<|assistant|>")
        calls = parse_reply(sections, LAYOUTS[layout], TOOLS).tool_calls
        assert calls, text
        for call in calls:
            jsonschema.validate(json.loads(call.arguments), PARAMETERS[call.name] or {})


@pytest.mark.parametrize("options", [{}, {"repetition_penalty": 1.1}, {"do_sample": True, "temperature": 2.0}])
def test_answers_of_generate_are_whole_when_their_tokens_end(options: dict[str, Any], demo_model: str) -> None:
    """Row by row, and by transformers' own `generate`, which is told nothing of likelihoods."""
    schema = {"type": "object", "properties": {"a": {"type": "string"}, "b": {"type": "array"}}, "required": ["a", "b"]}
    answers = generate(demo_model, ["类型#裙", "a"], schema=schema, max_new_tokens=40, seed=1, **options)
    for answer in answers:
        jsonschema.validate(json.loads(answer), schema)
