"""What the name of a key says of the answer below it: that it was rejected, or that it is one of two."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from itertools import pairwise
from typing import Any

from glmtune.data.conversation import RowError

from .marks import normal_name, truth_of

_REJECTED = """
    rejected reject rejects dispreferred nonpreferred unpreferred unchosen unselected loser losers losing undesirable
    non_preferred not_preferred less_preferred non_chosen not_chosen non_selected not_selected not_accepted
    low_quality lower_quality
"""
REJECTED_WORDS = frozenset(_REJECTED.split())
"""Words that say so of whatever stands behind or before them."""
_WORSE = """
    bad worse worst wrong incorrect negative inferior lose lost poor poorer toxic harmful unsafe disliked invalid
    hallucinated false failed
"""
WORSE_WORDS = frozenset(_WORSE.split())
"""Words that say so of an answer, and of much else: `bad_words`."""
_ANSWERS = """
    answer answers response responses output outputs completion completions reply replies message messages
    conversation conversations dialog dialogs dialogue dialogues chat chats turn turns text texts content example
    examples sample samples candidate result solution summary generation target row rows data item items record records
    pair pairs case cases model assistant gpt list
"""
ANSWER_WORDS = frozenset(_ANSWERS.split())
_REJECTED_CHINESE = re.compile(
    r"(被?拒绝?|错误|坏|差|较差|更差|劣|劣质|负|负面|不好|不合格|落选|未采纳|未选)的?(回答|答案|回复|输出|样本|例|样例|数据)?"
)
_SIDE = re.compile(r".*?[^\W_](?:[_. -]+([ab12]|[0-9]+)|(?<=[a-z])([AB0-9])|(?<=[A-Z])([0-9]))", re.DOTALL)


@lru_cache(maxsize=1024)
def says_rejected(key: str) -> bool:
    """Whether the name of a key says that what stands below it is a bad answer: `rejected_response`, `bad_messages`."""
    name = re.sub(r"[^\w]+", "_", normal_name(key))
    words = [word.rstrip("0123456789") for word in name.split("_")]
    words = [word for word in words if word]
    pairs = {f"{first}_{second}" for first, second in pairwise(words)}
    if not REJECTED_WORDS.isdisjoint({*words, *pairs}):
        return True
    others = [word for word in words if word not in WORSE_WORDS]
    if len(others) < len(words):
        return all(word in ANSWER_WORDS or len(word) == 1 for word in others)
    return _REJECTED_CHINESE.fullmatch(name) is not None


@lru_cache(maxsize=1024)
def side_of(key: str) -> str:
    """Return which one of several a key is by its name, `a` of `answer_a` and `1` of `answer_1`; or an empty text."""
    found = _SIDE.fullmatch(key.strip()) or _SIDE.fullmatch(key.strip().lower())
    return next(filter(None, found.groups()), "").lower() if found else ""


_NAMES_SIDE = re.compile(
    r"(?:(?:model|answer|response|assistant|conversation|output|completion|candidate|option|side)[_ -]?)?([ab]|[0-9])"
)
_BOTH_BAD = re.compile(r"(tie[ _]*\(?)?(both[ _-]*(are[ _-]*)?bad|neither|none)\)?")
_WINNERS = """
    winner winning winning_side better best preference preferred choice selected preferred_answer
    preferred_response better_answer better_response favorite favourite chosen_side human_preference
"""
WINNERS = frozenset(_WINNERS.split())
"""Keys that name the good answer."""


_NAMES_WINNER = re.compile(
    r"(?:winner|winning|better|best|preferred|chosen|selected|favou?rite)(?:_(?:answer|response|model|output|completion"
    r"|conversation|side|option))?(?:_(?:id|idx|index|number))?"
)
_NAMES_LOSER = re.compile(
    r"(?:loser|losing|worse|worst|rejected|dispreferred)(?:_[a-z]+)?(?:_(?:id|idx|index|number))?"
)
_SAYS_WINS = re.compile(r"(?:winner|win|wins|won|preferred|better|chosen)_.*|.*_(?:wins|won|is_better|preferred)")


def named_side(value: Any) -> str:
    """Return the side that a name is of, `b` of `model_b` and `1` of 1; or an empty text."""
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        return ""
    found = _NAMES_SIDE.fullmatch(str(value).strip().lower())
    return found[1] if found else ""


def _loses(side: str, key: str, value: Any) -> bool:
    """Whether a key of the row says that the answer on a side is not the good one."""
    name = normal_name(key)
    if isinstance(value, str) and name in WINNERS and _BOTH_BAD.fullmatch(value.strip().lower()):
        return True
    of_key, of_value = side_of(re.sub(r"_(?:wins|won|is_better|preferred)$", "", key)), named_side(value)
    if of_value.isdigit() == side.isdigit() and of_value and not of_key:
        if name in WINNERS or _NAMES_WINNER.fullmatch(name):
            return of_value != side
        if _NAMES_LOSER.fullmatch(name):
            return of_value == side
    return bool(of_key) and of_key != side and _SAYS_WINS.fullmatch(name) is not None and truth_of(value) is True


def check_winner(row: Mapping[str, Any], columns: Mapping[str, str]) -> None:
    """Raise where the row says that another answer won than the one that `columns` names.

    Args:
        row: Under the keys of its format.
        columns: Key of the format: what the file calls it.
    """
    sides = {own: side_of(own) for own in columns.values() if side_of(own)}
    if not sides:
        return
    for key, value in row.items():
        loser = next((own for own, side in sides.items() if key != own and _loses(side, key, value)), None)
        if loser is not None:
            raise RowError(f"`{key}` is `{value}`, so `{loser}`, which `columns` names, is not the good answer")
