"""Keys and values of the rows of a batch, in memory that is allocated ahead.

transformers' own cache copies all keys and values for every token, and once more where a row comes or goes. Here a
token is written into a free column and a row into a free place; everything is copied only where either is used up.

Shape legend: R rows and C columns in memory, B rows in use, H key/value heads, D head size; P tokens of a trained
prefix (P-Tuning v2), W tokens of the widest text. In memory everything left of a row's own tokens is zero: what a mask
hides is multiplied by 0, which would leave no number of NaN.

         0      start                   end     C
    row  | zeros | zeros, prefix, text  | free  |
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

COLUMNS_AHEAD = 128
"""Columns that are allocated beyond the text: so many tokens are written before all are copied once."""

ROWS_AHEAD = 4
"""A fourth of the rows is allocated beyond them, as far as the limit of tokens goes."""


class PreallocatedLayer(DynamicLayer):
    """Keys and values of one layer; `keys` and `values` are the part of them that is in use, (B, H, P + W, D)."""

    def __init__(self, like: Any, max_tokens: int) -> None:
        """Begin without rows; `like` is a layer of the same heads, type and device, `max_tokens` as in `BatchCache`."""
        super().__init__()  # type: ignore[no-untyped-call]
        self.max_tokens = max_tokens
        self.dtype, self.device = like.keys.dtype, like.keys.device
        self.is_initialized = True
        self.start = self.end = self.num_rows = 0
        self._memory = tuple(states.new_empty((0, states.shape[1], 0, states.shape[3])) for states in _states(like))
        self._show()

    @property
    def room(self) -> tuple[int, int]:
        """Rows and columns in memory."""
        return self._memory[0].shape[0], self._memory[0].shape[2]

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write what is new, (B, H, T, D), behind each row; returns all keys and values of the rows."""
        num_new = key_states.shape[2]
        if self.end + num_new > self.room[1]:
            self._move(self.num_rows, self.end - self.start, num_new)
        end = self.end + num_new
        for memory, states in zip(self._memory, (key_states, value_states)):
            memory[: self.num_rows, :, self.end : end] = states
        self.end = end
        return self._show()

    def add(self, layer: Any, paddings: torch.Tensor | None, num_prefix: int) -> None:
        """Put the rows of another layer, (b, H, P + W, D), behind those that are there."""
        width = layer.keys.shape[2]
        rows = slice(self.num_rows, self.num_rows + layer.keys.shape[0])
        if rows.stop > self.room[0] or self.end < width:
            self._move(rows.stop, max(width, self.end - self.start))
        first = self.end - width
        for memory, states in zip(self._memory, _states(layer)):
            memory[rows, :, :first] = 0
            memory[rows, :, first : self.end] = (
                states if paddings is None else _behind_padding(states, paddings.to(states.device), num_prefix)
            )
        self.num_rows = rows.stop
        self.start = min(self.start, first)
        self._show()

    def keep(self, moves: tuple[torch.Tensor, torch.Tensor], num_rows: int, width: int) -> None:
        """Move rows into the places of others, `moves` being from where and to where; so many rows stay."""
        if len(moves[0]):
            source, target = (places.to(self.device) for places in moves)
            for memory in self._memory:
                memory[target, :, : self.end] = memory[source, :, : self.end]
        self.num_rows = num_rows
        self.start = self.end - width
        self._show()

    def _move(self, num_rows: int, width: int, num_new: int = 1) -> None:
        """Move all rows into memory for so many rows and columns, and some of both ahead."""
        ahead = min(num_rows // ROWS_AHEAD, max(0, self.max_tokens // width - num_rows))
        used = slice(width - (self.end - self.start), width)
        moved = []
        for memory in self._memory:
            columns = width + max(COLUMNS_AHEAD, num_new)
            new = memory.new_empty((num_rows + ahead, memory.shape[1], columns, memory.shape[3]))
            new[: self.num_rows, :, : used.start] = 0
            new[: self.num_rows, :, used] = memory[: self.num_rows, :, self.start : self.end]
            moved.append(new)
        self._memory = tuple(moved)
        self.start, self.end = used.start, width
        self._show()

    def _show(self) -> tuple[torch.Tensor, torch.Tensor]:
        keys, values = (memory[: self.num_rows, :, self.start : self.end] for memory in self._memory)
        self.keys, self.values = keys, values
        return keys, values


class BatchCache(DynamicCache):
    """Keys and values of a batch whose rows come and go, aligned at the right."""

    def __init__(self, like: Any, max_tokens: int) -> None:
        """Begin without rows; memory is allocated ahead up to so many rows times columns. `like` is a cache."""
        super().__init__()
        self.layers: list[Any] = [PreallocatedLayer(layer, max_tokens) for layer in like.layers]

    def add(self, cache: Any, paddings: Sequence[int], num_prefix: int) -> None:
        """Put rows behind those that are there.

        Args:
            cache: Of these rows, each (b, H, P + W, D): the prefix, padding, the text.
            paddings: Columns of padding in each of them.
            num_prefix: P.
        """
        padding = torch.tensor(paddings) if any(paddings) else None
        for layer, other in zip(self.layers, cache.layers):
            layer.add(other, padding, num_prefix)

    def keep(self, order: Sequence[int], width: int) -> None:
        """Keep the rows of these places alone, in this order, and the last `width` columns."""
        moved = [(source, target) for target, source in enumerate(order) if source != target]
        moves = torch.tensor([source for source, _ in moved]), torch.tensor([target for _, target in moved])
        for layer in self.layers:
            layer.keep(moves, len(order), width)


def order_without_gaps(kept: Sequence[int]) -> list[int]:
    """Return the places in an order in which most rows stay where they are: the last ones fill the gaps."""
    stay = {place for place in kept if place < len(kept)}
    movers = [place for place in kept if place >= len(kept)]
    return [place if place in stay else movers.pop() for place in range(len(kept))]


def _states(layer: Any) -> tuple[torch.Tensor, torch.Tensor]:
    return layer.keys, layer.values


def _behind_padding(states: torch.Tensor, paddings: torch.Tensor, num_prefix: int) -> torch.Tensor:
    """Return states, (b, H, P + W, D), with the padding before the prefix instead of behind it, and zero."""
    places = torch.arange(states.shape[2], device=states.device)
    if num_prefix:
        moved = (places - paddings[:, None]).clamp(min=0)
        source = torch.where(places < paddings[:, None] + num_prefix, moved, places)
        states = states.gather(2, source[:, None, :, None].expand_as(states))
    return states.masked_fill((places < paddings[:, None])[:, None, :, None], 0)
