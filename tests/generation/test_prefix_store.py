"""Keys and values that are kept: found by the tokens before them, for their owner alone, within bounds."""

from __future__ import annotations

import torch

from glmtune.generation.prefix_store import BLOCK_TOKENS, PrefixStore, States, free_bytes

TEXT = list(range(5 * BLOCK_TOKENS))


def states_of(start: int, end: int) -> States:
    states = torch.arange(float(start), float(end))[None, :, None]
    return [(states, -states), (states + 0.5, states)]


def kept(store: PrefixStore, text: list[int], owner: object = "a") -> list[int]:
    """Return the places that the blocks of a text stand at."""
    return [int(block.layers[0][0][0, 0, 0]) for block in store.find(owner, text)]


def test_a_text_is_found_as_far_as_it_is_the_same_in_whole_blocks() -> None:
    store = PrefixStore(10_000)
    store.keep("a", TEXT[:-1], states_of)
    assert store.num_tokens == 4 * BLOCK_TOKENS
    assert kept(store, TEXT) == [number * BLOCK_TOKENS for number in range(4)]
    assert kept(store, TEXT[: 2 * BLOCK_TOKENS + 1]) == [0, BLOCK_TOKENS]
    assert kept(store, TEXT[: BLOCK_TOKENS - 1]) == []
    assert kept(store, [*TEXT[: BLOCK_TOKENS + 1], 7, *TEXT[BLOCK_TOKENS + 2 :]]) == [0]
    assert kept(store, TEXT[BLOCK_TOKENS:]) == []  # the same tokens behind others
    assert kept(store, TEXT, "b") == []


def test_texts_that_begin_alike_share_their_blocks() -> None:
    store = PrefixStore(10_000)
    store.keep("a", TEXT, states_of)
    store.keep("a", TEXT, states_of)
    store.keep("a", [*TEXT[: 3 * BLOCK_TOKENS], *TEXT], states_of)
    assert store.num_tokens == (5 + 5) * BLOCK_TOKENS


def test_what_is_kept_is_a_copy() -> None:
    store, states = PrefixStore(1000), torch.ones((1, BLOCK_TOKENS, 1))
    store.keep("a", TEXT[:BLOCK_TOKENS], lambda start, end: [(states, states)])
    states.zero_()
    assert store.find("a", TEXT)[0].layers[0][0].sum() == BLOCK_TOKENS


def test_what_was_used_least_is_dropped_first_and_never_a_beginning_before_its_end() -> None:
    store = PrefixStore(4 * BLOCK_TOKENS)
    other = [-number for number in TEXT]
    store.keep("a", TEXT[: 3 * BLOCK_TOKENS], states_of)
    store.keep("a", other[: 2 * BLOCK_TOKENS], states_of)
    assert kept(store, TEXT) == [0, BLOCK_TOKENS]
    store.find("a", other)
    store.keep("b", TEXT[:BLOCK_TOKENS], states_of)
    assert kept(store, TEXT) == [0]
    assert kept(store, other) == [0, BLOCK_TOKENS]
    assert store.num_tokens == 4 * BLOCK_TOKENS


def test_of_a_text_beyond_the_bound_the_beginning_is_kept() -> None:
    store = PrefixStore(2 * BLOCK_TOKENS)
    store.keep("a", TEXT, states_of)
    assert kept(store, TEXT) == [0, BLOCK_TOKENS]


def test_bytes_are_a_bound_too() -> None:
    store = PrefixStore(10_000, max_bytes=3 * 4 * 4 * BLOCK_TOKENS)  # of four tensors in float32
    store.keep("a", TEXT, states_of)
    assert kept(store, TEXT) == [0, BLOCK_TOKENS, 2 * BLOCK_TOKENS]
    none = PrefixStore(10_000, max_bytes=100)
    none.keep("a", TEXT, states_of)
    assert none.num_tokens == 0
    assert free_bytes(torch.device("cpu")) > 10_000_000


def test_zero_keeps_nothing_and_an_owner_can_be_forgotten() -> None:
    none = PrefixStore(0)
    none.keep("a", TEXT, states_of)
    assert none.num_tokens == 0
    store, owner = PrefixStore(10_000), object()
    store.keep(owner, TEXT, states_of)
    store.keep("b", TEXT, states_of)
    store.forget(owner)
    assert (kept(store, TEXT, owner), len(kept(store, TEXT, "b"))) == ([], 5)
    store.clear()
    assert store.num_tokens == 0
