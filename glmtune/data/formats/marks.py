"""Keys that say whether an answer is to be imitated: marks such as KTO's `label`, and weights."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

from glmtune.data import json_text
from glmtune.data.conversation import RowError

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
    loss_scale loss_mask train_mask loss_masks 权重 样本权重
"""
ROW_WEIGHTS = frozenset(_ROW_WEIGHTS.split())
"""Keys of a row that weigh all of its answers."""

_GOOD_IF_TRUE = """
    kto_tag kto_label good chosen selected preferred accepted desirable correct is_positive is_right
    loss train training trainable use_for_training use_in_training include_in_training
    thumbs_up thumbsup approved valid keep kept use usable include included enabled active ok
    safe harmless helpful acceptable
    有效 采用 采纳 可用 合格 通过 正确 保留 使用 启用 安全 参与训练 用于训练 审核通过 点赞
"""
GOOD_IF_TRUE = frozenset(_GOOD_IF_TRUE.split())
_BAD_IF_TRUE = """
    bad badcase bad_case rejected undesirable unacceptable wrong incorrect invalid is_negative low_quality
    skip skipped ignore ignored exclude excluded delete deleted discard discarded drop dropped remove removed
    filtered filtered_out hidden hide disabled banned blocked flagged masked mask_out
    thumbs_down thumbsdown disliked downvoted disapproved unapproved
    spam toxic unsafe harmful abusive nsfw hallucinated hallucination
    删除 作废 废弃 丢弃 剔除 排除 弃用 隐藏 屏蔽 违规 有害 有毒 错误 垃圾 垃圾信息 跳过 忽略 无效 拒绝 驳回 不合格 点踩
"""
BAD_IF_TRUE = frozenset(_BAD_IF_TRUE.split())
_VERDICTS = """
    label verdict feedback user_feedback human_feedback human_label vote thumbs rating judgement judgment
    quality state status review review_result review_status evaluation audit_result audit_status
    check_result check_status qa_result qa_status qc_result qc_status moderation_result moderation_status
    annotation_status row_status data_status
    标签 标注 好坏 质量 状态 反馈 评价 审核 审核结果 审核状态 质检 质检结果 质检状态 数据状态
"""
VERDICTS = frozenset(_VERDICTS.split())
"""Keys whose value may be a word for good or bad, and may be something else."""

_HOLDERS = """
    labels meta metadata meta_data info extra extra_info extras attributes attrs annotation annotations moderation
    openai_moderation flags tags marks properties quality_info 元数据 附加信息 标注信息
"""
HOLDERS = VERDICTS.union(_HOLDERS.split())
"""Keys whose value may be an object with marks inside."""
LISTS_OF_MARKS = frozenset(("moderation", "openai_moderation"))
"""Those of them whose value may be a list of such objects, one for each message."""

NUMBERED = GOOD_IF_TRUE | BAD_IF_TRUE | {"label", "标签", "标注", "好坏"}
"""Keys whose 1 is true and whose 0 is false."""

_GOOD_WORDS = """
    true yes y t good accept accepted chosen choose desirable preferred right correct up thumbs_up thumbsup
    like liked positive approve approved valid pass passed keep kept ok okay usable
    好 对 是 真 正确 合格 通过 有效 保留 可用 采纳 优 优质 已通过 审核通过 正常 👍 ✓ ✔ ✅ √
"""
GOOD_WORDS = frozenset(_GOOD_WORDS.split())
_BAD_WORDS = """
    false no n f bad reject rejected undesirable dispreferred non_preferred unacceptable wrong incorrect
    down thumbs_down thumbsdown dislike disliked negative fail failed
    delete deleted discard discarded drop dropped remove removed exclude excluded skip skipped ignore ignored
    hide hidden invalid flagged banned blocked disapproved unapproved not_approved denied declined unusable
    low_quality spam toxic unsafe harmful
    差 坏 错 否 假 错误 不好 不对 不合格 不通过 未通过 审核不通过 拒绝 驳回 已驳回 删除 已删除 作废 已作废 废弃 已废弃
    无效 丢弃 剔除 屏蔽 已屏蔽 隐藏 不可用 不采用 不采纳 不保留 违规 有害 劣 劣质 差评 低质量 👎 ✗ ✘ ❌ ×
"""
BAD_WORDS = frozenset(_BAD_WORDS.split())
SHORT_WORDS = frozenset(("no", "n", "f", "否"))
"""Those of them that begin many a sentence: `feedback: "No, thanks"`."""
CLASSES = frozenset(("positive", "negative", "spam", "toxic", "unsafe", "harmful", "valid", "invalid"))
"""Words that name a class of texts as often as they judge an answer; not heeded under `CLASS_KEYS`."""
CLASS_KEYS = frozenset(("label", "rating", "review", "标签", "标注", "评价"))
POOR = frozenset(("low", "poor", "very_low", "very_poor", "低", "很差", "较差", "很低"))
"""Words for a bad quality, and for much else under other keys."""
QUALITY_KEYS = frozenset(("quality", "质量"))

