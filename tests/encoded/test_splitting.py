"""Rows to train on and to evaluate on: the same rows whatever their order, and no row on both sides."""

from __future__ import annotations

import numpy as np
import pytest

from glmtune.encoded.splitting import row_digest, split_by_digest
from glmtune.errors import GlmtuneError


def split(digests: list[int], val_size: float) -> tuple[list[int], list[int]]:
    train, val = split_by_digest(np.array(digests, dtype=np.uint64), val_size)
    return train.tolist(), val.tolist()


def test_a_digest_is_64_bits_of_the_text_alone() -> None:
    assert row_digest('{"text": "你好"}') == 0x2953451877DBBAD6
    assert row_digest("a") != row_digest("b")


@pytest.mark.parametrize(
    ("digests", "val_size", "val"),
    [
        ([5, 1, 4, 2, 3], 2, [1, 3]),
        ([5, 1, 4, 2, 3], 0.4, [1, 3]),
        ([5, 1, 4, 2, 3], 1, [1]),
        ([5, 1, 4, 2, 3], 4, [1, 2, 3, 4]),
        ([5, 1, 4, 2, 3], 0.01, [1]),
        ([2**64 - 1, 2**63, 2**64 - 2], 1, [1]),
        ([1, 1, 1, 2, 3, 4], 2, [0, 1, 2]),
        ([1, 2, 2, 2, 2, 3], 2, [0]),
        ([1, 2, 2, 2, 2], 2, [0]),
        ([2, 2, 2, 2, 1], 3, [4]),
        ([1, 1, 1, 1, 2], 1, [0, 1, 2, 3]),
    ],
    ids=[
        "a number",
        "a share",
        "one row",
        "all but one",
        "a share below one row",
        "digests over 63 bits",
        "equal rows: more",
        "equal rows: fewer are nearer",
        "equal rows: more would be all",
        "equal rows: one side",
        "equal rows: fewer would be none",
    ],
)
def test_the_rows_with_the_smallest_digests_are_evaluated_on(
    digests: list[int], val_size: float, val: list[int]
) -> None:
    assert split(digests, val_size) == ([row for row in range(len(digests)) if row not in val], val)


def test_the_same_rows_are_evaluated_on_in_any_order() -> None:
    texts = [f"row {number % 300}" for number in range(400)]
    digests = [row_digest(text) for text in texts]
    train, val = split(digests, 0.1)
    assert {texts[row] for row in train}.isdisjoint(texts[row] for row in val)
    assert sorted(train + val) == list(range(400))
    assert 39 <= len(val) <= 41
    order = np.random.RandomState(0).permutation(400)
    _, shuffled = split([digests[row] for row in order], 0.1)
    assert sorted(order[shuffled]) == val


@pytest.mark.parametrize(
    ("digests", "val_size", "message"),
    [
        (
            [1, 2, 3],
            3,
            "`data_config.val_size: 3` takes 3 of 3 rows; none is left to train on\nhint: make it smaller, or add rows",
        ),
        (
            [1],
            0.1,
            "`data_config.val_size: 0.1` takes 1 of 1 rows; none is left to train on\n"
            "hint: make it smaller, or add rows",
        ),
        (
            [7, 7, 7],
            0.3,
            "all 3 rows are equal, so `data_config.val_size` cannot part them\n"
            "hint: add other rows, or name a `val_file` instead",
        ),
    ],
)
def test_too_few_rows_are_an_error(digests: list[int], val_size: float, message: str) -> None:
    with pytest.raises(GlmtuneError) as caught:
        split(digests, val_size)
    assert str(caught.value) == message
