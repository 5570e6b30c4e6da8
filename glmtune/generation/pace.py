"""How much of the prompts is read between two tokens of the answers that are being written.

A long prompt that is read in one pass would hold up all other answers. How long a pass takes depends on the model, the
machine and the rows, and is therefore measured.
"""

from __future__ import annotations

import time

GAPS_FOR_READING = 1.7
"""Reading takes so many times what a token takes without it. Others then wait about three and a half times as long as
usual, since every pass costs something, however little is read."""

FIRST_TOKENS = 32
"""Before anything is known of the time that they take."""

LEAST_TOKENS, MOST_TOKENS = 4, 512
"""Fewer would never come to an end. More at once are hardly faster, and who comes next would wait for them."""

WEIGHT_OF_LAST = 0.3
"""Of the last measurement in the mean."""


class Pace:
    """Measures rounds; in each of them some prompts are read, and every answer gets a token."""

    def __init__(self) -> None:
        self._gap_seconds: float | None = None
        self._seconds_a_token: float | None = None
        self._is_writing = False
        self._num_read = 0
        self._begun_at_seconds = 0.0

    def begin(self, *, is_writing: bool) -> None:
        """Begin a round; `is_writing` tells whether answers wait for their next token."""
        self._is_writing, self._num_read = is_writing, 0
        self._begun_at_seconds = time.perf_counter()

    def num_tokens(self, num_readers: int) -> int:
        """Return how many tokens each of so many models may read in this round."""
        if not self._is_writing:
            return MOST_TOKENS
        if self._gap_seconds is None or self._seconds_a_token is None:
            return FIRST_TOKENS
        number = GAPS_FOR_READING * self._gap_seconds / self._seconds_a_token / max(1, num_readers)
        return int(min(MOST_TOKENS, max(LEAST_TOKENS, number)))

    def note_read(self, num_tokens: int) -> None:
        """Take down that so many tokens were read in this round."""
        self._num_read += num_tokens

    def end(self) -> None:
        """End the round."""
        seconds = time.perf_counter() - self._begun_at_seconds
        if not self._is_writing:
            return  # a GPU goes on computing what was read
        if not self._num_read:
            self._gap_seconds = _mean(self._gap_seconds, seconds)
        elif self._gap_seconds is not None:
            taken = max(seconds - self._gap_seconds, 0.1 * seconds) / self._num_read
            self._seconds_a_token = _mean(self._seconds_a_token, taken)


def _mean(before: float | None, last: float) -> float:
    return last if before is None else before + WEIGHT_OF_LAST * (last - before)
