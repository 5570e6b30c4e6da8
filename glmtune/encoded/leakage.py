"""Near-duplicates between training and validation rows: on those, the validation loss says little about new text.

Two rows are as similar as their sets of 5-grams (five tokens in a row) overlap: the grams that both have, over the
grams that either has (Jaccard). What is the same in most rows is no sign of copying, so that a gram which stands in
more than half of the validation rows does not count: the template's own beginning, a system prompt that all rows
share. A row made of nothing else keeps all of its grams, and so do all rows where there are too few to judge by.

Nearly all training rows share too little with any validation row, which one look into a table per gram shows; only
the few others are compared exactly. Grams are compared by a 64-bit hash: two different ones are taken for equal
about once in 10^19 comparisons.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

GRAM_TOKENS = 5
MIN_ROWS_TO_JUDGE = 10  # half of fewer validation rows may be alike by chance
BLOCK_TOKENS = 1_000_000  # about 50 MB while a block is looked through
MAX_PAIRS = 2_000_000  # of rows that share a gram, counted at a time
ROW_SHIFT, HASH_SHIFT = np.uint64(40), np.uint64(24)  # a row's number in its block, and most of a hash, in 64 bits
SLOTS_PER_GRAM = 32  # of the table: one gram in about 32 is looked up in vain
COMMON, INDEXED = 1, 2
NUM_PAIRS_SHOWN = 3


@dataclass(frozen=True, kw_only=True)
class Leak:
    """A validation row and the training row most like it."""

    train_row: int
    val_row: int
    similarity: float
    """From the threshold to 1: the same grams."""
    is_exact: bool = False
    """Whether both have the same tokens."""


def find_leaks(
    train_ids: np.ndarray,
    train_offsets: np.ndarray,
    val_ids: np.ndarray,
    val_offsets: np.ndarray,
    threshold: float = 0.8,
) -> list[Leak]:
    """Return the validation rows that have a near-duplicate among the training rows, each once, in their order.

    Args:
        train_ids: (T,) token ids of all training rows, laid end to end.
        train_offsets: (N + 1,) where each row begins, and the end of the last.
        val_ids: The same of the validation rows.
        val_offsets: The same of the validation rows.
        threshold: Lowest similarity to report, above 0.
    """
    finder = LeakFinder(val_ids, val_offsets, threshold)
    finder.add(train_ids, train_offsets)
    return finder.leaks()


class LeakFinder:
    """An index of the validation rows, to which training rows are fed: as many at a time as the caller holds."""

    def __init__(self, val_ids: np.ndarray, val_offsets: np.ndarray, threshold: float = 0.8) -> None:
        """Index the validation rows; it takes about 100 bytes a token while it is built."""
        assert 0 < threshold <= 1, "a threshold is a share"
        self.threshold = threshold
        self.val_ids, self.val_offsets = val_ids, val_offsets
        num_rows = len(val_offsets) - 1
        hashes, counts = hash_grams(val_ids, val_offsets)
        rows, hashes = _distinct(np.repeat(np.arange(num_rows), counts), hashes)
        grams, num_rows_with = np.unique(hashes, return_counts=True)
        is_common = (num_rows_with > num_rows / 2) & (num_rows >= MIN_ROWS_TO_JUDGE)
        self.common = grams[is_common]
        kept = _kept(rows, np.isin(hashes, self.common), num_rows)
        rows, hashes = rows[kept], hashes[kept]
        # A gram's rows stand between its start and the next one's, and a row's grams likewise.
        order = np.argsort(hashes, kind="stable")
        self.rows_by_gram = rows[order]
        self.grams, starts = np.unique(hashes[order], return_index=True)
        self.starts = np.append(starts, len(hashes))
        self.places = np.searchsorted(self.grams, hashes)
        self.places_starts = np.searchsorted(rows, np.arange(num_rows + 1))
        self.shift = np.uint64(64 - min(28, max(16, (SLOTS_PER_GRAM * len(grams)).bit_length())))
        self.table = np.zeros(1 << (64 - int(self.shift)), dtype=np.uint8)
        self.table[self.common >> self.shift] |= COMMON
        self.table[self.grams >> self.shift] |= INDEXED
        self.similarity = np.zeros(num_rows)
        self.train_row = np.full(num_rows, -1)
        self.is_exact = np.zeros(num_rows, dtype=bool)
        self.num_train_rows = 0

    def add(self, train_ids: np.ndarray, train_offsets: np.ndarray) -> None:
        """Compare more training rows, numbered on from the last call's; flat ids and offsets as in `find_leaks`."""
        first, last = 0, len(train_offsets) - 1
        while first < last:
            limit = train_offsets[first] + BLOCK_TOKENS
            end = max(first + 1, int(np.searchsorted(train_offsets, limit, side="right")) - 1)
            start, stop = train_offsets[first], train_offsets[end]
            self._add_block(train_ids[start:stop], train_offsets[first : end + 1] - start)
            self.num_train_rows += end - first
            first = end

    def leaks(self) -> list[Leak]:
        """Return what was found so far."""
        return [
            Leak(
                train_row=int(self.train_row[row]),
                val_row=int(row),
                similarity=float(self.similarity[row]),
                is_exact=bool(self.is_exact[row]),
            )
            for row in np.flatnonzero(self.train_row >= 0)
        ]

    def _add_block(self, ids: np.ndarray, offsets: np.ndarray) -> None:
        if not len(self.grams):
            return
        hashes, counts = hash_grams(ids, offsets)
        rows = np.repeat(np.arange(len(counts)), counts)
        is_possible = self._possible_rows(rows, hashes, len(counts))[rows]
        for row, val_row, similarity in self._similar_pairs(rows[is_possible], hashes[is_possible], len(counts)):
            if similarity < self.similarity[val_row] or self.is_exact[val_row]:
                continue
            val_ids = self.val_ids[self.val_offsets[val_row] : self.val_offsets[val_row + 1]]
            is_exact = similarity == 1 and np.array_equal(val_ids, ids[offsets[row] : offsets[row + 1]])
            if is_exact or similarity > self.similarity[val_row]:
                self.similarity[val_row], self.is_exact[val_row] = similarity, is_exact
                self.train_row[val_row] = self.num_train_rows + row

    def _possible_rows(self, rows: np.ndarray, hashes: np.ndarray, num_rows: int) -> np.ndarray:
        """Say of every row whether it may share enough with a validation row; errs on the side of too many."""
        flags = self.table[hashes >> self.shift]
        num_indexed = np.bincount(rows[flags >= INDEXED], minlength=num_rows)
        is_other = flags == 0
        has_others = np.bincount(rows[is_other], minlength=num_rows) > 0
        # At least one gram is unknown where any is: enough to drop most rows before anything is sorted.
        is_possible = _share(num_indexed, num_indexed + has_others) >= self.threshold
        # A repeated gram counts once. The hash gives up bits for the row's number: too few may count, never too many.
        is_other &= is_possible[rows]
        keys = np.sort((rows[is_other].astype(np.uint64) << ROW_SHIFT) | (hashes[is_other] >> HASH_SHIFT))
        num_others = np.bincount((keys[_is_new(keys)] >> ROW_SHIFT).astype(np.int64), minlength=num_rows)
        return is_possible & (_share(num_indexed, num_indexed + num_others) >= self.threshold)

    def _similar_pairs(self, rows: np.ndarray, hashes: np.ndarray, num_rows: int) -> Iterator[tuple[int, int, float]]:
        """Yield training row, validation row and similarity of every pair that reaches the threshold."""
        rows, hashes = _distinct(rows, hashes)
        kept = _kept(rows, np.isin(hashes, self.common), num_rows)
        rows, hashes = rows[kept], hashes[kept]
        places = np.searchsorted(self.grams, hashes)
        is_known = self.grams[np.minimum(places, len(self.grams) - 1)] == hashes
        sizes = np.bincount(rows, minlength=num_rows)
        num_known = np.bincount(rows[is_known], minlength=num_rows)
        is_known &= (_share(num_known, sizes) >= self.threshold)[rows]
        rows, places = rows[is_known], places[is_known]
        starts = np.searchsorted(rows, np.arange(num_rows + 1))
        for row, val_row in self._promising_pairs(rows, places, sizes):
            val_places = self.places[self.places_starts[val_row] : self.places_starts[val_row + 1]]
            shared = len(np.intersect1d(places[starts[row] : starts[row + 1]], val_places, assume_unique=True))
            similarity = shared / (int(sizes[row]) + len(val_places) - shared)
            if similarity >= self.threshold:
                yield row, val_row, similarity

    def _promising_pairs(self, rows: np.ndarray, places: np.ndarray, sizes: np.ndarray) -> Iterator[tuple[int, int]]:
        """Yield the pairs of rows that share enough of the training row's rarest grams, a quarter of those required.

        Frequent grams stand in so many validation rows that counting them would take nearly all of the time.
        """
        lengths = self.starts[places + 1] - self.starts[places]
        order = np.lexsort((lengths, rows))
        rows, places, lengths = rows[order], places[order], lengths[order]
        num_known = np.bincount(rows, minlength=len(sizes))
        required = np.maximum(1, np.ceil(self.threshold * sizes - 1e-6)).astype(np.int64)
        enough = (required + 3) // 4
        # Of so many known grams, as few as the row can spare may be missing from a similar row.
        num_tried = num_known - required + enough
        rank = np.arange(len(rows)) - (np.cumsum(num_known) - num_known)[rows]
        is_tried = rank < num_tried[rows]
        rows, places, lengths = rows[is_tried], places[is_tried], lengths[is_tried]
        num_val_rows = len(self.places_starts) - 1
        for part in _parts(rows, lengths):
            val_rows = self.rows_by_gram[_ranges(self.starts[places[part]], lengths[part])]
            pairs, shared = np.unique(
                np.repeat(rows[part], lengths[part]) * num_val_rows + val_rows, return_counts=True
            )
            pairs = pairs[shared >= enough[pairs // num_val_rows]]
            yield from zip((pairs // num_val_rows).tolist(), (pairs % num_val_rows).tolist())


def hash_grams(ids: np.ndarray, offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the hash of every gram, row after row, and each row's number of grams.

    A row of fewer than five tokens is one gram as a whole; one without a token has none.
    """
    sizes = np.diff(offsets)
    counts = np.where(sizes >= GRAM_TOKENS, sizes - GRAM_TOKENS + 1, np.minimum(sizes, 1))
    # Tokens count from 1, so that the zeros that fill up a short row are no token.
    tokens = np.zeros(len(ids) + GRAM_TOKENS, dtype=np.uint64)
    tokens[: len(ids)] = ids
    tokens[: len(ids)] += np.uint64(1)
    at_every_place = _hash([tokens[place : place + len(ids)] for place in range(GRAM_TOKENS)])
    grams_before = np.append(0, np.cumsum(counts))
    hashes = at_every_place[_ranges(offsets[:-1], counts)]
    short = np.flatnonzero((sizes > 0) & (sizes < GRAM_TOKENS))
    columns = [
        np.where(place < sizes[short], tokens[offsets[short] + place], np.uint64(0)) for place in range(GRAM_TOKENS)
    ]
    hashes[grams_before[short]] = _hash(columns)
    return hashes, counts


def describe_leaks(
    leaks: Sequence[Leak],
    num_val_rows: int,
    train_where: Sequence[str],
    val_where: Sequence[str],
    threshold: float = 0.8,
    name: str = "validation",
) -> list[str]:
    """Return lines for the user: how many validation rows are leaks, and the first of them; none where there is none.

    Args:
        leaks: From `find_leaks`.
        num_val_rows: Of the validation rows that were compared.
        train_where: `file:line` of every training row.
        val_where: `file:line` of every validation row.
        threshold: That `find_leaks` was given.
        name: What the compared rows are for.
    """
    if not leaks:
        return []
    num_exact = sum(leak.is_exact for leak in leaks)
    lines = [
        f"{len(leaks):,} of {num_val_rows:,} {name} rows ({len(leaks) / num_val_rows:.1%}) have a near-duplicate "
        f"among the training rows (similarity of {threshold:g} or more); exact copies: {num_exact:,}"
    ]
    for leak in leaks[:NUM_PAIRS_SHOWN]:
        likeness = "the same" if leak.is_exact else f"similarity {leak.similarity:.2f}"
        lines.append(f"  {val_where[leak.val_row]} and {train_where[leak.train_row]}: {likeness}")
    return lines


def _hash(columns: Sequence[np.ndarray]) -> np.ndarray:
    """Return a 64-bit hash of the grams whose first tokens are the first column, and so on."""
    result = np.zeros(len(columns[0]), dtype=np.uint64)
    for column in columns:  # a polynomial, modulo 2^64; the multipliers are those of the PCG and MurmurHash3
        result *= np.uint64(6364136223846793005)
        result += column
    result ^= result >> np.uint64(32)
    result *= np.uint64(0xFF51AFD7ED558CCD)
    result ^= result >> np.uint64(32)
    return result


def _ranges(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Return `start`, `start + 1` and so on, `length` numbers each, one range behind the other."""
    ends = np.cumsum(lengths)
    return np.repeat(starts - ends + lengths, lengths) + np.arange(ends[-1] if len(ends) else 0)


def _parts(rows: np.ndarray, sizes: np.ndarray) -> Iterator[slice]:
    """Cut between rows, so that the sizes in a part add up to about `MAX_PAIRS` at most."""
    last = np.append(np.flatnonzero(_is_new(rows))[1:], len(rows)) - 1
    totals = np.cumsum(sizes)
    start = 0
    while start < len(rows):
        limit = MAX_PAIRS + (totals[start - 1] if start else 0)
        fits = last[(last >= start) & (totals[last] <= limit)]
        end = int(fits[-1] if len(fits) else last[last >= start][0]) + 1
        yield slice(start, end)
        start = end


def _share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Return part over whole; 0 of nothing is 0."""
    return np.asarray(part / np.maximum(whole, 1))


def _distinct(rows: np.ndarray, hashes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return every pair of row and hash once, by row."""
    order = np.lexsort((hashes, rows))
    rows, hashes = rows[order], hashes[order]
    is_first = _is_new(rows) | _is_new(hashes)
    return rows[is_first], hashes[is_first]


def _is_new(values: np.ndarray) -> np.ndarray:
    """Say of every value whether it differs from the one before."""
    return np.concatenate([values[:1] == values[:1], values[1:] != values[:-1]])


def _kept(rows: np.ndarray, is_common: np.ndarray, num_rows: int) -> np.ndarray:
    """Return which grams count: those that are not common, and all of a row that has no other."""
    has_others = np.bincount(rows[~is_common], minlength=num_rows) > 0
    return np.asarray(~is_common | ~has_others[rows])
