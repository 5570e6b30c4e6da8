"""Batches keep their order, one is planned while another is in the tokenizer, and errors come out where they belong."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator

import pytest

from glmtune.chatformat.pipeline import garbage_collection_paused, tokenized


def ids_of(plan: int) -> list[list[int]]:
    return [[plan]]


@pytest.mark.parametrize("count", [0, 1, 2, 5])
def test_batches_keep_their_order(count: int) -> None:
    assert list(tokenized(iter(range(count)), ids_of)) == [(number, [[number]]) for number in range(count)]


def test_the_next_batch_is_planned_while_one_is_in_the_tokenizer() -> None:
    planned = threading.Event()

    def plans() -> Iterator[int]:
        yield 0
        planned.set()
        yield 1

    def tokenize(plan: int) -> list[list[int]]:
        assert planned.wait(20)  # would wait for ever if planning waited for it
        return [[plan]]

    assert [plan for plan, _ in tokenized(plans(), tokenize)] == [0, 1]


def test_an_error_in_the_tokenizer_comes_out() -> None:
    def tokenize(plan: int) -> list[list[int]]:
        raise ValueError(f"batch {plan}")

    with pytest.raises(ValueError, match="batch 0"):
        list(tokenized(iter([0, 1]), tokenize))
    assert gc.isenabled()


def test_an_error_in_planning_comes_out_at_its_place() -> None:
    def plans() -> Iterator[int]:
        yield from (0, 1)
        raise ValueError("the third batch")

    batches = tokenized(plans(), ids_of)
    assert next(batches) == (0, [[0]])
    with pytest.raises(ValueError, match="the third batch"):
        next(batches)
    assert gc.isenabled()


def test_batches_that_nobody_takes_further_leave_the_collection_of_garbage_alone() -> None:
    batches = tokenized(iter([0, 1, 2]), ids_of)
    next(batches)
    assert gc.isenabled()
    batches.close()


def test_garbage_is_collected_again_behind_a_pause_and_behind_an_error_in_it() -> None:
    with garbage_collection_paused():
        assert not gc.isenabled()
        with garbage_collection_paused():
            assert not gc.isenabled()
        assert not gc.isenabled()
    assert gc.isenabled()
    with pytest.raises(KeyboardInterrupt), garbage_collection_paused():
        raise KeyboardInterrupt
    assert gc.isenabled()
