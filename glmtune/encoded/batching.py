"""Which rows are trained together: the order of an epoch, cut into micro-batches.

Shape legend: rows x micro-batches x processes make an optimizer step.

The gradient of a step does not depend on how its rows are distributed over micro-batches and processes, since the loss
is the mean over all trained tokens of the step. So each step keeps the rows that a plain shuffle gives it, and they are
distributed such that every micro-batch has about as many tokens (no process waits for another), or, where rows are
padded, such that rows of like length meet.
"""

from __future__ import annotations

import bisect
import heapq
import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch.utils.data import Sampler

STEPS_PER_GROUP = 50
"""Steps whose rows are sorted by length together, where rows are padded."""


class StepBatches(Sampler[list[int]]):
    """Yields the micro-batches of an epoch, those of one step after the other; each process takes its turn.

    The same seed and epoch always give the same batches.
    """

    batch_size = None
    """For accelerate: the sizes of the batches vary."""
    drop_last = False

    def __init__(
        self,
        lengths: Sequence[int] | np.ndarray,
        *,
        rows_per_batch: int,
        batches_per_step: int,
        num_processes: int,
        seed: int,
        epoch: Callable[[], int],
        is_packed: bool,
        tokens_per_batch: int | None = None,
        is_shuffled: bool = True,
        drops_rest: bool = False,
    ) -> None:
        """Remember how batches are made.

        Args:
            lengths: Tokens of every row.
            rows_per_batch: Rows of a micro-batch, on average.
            batches_per_step: Micro-batches of an optimizer step, over all processes.
            num_processes: Of which each gets as many micro-batches.
            seed: Of the shuffle.
            epoch: Tells, when batches are asked for, which epoch it is, from 0.
            is_packed: Whether rows are laid end to end; if not, rows of like length are put together.
            tokens_per_batch: Fill each micro-batch with rows up to so many tokens, whatever their number.
            is_shuffled: Whether each epoch has an order of its own; if not, rows come as they stand in the data.
            drops_rest: Whether the last step of an epoch is left out where it has fewer rows than the others.
        """
        self.lengths = np.asarray(lengths)
        self.rows_per_batch = rows_per_batch
        self.batches_per_step = batches_per_step
        self.num_processes = num_processes
        self.seed = seed
        self.is_packed = is_packed
        self.epoch = epoch
        self.is_shuffled = is_shuffled
        self.drops_rest = drops_rest
        # The same bins in every epoch, so that epochs have as many steps; their order changes.
        order = np.random.default_rng(seed).permutation(len(self.lengths))
        self.bins = best_fit(self.lengths, order, tokens_per_batch) if tokens_per_batch else None

    def __len__(self) -> int:
        if self.bins is not None:
            length = _round_up(len(self.bins), self.num_processes)
            return length - length % self.batches_per_step if self.drops_rest else length
        full, rest = divmod(len(self.lengths), self.rows_per_batch * self.batches_per_step)
        if self.drops_rest:
            return full * self.batches_per_step
        return full * self.batches_per_step + _round_up(math.ceil(rest / self.rows_per_batch), self.num_processes)

    def __iter__(self) -> Iterator[list[int]]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch())
        if self.bins is not None:
            chosen = self._order(len(self.bins), generator).tolist()
            missing = _round_up(len(chosen), self.num_processes) - len(chosen)
            yield from (self.bins[index] for index in (chosen + chosen[:missing])[: len(self)])
            return
        order = self._order(len(self.lengths), generator)
        rows_per_step = self.rows_per_batch * self.batches_per_step
        if not self.is_packed and self.is_shuffled and rows_per_step > 1:
            order = _like_lengths_together(order, self.lengths, rows_per_step, generator)
        for start in range(0, len(order), rows_per_step):
            rows = order[start : start + rows_per_step]
            if self.drops_rest and len(rows) < rows_per_step:
                return
            num_batches = _round_up(math.ceil(len(rows) / self.rows_per_batch), self.num_processes)
            if len(rows) < num_batches:  # the end of an epoch: a row more often than others, for each process has one
                rows = np.concatenate([rows, np.resize(order, num_batches - len(rows))])
            batched = _batched_evenly if self.is_packed else _batched_by_length
            yield from batched(rows, self.lengths, num_batches)

    def _order(self, number: int, generator: torch.Generator) -> np.ndarray:
        return torch.randperm(number, generator=generator).numpy() if self.is_shuffled else np.arange(number)


def best_fit(lengths: np.ndarray, order: np.ndarray, capacity: int) -> list[list[int]]:
    """Return rows in bins of at most `capacity` tokens: the longest first, each into the fullest bin that takes it.

    Rows of one length keep their places in `order`. A row longer than the capacity has a bin of its own. At most 11/9
    of the fewest bins possible, and one (Johnson 1973); on real rows within a percent of none left empty.
    """
    sorted_rows = order[np.argsort(-lengths[order], kind="stable")].tolist()
    bins: list[list[int]] = []
    open_bins: dict[int, list[int]] = {}  # free tokens -> bins
    free_sizes: list[int] = []  # the keys, sorted
    for row in sorted_rows:
        size = int(lengths[row])
        place = bisect.bisect_left(free_sizes, size)
        if place == len(free_sizes):
            number, free = len(bins), max(0, capacity - size)
            bins.append([])
        else:
            found = free_sizes[place]
            number, free = open_bins[found].pop(), found - size
            if not open_bins[found]:
                del open_bins[found], free_sizes[place]
        bins[number].append(row)
        if free:
            if free not in open_bins:
                bisect.insort(free_sizes, free)
            open_bins.setdefault(free, []).append(number)
    return bins


def _batched_evenly(rows: np.ndarray, lengths: np.ndarray, num_batches: int) -> list[list[int]]:
    """Return the rows in batches of about as many tokens: the longest first, each to the batch with the fewest."""
    if num_batches == 1:
        return [rows.tolist()]
    batches: list[list[int]] = [[] for _ in range(num_batches)]
    totals = [(0, number) for number in range(num_batches)]
    for row in rows[np.argsort(-lengths[rows], kind="stable")].tolist():
        total, number = heapq.heappop(totals)
        batches[number].append(row)
        heapq.heappush(totals, (total + int(lengths[row]), number))
    return batches


def _batched_by_length(rows: np.ndarray, lengths: np.ndarray, num_batches: int) -> list[list[int]]:
    """Return the rows in batches of as many rows, those of like length together: the least padding."""
    rows = rows[np.argsort(-lengths[rows], kind="stable")]
    return [part.tolist() for part in np.array_split(rows, num_batches)]


def _like_lengths_together(
    order: np.ndarray, lengths: np.ndarray, rows_per_step: int, generator: torch.Generator
) -> np.ndarray:
    """Return the order with the rows of many steps sorted by length, and the steps shuffled again."""
    steps: list[np.ndarray] = []
    group = rows_per_step * STEPS_PER_GROUP
    for start in range(0, len(order), group):
        rows = order[start : start + group]
        rows = rows[np.argsort(-lengths[rows], kind="stable")]
        steps += [rows[first : first + rows_per_step] for first in range(0, len(rows), rows_per_step)]
    full = [step for step in steps if len(step) == rows_per_step]
    shuffled = [full[index] for index in torch.randperm(len(full), generator=generator).tolist()]
    return np.concatenate([*shuffled, *(step for step in steps if len(step) < rows_per_step)])


def _round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple
