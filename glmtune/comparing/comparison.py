"""What a comparison of models has found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .bootstrap import PairedDifference
from .judge import Judgement

LENGTH = "answer-characters"
"""Of the answers, in the mean; neither more nor less of it is better."""
LESS_IS_BETTER = ("loss", "perplexity", "false-call-rate")


@dataclass(frozen=True, kw_only=True)
class AnswerChange:
    """A turn that the second model answers better or worse than the first."""

    where: str
    turn: int
    prompt: str
    reference: str
    answers: tuple[str, str]
    """Of the first and of the second model."""
    rouge_l: tuple[float, float]
    tool_calls: tuple[str | None, str | None]


@dataclass(frozen=True, kw_only=True)
class AgainstFirst:
    """A model beside the first one, on one file."""

    name: str
    differences: Mapping[str, PairedDifference]
    better: Sequence[AnswerChange]
    """By so much that it counts, the greatest gain first."""
    worse: Sequence[AnswerChange]
    num_equal: int
    """Answers that are the same to the letter."""
    calls: Mapping[tuple[str, str], int]
    """How many turns went from one outcome of the tool calls to another."""
    judgement: Judgement | None = None


@dataclass(frozen=True, kw_only=True)
class FileComparison:
    """What came of one file of rows."""

    data_file: str
    num_turns: int
    """That every model has answered."""
    num_left_out: int
    """Rows and turns that were not scored for at least one model: no figure counts them."""
    metrics: Mapping[str, Mapping[str, float]]
    """Name of the model, then of the figure."""
    others: Sequence[AgainstFirst]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Models side by side; the first is what the others are compared with."""

    names: Sequence[str]
    files: Sequence[FileComparison]
    """The rows, then those that should not have been forgotten, if there are any."""
