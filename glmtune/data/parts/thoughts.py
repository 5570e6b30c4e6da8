"""A content in parts that are not all text: what was thought, what was said, what was called, as LLaMA-Factory has it.

`[{"type": "reasoning", "value": "Hm."}, {"type": "text", "value": "Yes."}, {"type": "tool_call", "value": "{...}"}]`
"""

from __future__ import annotations

from typing import Any, TypeGuard

from glmtune.data.conversation import RowError
from glmtune.data.verdicts.marks import refuse_marks

from .fields import kind

ORDER = ("reasoning", "text", "tool_call")
"""Types of parts, in the order in which GLM-4 writes what they hold."""

OTHER_PARTS = ("reasoning", "tool_call")
"""Those of them that are no text."""


def has_other_parts(content: Any) -> TypeGuard[list[Any]]:
    """Whether a content has parts that hold reasoning or calls."""
    return isinstance(content, list) and any(
        isinstance(part, dict) and part.get("type") in OTHER_PARTS for part in content
    )


def split_parts(content: list[Any], name: str) -> tuple[str, list[Any], list[Any]]:
    """Return the reasoning of a content, its parts that are text or something else, and its calls.

    Raises:
        RowError: The parts come in another order, or hold no text.
    """
    reasoning, others, calls = "", [], []
    last = 0
    for part in content:
        type_name = part.get("type") if isinstance(part, dict) else None
        if type_name not in ORDER:
            others.append(part)
            continue
        place = ORDER.index(type_name)
        if place < last:
            raise RowError(
                f"{name} has a part of type {type_name} behind one of type {ORDER[last]}; expected it before"
            )
        last = place
        if type_name == "text":
            others.append(part)
            continue
        refuse_marks({key: value for key, value in part.items() if key != "value"}, f"a part of {name}")
        value = part.get("value")
        if type_name == "tool_call":
            calls.append(value)
        elif isinstance(value, str):
            reasoning += value
        else:
            raise RowError(f"{name} has a part of type reasoning that is {kind(value)}; expected text")
    return reasoning, others, calls
