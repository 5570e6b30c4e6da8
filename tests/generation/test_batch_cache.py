"""Keys and values of rows that come and go, in memory that is allocated ahead."""

from __future__ import annotations

import pytest
import torch
from transformers import DynamicCache

from glmtune.generation.batch_cache import COLUMNS_AHEAD, BatchCache, order_without_gaps


def read(rows: int, width: int, first: float = 0.0) -> DynamicCache:
    """Return a cache of two layers whose states count up."""
    cache = DynamicCache()
    states = torch.arange(rows * 2 * width * 3.0).view(rows, 2, width, 3) + first
    for layer in range(2):
        cache.update(states + 1000 * layer, states[..., :1] - 1000 * layer, layer)  # heads of two sizes
    return cache


def test_a_token_more_moves_nothing() -> None:
    batch = BatchCache(cache := read(2, 5), 1000)
    batch.add(cache, [0, 0], 0)
    places = {layer.keys.data_ptr() for layer in batch.layers}
    expected = [layer.keys for layer in cache.layers]
    for number in range(COLUMNS_AHEAD):
        for layer in range(2):
            new = torch.full((2, 2, 1, 3), float(number))
            keys, _ = batch.update(new, new[..., :1], layer)
            expected[layer] = torch.cat([expected[layer], new], dim=2)
            assert torch.equal(keys, expected[layer])
    assert {layer.keys.data_ptr() for layer in batch.layers} == places
    keys, _ = batch.update(new, new[..., :1], 0)
    assert torch.equal(keys, torch.cat([expected[0], new], dim=2))
    assert keys.data_ptr() not in places


def test_the_prefix_comes_behind_the_padding() -> None:
    batch = BatchCache(cache := read(2, 6), 1000)
    batch.add(cache, [0, 3], 2)
    for layer, own in zip(batch.layers, cache.layers):
        for states, before in ((layer.keys, own.keys), (layer.values, own.values)):
            assert torch.equal(states[0], before[0])
            assert torch.equal(states[1, :, :3], torch.zeros_like(before[1, :, :3]))
            assert torch.equal(states[1, :, 3:5], before[1, :, :2])
            assert torch.equal(states[1, :, 5:], before[1, :, 5:])


def test_rows_that_leave_make_room_for_wider_ones() -> None:
    batch = BatchCache(first := read(3, 4), 1000)
    batch.add(first, [0, 0, 0], 0)
    order = order_without_gaps([1, 2])
    assert order == [2, 1]
    batch.keep(order, 3)
    wide = read(2, 9, first=500)
    batch.add(wide, [0, 0], 0)
    keys = batch.layers[1].keys
    assert keys.shape == (4, 2, 9, 3)
    assert torch.equal(keys[:2, :, 6:], first.layers[1].keys[[2, 1], :, 1:])
    assert torch.equal(keys[2:], wide.layers[1].keys)


def test_what_others_left_in_memory_is_no_part_of_a_row() -> None:
    """A mask multiplies by 0 what it hides, and NaN stays NaN."""
    broken = read(3, 8, first=float("nan"))
    batch = BatchCache(broken, 1000)
    batch.add(broken, [0, 0, 0], 0)
    batch.keep([], 0)
    narrow = read(2, 4)
    batch.add(narrow, [0, 1], 0)
    batch.add(read(1, 7), [0], 0)
    for layer in batch.layers:
        assert layer.keys.shape[2] == 7
        assert layer.keys.isfinite().all()
        assert layer.values.isfinite().all()
        assert layer.keys[1, :, :4].count_nonzero() == 0


@pytest.mark.parametrize("max_tokens", [1, 160, 10_000])
def test_memory_ahead_stays_below_the_limit(max_tokens: int) -> None:
    batch = BatchCache(read(1, 10), max_tokens)
    for _ in range(13):
        batch.add(read(1, 10), [0], 0)
    rows, columns = batch.layers[0].room
    assert rows <= max(13, max_tokens // 10, 1)
    assert rows <= 17
    assert columns == 10 + COLUMNS_AHEAD
