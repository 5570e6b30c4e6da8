"""What is counted in a data file, and how it is told."""

from __future__ import annotations

import json

import numpy as np
import pytest

from glmtune.data.conversation import Conversation
from glmtune.data.formats import to_conversation
from glmtune.datatools.statistics import Statistics

TOOL = {"name": "add", "parameters": {"type": "object", "properties": {}}}


def talk(*roles: str, content: str = "abc") -> Conversation:
    return to_conversation({"messages": [{"role": role, "content": content} for role in roles]})


def tool_talk() -> Conversation:
    messages = [
        {"role": "user", "content": "一加二"},
        {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "add", "arguments": "{}"}}]},
        {"role": "tool", "content": "3"},
        {"role": "assistant", "content": "三", "reasoning_content": ""},
    ]
    return to_conversation({"messages": messages, "tools": [TOOL]})


# Counts


@pytest.mark.parametrize(
    ("roles", "num_turns"),
    [
        (["user", "assistant"], 1),
        (["system", "user", "assistant", "user", "assistant"], 2),
        (["user", "user", "assistant"], 1),
        (["user", "assistant", "observation", "assistant"], 1),
        (["system"], 0),
    ],
)
def test_a_turn_is_a_question_with_all_that_follows(roles: list[str], num_turns: int) -> None:
    statistics = Statistics()
    statistics.add_conversation(talk(*roles))
    assert statistics.as_dict()["turns"] == num_turns


def test_without_a_row_all_counts_are_zero() -> None:
    assert Statistics().as_dict() == {
        "rows": 0,
        "usable": 0,
        "rejected": 0,
        "formats": {},
        "turns": 0,
        "max_turns": 0,
        "messages": {},
        "tool_calls": 0,
        "rows_with_tools": 0,
        "characters": 0,
        "tokens": None,
        "rejects": [],
    }


def test_every_count_is_plain_json() -> None:
    statistics = Statistics(max_length_tokens=100)
    statistics.add_conversation(talk("user", "assistant", "user", "assistant"), "messages")
    statistics.add_example(120, 50, is_truncated=True)
    statistics.add_conversation(tool_talk(), "sharegpt")
    statistics.add_example(60, 6)
    statistics.add_reject("no assistant message", "a.jsonl:3")
    assert json.loads(json.dumps(statistics.as_dict())) == {
        "rows": 3,
        "usable": 2,
        "rejected": 1,
        "formats": {"messages": 1, "sharegpt": 1},
        "turns": 3,
        "max_turns": 2,
        "messages": {"user": 3, "assistant": 4, "system": 1, "observation": 1},
        "tool_calls": 1,
        "rows_with_tools": 1,
        "characters": 19,
        "tokens": {
            "total": 160,
            "trained": 56,
            "trained_share": 0.35,
            "truncated_rows": 1,
            "max_length": 100,
            "length_percentiles": {
                "0": 60, "5": 63, "25": 75, "50": 90, "75": 105, "95": 117, "99": 119.4, "100": 120,
            },
        },
        "rejects": [{"reason": "no assistant message", "rows": 1, "where": ["a.jsonl:3"]}],
    }  # fmt: skip


def test_percentiles_equal_those_of_numpy() -> None:
    lengths = np.random.default_rng(0).integers(1, 5000, 777)
    statistics = Statistics()
    for length in lengths.tolist():
        statistics.add_example(length, 1)
    expected = np.percentile(lengths, [0, 5, 25, 50, 75, 95, 99, 100]).tolist()
    assert list(statistics.as_dict()["tokens"]["length_percentiles"].values()) == expected


def test_a_row_takes_four_bytes() -> None:
    statistics = Statistics()
    for length in range(1000):
        statistics.add_example(length, 1)
    assert statistics.lengths.itemsize * len(statistics.lengths) == 4000


# Rejected rows


@pytest.mark.parametrize(
    ("reasons", "shown"),
    [
        (["no content"] * 2, "no content"),
        (["message 3 has role `x`", "message 5 has role `x`"], "message N has role `x`"),
        (["message 3 has role `x`", "message 3 has role `yz`"], "message 3 has role `…`"),
        (["`a` is 1.5", "`b` is 1,000", "`a` is 7"], "`…` is N"),
        (["missing ',' at 2", "missing ':' at 3"], "missing '…' at N"),
        ([r"'it\'s' became 'b'", "'c' became 'b'"], "'…' became 'b'"),
        (['"it\'s" became 1', '"don\'t" became 1'], '"…" became 1'),
        (["the model's 'a' isn't b", "the model's 'c' isn't b"], "the model's '…' isn't b"),
    ],
)
def test_reasons_that_differ_in_numbers_and_literals_are_one_group(reasons: list[str], shown: str) -> None:
    statistics = Statistics()
    for reason in reasons:
        statistics.add_reject(reason, "a.jsonl:1")
    assert [(group.reason, group.num_rows) for group in statistics.rejects()] == [(shown, len(reasons))]


