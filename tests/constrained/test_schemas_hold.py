"""Whatever a model would write, its answer follows the schema; what cannot be held to is refused by name."""

from __future__ import annotations

import json
from typing import Any

import pytest
from constrained_answers import RandomModel

from glmtune.constrained.schemas import MAX_CHARACTERS, MAX_DEPTH, GrammarError
from glmtune.constrained.wanted import content_grammar

jsonschema = pytest.importorskip("jsonschema", reason="needs the `dev` extra")


def of(*required: str, **properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(required or properties),
        "additionalProperties": False,
    }


TREE = {
    "$defs": {"tree": of("word", word={"type": "integer"}, more={"type": "array", "items": {"$ref": "#/$defs/tree"}})},
    "$ref": "#/$defs/tree",
}
SCHEMAS: dict[str, Any] = {
    "one field": of(a={"type": "integer"}),
    "fields that may be absent": of("b", a={"type": "string"}, b={"type": "boolean"}, c={"type": "null"}),
    "any more fields": {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]},
    "more fields of a kind": {"type": "object", "additionalProperties": {"type": "boolean"}},
    "names of a pattern": {
        "type": "object",
        "patternProperties": {"^x_[a-z]+$": {"type": "integer"}},
        "additionalProperties": False,
    },
    "Chinese names and words": of(城市={"enum": ["北京", "上海"]}, 备注={"type": "string", "maxLength": 5}),
    "a constant": of(kind={"const": "order"}, version={"const": 2}, nothing={"const": None}),
    "words of several kinds": {"enum": ["a", 1, None, True, {"x": [1, "é"]}]},
    "nested": of(a=of(b=of(c={"type": "array", "items": of(d={"type": "integer"}), "maxItems": 2}))),
    "a tree": TREE,
    "a list of a length": {"type": "array", "items": {"type": "integer"}, "minItems": 2, "maxItems": 4},
    "a list of places": {"type": "array", "prefixItems": [{"type": "string"}, {"type": "integer"}], "items": False},
    "a number within bounds": of(n={"type": "integer", "minimum": -3, "exclusiveMaximum": 12}),
    "a share": {"type": "number", "minimum": 0, "maximum": 1},
    "a multiple": {"type": "integer", "multipleOf": 7, "minimum": 0},
    "a text of a length": {"type": "string", "minLength": 3, "maxLength": 6},
    "a text of a pattern": {"type": "string", "pattern": "^[A-Z]{2}-[0-9]{3,5}$"},
    "a pattern within a text": {"type": "string", "pattern": "[0-9]{2}", "maxLength": 40},
    "a day": {"type": "string", "format": "date"},
    "a format of others": of(n={"type": "integer", "format": "int32"}),
    "either": {"anyOf": [of(a={"type": "integer"}), {"type": "string", "maxLength": 3}, {"type": "null"}]},
    "one of two that differ": {
        "oneOf": [of(kind={"const": "a"}, x={"type": "integer"}), of(kind={"const": "b"}, y={"type": "boolean"})],
        "discriminator": {"propertyName": "kind"},
    },
    "both": {"allOf": [{"type": "object", "required": ["a"]}, {"properties": {"a": {"type": "integer"}}}]},
    "kinds": {"type": ["integer", "null", "boolean"]},
    "notes": {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "t", "type": "boolean", "default": 1},
    "older definitions": {
        "definitions": {"a": {"enum": [1, 2]}},
        "type": "array",
        "items": {"$ref": "#/definitions/a"},
    },
    "anything": True,
}


@pytest.fixture(scope="module")
def model(demo_tokenizer: Any) -> RandomModel:
    return RandomModel(demo_tokenizer, ["<|endoftext|>", "<|user|>", "<|observation|>"])


def schema_grammar(schema: Any) -> Any:
    return content_grammar(
        response_format={"type": "json_schema", "json_schema": {"schema": schema}}, structured_outputs=None
    )


@pytest.mark.parametrize("name", SCHEMAS)
def test_every_answer_follows_its_schema(name: str, model: RandomModel) -> None:
    num_whole = 0
    for seed in range(5):
        text, has_ended = model.answer(schema_grammar(SCHEMAS[name]), seed)
        if has_ended:
            jsonschema.validate(json.loads(text), SCHEMAS[name], cls=jsonschema.Draft202012Validator)
            num_whole += 1
    assert num_whole >= 3, text


def test_any_object_is_one(model: RandomModel) -> None:
    grammar = content_grammar(response_format={"type": "json_object"}, structured_outputs=None)
    answers = [model.answer(grammar, seed) for seed in range(5)]
    assert any(has_ended for _, has_ended in answers)
    assert all(isinstance(json.loads(text), dict) for text, has_ended in answers if has_ended)


@pytest.mark.parametrize(
    ("schema", "named"),
    [
        ({"not": {"type": "string"}}, '["not"]'),
        ({"type": "array", "uniqueItems": True}, '["uniqueItems"]'),
        ({"type": "array", "contains": {}}, '["contains"]'),
        ({"type": "object", "if": {}, "then": {}}, '["if", "then"]'),
        (of(a={"type": "string", "format": "iri"}), "iri"),
        ({"oneOf": [{"type": "object"}, of(a={})]}, "oneOf"),
        ({"type": "text"}, "text"),
        ({"$ref": "https://example.org/a"}, "https://example.org/a"),
        ({"$ref": "#/$defs/a"}, "/$defs/a"),
        ({"type": "string", "pattern": "(?=a)b"}, "look-around"),
        ({"required": "a"}, "required"),
        ({"enum": []}, "anyOf is empty"),
        (False, "the schema is no object"),
        ("{", "the schema is not JSON"),
        ([1], "the schema is no object"),
        ({"x-guidance": {"lenient": True}, "not": {}}, '["not"]'),
    ],
    ids=str,
)
def test_what_cannot_be_held_is_refused_by_its_name(schema: Any, named: str, model: RandomModel) -> None:
    with pytest.raises(GrammarError) as raised:
        model.compiled(schema_grammar(schema))
    assert named in str(raised.value)
    assert "\n" not in str(raised.value)


def deep(number: int) -> Any:
    schema: Any = {"type": "string"}
    for _ in range(number):
        schema = {"items": schema}
    return schema


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        (deep(MAX_DEPTH), f"the schema is nested deeper than {MAX_DEPTH}"),
        (deep(900), f"the schema is nested deeper than {MAX_DEPTH}"),
        ({"title": "a" * MAX_CHARACTERS}, "the schema has 100013 characters; expected 100000 at most"),
    ],
)
def test_what_is_too_large_is_refused_before_it_is_compiled(schema: Any, message: str) -> None:
    with pytest.raises(GrammarError) as raised:
        schema_grammar(schema)
    assert str(raised.value) == message


def test_texts_hold_chinese_as_it_is(model: RandomModel) -> None:
    matcher = model.compiled(schema_grammar(of(a={"type": "string"}))).first.deep_copy()
    ids = model.tokenizer.encode('{"a": "墨绿羊毛风衣"}', add_special_tokens=False)
    assert matcher.validate_tokens(ids) == len(ids)


def test_blanks_between_parts_come_to_an_end(model: RandomModel) -> None:
    matcher = model.compiled(schema_grammar({"type": "object"})).first.deep_copy()
    [brace] = model.tokenizer.encode("{", add_special_tokens=False)
    [newline] = model.tokenizer.encode("\n", add_special_tokens=False)
    assert matcher.try_consume_tokens([brace, *[newline] * 3]) == 2
