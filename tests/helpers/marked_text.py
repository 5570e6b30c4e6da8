"""Expected ids and labels, written by hand as text: what stands in «...» is trained."""

from __future__ import annotations

import re

from transformers import PreTrainedTokenizerBase

from glmtune.chatformat.encoding import Encoder
from glmtune.data.conversation import Conversation
from glmtune.family import IGNORE_INDEX


class Plain(str):
    """Text of a message: a control token in it is ordinary text."""


def marked(tokenizer: PreTrainedTokenizerBase, *parts: str) -> tuple[list[int], list[int]]:
    """Return the ids and labels that marked text stands for; control tokens count outside `Plain` parts only."""
    ids: list[int] = []
    labels: list[int] = []
    trained = False
    for part in parts:
        for text in [part] if isinstance(part, Plain) else re.split("([«»])", part):
            if text in ("«", "»"):
                trained = text == "«"
                continue
            options = {"split_special_tokens": True} if isinstance(part, Plain) else {}
            piece = tokenizer(text, add_special_tokens=False, **options)["input_ids"]
            ids += piece
            labels += piece if trained else [IGNORE_INDEX] * len(piece)
    return ids, labels


def prompts_of(conversation: Conversation, encoder: Encoder) -> list[list[int]]:
    """Return the ids that inference starts from for every answer that follows a question or an observation."""
    messages = conversation.messages
    return [
        encoder.encode_prompt(Conversation(messages=messages[:index]))
        for index, message in enumerate(messages)
        if message.role == "assistant" and index and messages[index - 1].role != "assistant"
    ]


def assert_prompts_are_prefixes(conversation: Conversation, encoder: Encoder) -> None:
    """Assert that every prompt is what training saw before the answer, and that the answer is trained from there."""
    example = encoder.encode(conversation)
    prompts = prompts_of(conversation, encoder)
    assert prompts
    for prompt in prompts:
        assert example.input_ids[: len(prompt)] == prompt
        assert example.labels[len(prompt)] == example.input_ids[len(prompt)]
