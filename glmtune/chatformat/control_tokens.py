"""Control tokens that a user wrote into a message: text like any other, told from the template's own by a mark."""

from __future__ import annotations

import json
import re
from typing import Any

from transformers import PreTrainedTokenizerBase

from glmtune.data.conversation import Conversation, Message, RowError

# Unicode noncharacters never stand in real text. One of them is put inside a control token that a user wrote, so
# that the rendered text shows which control tokens are the template's own.
NONCHARACTERS = [chr(code) for code in range(0xFDD0, 0xFDF0)]


class ControlTokens:
    """The special tokens of one tokenizer, which only the template may write."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        # Not every special token has a named role: Llama's header tokens stand in `added_tokens_decoder` alone.
        special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
        self.names = sorted({*special, *tokenizer.all_special_tokens}, key=lambda name: (-len(name), name))
        """Longest first."""
        alternatives = "|".join(map(re.escape, self.names))
        self.pattern = re.compile(f"({alternatives})")
        self._start = re.compile(f"(?={alternatives})(.)", re.DOTALL)

    def names_in(self, conversation: Conversation) -> set[str]:
        """Return the special tokens that stand in the text of messages, where they are ordinary text."""
        texts = (text for message in conversation.messages for text in _texts(message) if self.pattern.search(text))
        return {name for text in texts for name in self.pattern.findall(text)}

    def guard_for(self, conversation: Conversation) -> str:
        """Return a character to mark control tokens written in message text; empty where no message has one."""
        text = "".join(text for message in conversation.messages for text in _texts(message))
        if not self.pattern.search(text):
            return ""
        guard = next((character for character in NONCHARACTERS if character not in text), None)
        if guard is None:
            raise RowError("the text holds a control token and every Unicode noncharacter")
        return guard

    def guarded(self, value: Any, guard: str) -> Any:
        """Return text, or parsed JSON with all of its text, with the `guard` inside every control token."""
        if not guard:
            return value
        if isinstance(value, str):
            return self._start.sub(rf"\1{guard}", value)
        if isinstance(value, list):
            return [self.guarded(item, guard) for item in value]
        if isinstance(value, dict):
            return {self.guarded(key, guard): self.guarded(item, guard) for key, item in value.items()}
        return value


def _texts(message: Message) -> list[str]:
    r"""Return all text of a message; of JSON, also what its escapes hide: `\u003c` may begin a control token."""
    texts = [message.content, message.reasoning, message.metadata, message.tools or ""]
    for text in (message.content if message.metadata else "", message.tools or ""):
        if "\\" in text:
            try:
                texts.append(json.dumps(json.loads(text), ensure_ascii=False))
            except ValueError:  # the code of GLM-4's interpreter stands where other calls have JSON
                continue
    return texts
