"""Keys and values of what has been read before: a conversation whose beginning is sent again is read from there on.

They are kept in blocks of a few tokens. A block is found by the one before it and its own ids, so that conversations
with the same beginning share its blocks. Whichever was not used for the longest time is dropped first; a block is used
whenever one behind it is, and therefore outlives it.

Shape legend: H key/value heads, D head size.
"""

from __future__ import annotations

import itertools
import math
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import psutil
import torch

BLOCK_TOKENS = 64
"""Of a conversation that comes again so many tokens less one are read twice at most."""

States = list[tuple[torch.Tensor, torch.Tensor]]
"""Keys and values of each layer, (H, tokens, D)."""


@dataclass(frozen=True, eq=False)
class KeptBlock:
    """Keys and values of some tokens that stand behind certain others."""

    number: int
    layers: States


Key = tuple[Hashable, int, tuple[int, ...]]
"""Whose block it is, the number of the one before it, 0 for none, and its ids."""


class PrefixStore:
    """Blocks of several owners: what one model or adapter has computed means nothing to another."""

    def __init__(self, max_tokens: int, max_bytes: float = math.inf) -> None:
        """Keep the keys and values of so many tokens, and no more bytes than that."""
        self.max_tokens, self.max_bytes = max_tokens, max_bytes
        self.max_blocks = max_tokens // BLOCK_TOKENS
        self._blocks: OrderedDict[Key, KeptBlock] = OrderedDict()  # the one that is used least comes first
        self._numbers = itertools.count(1)

    @property
    def num_tokens(self) -> int:
        """Tokens whose keys and values are kept."""
        return len(self._blocks) * BLOCK_TOKENS

    def find(self, owner: Hashable, ids: Sequence[int]) -> list[KeptBlock]:
        """Return the blocks that a text begins with."""
        found = self._chain(owner, ids)
        self._use(found)
        return [self._blocks[key] for key in found]

    def keep(self, owner: Hashable, ids: Sequence[int], states_of: Callable[[int, int], States]) -> None:
        """Keep the keys and values of a text.

        Args:
            owner: Whose text it is.
            ids: As many as there are keys and values of.
            states_of: Returns those of the tokens from one place to another, which are copied.
        """
        keys = self._chain(owner, ids)
        before = self._blocks[keys[-1]].number if keys else 0
        for start in range(len(keys) * BLOCK_TOKENS, len(ids) - BLOCK_TOKENS + 1, BLOCK_TOKENS):
            if len(keys) >= self.max_blocks:
                break
            end = start + BLOCK_TOKENS
            layers = [(own_keys.clone(), own_values.clone()) for own_keys, own_values in states_of(start, end)]
            # All models of a server have layers of the same shape.
            num_bytes = sum(states.nbytes for layer in layers for states in layer)
            self.max_blocks = int(min(self.max_blocks, self.max_bytes // num_bytes))
            key = owner, before, tuple(ids[start:end])
            self._blocks[key] = KeptBlock(next(self._numbers), layers)
            before = self._blocks[key].number
            keys.append(key)
        self._use(keys)
        while len(self._blocks) > self.max_blocks:
            self._blocks.popitem(last=False)

    def forget(self, owner: Hashable) -> None:
        """Drop what an owner has, who will not come again."""
        for key in [key for key in self._blocks if key[0] is owner]:
            del self._blocks[key]

    def clear(self) -> None:
        """Drop everything."""
        self._blocks.clear()

    def _chain(self, owner: Hashable, ids: Sequence[int]) -> list[Key]:
        """Return the keys of the blocks that a text begins with."""
        keys: list[Key] = []
        before = 0
        for start in range(0, len(ids) - BLOCK_TOKENS + 1, BLOCK_TOKENS):
            key = owner, before, tuple(ids[start : start + BLOCK_TOKENS])
            block = self._blocks.get(key)
            if block is None:
                break
            keys.append(key)
            before = block.number
        return keys

    def _use(self, keys: Sequence[Key]) -> None:
        for key in reversed(keys):
            self._blocks.move_to_end(key)


def free_bytes(device: torch.device) -> float:
    """Return how much memory is free where a model computes; without end where that cannot be told."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    return float(psutil.virtual_memory().available) if device.type == "cpu" else math.inf
