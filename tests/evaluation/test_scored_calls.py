"""A model that has learnt its tool calls by heart, scored on them and on others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from serving_rows import ITEMS, REPLY, THANKS, TOOLS, answer, call, question, result

from glmtune import evaluate

LEARNT: list[list[dict[str, Any]]] = [[question(item), call(item), result(item), answer(item)] for item in ITEMS]


def write(path: Path, rows: list[list[dict[str, Any]]]) -> Path:
    lines = [json.dumps({"messages": messages, "tools": TOOLS}, ensure_ascii=False) + "\n" for messages in rows]
    path.write_text("".join(lines), encoding="utf-8")
    return path


def figures(model: Path, path: Path) -> tuple[float, float, float]:
    metrics = evaluate(model, path).metrics
    return metrics["tool-name-accuracy"], metrics["tool-call-accuracy"], metrics["false-call-rate"]


def test_what_was_learnt_by_heart_is_called_rightly(tool_model: Path, tmp_path: Path) -> None:
    assert figures(tool_model, write(tmp_path / "rows.jsonl", LEARNT)) == (100, 100, 0)


def test_other_references_lower_the_figure_that_they_touch(tool_model: Path, tmp_path: Path) -> None:
    first, second = list(ITEMS)[:2]
    other_item = [question(first), call(second), result(second), answer(second)]
    never_calls = [question(first), {"role": "assistant", "content": "有货。"}]
    wants_call = [{"role": "user", "content": THANKS}, call(first)]
    thanks = [{"role": "user", "content": THANKS}, {"role": "assistant", "content": REPLY}]
    path = write(tmp_path / "rows.jsonl", [LEARNT[0], other_item, wants_call, never_calls, thanks])
    name, whole, false = figures(tool_model, path)
    assert (name, whole, false) == (100 * 2 / 3, 100 * 1 / 3, 100 * 1 / 4)