def test_the_largest_group_comes_first_with_its_first_three_places() -> None:
    statistics = Statistics()
    statistics.add_reject("no content", "a.jsonl:1")
    for line in range(2, 7):
        statistics.add_reject(f"message {line} is null", f"a.jsonl:{line}")
    assert statistics.as_dict()["rejects"] == [
        {"reason": "message N is null", "rows": 5, "where": ["a.jsonl:2", "a.jsonl:3", "a.jsonl:4"]},
        {"reason": "no content", "rows": 1, "where": ["a.jsonl:1"]},
    ]


@pytest.mark.parametrize(
    ("num_usable", "num_rejected", "max_bad", "expected"),
    [
        (10, 0, 0, False),
        (9, 1, 0, True),
        (9, 1, 0.1, False),
        (8, 2, 0.1, True),
        (0, 1, 1, False),
        (98, 2, 1, True),
        (0, 5, 5, False),
        (0, 6, 5, True),
        (0, 0, 0, False),
    ],
)
def test_too_bad_is_a_share_below_one_and_a_number_from_one(
    num_usable: int, num_rejected: int, max_bad: float, expected: bool
) -> None:
    statistics = Statistics(num_usable=num_usable)
    for _ in range(num_rejected):
        statistics.add_reject("no content", "a.jsonl:1")
    assert statistics.is_too_bad(max_bad) is expected


# The table

WITHOUT_MODEL = """\
rows        2 usable
formats     messages 2
messages    assistant 3, user 2, system 1, observation 1
turns       2; 1 a row
tools       rows 1, calls 1
characters  13"""


def test_without_a_model_the_table_has_no_tokens() -> None:
    statistics = Statistics()
    statistics.add_conversation(talk("user", "assistant"), "messages")
    statistics.add_conversation(tool_talk(), "messages")
    assert statistics.table() == WITHOUT_MODEL


WITH_MODEL = """\
rows        101 usable, 3 rejected
messages    user 102, assistant 102
turns       102; 1 to 2 a row, 1.0 on average
characters  612

tokens      11,781; 505 of them trained (4.3%)
truncated   1, cut at 1,500 tokens

percentile  0%   5%  25%  50%  75%  95%  99%   100%
----------  --  ---  ---  ---  ---  ---  ---  -----
tokens      40  103  103  103  103  103  125  9,000

tokens in a row, and rows
  40-47   1  #
  48-55   0
  56-63   0
  64-71   0
  72-79   0
  80-87   0
  88-95   0
 96-103  97  ############################################
104-111   0
112-119   0
120-127   2  #
   128+   1  #

rejected    3 of 104 rows
  2  message N has role `人`; expected system, user, assistant or observation:
     一二三四五六七八九十一二三四五六七八九十一二三四五六七八九十
     --> data/train.jsonl:102
     --> data/train.jsonl:103
  1  not JSON
     --> data/train.jsonl:104"""


def test_the_table_fits_eighty_columns() -> None:
    statistics = Statistics(max_length_tokens=1500)
    for roles in [["user", "assistant"]] * 100 + [["user", "assistant"] * 2]:
        statistics.add_conversation(talk(*roles))
    for length in [40, *[103] * 97, 125, 125, 9000]:
        statistics.add_example(length, 5, length > 1500)
    problem = "has role `人`; expected system, user, assistant or observation: " + "一二三四五六七八九十" * 3
    statistics.add_reject(f"message 0 {problem}", "data/train.jsonl:102")
    statistics.add_reject(f"message 2 {problem}", "data/train.jsonl:103")
    statistics.add_reject("not JSON", "data/train.jsonl:104")
    assert statistics.table() == WITH_MODEL


def test_beyond_ten_reasons_the_table_counts_the_others() -> None:
    statistics = Statistics()
    for letter in "abcdefghijklm":
        statistics.add_reject(f"problem {letter}", "a.jsonl:1")
    lines = statistics.table().splitlines()
    assert lines[-3:] == ["  1  problem j", "     --> a.jsonl:1", "  3  for 3 other reasons"]
