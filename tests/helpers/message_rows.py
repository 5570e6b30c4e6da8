"""Rows of messages for the tests of formats: a question and an answer to it."""

from __future__ import annotations

from typing import Any

USER = {"role": "user", "content": "a"}
ASSISTANT = {"role": "assistant", "content": "b"}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"z": 1, "a": None}}}


def with_message(**message: Any) -> dict[str, Any]:
    return {"messages": [USER, ASSISTANT | message]}


def with_call(**call: Any) -> dict[str, Any]:
    return {"messages": [USER, {"role": "assistant", "tool_calls": [call]}]}
