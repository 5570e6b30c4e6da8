"""What a person looks at before training: tokens with ids and labels, and the text with its trained parts."""

from __future__ import annotations

import pytest
from transformers import PreTrainedTokenizerBase

from glmtune.chatformat.encoding import Encoder
from glmtune.chatformat.examples import Example
from glmtune.data.formats import to_conversation
from glmtune.encoded.inspection import MASKED, RESET, TRAINED, format_text, format_tokens
from glmtune.family import GLM


@pytest.fixture
def example(glm_tokenizer: PreTrainedTokenizerBase) -> Example:
    messages = [
        {"role": "user", "content": "你好\n"},
        {"role": "assistant", "content": "您'\"好"},
        {"role": "user", "content": "再见"},
    ]
    return Encoder(glm_tokenizer, GLM).encode(to_conversation({"messages": messages}))


TABLE = """\
    id   label  token
151331    -100  [gMASK]
151333    -100  <sop>
151336    -100  <|user|>
   198    -100  \\n
109377    -100  你好
   198    -100  \\n
151337    -100  <|assistant|>
   198     198  \\n
 99526   99526  您
 14901   14901  '"
 98384   98384  好
151336  151336  <|user|>
   198    -100  \\n
110559    -100  再见
14 tokens, 5 trained"""


def test_every_token_stands_beside_its_id_and_its_label(glm_tokenizer, example: Example) -> None:
    assert format_tokens(glm_tokenizer, example.input_ids, example.labels) == TABLE


def test_trained_tokens_are_green_and_masked_ones_dim(glm_tokenizer, example: Example) -> None:
    first, *lines, last = TABLE.splitlines()
    coloured = [f"{MASKED if '  -100  ' in line else TRAINED}{line}{RESET}" for line in lines]
    assert format_tokens(glm_tokenizer, example.input_ids, example.labels, color=True) == "\n".join(
        [first, *coloured, last]
    )
    assert (TRAINED, MASKED, RESET) == ("\x1b[1;32m", "\x1b[2m", "\x1b[0m")


def test_the_columns_are_wide_enough_for_the_longest_id(demo_tokenizer) -> None:
    ids = demo_tokenizer.convert_tokens_to_ids(["<sop>", "a"])
    assert format_tokens(demo_tokenizer, ids, [-100, ids[1]]) == (
        f"    id   label  token\n{ids[0]:6}    -100  <sop>\n{ids[1]:6}  {ids[1]:6}  a\n2 tokens, 1 trained"
    )


def test_a_token_that_is_no_plain_text_keeps_to_its_line(demo_tokenizer) -> None:
    ids = demo_tokenizer("\r\t\\\x1b", add_special_tokens=False)["input_ids"]
    table = format_tokens(demo_tokenizer, ids, ids).splitlines()
    assert [line.split("  ")[-1] for line in table[1:-1]] == ["\\r", "\\t", "\\\\", "\\x1b"]


def test_no_token_is_a_table_without_lines(demo_tokenizer) -> None:
    assert format_tokens(demo_tokenizer, [], []) == "    id   label  token\n0 tokens, 0 trained"
    assert format_text(demo_tokenizer, [], []) == ""


def test_trained_stretches_of_the_text_are_marked(glm_tokenizer, example: Example) -> None:
    assert format_text(glm_tokenizer, example.input_ids, example.labels) == (
        "[gMASK]<sop><|user|>\n你好\n<|assistant|>[[\n您'\"好<|user|>]]\n再见"
    )


def test_trained_stretches_of_the_text_are_green(glm_tokenizer, example: Example) -> None:
    assert format_text(glm_tokenizer, example.input_ids, example.labels, color=True) == (
        "[gMASK]<sop><|user|>\n你好\n<|assistant|>\x1b[1;32m\n您'\"好<|user|>\x1b[0m\n再见"
    )


def test_a_row_that_is_trained_to_its_end_is_closed(demo_tokenizer) -> None:
    ids = demo_tokenizer("ABC", add_special_tokens=False)["input_ids"]
    assert format_text(demo_tokenizer, ids, ids) == "[[ABC]]"
    assert format_text(demo_tokenizer, ids, [-100] * len(ids)) == "ABC"