_AFFIXES = re.compile(
    r"(?:is_|was_|has_been_|是否|已|已经|被)?(.+?)(_at|_on|_by|_date|_time|_reason|时间|日期|原因)?", re.DOTALL
)
_REASON = re.compile(r"\s*(?:[:：,，;；.。(（—–]|\s-\s|\b(?:by|because|due to|for|as)\b).*", re.DOTALL)
"""What follows a verdict: `rejected by reviewer`, `驳回：答非所问`."""
_HUMPS = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
"""Where the words of `isDeleted` meet."""
_QUANTITY = re.compile(r"[\d.,]+ *(?:mg|g|kg|t|lbs?|oz|pounds?|grams?|tons?|克|千克|公斤|斤|磅|吨|两)", re.IGNORECASE)
"""What things weigh: no weight of ours."""


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
    if name in HOLDERS:
        value = json_text.parse_cell(value) if isinstance(value, str) else value
        if isinstance(value, (dict, list)):
            return _inner_verdict(name, value, is_text=is_text)
    whole, mark, is_when = _mark_of(name)
    if isinstance(value, dict) and "value" in value:
        value = value["value"]
    if is_when:
        return False if _happened(value) else None
    if mark in GOOD_IF_TRUE or whole in GOOD_IF_TRUE:
        return _truth(value, is_numbered=True)
    if mark in BAD_IF_TRUE or whole in BAD_IF_TRUE:
        truth = _truth(value, is_numbered=True)
        return None if truth is None else not truth
    if whole not in VERDICTS or is_text:
        return None
    if whole in QUALITY_KEYS and _word(value) in POOR:
        return False
    if whole in CLASS_KEYS and _word(_without_reason(value)) in CLASSES:
        return None
    truth = _truth(value, is_numbered=whole in NUMBERED)
    return False if truth is None and _word(_without_reason(value)) in BAD_WORDS - SHORT_WORDS else truth


def _inner_verdict(name: str, value: Any, *, is_text: bool) -> bool | None:
    """Return the verdict of an object or a list under a key that may hold marks."""
    if isinstance(value, list):
        if len(value) == 1:
            return verdict(name, value[0], is_text=is_text)
        are_bad = name in LISTS_OF_MARKS and any(verdict(name, each, is_text=is_text) is False for each in value)
        return False if are_bad else None
    found = [verdict(key, each, is_text=is_text) for key, each in value.items()]
    if name in VERDICTS:  # `label: {value: false}`
        found += [verdict(name, value[key], is_text=is_text) for key in ("value", "name", name) if key in value]
    if False in found:
        return False
    return True if found and all(found) else None


@lru_cache(maxsize=1024)
def _mark_of(name: str) -> tuple[str, str, bool]:
    """Return a key without the object it was flattened from, its mark, and whether it says when or why it was set."""
    holder, dot, last = name.rpartition(".")
    whole = last if dot and holder in HOLDERS else name
    mark, when = _AFFIXES.fullmatch(whole).groups() if whole else ("", None)  # type: ignore[union-attr]
    is_reason = when in ("_reason", "原因") and mark == "rejected"  # of the rejected answer
    return whole, mark, when is not None and mark in BAD_IF_TRUE and not is_reason


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
    if number is None or number < 0:
        raise RowError(f"`{key}` is {_shown(value)}; expected a weight of at least 0, such as 0.5")
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
    word = value.strip().lower().replace(" ", "_").replace("-", "_")
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
