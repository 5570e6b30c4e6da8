"""Tables and lines of text, as wide in a terminal as they should be."""

from __future__ import annotations

import pytest

from glmtune.text.text_table import format_table, wrap


def test_a_table_aligns_text_left_and_numbers_right():
    table = format_table(["metric", "base", "tuned"], [["bleu-4", "2.5", "10.25"], ["rouge-1", "-", "1,234"]])
    assert table.split("\n") == [
        "metric   base  tuned",
        "-------  ----  -----",
        "bleu-4    2.5  10.25",
        "rouge-1     -  1,234",
    ]


def test_chinese_characters_take_two_columns():
    table = format_table(["名称", "n"], [["训练集", "1"], ["dev", "20"], ["ｆｕｌｌ", "3"], ["e\u0301", "4"]])
    assert table.split("\n") == [
        "名称       n",
        "--------  --",
        "训练集     1",
        "dev       20",
        "ｆｕｌｌ   3",
        "e\u0301          4",
    ]


@pytest.mark.parametrize("number", ["5", "-1.5", "+2", ".5", "3.", "1e-4", "2.5E+10", "12.5%", "1,024", "nan", "-inf"])
def test_every_spelling_of_a_number_stands_at_the_right(number):
    assert format_table(["n", "wide header"], [["x", number]]).split("\n")[2] == f"x  {number:>11}"


@pytest.mark.parametrize("text", ["v1.2", "1.2.3", "1-2", "e5", "10 MB"])
def test_a_column_with_text_stands_at_the_left(text):
    assert format_table(["header", "z"], [[text, "z"]]).split("\n")[2] == f"{text:<6}  z"


def test_a_table_without_rows_is_its_header():
    assert format_table(["a", "bc"], []) == "a  bc\n-  --"


def test_a_row_with_a_missing_cell_is_refused():
    with pytest.raises(AssertionError, match="one cell per header"):
        format_table(["a", "b"], [["1"]])


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("", []),
        ("one two", ["one two"]),
        ("one two three", ["one two", "three"]),
        ("one\n two\tthree ", ["one two", "three"]),
        ("abcdefghij", ["abcdefgh", "ij"]),
        ("to abcdefghij kl", ["to abcde", "fghij kl"]),
        ("一二三四五六", ["一二三四", "五六"]),
        ("一 二三四五", ["一", "二三四五"]),
        ("ab 一二三四五六", ["ab 一二", "三四五六"]),
    ],
)
def test_text_is_wrapped_at_eight_columns(text, lines):
    assert wrap(text, 8) == lines
