"""Near-duplicates are found exactly, as by comparing every pair of rows."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest

from glmtune.chatformat.encoding import Encoder
from glmtune.data.formats import to_conversation
from glmtune.encoded.leakage import Leak, LeakFinder, describe_leaks, find_leaks
from glmtune.family import GLM

Rows = list[list[int]]


def flat(rows: Rows) -> tuple[np.ndarray, np.ndarray]:
    return np.array([token for row in rows for token in row], dtype=np.int32), np.cumsum([0, *map(len, rows)])


def grams_of(row: list[int]) -> set[tuple[int, ...]]:
    return {tuple(row[start : start + 5]) for start in range(max(1, len(row) - 4))} if row else set()


def leaks_by_hand(train: Rows, val: Rows, threshold: float) -> list[Leak]:
    """Compare every pair of rows."""
    count: dict[tuple[int, ...], int] = {}
    for row in val:
        for gram in grams_of(row):
            count[gram] = count.get(gram, 0) + 1
    common = {gram for gram in count if count[gram] > len(val) / 2} if len(val) >= 10 else set()
    sets = [[grams_of(row) - common or grams_of(row) for row in rows] for rows in (train, val)]
    leaks = []
    for val_row, theirs in enumerate(sets[1]):
        best = (0.0, False, 0)
        for train_row, ours in enumerate(sets[0]):
            similarity = len(ours & theirs) / max(1, len(ours | theirs))
            best = max(best, (similarity, train[train_row] == val[val_row], -train_row))
        if best[0] >= threshold:
            leaks.append(Leak(train_row=-best[2], val_row=val_row, similarity=best[0], is_exact=best[1]))
    return leaks


def random_rows(seed: int) -> tuple[Rows, Rows]:
    """Rows of few words, so that grams repeat; behind one beginning; a third of the validation rows are copies."""
    random_ = random.Random(seed)
    beginning = list(range(900, 900 + random_.randrange(8)))
    longest = random_.choice([6, 12, 60])
    num_words = random_.choice([2, 8, 500])

    def row() -> list[int]:
        words = [random_.randrange(num_words) for _ in range(random_.randrange(longest))]
        return beginning + words if random_.random() < 0.9 else words

    train = [row() for _ in range(random_.randrange(1, 80))]
    val = [row() for _ in range(random_.randrange(1, 40))]
    for index in range(0, len(val), 3):
        copy = list(random_.choice(train))
        for _ in range(random_.randrange(3)):
            if copy:
                copy[random_.randrange(len(copy))] = random_.randrange(num_words)
        val[index] = copy
    return train, val


@pytest.mark.parametrize("threshold", [0.1, 0.55, 0.8, 1.0])
def test_leaks_equal_those_of_comparing_every_pair(threshold: float) -> None:
    num_leaks = 0
    for seed in range(60):
        train, val = random_rows(seed)
        leaks = find_leaks(*flat(train), *flat(val), threshold)
        assert leaks == leaks_by_hand(train, val, threshold), seed
        num_leaks += len(leaks)
    assert num_leaks > 100


def test_the_size_of_blocks_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [random_rows(seed) for seed in range(20)]
    expected = [find_leaks(*flat(train), *flat(val)) for train, val in rows]
    monkeypatch.setattr("glmtune.encoded.leakage.BLOCK_TOKENS", 50)
    monkeypatch.setattr("glmtune.encoded.leakage.MAX_PAIRS", 10)
    assert [find_leaks(*flat(train), *flat(val)) for train, val in rows] == expected


def test_training_rows_may_come_in_several_calls() -> None:
    train, val = random_rows(7)
    finder = LeakFinder(*flat(val))
    for start in range(0, len(train), 5):
        finder.add(*flat(train[start : start + 5]))
    assert finder.leaks() == find_leaks(*flat(train), *flat(val))
    assert finder.leaks()


ROW = list(range(30))


@pytest.mark.parametrize(
    ("train", "val", "expected"),
    [
        ([ROW], [ROW], [Leak(train_row=0, val_row=0, similarity=1.0, is_exact=True)]),
        ([ROW[::-1], ROW], [ROW[:28]], [Leak(train_row=1, val_row=0, similarity=24 / 26)]),
        # The first of equally similar rows.
        ([ROW[:-1], ROW[1:]], [ROW], [Leak(train_row=0, val_row=0, similarity=25 / 26)]),
        # The same grams in another number are no exact copy, and an exact copy goes first.
        ([[1] * 8], [[1] * 9], [Leak(train_row=0, val_row=0, similarity=1.0)]),
        ([[1] * 8, [1] * 9], [[1] * 9], [Leak(train_row=1, val_row=0, similarity=1.0, is_exact=True)]),
        # Of a short row, all tokens are one gram.
        ([[1, 2]], [[1, 2]], [Leak(train_row=0, val_row=0, similarity=1.0, is_exact=True)]),
        ([[1, 2]], [[1, 2, 0]], []),
        ([[0, 1, 2]], [[1, 2]], []),
        ([[]], [[]], []),
        ([], [ROW], []),
        ([ROW], [], []),
        ([ROW], [[]], []),
    ],
)
def test_a_pair_of_rows(train: Rows, val: Rows, expected: list[Leak]) -> None:
    assert find_leaks(*flat(train), *flat(val)) == expected


def with_prompt(number: int) -> list[int]:
    """A long prompt that is the same in every row, and ten words of the row's own."""
    return [*range(1000, 1200), *range(number * 10, number * 10 + 10)]


