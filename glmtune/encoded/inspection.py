"""The sanity check that people trust: every token beside its id and its label."""

from __future__ import annotations

import re
from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from glmtune.family import IGNORE_INDEX
from glmtune.text.visible_text import ANSWER_KEEPS, escape, visible

JOINERS = re.compile("[\u200c\u200d]")
"""Not seen, either; in rows they make another token of the same letters."""
TRAINED = "\x1b[1;32m"
MASKED = "\x1b[2m"
RESET = "\x1b[0m"


def format_tokens(
    tokenizer: PreTrainedTokenizerBase, input_ids: Sequence[int], labels: Sequence[int], *, color: bool = False
) -> str:
    """Return a table of token, id and label; in colour, trained tokens are bold green and masked ones dim."""
    width = max([6, *(len(str(token)) for token in input_ids)])
    lines = [f"{'id':>{width}}  {'label':>{width}}  token"]
    for token, label in zip(input_ids, labels):
        line = f"{token:>{width}}  {label:>{width}}  {_escaped(str(tokenizer.decode([token])))}"
        lines.append(f"{MASKED if label == IGNORE_INDEX else TRAINED}{line}{RESET}" if color else line)
    trained = sum(label != IGNORE_INDEX for label in labels)
    return "\n".join([*lines, f"{len(input_ids)} tokens, {trained} trained"])


def format_text(
    tokenizer: PreTrainedTokenizerBase, input_ids: Sequence[int], labels: Sequence[int], *, color: bool = False
) -> str:
    """Return a row as text with its trained stretches marked: `[[...]]`, or in colour."""
    parts: list[str] = []
    start = 0
    for end in range(1, len(labels) + 1):
        is_trained = labels[start] != IGNORE_INDEX
        if end < len(labels) and (labels[end] != IGNORE_INDEX) == is_trained:
            continue
        text = _visible(str(tokenizer.decode(list(input_ids[start:end]))))
        opening, closing = (TRAINED, RESET) if color else ("[[", "]]")
        parts.append(f"{opening}{text}{closing}" if is_trained else text)
        start = end
    return "".join(parts)


def _visible(text: str) -> str:
    r"""Return the text with all written out that would not be seen, or obeyed by a terminal; lines stay lines."""
    return JOINERS.sub(lambda found: escape(found[0]), visible(text, keep=ANSWER_KEEPS))


def _escaped(text: str) -> str:
    r"""Return the text on one line: white space as `\n`, `\t`; a backslash doubled; quotes as they are."""
    return "".join(char if char.isprintable() and char != "\\" else repr(char)[1:-1] for char in text)
