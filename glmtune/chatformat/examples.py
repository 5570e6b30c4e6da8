"""Rows as the model gets them: ids, labels and weights, and the stretches that it has to write."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from glmtune.family import IGNORE_INDEX


@dataclass(frozen=True, kw_only=True)
class Example:
    """One row ready for training."""

    input_ids: list[int]
    labels: list[int]
    """Equal to `input_ids` where trained, `IGNORE_INDEX` elsewhere."""
    weights: list[float] | None = None
    """Of every token in the loss, where a trained one has another than 1."""
    is_truncated: bool = False
    """Whether its end was cut off at the length limit."""
    num_turns_left_out: int = 0
    """By `truncation: drop_turns`."""
    num_tokens_left_out: int = 0
    """By either."""


@dataclass(frozen=True, kw_only=True)
class Turn:
    """One stretch of an example that the model has to write: an answer, its stop token included."""

    prompt_ids: list[int]
    answer_ids: list[int]


Part = tuple[Sequence[int], float]
"""Ids in a row, and their weight in the loss."""


def join_parts(parts: Sequence[Part]) -> Example:
    """Return the example that the parts make, one behind the other."""
    input_ids: list[int] = []
    labels: list[int] = []
    for ids, weight in parts:
        input_ids.extend(ids)
        labels.extend(ids if weight else [IGNORE_INDEX] * len(ids))
    if all(weight in (0.0, 1.0) for _, weight in parts):
        return Example(input_ids=input_ids, labels=labels)
    weights = [weight for ids, weight in parts for _ in ids]
    return Example(input_ids=input_ids, labels=labels, weights=weights)


def turns_of(input_ids: Sequence[int], labels: Sequence[int], *, is_truncated: bool = False) -> list[Turn]:
    """Return every stretch that the model has to write itself; one whose end was cut off is left out."""
    turns: list[Turn] = []
    position = 0
    while position < len(labels):
        if labels[position] == IGNORE_INDEX:
            position += 1
            continue
        end = position
        while end < len(labels) and labels[end] != IGNORE_INDEX:
            end += 1
        if not (is_truncated and end == len(labels)):
            turns.append(Turn(prompt_ids=list(input_ids[:position]), answer_ids=list(input_ids[position:end])))
        position = end
    return turns
