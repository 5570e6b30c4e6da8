"""Keys that say whether an answer is to be imitated: marks such as KTO's `label`, and weights."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import Any

from glmtune.data.conversation import RowError

LOSS_KEYS = ("loss", "weight", "loss_weight", "loss_scale", "train", "training", "trainable")
"""Keys of a message that weigh its own tokens: ours, OpenAI's, LLaMA-Factory's, ms-swift's, axolotl's."""

ROW_WEIGHTS = ("weight", "sample_weight", "loss_weight", "example_weight", "row_weight")
"""Keys of a row that weigh all of its answers."""

_GOOD_IF_TRUE = """
    kto_tag is_good good is_chosen chosen is_preferred preferred is_accepted accepted is_desirable desirable
    is_correct correct is_positive is_right loss train training trainable use_for_training
"""
GOOD_IF_TRUE = frozenset(_GOOD_IF_TRUE.split())
_BAD_IF_TRUE = """
    is_bad bad is_rejected rejected is_undesirable undesirable is_wrong wrong is_incorrect incorrect
    is_negative skip skipped ignore ignored exclude excluded deleted is_deleted
"""
BAD_IF_TRUE = frozenset(_BAD_IF_TRUE.split())
_VERDICTS = """
    label verdict feedback vote thumbs rating judgement judgment quality status review evaluation
    human_feedback
"""
VERDICTS = frozenset(_VERDICTS.split())
"""Keys whose value may be a word for good or bad, and may be something else."""

NUMBERED = GOOD_IF_TRUE | BAD_IF_TRUE | {"label"}
"""Keys whose 1 is true and whose 0 is false."""

_GOOD_WORDS = """
    true yes y t good accept accepted chosen choose desirable preferred right correct up thumbs_up thumbsup
    like liked positive 好 对 是 真 正确 合格 通过 👍
"""
GOOD_WORDS = frozenset(_GOOD_WORDS.split())
_BAD_WORDS = """
    false no n f bad reject rejected undesirable dispreferred non_preferred unacceptable wrong incorrect
    down thumbs_down thumbsdown dislike disliked negative fail failed 差 坏 错 否 假 错误 不好 不合格 不通过 拒绝 👎
"""
BAD_WORDS = frozenset(_BAD_WORDS.split())
CLASSES = frozenset({"positive", "negative"})
"""Words that name a class of texts as often as they judge an answer; not heeded under `VERDICTS`."""


def verdict(key: str, value: Any) -> bool | None:
    """Return whether a key calls an answer good (True) or bad (False); None where it says neither."""
    name = _normal(key)
    if name in GOOD_IF_TRUE:
        return _truth(value, is_numbered=True)
    if name in BAD_IF_TRUE:
        truth = _truth(value, is_numbered=True)
        return None if truth is None else not truth
    if name in VERDICTS:
        return None if _word(value) in CLASSES else _truth(value, is_numbered=name in NUMBERED)
    return None


def marked_bad(item: dict[str, Any]) -> bool:
    """Whether a message is marked as bad by a key that does nothing else."""
    return any(key not in LOSS_KEYS and verdict(key, value) is False for key, value in item.items())


def refuse_bad(row: dict[str, Any], keys: Iterable[str], *, is_text: bool = False) -> set[str]:
    """Return those of the keys that call the row's answer good, and raise `RowError` where one calls it bad.

    Args:
        row: With its own keys.
        keys: Those that no format reads.
        is_text: Whether the row is plain text, whose `label` and the like are classes.
    """
    good: set[str] = set()
    for key in keys:
        if is_text and _normal(key) in VERDICTS:
            continue
        found = verdict(key, row[key])
        if found is False:
            raise RowError(f"the answer is marked as bad (`{key}` is {_shown(row[key])}), so it is not trained")
        if found is None and _normal(key) == "kto_tag" and row[key] not in (None, ""):
            raise RowError(f"`{key}` is {_shown(row[key])}; expected true or false")
        if found:
            good.add(key)
    return good


def row_weight(row: dict[str, Any], keys: Iterable[str]) -> tuple[float, set[str]]:
    """Return the weight that a row gives all of its answers, and the keys that say so; raises `RowError` at 0."""
    weights: dict[str, float] = {}
    for key in keys:
        number = _number(row[key])
        if number is None or _normal(key) not in ROW_WEIGHTS:
            continue
        if not number:
            raise RowError(f"the row is not to be trained (`{key}` is {_shown(row[key])})")
        if number < 0:
            raise RowError(f"`{key}` is {_shown(row[key])}; expected a weight of at least 0")
        weights[key] = number
    if len(set(weights.values())) > 1:
        first, second, *_ = weights
        raise RowError(f"the row has `{first}` {weights[first]} and `{second}` {weights[second]}; expected one of them")
    return next(iter(weights.values()), 1.0), set(weights)


@lru_cache(maxsize=1024)
def _normal(key: str) -> str:
    return key.strip().lower().replace("-", "_").replace(" ", "_")


def _word(value: Any) -> str:
    return value.strip().lower().replace(" ", "_").replace("-", "_") if isinstance(value, str) else ""


def _truth(value: Any, *, is_numbered: bool) -> bool | None:
    """Return the truth value of a boolean, of a word, or of a number where it may be one."""
    if isinstance(value, bool):
        return value
    if _word(value) in GOOD_WORDS:
        return True
    if _word(value) in BAD_WORDS:
        return False
    number = _number(value)
    if number is not None and number < 0:
        return False
    return {0.0: False, 1.0: True}.get(number) if is_numbered and number is not None else None


def _number(value: Any) -> float | None:
    """Return a number, be it written as text as in a table; None for anything else."""
    if isinstance(value, (int, float)):
        return float(value) if abs(value) < 1e300 else None
    if not isinstance(value, str) or len(value) > 40:
        return None
    try:
        number = float(value)
    except ValueError:
        return None
    return number if abs(number) < 1e300 else None


def _shown(value: Any) -> str:
    return {True: "`true`", False: "`false`"}[value] if isinstance(value, bool) else f"`{str(value)[:40]}`"
