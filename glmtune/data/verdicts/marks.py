"""Keys that say whether an answer is to be imitated: marks such as KTO's `label`, and weights."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

from glmtune.data import json_text
from glmtune.data.conversation import RowError

from .mark_words import (
    ASIDE,
    BAD_IF_TRUE,
    BAD_TRAINING,
    BAD_WORDS,
    BY_TRUTH,
    BY_WHOM,
    CLASS_KEYS,
    CLASSES,
    FACTS,
    FILING,
    FILING_WORDS,
    GOOD_IF_TRUE,
    GOOD_TRAINING,
    GOOD_WORDS,
    HOLDERS,
    JUDGEMENT,
    KINDS,
    LIKE_REMARKS,
    LISTS_OF_MARKS,
    NEVER_WHEN,
    NUMBERED,
    ONE_STAR,
    ONLY_BAD,
    ONLY_TRUE_OR_FALSE,
    PASSED,
    POOR,
    QUALITY_KEYS,
    RATINGS,
    REMARK_WORDS,
    REMARKS,
    REPOSITORY,
    SHORT_WORDS,
    STARS,
    SWITCH_WORDS,
    TAGS,
    VERBS,
    VERDICTS,
    VOTE_COUNTS,
)

LOSS_KEYS = (
    "loss",
    "weight",
    "loss_weight",
    "loss_scale",
    "loss_mask",
    "train",
    "training",
    "trainable",
    "train_mask",
)
"""Keys of a message that weigh its own tokens: ours, OpenAI's, LLaMA-Factory's, ms-swift's, axolotl's."""

SWITCHES = frozenset(("loss", "train", "training", "trainable"))
"""Those of them that say yes or no of a whole row; a number between means nothing there."""

UNCLEAR_KEYS = frozenset(("mask", "train_detail", "training_detail"))
"""Keys of a message that leave tokens out in a way that is not ours, or that may mean the one or the other."""

_ROW_WEIGHTS = """
    weight weights sample_weight sample_weights loss_weight loss_weights example_weight row_weight importance_weight
    loss_scale loss_mask train_mask loss_masks train_weight training_weight sft_weight data_weight item_weight
    instance_weight loss_multiplier loss_factor loss_coef loss_coefficient
    权重 样本权重 损失权重 训练权重 数据权重 loss权重
