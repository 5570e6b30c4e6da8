"""`infer`, `chat` and `generate` follow a schema, however the answers are written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from written_server import texts

from glmtune import generate
from glmtune.chat.chat_model import local_answers
from glmtune.chat.chat_server import server_answers
from glmtune.chatformat.encoding import Encoder
from glmtune.chatformat.replies import Delta, ToolCall
from glmtune.constrained.schemas import read_schema
from glmtune.errors import GlmtuneError
from glmtune.generation.ask import answer_all
from glmtune.generation.following import Following
from glmtune.generation.generate import as_loaded

SCHEMA = {
    "type": "object",
    "properties": {"a": {"enum": ["北京", "上海", None]}, "b": {"type": "boolean"}},
    "required": ["a", "b"],
    "additionalProperties": False,
}
QUESTIONS = ["类型#裙", "类型#风衣*颜色#墨绿", "hello"]


def check(text: str) -> None:
    value = json.loads(text)
    assert value["a"] in ("北京", "上海", None)
    assert isinstance(value["b"], bool)
    assert len(value) == 2


@pytest.mark.parametrize(
    "options", [{}, {"do_sample": True, "temperature": 2.0, "top_k": 3}, {"no_repeat_ngram_size": 40}], ids=str
)
def test_every_answer_follows_the_schema(demo_model: str, options: dict[str, Any]) -> None:
    """Row by row, sampled with few tokens to choose from, and batch by batch, which the last option makes it."""
    answers = generate(demo_model, QUESTIONS, schema=SCHEMA, seed=1, max_new_tokens=300, batch_size=2, **options)
    assert len(answers) == 3
    for answer in answers:
        check(answer)


def test_a_stream_follows_the_schema(demo_model: str) -> None:
    [pieces] = answer_all(demo_model, QUESTIONS[:1], stream=True, schema=SCHEMA, max_new_tokens=300)
    check("".join(pieces))


def test_a_chat_follows_the_schema(demo_model: str) -> None:
    answer = local_answers(demo_model, schema=SCHEMA, max_new_tokens=300)
    events = list(answer([{"role": "user", "content": QUESTIONS[0]}], []))
    check("".join(event.text for event in events if isinstance(event, Delta)))


def test_calls_of_strict_functions_in_a_chat_follow_their_schemas(tool_model: Path) -> None:
    function = {"name": "query_price", "description": "查询价格", "parameters": SCHEMA}
    tools = [{"type": "function", "function": function}]
    answer = local_answers(str(tool_model), max_new_tokens=100)
    asked = [{"role": "user", "content": "墨绿羊毛风衣多少钱？"}]
    held = [{"type": "function", "function": {**function, "strict": True}}]
    for event in answer(asked, held):
        if isinstance(event, ToolCall):
            check(event.arguments)
    loaded = as_loaded(str(tool_model))
    following = Following(loaded, Encoder(loaded.tokenizer, loaded.family, use_skeletons=False))
    assert following.grammar(tools=tools) is None
    assert following.grammar(tools=held) is not None


def test_a_server_is_told_the_schema(server: Any) -> None:
    server.answers = [texts("{}")]
    list(server_answers(server.url, model="tiny", schema=SCHEMA)([{"role": "user", "content": "a"}], []))
    held = server.requests[-1]["response_format"]
    assert held == {"type": "json_schema", "json_schema": {"name": "answer", "strict": True, "schema": SCHEMA}}


def test_beams_cannot_follow_a_schema(demo_model: str) -> None:
    with pytest.raises(GlmtuneError) as raised:
        generate(demo_model, "a", schema=SCHEMA, num_beams=2)
    assert str(raised.value) == "beam search cannot follow a schema\nhint: leave one of them out"


def test_a_schema_that_is_not_supported_is_told(demo_model: str) -> None:
    with pytest.raises(GlmtuneError) as raised:
        generate(demo_model, "a", schema={"not": {}})
    assert str(raised.value) == 'the schema cannot be followed: Unimplemented keys: ["not"]'


def test_a_file_that_holds_no_schema_is_told(tmp_path: Path) -> None:
    file = tmp_path / "schema.json"
    with pytest.raises(GlmtuneError) as raised:
        read_schema(file)
    assert str(raised.value) == f"`{file}` is not there; expected a file with a JSON Schema"
    file.write_text("[1]", encoding="utf-8")
    with pytest.raises(GlmtuneError) as raised:
        read_schema(file)
    assert str(raised.value) == f"this cannot be a JSON Schema: the schema is no object\n  --> {file}"


def test_what_is_missing_is_told_with_the_way_to_install_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "schema.json"
    file.write_text("{}", encoding="utf-8")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert read_schema(file, is_followed_here=False) == {}
    with pytest.raises(GlmtuneError) as raised:
        read_schema(file)
    assert str(raised.value) == (
        "`llguidance` is not installed\nhint: run `pip install 'glmtune[schema]'` and try again"
    )
