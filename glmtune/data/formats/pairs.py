"""Rows of a question and its answer in keys of their own, and plain text for base models."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

from glmtune.data.conversation import TEXT, Conversation, Message, RowError, is_blank
from glmtune.data.parts.fields import joined_text, kind, required_text, says_nothing

from .messages import SYSTEM_KEYS, conversation_of, read_messages, with_row
from .transcripts import question_messages

_SHOWN = re.compile(r"<(img|image|video|audio)>[^<\n]+</\1>")
"""What ms-swift puts into a question that a model sees or hears."""

CHAT_KEYS = ("history", *SYSTEM_KEYS, "tools", "functions")
"""Keys that plain text has no place for."""


def from_alpaca(row: dict[str, Any]) -> list[Conversation]:
    """Read Alpaca's `instruction`, `input` and `output`; `history` holds the pairs that came before."""
    answer = required_text(row, "output")
    reasoning = joined_text(row.get("reasoning_content"), "`reasoning_content`")
    messages = [*alpaca_question(row), Message(role="assistant", content=answer, reasoning=reasoning)]
    return [with_row(row, messages)]


def alpaca_question(row: dict[str, Any]) -> list[Message]:
    """Return the earlier turns and the question: `instruction`, and `input` below it."""
    instruction, extra = (joined_text(row.get(key), f"`{key}`") for key in ("instruction", "input"))
    question = f"{instruction}\n{extra}" if instruction and extra else instruction or extra
    if is_blank(question):
        raise RowError("`instruction` and `input` are empty; expected text in one of them")
    return [*history_of(row), *question_messages(question)]


def history_of(row: dict[str, Any]) -> list[Message]:
    """Return the earlier turns of a row: `history`, a list of pairs."""
    history = row.get("history")
    if not history:
        return []
    if not isinstance(history, list):
        raise RowError(f"`history` is {kind(history)}; expected a list of pairs: question, answer")
    messages: list[Message] = []
    for index, pair in enumerate(history):
        is_pair = isinstance(pair, list) and len(pair) == 2
        if not is_pair or not all(isinstance(text, str) and not is_blank(text) for text in pair):
            raise RowError(f"item {index} of `history` is no pair of texts; expected [question, answer]")
        messages += _pair(pair[0], pair[1])
    return messages


def from_advertisegen(row: dict[str, Any]) -> list[Conversation]:
    """Read AdvertiseGen's `content`, the keywords, and `summary`, the advertisement."""
    return [with_row(row, _question_and_answer(row, "content", "summary"))]


def from_query_response(row: dict[str, Any]) -> list[Conversation]:
    """Read ms-swift's `query`, `response` and `history`, every answer of which is trained, as it is there."""
    messages = [*history_of(row), *_pair(required_text(row, "query"), required_text(row, "response"))]
    for message in messages:
        shown = _SHOWN.search(message.content) if message.role == "user" else None
        if shown:
            raise RowError(
                f"a question has `<{shown[1]}>` with a file; expected text alone: the model would not see or hear it"
            )
    return [with_row(row, messages)]


def from_instruction_response(row: dict[str, Any]) -> list[Conversation]:
    """Read Dolly's `instruction`, the `context` below it, and `response`."""
    if not says_nothing(row.get("context")):
        if not says_nothing(row.get("input")):
            raise RowError("the row has `context` and `input`; expected one of them below the `instruction`")
        row = row | {"input": row["context"]}
    return [with_row(row, [*alpaca_question(row), Message(role="assistant", content=required_text(row, "response"))])]


def from_input_output(row: dict[str, Any]) -> list[Conversation]:
    """Read a question in `input` and its answer in `output`, as torchtune and litgpt have them."""
    return [with_row(row, _question_and_answer(row, "input", "output"))]


def from_firefly(row: dict[str, Any]) -> list[Conversation]:
    """Read Firefly's `input` and `target`; its `kind` says what kind of a task it is."""
    return [with_row(row, _question_and_answer(row, "input", "target"))]


def from_prompt_response(row: dict[str, Any]) -> list[Conversation]:
    """Read ChatGLM-6B's `prompt`, `response` and `history`, or ChatGLM3's `prompt` and `response`.

    The response alone is trained. A row with `history`, be it empty, or with a system's text or tools is a chat;
    without any, ChatGLM3's, it is plain text without role tokens.
    """
    if any(key in row for key in CHAT_KEYS):
        return [with_row(row, _question_and_answer(row, "prompt", "response"))]
    prompt = Message(role=TEXT, content=required_text(row, "prompt"), loss=0.0)
    return [conversation_of([prompt, Message(role=TEXT, content=required_text(row, "response"))])]


def from_prompt_completion(row: dict[str, Any]) -> list[Conversation]:
    """Read a `prompt` and its `completion`: two texts, or two lists of messages, of which the second is trained."""
    prompt, completion = row["prompt"], row["completion"]
    if is_message_list(prompt) != is_message_list(completion):
        raise RowError(
            f"`prompt` is {kind(prompt)} and `completion` {kind(completion)}; "
            "expected two texts or two lists of messages"
        )
    if not is_message_list(prompt):
        return [with_row(row, _question_and_answer(row, "prompt", "completion"))]
    refuse_history(row, "lists of messages")
    context = untrained(read_messages(prompt, "prompt"))
    return [with_row(row, context + read_messages(completion, "completion", first_number=len(prompt)))]


def refuse_history(row: dict[str, Any], beside: str) -> None:
    """Raise where earlier turns stand beside messages, which hold all of them."""
    if not says_nothing(row.get("history")):
        raise RowError(f"the row has `history` beside {beside}; expected the earlier turns among the messages")


def _question_and_answer(row: dict[str, Any], question: str, answer: str) -> list[Message]:
    """Return what came before, which is not trained, the question and the answer."""
    return [*untrained(history_of(row)), *_pair(required_text(row, question), required_text(row, answer))]


def _pair(question: str, answer: str) -> list[Message]:
    return [*question_messages(question), Message(role="assistant", content=answer)]


def is_message_list(value: Any) -> bool:
    """Whether the value is a list of messages, and not a text in OpenAI's list form."""
    if not isinstance(value, list):
        return False
    return not any(
        isinstance(item, dict) and "type" in item and item.keys().isdisjoint(("role", "from")) for item in value
    )


def untrained(messages: list[Message]) -> list[Message]:
    """Return the messages with a weight of 0 for the assistant's, unless they have one of their own."""
    return [
        replace(message, loss=0.0) if message.role == "assistant" and message.loss is None else message
        for message in messages
    ]


def from_text(row: dict[str, Any]) -> list[Conversation]:
    """Read plain `text` that a base model learns to continue."""
    return [conversation_of([Message(role=TEXT, content=required_text(row, "text"))])]
