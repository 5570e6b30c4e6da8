"""Whether a model calls the functions that its references call, with the same arguments.

Calls are equal where name and arguments are, as JSON values: neither the order of keys nor the spelling of a number
(`1.0` for `1`) counts, and of several calls in one answer not their order either.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from glmtune.chatformat.replies import OPEN_THOUGHT, ReplyLayout, ToolCall, called_name, parse_reply

CALL_METRIC_NAMES = ("tool-name-accuracy", "tool-call-accuracy", "false-call-rate")

SAME = "same"
OTHER_ARGUMENTS = "other arguments"
OTHER_FUNCTION = "other function"
NO_CALL = "no call"
FALSE_CALL = "false call"
"""What became of a turn in which the reference or the answer calls a function."""


@dataclass(frozen=True)
class CallReader:
    """Reads the calls of answers as the model of a layout writes them."""

    layout: ReplyLayout
    names: tuple[str, ...] = ()
    """Of functions that are called in the data; others are read where they are identifiers."""

    @classmethod
    def for_references(cls, layout: ReplyLayout, references: Iterable[Sequence[str]]) -> CallReader:
        """Return the reader that knows every function that the references, each as its sections, call."""
        names = {called_name(section, layout) for sections in references for section in sections}
        return cls(layout, tuple(sorted(name for name in names if name)))

    def read(self, sections: Sequence[str], prompt: str) -> tuple[ToolCall, ...]:
        """Return the calls of an answer, given as its sections, to a prompt."""
        layout = replace(self.layout, prompt_opens_reasoning=prompt.rstrip().endswith(OPEN_THOUGHT))
        tools = [{"type" if name in layout.text_tools else "name": name} for name in self.names]
        return parse_reply(sections, layout, tools or None).tool_calls


def compare_calls(wanted: Sequence[ToolCall], written: Sequence[ToolCall]) -> str | None:
    """Return what became of a turn, by the calls of its reference and of its answer; None where neither calls."""
    if not wanted:
        return FALSE_CALL if written else None
    if not written:
        return NO_CALL
    if sorted(call.name for call in wanted) != sorted(call.name for call in written):
        return OTHER_FUNCTION
    is_same = sorted(map(_as_value, wanted)) == sorted(map(_as_value, written))
    return SAME if is_same else OTHER_ARGUMENTS


def call_metrics(outcomes: Sequence[str | None]) -> dict[str, float]:
    """Return the shares of turns from 0 to 100; none where no reference calls a function.

    Args:
        outcomes: What `compare_calls` has found for every turn.
    """
    calling = [outcome for outcome in outcomes if outcome not in (None, FALSE_CALL)]
    others = [outcome for outcome in outcomes if outcome in (None, FALSE_CALL)]
    if not calling:
        return {}
    named = [outcome for outcome in calling if outcome in (SAME, OTHER_ARGUMENTS)]
    shares = [100 * len(named) / len(calling), 100 * calling.count(SAME) / len(calling)]
    if others:
        shares.append(100 * others.count(FALSE_CALL) / len(others))
    return dict(zip(CALL_METRIC_NAMES, shares))


def _as_value(call: ToolCall) -> tuple[str, str]:
    """Return a call in the one spelling that all equal calls have."""
    arguments = json.loads(call.arguments, parse_float=_as_number)
    return call.name, json.dumps(arguments, sort_keys=True)


def _as_number(text: str) -> int | float:
    number = float(text)
    return int(number) if number.is_integer() else number
