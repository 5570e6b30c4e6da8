"""Where every message of a conversation stands in the text that the chat template makes of all of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jinja2

from glmtune.data.conversation import RowError

Spans = list[tuple[int, int] | None]
"""Of every message: its first character and the one behind its last."""


class ChangedTurn(RowError):
    """The template writes a turn otherwise once others follow, as those that forget earlier reasoning do."""


def spans_joined(
    messages: list[dict[str, Any]], whole: str, render: Callable[[list[Any]], Any], prefix: str | None
) -> Spans | None:
    """Return where each message stands in `whole`, from messages rendered alone; None where that differs.

    Args:
        messages: As the template reads them.
        whole: The text of all of them.
        render: The template, of many conversations at once.
        prefix: What the template puts before every conversation; None where it is not known.
    """
    if prefix is None:
        return None
    try:
        singles: list[str] = render([[message] for message in messages])
    except jinja2.TemplateError:  # some templates refuse a conversation without a question
        return None
    spans: Spans = []
    position = len(prefix)
    for single in singles:
        if not single.startswith(prefix):
            return None
        end = position + len(single) - len(prefix)
        spans.append((position, end))
        position = end
    joined = prefix + "".join(single[len(prefix) :] for single in singles)
    return spans if joined == whole else None


def spans_by_prefix(
    messages: list[dict[str, Any]],
    whole: str,
    render: Callable[[list[dict[str, Any]]], str],
    numbers: Sequence[int],
    weights: Sequence[float],
) -> Spans:
    """Return where each message stands, from ever longer prefixes of the conversation.

    An answer that is not trained and that stands otherwise in the whole has no place: it is context.

    Args:
        messages: As the template reads them.
        whole: The text of all of them.
        render: The template, of one conversation.
        numbers: Places of the messages in their row, for the error.
        weights: Of the messages in the loss.

    Raises:
        ChangedTurn: An answer that is trained stands otherwise in the whole.
    """
    spans: Spans = []
    position = 0
    for index, message in enumerate(messages):
        if message["role"] == "assistant":
            # Templates may refuse a prefix that ends elsewhere; only the borders of answers matter.
            before = render(messages[:index]) if index else ""
            shown = render(messages[: index + 1])
            changed = next((text for text in (before, shown) if not whole.startswith(text)), None)
            if changed is None:
                spans.append((len(before), len(shown)))
                position = len(shown)
            elif weights[index]:
                raise ChangedTurn(
                    f"the chat template renders message {numbers[index]} differently in place: "
                    + first_difference(changed, whole)
                )
            else:
                spans.append(None)
        else:
            spans.append((position, position))
    return spans


def first_difference(left: str, right: str) -> str:
    """Describe the first place at which two texts differ."""
    at = next((i for i, (a, b) in enumerate(zip(left, right)) if a != b), min(len(left), len(right)))
    start = max(0, at - 12)
    return f"{left[start : at + 12]!r} became {right[start : at + 12]!r}"