"""
ROW_WEIGHTS = frozenset(_ROW_WEIGHTS.split())
"""Keys of a row that weigh all of its answers."""

_AFFIXES = re.compile(
    r"(?:is_|was_|has_been_|是否|已|已经|被)?(.+?)(_at|_on|_by|_date|_time|_reason|时间|日期|原因)?", re.DOTALL
)
_REASON = re.compile(r"\s*(?:[:：,，;；.。(（—–]|\s-\s|\b(?:by|because|due to|for|as)\b).*", re.DOTALL)
"""What follows a verdict: `rejected by reviewer`, `驳回：答非所问`."""
_OF_ROW = re.compile(r"_(?:sample|example|row|item|record)$")
_OF_ANSWER = re.compile(r"_(?:answer|response|sample|case|example|row|data|item|output|reply|completion|record)$")
_BETWEEN_TAGS = re.compile(r"\s*[,;|，；、/]\s*")
_SKIN = re.compile("[\U0001f3fb-\U0001f3ff\ufe0f]")
"""The colour of a thumb."""
_HUMPS = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
"""Where the words of `isDeleted` meet."""
_QUANTITY = re.compile(r"[\d.,]+ *(?:mg|g|kg|t|lbs?|oz|pounds?|grams?|tons?|克|千克|公斤|斤|磅|吨|两)", re.IGNORECASE)
"""What things weigh: no weight of ours."""


FILED = FILING | KINDS
"""Keys that are looked at though they need not be told."""

MAX_WEIGHT = 1_000_000
"""Of a row or a message: what weighs more is no weight but a slip, and leaves nothing of all the others."""

MAX_VERDICT = 500
"""Characters of a verdict with its reason; what is longer is a text."""


def verdict(key: str, value: Any, *, is_text: bool = False) -> bool | None:
    """Return whether a key calls an answer good (True) or bad (False); None where it says neither.

    Args:
        key: Of a row or a message.
        value: What stands there; an object with marks of its own may call the answer bad.
        is_text: Whether the row is plain text, whose `label` and the like are classes.
    """
    name = normal_name(key)
    if _is_holder(name):
        value = json_text.parse_cell(value) if isinstance(value, str) else value
        if isinstance(value, (dict, list)):
            return _inner_verdict(name, value, is_text=is_text)
    whole, mark, is_when = _mark_of(name)
    if isinstance(value, dict) and "value" in value:
        value = value["value"]
    if is_when:
        return False if _happened(value) else None
    meaning = _meaning_of_true(whole, mark, isinstance(value, bool), number_of(value) is not None)
    if meaning is not None:
        truth = _truth(value, is_numbered=True)
        return None if truth is None else truth == meaning
    return _verdict_in_words(whole, value, is_text=is_text)


@lru_cache(maxsize=1024)
def _is_holder(name: str) -> bool:
    """Whether the value of a key may be an object with marks inside, or a list of such."""
    return name in HOLDERS or JUDGEMENT.fullmatch(name) is not None


@lru_cache(maxsize=1024)
def _meaning_of_true(whole: str, mark: str, is_boolean: bool, is_number: bool) -> bool | None:
    """Return whether a key calls an answer good by saying yes, or bad; None where it says neither by a yes."""
    if mark in GOOD_IF_TRUE or whole in GOOD_IF_TRUE:
        return True
    if mark in BAD_IF_TRUE or whole in BAD_IF_TRUE:
        return False
    if BAD_TRAINING.fullmatch(mark) or BAD_TRAINING.fullmatch(whole):
        return False
    if GOOD_TRAINING.fullmatch(mark) or GOOD_TRAINING.fullmatch(whole):
        return True
    if PASSED.fullmatch(mark) or PASSED.fullmatch(whole):
        return True
    patterns = (ASIDE, BY_WHOM) if is_boolean or not is_number else (ASIDE,)
    for found in filter(None, (pattern.fullmatch(mark) for pattern in patterns)):
        stem = found[1]
        if stem not in SWITCH_WORDS and (stem in GOOD_IF_TRUE or stem in BAD_IF_TRUE):
            return stem in GOOD_IF_TRUE
    if not is_boolean:
        return None  # `wrong_answer: 1` may be that answer itself
    stem = _OF_ANSWER.sub("", mark)
    if stem in VERBS:
        stem = _OF_ROW.sub("", mark)
    if stem in GOOD_IF_TRUE or stem in BAD_IF_TRUE:
        return stem in GOOD_IF_TRUE
    return ONLY_TRUE_OR_FALSE.get(mark)


def _verdict_in_words(name: str, value: Any, *, is_text: bool) -> bool | None:
    """Return what a key that may hold anything says by a word for good or bad."""
    word = _word(value)
    if name in TAGS:
        found: bool | None = False if not ONLY_BAD.isdisjoint(_words_in(value)) else None
        if found is not None or name not in VERDICTS:
            return found
    if name in FILING or (name in KINDS and not is_text):
        return False if word in (FILING_WORDS if name in FILING else ONLY_BAD) else None
    if name in VOTE_COUNTS and (number_of(value) or 0) < 0:
        return False
    is_rated = name in RATINGS and isinstance(value, str) and number_of(value) is None
    if is_rated and not is_text and ONE_STAR.fullmatch(value.strip()):
        return False
    if name in STARS and not is_text:
        return False if ONE_STAR.fullmatch(str(value).strip()) and not isinstance(value, bool) else None
    if name in REMARKS or LIKE_REMARKS.fullmatch(name):
        words = _words_in(value) if isinstance(value, list) else {word}
        return None if REMARK_WORDS.isdisjoint(words) else False
    is_put_together = name not in VERDICTS and JUDGEMENT.fullmatch(name) is not None
    if not (name in VERDICTS or is_put_together) or (is_text and name in CLASS_KEYS):
        return None
    if (name in QUALITY_KEYS or is_put_together) and word in POOR:
        return False
    first = _word(_without_reason(value))
    if (name in CLASS_KEYS or is_put_together or is_text) and first in CLASSES:
        return None
    if is_text or (is_put_together and not BY_TRUTH.fullmatch(name)):
        return False if first in BAD_WORDS - SHORT_WORDS - (FACTS if is_text else {"false"}) else None
    truth = _truth(value, is_numbered=name in NUMBERED)
    return False if truth is None and first in BAD_WORDS - SHORT_WORDS else truth


def _words_in(value: Any) -> set[str]:
    """Return the words of a list of tags, or of a text that parts them by commas."""
    items = _BETWEEN_TAGS.split(value) if isinstance(value, str) else value if isinstance(value, list) else ()
    return {_word(item) for item in items}


def _inner_verdict(name: str, value: Any, *, is_text: bool) -> bool | None:
    """Return the verdict of an object or a list under a key that may hold marks."""
    if isinstance(value, list):
        return _verdict_of_list(name, value, is_text=is_text)
    is_text = is_text and (name not in VERDICTS or name in CLASS_KEYS)
    found = [verdict(key, each, is_text=is_text) for key, each in value.items()]
    if name in VERDICTS:  # `label: {value: false}`
        found += [verdict(name, value[key], is_text=is_text) for key in ("value", "name", name) if key in value]
    if False in found:
        return False
    return True if found and all(found) else None


def _verdict_of_list(name: str, value: list[Any], *, is_text: bool) -> bool | None:
    if len(value) == 1:
        return verdict(name, value[0], is_text=is_text)
    if name in REMARKS:
        return _verdict_in_words(name, value, is_text=is_text)
    are_words = name in TAGS or (name in VERDICTS and name not in CLASS_KEYS)
    if are_words and not (is_text and name == "labels") and not ONLY_BAD.isdisjoint(_words_in(value)):
        return False
    if name not in LISTS_OF_MARKS and JUDGEMENT.fullmatch(name) is None:
        return None
    # A label among several is that of a part of the text, as those of names and places are.
    marks = [verdict(name, each, is_text=True) for each in value if isinstance(each, dict)]
    return False if False in marks else None


@lru_cache(maxsize=1024)
def _mark_of(name: str) -> tuple[str, str, bool]:
    """Return a key without the object it was flattened from, its mark, and whether it says when or why it was set."""
    holder, dot, last = name.rpartition(".")
    whole = last if dot and holder in HOLDERS else name
    mark, when = _AFFIXES.fullmatch(whole).groups() if whole else ("", None)  # type: ignore[union-attr]
    is_reason = when in ("_reason", "原因") and mark == "rejected"  # of the rejected answer
    is_when = when is not None and mark in BAD_IF_TRUE and mark not in NEVER_WHEN and not is_reason
    return whole, mark if when is None or is_when else whole, is_when


def _happened(value: Any) -> bool:
    """Whether a time, a person or a reason says that something was done: `0000-00-00` is none."""
    if isinstance(value, str):
        return _word(value) not in ("", "null", "none", "nan", "nat", "false", "no", "否", "无") and bool(
            value.strip(" 0-:T.")
        )
    return bool(value)


def marked_bad(item: dict[str, Any]) -> bool:
    """Whether a message is marked as bad by a key that does nothing else."""
    return any(key not in LOSS_KEYS and verdict(key, value) is False for key, value in item.items())


def refuse_unclear(message: dict[str, Any], number: int) -> None:
    """Raise where a message says by a key of other tools which of its tokens are trained."""
    for key in UNCLEAR_KEYS.intersection(message):
        if _is_numeric(message[key]) or (isinstance(message[key], (dict, list)) and message[key]):
            shown = _shown(message[key])
            raise RowError(f"message {number} has `{key}` {shown}; expected `loss`, the weight of the whole message")


def refuse_marks(item: dict[str, Any], name: str) -> None:
    """Raise where a part of a message says that it is not to be trained: what can be left out is the whole message.

    Args:
        item: A tool call, or a part of a content.
        name: What it is, for the error.
    """
    for key, value in item.items():
        if key in ("text", "type", "name", "arguments"):
            continue
        is_weight = normal_name(key) in LOSS_KEYS and number_of(value) != 1 and value is not None
        if is_weight or verdict(key, value) is False:
            raise RowError(f"{name} has `{key}` {_shown(value)}; expected such marks in the message itself")


def refuse_bad(row: dict[str, Any], keys: Iterable[str], *, is_text: bool = False) -> set[str]:
    """Return those of the keys that call the row's answer good, and raise `RowError` where one calls it bad.

    Args:
        row: With its own keys.
        keys: Those that no format reads.
        is_text: Whether the row is plain text, whose `label` and the like are classes.
    """
    good: set[str] = set()
    for key in keys:
        if normal_name(key) in STARS and any(REPOSITORY.fullmatch(normal_name(other)) for other in row):
            continue  # of a repository
        found = verdict(key, row[key], is_text=is_text)
        if found is False:
            raise RowError(f"the answer is marked as bad (`{key}` is {_shown(row[key])}), so it is not trained")
        if found is None and normal_name(key) == "kto_tag" and row[key] not in (None, ""):
            raise RowError(f"`{key}` is {_shown(row[key])}; expected true or false")
        if found:
            good.add(key)
    return good


def row_weight(row: dict[str, Any], keys: Iterable[str]) -> tuple[float, set[str]]:
    """Return the weight that a row gives all of its answers, and the keys that say so.

    Raises:
        RowError: The weight is 0, or cannot be understood; or two keys differ.
    """
    weights: dict[str, float] = {}
    for key in keys:
        name = normal_name(key)
        if name in SWITCHES and _truth(row[key], is_numbered=True) is None and _is_numeric(row[key]):
            raise RowError(
                f"`{key}` of the row is {_shown(row[key])}; expected true or false, or `weight` for a weight"
            )
        if name == "mask" and _is_numeric(row[key]):
            raise RowError(f"the row has `mask` {_shown(row[key])}; expected `loss` in the messages that it is about")
        if name not in ROW_WEIGHTS or not _is_given(row[key]) or _is_quantity(row[key]):
            continue
        number = _weight_of(key, row[key])
        if not number:
            raise RowError(f"the row is not to be trained (`{key}` is {_shown(row[key])})")
        weights[key] = number
    if len(set(weights.values())) > 1:
        first, second, *_ = weights
        raise RowError(f"the row has `{first}` {weights[first]} and `{second}` {weights[second]}; expected one of them")
    return next(iter(weights.values()), 1.0), set(weights)


def _weight_of(key: str, value: Any) -> float:
    """Return the weight that stands in a row: a number, or a list that says the same number throughout."""
    numbers = {number_of(each) for each in value} if isinstance(value, list) else {number_of(value)}
    if len(numbers) > 1 and None not in numbers:
        raise RowError(f"`{key}` is {_shown(value)}; expected one weight of the row, or `loss` in its messages")
    number = numbers.pop()
    if number is None or not 0 <= number <= MAX_WEIGHT:
        most = f" and at most {MAX_WEIGHT:,}" if number is not None and number > 0 else ""
        raise RowError(f"`{key}` is {_shown(value)}; expected a weight of at least 0{most}, such as 0.5")
    return number


def _is_given(value: Any) -> bool:
    """Whether a weight is there: tables have texts for none."""
    if isinstance(value, list):
        return any(map(_is_given, value))
    return _word(value) not in ("", "null", "none", "nan") if isinstance(value, str) else value not in (None, {})


def _is_quantity(value: Any) -> bool:
    return isinstance(value, str) and _QUANTITY.fullmatch(value.strip()) is not None


def _is_numeric(value: Any) -> bool:
    if isinstance(value, list):
        return bool(value) and all(number_of(each) is not None for each in value)
    return number_of(value) is not None


@lru_cache(maxsize=1024)
def normal_name(key: str) -> str:
    """Return a key as the tables of names have it."""
    return _HUMPS.sub("_", key.strip()).lower().replace("-", "_").replace(" ", "_")


def _word(value: Any) -> str:
    if not isinstance(value, str):
        return ""
    word = _SKIN.sub("", value).strip().lower().replace(" ", "_").replace("-", "_")
    return re.sub(r"(?<=.)_(answer|response|sample|case|example)$", "", word) if "_" in word else word


def _without_reason(value: Any) -> Any:
    return _REASON.sub("", value, count=1) if isinstance(value, str) and len(value) < MAX_VERDICT else value


def _truth(value: Any, *, is_numbered: bool) -> bool | None:
    """Return the truth value of a boolean, of a word, or of a number where it may be one."""
    if isinstance(value, bool):
        return value
    if _word(value) in GOOD_WORDS:
        return True
    if _word(value) in BAD_WORDS:
        return False
    number = number_of(value)
    if number is not None and number < 0:
        return False
    return {0.0: False, 1.0: True}.get(number) if is_numbered and number is not None else None


def truth_of(value: Any) -> bool | None:
    """Return the truth value of a boolean, of 0 or 1, or of a word such as `yes`; None for anything else."""
    return _truth(value, is_numbered=True)


def number_of(value: Any) -> float | None:
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
