"""The outside formats of a row: their names, their keys, and what reads them."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from glmtune.data.conversation import Conversation
from glmtune.data.verdicts.marks import LOSS_KEYS

from .messages import REASONING_KEYS, SYSTEM_KEYS, from_chatglm3, from_messages
from .moss import from_moss
from .pairs import (
    from_advertisegen,
    from_alpaca,
    from_firefly,
    from_input_output,
    from_instruction_response,
    from_prompt_completion,
    from_prompt_response,
    from_query_response,
    from_text,
)
from .preference import CHOSEN_KEYS, PAIRS, QUESTIONS, REJECTED_KEYS, from_preference, read_keys
from .sharegpt import from_sharegpt
from .toolalpaca import OTHER_FORMS, from_toolalpaca
from .turn_pairs import from_turn_pairs, holds_pairs, list_key
from .unread import HARMLESS


@dataclass(frozen=True, kw_only=True)
class Format:
    """An outside format of rows."""

    convert: Callable[[dict[str, Any]], list[Conversation]]
    keys: tuple[str, ...]
    """Keys that a row of the format has, which tell it from others."""
    more_keys: tuple[str, ...] = ()
    """Keys that it may have besides."""
    message_keys: tuple[str, ...] = ()
    """Keys of its messages."""
    other_keys: tuple[tuple[str, ...], ...] = ()
    """Keys that tell it from others as well as `keys` do."""
    answer: str = ""
    """The key of its answer, where that is a text in a key of its own."""
    lists: tuple[str, ...] = ()
    """Keys under which messages may stand."""
    fits: Callable[[dict[str, Any]], bool] = lambda row: True
    """Whether what stands below its keys is of this format, where another one has the same keys."""
    read_keys: Callable[[dict[str, Any]], Collection[str]] | None = None
    """Which of its keys are read in a row, where that differs from row to row."""
    summary: str

    def matches(self, row: dict[str, Any]) -> bool:
        """Whether the row has the keys of the format."""
        keys = row.keys()
        return any(keys >= needed for needed in self._needed)

    def known_keys(self, row: dict[str, Any]) -> Collection[str]:
        """Return the keys that are read in this row, and those that need not be."""
        return HARMLESS.union(self.read_keys(row)) if self.read_keys else self._known

    @cached_property
    def _needed(self) -> tuple[frozenset[str], ...]:
        return (frozenset(self.keys), *map(frozenset, self.other_keys))

    @cached_property
    def _known(self) -> frozenset[str]:
        return HARMLESS.union(self.keys, self.more_keys, *self.other_keys)


BESIDE = (*SYSTEM_KEYS, "tools", "functions")
"""Keys that may stand beside messages, or beside a question and its answer."""

ROLE_KEYS = ("role", "content", "metadata", "tools", "tool_calls", "function_call", *REASONING_KEYS, *LOSS_KEYS)
FROM_KEYS = ("from", "value", *REASONING_KEYS, *LOSS_KEYS)

FORMATS: dict[str, Format] = {
    "preference": Format(
        convert=from_preference,
        keys=("chosen", "rejected"),
        more_keys=(*QUESTIONS, "history", *BESIDE, *CHOSEN_KEYS, *REJECTED_KEYS),
        other_keys=PAIRS[1:],
        lists=(*QUESTIONS, *CHOSEN_KEYS),
        read_keys=read_keys,
        message_keys=(*ROLE_KEYS, *FROM_KEYS[:2]),
        summary="a question with a `chosen` and a `rejected` answer; the chosen one is trained, the other not used",
    ),
    "messages": Format(
        convert=from_messages,
        keys=("messages",),
        more_keys=BESIDE,
        lists=("messages",),
        message_keys=ROLE_KEYS,
        summary="OpenAI's and GLM-4's messages of `role` and `content`, with `tools` and tool calls",
    ),
    "sharegpt": Format(
        convert=from_sharegpt,
        keys=("conversations",),
        more_keys=BESIDE,
        lists=("conversations",),
        message_keys=FROM_KEYS,
        fits=lambda row: not holds_pairs(row["conversations"]),
        summary="ShareGPT's messages of `from` and `value`, with the tool calls of glaive",
    ),
    "chatglm3": Format(
        convert=from_chatglm3,
        keys=("conversations",),
        more_keys=BESIDE,
        lists=("conversations",),
        message_keys=(*ROLE_KEYS, "name", "parameters", "observation"),
        fits=lambda row: not holds_pairs(row["conversations"]),
        summary="ChatGLM3's messages of `role` and `content`, whose role `tool` is a call and its observation",
    ),
    "alpaca": Format(
        convert=from_alpaca,
        keys=("instruction", "output"),
        more_keys=("input", "history", "reasoning_content", *BESIDE),
        answer="output",
        summary="Alpaca's `instruction`, `input` and `output`, with `system` and `history`",
    ),
    "instruction-response": Format(
        convert=from_instruction_response,
        keys=("instruction", "response"),
        more_keys=("context", "input", "history", *BESIDE),
        answer="response",
        summary="Dolly's `instruction`, `context` and `response`",
    ),
    "query-response": Format(
        convert=from_query_response,
        keys=("query", "response"),
        more_keys=("history", *BESIDE),
        answer="response",
        summary="ms-swift's `query` and `response`, with `history` and `system`",
    ),
    "input-output": Format(
        convert=from_input_output,
        keys=("input", "output"),
        more_keys=("history", *BESIDE),
        answer="output",
        summary="a question in `input` and its answer in `output`, as torchtune and litgpt have them",
    ),
    "firefly": Format(
        convert=from_firefly,
        keys=("input", "target"),
        more_keys=("history", *BESIDE),
        answer="target",
        summary="Firefly's `kind`, `input` and `target`",
    ),
    "turns": Format(
        convert=from_turn_pairs,
        keys=("conversation",),
        more_keys=("instruction", *BESIDE),
        other_keys=(("conversations",),),
        fits=lambda row: holds_pairs(row[list_key(row)]),
        summary="turns of `human` and `assistant` (or `question` and `answer`, `input` and `output`) in `conversation`",
    ),
    "moss": Format(
        convert=from_moss,
        keys=("chat",),
        more_keys=("meta_instruction", "prefix"),
        other_keys=(("plain_text",),),
        fits=lambda row: isinstance(row.get("chat", {}), dict),
        summary="MOSS as published: turns of `Human` and `MOSS` below `chat`, or in one `plain_text`",
    ),
    "advertisegen": Format(
        convert=from_advertisegen,
        keys=("content", "summary"),
        more_keys=("history", *BESIDE),
        answer="summary",
        summary="AdvertiseGen's keywords in `content` and advertisement in `summary`",
    ),
    "prompt-response": Format(
        convert=from_prompt_response,
        keys=("prompt", "response"),
        more_keys=("history", *BESIDE),
        answer="response",
        summary="plain text without role tokens, of which the `response` is trained; with `history` a chat",
    ),
    "prompt-completion": Format(
        convert=from_prompt_completion,
        keys=("prompt", "completion"),
        more_keys=("history", *BESIDE),
        answer="completion",
        lists=("prompt", "completion"),
        message_keys=ROLE_KEYS,
        summary="a question and its answer, or two lists of messages of which the second is trained",
    ),
    "toolalpaca": Format(
        convert=from_toolalpaca,
        keys=("Function_Description", "Instances"),
        more_keys=(*SYSTEM_KEYS, *OTHER_FORMS),
        summary="ToolAlpaca as published: an API a row, each of its instances a conversation",
    ),
    "text": Format(convert=from_text, keys=("text",), summary="plain text that a base model learns to continue"),
}
"""Every known format, in the order in which they are looked for in a row."""