def test_a_prompt_that_all_rows_share_makes_no_leak() -> None:
    val = [with_prompt(number) for number in range(10)]
    train = [with_prompt(number) for number in range(10, 30)]
    assert find_leaks(*flat(train), *flat(val)) == []
    assert find_leaks(*flat([*train, val[3]]), *flat(val)) == [
        Leak(train_row=20, val_row=3, similarity=1.0, is_exact=True)
    ]


def test_rows_that_are_nothing_but_the_prompt_are_still_compared() -> None:
    val = [with_prompt(0)[:200]] * 6 + [with_prompt(number) for number in range(5)]
    leaks = find_leaks(*flat([with_prompt(9)[:200]]), *flat(val))
    assert [(leak.val_row, leak.is_exact) for leak in leaks] == [(row, True) for row in range(6)]


def test_too_few_rows_to_judge_by_are_compared_whole() -> None:
    assert find_leaks(*flat([with_prompt(10)]), *flat([with_prompt(1)])) == [
        Leak(train_row=0, val_row=0, similarity=196 / 216)
    ]


def test_a_published_row_with_one_word_changed_is_found(glm_tokenizer, shared_data: Path) -> None:
    texts = {
        name: (shared_data / "AdvertiseGen" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
        for name in ("train", "dev")
    }
    changed = texts["dev"][1].replace("时髦", "优雅")
    encoder = Encoder(glm_tokenizer, GLM)

    def encoded(lines: list[str]) -> tuple[np.ndarray, np.ndarray]:
        examples = encoder.encode_batch([to_conversation(json.loads(line)) for line in lines])
        return flat([example.input_ids for example in examples])

    assert changed != texts["dev"][1]
    train = [*texts["train"][:2000], changed, *texts["train"][2000:], texts["dev"][500]]
    val = encoded(texts["dev"])
    assert find_leaks(*encoded(texts["train"]), *val) == []
    near, exact = find_leaks(*encoded(train), *val)
    assert (near.train_row, near.val_row, near.is_exact) == (2000, 1, False)
    assert 0.8 <= near.similarity < 1
    assert exact == Leak(train_row=3001, val_row=500, similarity=1.0, is_exact=True)


# The lines for the user


def test_leaks_are_described_with_the_first_three_pairs() -> None:
    leaks = [
        Leak(train_row=2, val_row=0, similarity=0.846),
        Leak(train_row=0, val_row=1, similarity=1.0, is_exact=True),
        Leak(train_row=1, val_row=2, similarity=1.0),
        Leak(train_row=1, val_row=3, similarity=0.9),
    ]
    train_where = [f"data/train.jsonl:{line}" for line in range(1, 4)]
    val_where = [f"data/dev.jsonl:{line}" for line in range(1, 5)]
    assert describe_leaks(leaks, 1070, train_where, val_where) == [
        "4 of 1,070 validation rows (0.4%) have a near-duplicate among the training rows (similarity of 0.8 or more); "
        "exact copies: 1",
        "  data/dev.jsonl:1 and data/train.jsonl:3: similarity 0.85",
        "  data/dev.jsonl:2 and data/train.jsonl:1: the same",
        "  data/dev.jsonl:3 and data/train.jsonl:2: similarity 1.00",
    ]


def test_without_a_leak_there_is_nothing_to_say() -> None:
    assert describe_leaks([], 10, [], []) == []
