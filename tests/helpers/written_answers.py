"""Answers written ahead, in the place of a model that cannot be relied on to call a tool."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

from glmtune.chatformat.replies import Delta


class Written:
    """Answers written ahead, in order: lists of events, texts, or an error to raise. It keeps what it was asked."""

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)
        self.asked: list[list[dict[str, Any]]] = []
        self.offered: list[list[dict[str, Any]]] = []

    def __call__(self, messages, tools) -> Iterator[Any]:
        self.asked.append(copy.deepcopy(list(messages)))
        self.offered.append(list(tools))
        answer = self.answers.pop(0)
        for event in [Delta(text=answer)] if isinstance(answer, str) else answer:
            if isinstance(event, BaseException):
                raise event
            yield event
