"""Scores, ranks and winners of a pair of answers that contradict which of the two is called the good one."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

from glmtune.data import json_text
from glmtune.data.conversation import RowError

from .marks import LOSS_KEYS, normal_name, number_of, truth_of, verdict
from .sides import WINNERS

SIDES = {
    "chosen": ("rejected",),
    "preferred": ("non_preferred", "dispreferred", "rejected"),
    "winner": ("loser",),
    "win": ("lose",),
    "better": ("worse",),
}
"""What the good and the bad answer are called within the names of other keys."""
MORE_IS_BETTER = re.compile(
    r"(^|_)(score|rating|reward|grade|point|mark|vote|upvote|like|quality|stars?|helpfulness|correctness|coherence"
    r"|honesty|harmlessness|truthfulness|factuality|accuracy|usefulness|utility|relevance|fluency|safety|elo|win_?rate"
    r"|wins|preference|karma|agreement|overall|instruction_following)s?(_|$)"
    r"|^(prob|probability|preference_prob|win_prob|p)(_|$)"
)
LESS_IS_BETTER = re.compile(
    r"(^|_)(rank|ranking|toxicity|harmfulness|hallucination|error|mistake|penalty|penaltie|downvote|dislike|badness)s?(_|$)"
)
_MARGINS = """
    margin score_margin reward_margin rating_margin score_diff score_difference reward_diff reward_difference
    score_gap reward_gap delta score_delta reward_delta preference_strength preference_margin quality_margin
    helpfulness_margin
"""
MARGINS = frozenset(_MARGINS.split())
"""Keys that say how much better the chosen answer is."""
_FLIPPED = """
    is_flipped flipped flip is_swapped swapped swap label_flipped labels_flipped label_swapped labels_swapped
    preference_flipped is_inverted inverted
    is_reversed reversed is_switched switched 是否翻转 是否交换
"""
FLIPPED = frozenset(_FLIPPED.split())
"""Keys that say that the two answers changed places."""
SECOND = re.compile(r"(?:(?:answer|response|output|completion|option|candidate)[_ ]?)?(?:b|2|two|second)")
"""Names of the second answer, which is the rejected one; `model_b` names who gave it."""
LOSERS = frozenset(name for names in SIDES.values() for name in names)


def check_scores(row: dict[str, Any], pair: tuple[str, str] | None = None) -> None:
    """Raise where something beside a chosen and a rejected answer says that the rejected one is the better.

    Args:
        row: With its own keys.
        pair: The keys of the two answers, which may hold scores inside.
    """
    for key, value in row.items():
        name = normal_name(key)
        if name in MARGINS and (number_of(value) or 0) < 0:
            raise RowError(f"`{key}` is {value}, below 0; which answer is good is not clear")
        if name in WINNERS and isinstance(value, str) and normal_name(value) in LOSERS:
            raise RowError(f"`{key}` is `{value}`; which answer is good is not clear")
        is_second = isinstance(value, (str, int)) and SECOND.fullmatch(str(value).strip().lower()) is not None
        if (name in WINNERS and is_second) or (name in FLIPPED and truth_of(value)):
            raise RowError(f"`{key}` is {_shown(value)}; which answer is good is not clear")
    _check_pairs(row)
    for key, value in row.items():
        if isinstance(value, str) and MORE_IS_BETTER.search(normal_name(key)):
            value = json_text.parse_cell(value)
        if isinstance(value, dict) and key not in (pair or ()):
            _check_pairs(value, f"{key}_")
    answers = [row[key] for key in pair or ()]
    if answers and all(isinstance(answer, dict) for answer in answers):
        sides = zip(("chosen", "rejected"), answers)
        _check_pairs({f"{side}_{key}": value for side, answer in sides for key, value in answer.items()})


def _check_pairs(scores: dict[str, Any], prefix: str = "") -> None:
    """Compare what is said of the chosen with what is said of the rejected answer."""
    for good, value in scores.items():
        for bad, measure in _partners(good, prefix):
            if verdict(measure, value) is False and not (measure in LOSS_KEYS and number_of(value) is not None):
                raise RowError(f"`{good}` is {_shown(value)}; which answer is good is not clear")
            if bad in scores:
                _compare(good, value, bad, scores[bad], measure)


@lru_cache(maxsize=1024)
def _partners(key: str, prefix: str) -> tuple[tuple[str, str], ...]:
    """Return the keys that may say of the rejected answer what this one says of the chosen, and what they measure."""
    return tuple(_partners_of(key, prefix))


def _partners_of(key: str, prefix: str) -> Iterator[tuple[str, str]]:
    for good, names in SIDES.items():
        found = re.fullmatch(rf"(.*[_. -])?({good})([_. -].*)?", key, re.IGNORECASE | re.DOTALL)
        if found is None:
            continue
        before, after = found[1] or "", found[3] or ""
        measure = normal_name(prefix + before + after).strip("_. ")
        for bad in names:
            yield before + bad + after, measure


def _compare(good: str, first: Any, bad: str, second: Any, measure: str) -> None:
    """Raise where what is measured is worse for the answer that is called good."""
    if isinstance(first, list) and isinstance(second, list) and len(first) == len(second) == 1:
        first, second = first[0], second[0]
    if measure and isinstance(first, dict) and isinstance(second, dict):
        for key in first.keys() & second.keys():
            _compare(f"{good}.{key}", first[key], f"{bad}.{key}", second[key], f"{measure}_{normal_name(key)}")
        return
    of_good, of_bad = number_of(first), number_of(second)
    if of_good is not None and of_bad is not None:
        if LESS_IS_BETTER.search(measure):
            if of_good > of_bad:
                raise RowError(f"`{good}` is {first}, behind `{bad}`, {second}; which answer is good is not clear")
        elif MORE_IS_BETTER.search(measure) and of_good < of_bad:
            raise RowError(f"`{good}` is {first}, below `{bad}`, {second}; which answer is good is not clear")
        if {of_good, of_bad} - {0.0, 1.0} or measure in LOSS_KEYS:
            return  # numbers, and no switches
    if verdict(measure, second) is True and verdict(measure, first) is not True:
        raise RowError(f"`{bad}` is {_shown(second)}; which answer is good is not clear")


def _shown(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else f"`{value}`"
