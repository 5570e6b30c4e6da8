"""Answers of the server that follow what the request says: formats, structures, calls that are demanded or strict."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from serving_rows import ITEMS, PLAIN, TOOLS, question

ASKED, TOLD = next(iter(PLAIN.items()))
ITEM = next(iter(ITEMS))
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "count": {"type": "integer", "minimum": 1, "maximum": 99},
    },
    "required": ["name", "count"],
    "additionalProperties": False,
}
FORMAT = {"type": "json_schema", "json_schema": {"name": "thing", "strict": True, "schema": SCHEMA}}
WILD = {"temperature": 1.5, "max_tokens": 200}
"""What makes a model write anything."""


@pytest.fixture(scope="module")
def http(url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=url, timeout=60) as client:
        yield client


def chat(http: httpx.Client, content: Any = ASKED, **fields: Any) -> Any:
    messages = [{"role": "user", "content": content}]
    response = http.post("/v1/chat/completions", json={"model": "tiny", "messages": messages, **fields})
    assert response.status_code == 200, response.text
    return response.json()


def refused(http: httpx.Client, path: str = "chat/completions", **fields: Any) -> tuple[int, str | None, str]:
    asked = {"prompt": "a"} if path == "completions" else {"messages": [{"role": "user", "content": "a"}]}
    response = http.post(f"/v1/{path}", json={"model": "tiny", **asked, **fields})
    error = response.json()["error"]
    return response.status_code, error["param"], error["message"]


def check(text: str) -> None:
    value = json.loads(text)
    assert list(value) == ["name", "count"]
    assert len(value["name"]) <= 12
    assert 1 <= value["count"] <= 99


def test_a_schema_is_followed_by_every_choice(http: httpx.Client) -> None:
    choices = chat(http, response_format=FORMAT, n=6, seed=1, **WILD)["choices"]
    ended = [choice["message"]["content"] for choice in choices if choice["finish_reason"] == "stop"]
    for text in ended:
        check(text)
    assert len(set(ended)) > 1


def test_a_seed_repeats_what_follows_a_schema(http: httpx.Client) -> None:
    first, again = (chat(http, response_format=FORMAT, seed=3, **WILD)["choices"][0]["message"] for _ in range(2))
    assert first == again


def test_a_schema_is_followed_in_a_stream(http: httpx.Client) -> None:
    body = {"model": "tiny", "messages": [question(ITEM)], "stream": True, "response_format": FORMAT, "seed": 2, **WILD}
    told, reasons = "", []
    with http.stream("POST", "/v1/chat/completions", json=body) as response:
        for line in response.iter_lines():
            if line.startswith("data: {"):
                choice = json.loads(line[6:])["choices"][0]
                told += choice["delta"].get("content") or ""
                reasons.append(choice["finish_reason"])
    assert reasons[-1] in ("stop", "length")
    if reasons[-1] == "stop":
        check(told)
    assert told.startswith("{")


def test_the_official_client_parses_what_it_asks_for(url: str) -> None:
    from pydantic import BaseModel

    class Thing(BaseModel):
        a: bool
        b: list[bool]

    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
    done = client.chat.completions.parse(
        model="tiny", messages=[question(ITEM)], response_format=Thing, temperature=0, max_tokens=200
    )
    if done.choices[0].finish_reason == "stop":
        assert isinstance(done.choices[0].message.parsed, Thing)


def test_any_object_is_an_answer(http: httpx.Client) -> None:
    for seed in range(4):
        choice = chat(http, response_format={"type": "json_object"}, seed=seed, **WILD)["choices"][0]
        if choice["finish_reason"] == "stop":
            assert isinstance(json.loads(choice["message"]["content"]), dict)


STRUCTURES: dict[str, tuple[dict[str, Any], str]] = {
    "a choice": ({"choice": ["好评", "差评"]}, "好评|差评"),
    "a pattern": ({"regex": "[0-9]{2}-[a-c]"}, "[0-9]{2}-[a-c]"),
    "a grammar": ({"grammar": 'root ::= "x" ("," "x")? "."'}, r"x(,x)?\."),
    "a schema": ({"json": {"enum": [1, "二"]}}, '1|"二"'),
    "a schema as text": ({"json": '{"const": true}'}, "true"),
}


@pytest.mark.parametrize("name", STRUCTURES)
@pytest.mark.parametrize("is_older", [False, True])
def test_structures_of_vllm_are_followed(name: str, is_older: bool, http: httpx.Client) -> None:
    wanted, pattern = STRUCTURES[name]
    fields = {f"guided_{key}": value for key, value in wanted.items()} if is_older else {"structured_outputs": wanted}
    choice = chat(http, seed=1, **fields, **WILD)["choices"][0]
    assert choice["finish_reason"] == "stop"
    assert re.fullmatch(pattern, choice["message"]["content"])
    response = http.post("/v1/completions", json={"model": "tiny", "prompt": ["a", "b"], "seed": 1, **fields, **WILD})
    assert all(re.fullmatch(pattern, each["text"]) for each in response.json()["choices"])


def called(choice: Any) -> list[tuple[str, Any]]:
    calls = choice["message"].get("tool_calls") or []
    return [(call["function"]["name"], json.loads(call["function"]["arguments"])) for call in calls]


STRICT = [
    {"type": "function", "function": {"name": "query_price", "strict": True, "parameters": SCHEMA}},
    {"type": "function", "function": {"name": "now", "parameters": {"type": "object", "additionalProperties": False}}},
]


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "query_price"}}])
def test_arguments_of_a_demanded_call_follow_their_schema(choice: Any, http: httpx.Client) -> None:
    num_whole = 0
    for seed in range(5):
        done = chat(http, tools=STRICT, tool_choice=choice, parallel_tool_calls=False, seed=seed, **WILD)["choices"][0]
        if done["finish_reason"] != "length":
            [(name, arguments)] = called(done)
            check(json.dumps(arguments)) if name == "query_price" else None
            assert arguments == {} or name == "query_price"
            num_whole += 1
    assert num_whole


def test_a_strict_function_is_called_as_its_schema_says_where_the_model_calls_it(http: httpx.Client) -> None:
    """The model has learnt to call it with `item` alone, which this schema does not allow."""
    free = chat(http, question(ITEM)["content"], tools=TOOLS, temperature=0)["choices"][0]
    assert called(free) == [("query_price", {"item": ITEM})]
    done = chat(http, question(ITEM)["content"], tools=STRICT, temperature=0, max_tokens=100)["choices"][0]
    for _, arguments in called(done):
        check(json.dumps(arguments))


def test_a_format_and_functions_leave_the_model_its_choice(http: httpx.Client) -> None:
    done = chat(http, question(ITEM)["content"], tools=TOOLS, response_format=FORMAT, temperature=0, max_tokens=100)
    assert called(done["choices"][0]) == [("query_price", {"item": ITEM})]
    text = chat(http, tools=TOOLS, tool_choice="none", response_format=FORMAT, seed=1, **WILD)["choices"][0]
    assert text["message"]["content"].startswith("{")


def test_an_answer_ends_with_its_grammar_although_its_end_is_to_be_ignored(http: httpx.Client) -> None:
    wanted = {"structured_outputs": {"regex": "[ab]{3}"}}
    choice = chat(http, ignore_eos=True, min_tokens=50, **wanted, **WILD)["choices"][0]
    assert (choice["finish_reason"], len(choice["message"]["content"])) == ("stop", 3)


def test_stop_strings_end_what_follows_a_grammar(http: httpx.Client) -> None:
    choice = chat(http, structured_outputs={"choice": ["one, two"]}, stop=[", "], **WILD)["choices"][0]
    assert choice["message"]["content"] == "one"


def test_logprobs_of_what_follows_a_grammar_are_the_models_own(http: httpx.Client) -> None:
    wanted = {"structured_outputs": {"choice": ["x"]}, "logprobs": True, "top_logprobs": 1, "temperature": 0}
    first = chat(http, **wanted)["choices"][0]["logprobs"]["content"]
    assert first[-1]["logprob"] < first[-1]["top_logprobs"][0]["logprob"]


REFUSED: dict[str, tuple[dict[str, Any], str, str]] = {
    "what is not supported": (
        {"response_format": {"type": "json_schema", "json_schema": {"schema": {"not": {}}}}}, "response_format",
        '`response_format` cannot be followed: Unimplemented keys: ["not"]',
    ),
    "a wrong schema": (
        {"structured_outputs": {"json": {"type": "text"}}}, "structured_outputs",
        "`structured_outputs` cannot be followed: Invalid type: text",
    ),
    "parameters that cannot be held": (
        {"tools": [{"function": {"name": "f", "parameters": {"not": {}}}}], "tool_choice": "required"}, "tools",
        '`tools` cannot be followed: Unimplemented keys: ["not"]',
    ),
    "an unknown format": (
        {"response_format": {"type": "xml"}}, "response_format",
        "`type` is not one of: `text`, `json_object`, `json_schema`",
    ),
    "a call and a format": (
        {"tools": TOOLS, "tool_choice": "required", "response_format": {"type": "json_object"}}, "tool_choice",
        "`tool_choice` demands a call, and `response_format` another answer: leave one of them out",
    ),
    "two names of one thing": (
        {"guided_regex": "a", "structured_outputs": {"regex": "a"}}, None,
        "`guided_regex` is an older name of what `structured_outputs` holds: send one of them",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_followed_is_refused(case: str, http: httpx.Client) -> None:
    fields, param, message = REFUSED[case]
    assert refused(http, **fields) == (400, param, message)


@pytest.mark.parametrize("field", ["response_format", "structured_outputs"])
def test_what_asks_for_nothing_changes_nothing(field: str, http: httpx.Client) -> None:
    fields = {field: {"type": "text"} if field == "response_format" else None}
    assert chat(http, temperature=0, **fields)["choices"][0]["message"]["content"] == TOLD
