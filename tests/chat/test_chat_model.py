"""Answers of a local model that has learned to call a function: nothing between its tokens and the chat is made up."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from glmtune.chat.chat_model import local_answers
from glmtune.chat.chat_session import Chat
from glmtune.chat.functions import FunctionWorker, Tools
from glmtune.chatformat.encoding import Encoder
from glmtune.chatformat.replies import CutOff, Delta, ToolCall
from glmtune.data.formats import to_conversation
from glmtune.errors import GlmtuneError
from glmtune.modeling.finding.model_source import find_model
from glmtune.modeling.loading import load_model

FUNCTION = """
def query_stock(item):
    return {"stock": len(item)}
"""
TOOL = {
    "type": "function",
    "function": {"name": "query_stock", "description": "", "parameters": {"properties": {"item": {"type": "string"}}}},
}
QUESTION = {"role": "user", "content": "风衣和马甲"}
CALLS = [
    {"id": number, "type": "function", "function": {"name": "query_stock", "arguments": arguments}}
    for number, arguments in (("call00001", '{"item": "风衣"}'), ("call00002", '{"item": "马甲"}'))
]
ANSWER = "各两件🧥，\n欢迎选购。"


@pytest.fixture(scope="module")
def caller(demo_model: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The demo model, which has learned one conversation by heart: a text, two calls, an answer."""
    loaded = load_model(find_model(demo_model))
    messages = [
        QUESTION,
        {"role": "assistant", "content": "我查一下。", "tool_calls": CALLS},
        {"role": "tool", "tool_call_id": "call00001", "content": '{"stock": 2}'},
        {"role": "tool", "tool_call_id": "call00002", "content": '{"stock": 2}'},
        {"role": "assistant", "content": ANSWER},
    ]
    encoder = Encoder(loaded.tokenizer, loaded.family)
    example = encoder.encode(to_conversation({"messages": messages, "tools": [TOOL]}))
    batch = {name: torch.tensor([ids]) for name, ids in (("input_ids", example.input_ids), ("labels", example.labels))}
    optimizer = torch.optim.AdamW(loaded.model.parameters(), lr=3e-3)
    for _ in range(60):
        loss = loaded.model(**batch, use_cache=False).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    folder = tmp_path_factory.mktemp("caller")
    loaded.model.save_pretrained(folder)
    loaded.tokenizer.save_pretrained(folder)
    return str(folder)


def test_a_trained_model_calls_functions_and_answers(
    talk: Callable[..., Chat], caller: str, tmp_path: Path, capsys
) -> None:
    path = tmp_path / "stock.py"
    path.write_text(FUNCTION, encoding="utf-8")
    tools = Tools(schemas=[TOOL], source=path, worker=FunctionWorker(path, 30))
    chat = talk(local_answers(caller), QUESTION["content"], tools=tools)
    assert chat.history == [
        QUESTION,
        {"role": "assistant", "content": "我查一下。", "tool_calls": CALLS},
        {"role": "tool", "tool_call_id": "call00001", "content": '{"stock": 2}'},
        {"role": "tool", "tool_call_id": "call00002", "content": '{"stock": 2}'},
        {"role": "assistant", "content": ANSWER},
    ]
    assert capsys.readouterr().out == f"我查一下。\n{ANSWER}\n"


def test_a_call_comes_as_soon_as_it_is_whole(caller: str) -> None:
    events = list(local_answers(caller)([QUESTION], [TOOL]))
    assert events[-2:] == [ToolCall(**call["function"]) for call in CALLS]
    assert "".join(event.text for event in events[:-2] if isinstance(event, Delta)) == "我查一下。"


def test_an_answer_cut_in_the_midst_of_a_character_ends_before_it(caller: str, demo_tokenizer) -> None:
    start = demo_tokenizer("\n各两件🧥", add_special_tokens=False)["input_ids"]
    history = [
        QUESTION,
        {"role": "assistant", "content": "我查一下。", "tool_calls": CALLS},
        *({"role": "tool", "content": json.dumps({"stock": 2})} for _ in CALLS),
    ]
    *pieces, last = local_answers(caller, max_new_tokens=len(start) - 1)(history, [TOOL])
    assert "".join(piece.text for piece in pieces if isinstance(piece, Delta)) == "各两件"
    assert last == CutOff()


def test_tools_that_a_template_cannot_show_are_an_error(caller: str, tmp_path: Path) -> None:
    folder = tmp_path / "toolless"
    folder.mkdir()
    for file in Path(caller).iterdir():
        (folder / file.name).symlink_to(file)
    template = folder / "chat_template.jinja"
    text = template.read_text(encoding="utf-8")
    template.unlink()
    template.write_text(text.replace("item['tools']", "false"), encoding="utf-8")
    with pytest.raises(GlmtuneError, match=r"^cannot ask this: .*tools"):
        list(local_answers(str(folder))([QUESTION], [TOOL]))
