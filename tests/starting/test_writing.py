"""A configuration as text: it reads back equal, and its comments stand behind the values they explain."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glmtune.config.yaml_source import source_of_text
from glmtune.starting.writing import yaml_text

NAMES = st.text(min_size=1, max_size=12).filter(lambda name: name.isprintable())
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**62), 2**62),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=20).filter(str.isprintable),
    st.sampled_from(["5e-4", "1_000", "null", "yes", "2024-01-01", "a: b", "# c", "[x]", "问题", " ", "", "- a"]),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(NAMES, inner, max_size=3)),
    max_leaves=8,
)


@given(
    values=st.dictionaries(NAMES, VALUES, min_size=1, max_size=4), comment=st.sampled_from(["", "why: 1 # 2", "说明"])
)
def test_a_configuration_reads_back_equal(values: dict[str, Any], comment: str) -> None:
    comments = dict.fromkeys(values, comment) if comment else {}
    assert source_of_text(yaml_text(values, comments, ["heading: one", ""]), "text").values == values


@pytest.mark.parametrize("mark", ["\n", "\r", "\u2028", "\x85", "\x0b"])
def test_a_line_break_in_a_comment_makes_no_key(mark: str) -> None:
    comments = {"a": f"was x{mark}trust_remote_code: true"}
    text = yaml_text({"a": 1}, comments, [f"not translated: x{mark}trust_remote_code: true"])
    assert source_of_text(text, "text").values == {"a": 1}


def test_comments_stand_behind_their_values_and_sections_apart() -> None:
    values = {"a": 1, "section": {"rate": 5e-4, "below": {"name": "x"}, "files": ["a.csv", {"path": "b", "weight": 2}]}}
    comments = {"a": "one", "section.below": "see there", "section.below.name": "the name"}
    assert yaml_text(values, comments, ["What it is."]).splitlines() == [
        "# What it is.",
        "a: 1  # one",
        "",
        "section:",
        "  rate: 0.0005",
        "  below:  # see there",
        "    name: x  # the name",
        "  files: [a.csv, {path: b, weight: 2}]",
    ]
