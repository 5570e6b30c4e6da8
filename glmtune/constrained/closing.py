"""The end of an answer that follows a grammar, kept within the tokens that it may have.

A document that is cut off in its middle is none. So a way to the end is looked for while there are tokens left for it:
a string is closed, then its object, then the call around it. Where a token would leave too few of them it is not
allowed. What is found is a short way, not the shortest; where none is found the answer is cut off as any other.

    left    tokens that may still be written
    way     tokens by which the answer would end, here and now

Looking takes some tenths of a millisecond for each token of the way. Far from the limit it is done seldom: as long as
no token makes the way longer by more than `GROWTH` others, none is missed.

Shape legend: V vocabulary, W words of 32 bits that hold a bit for each token.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from glmtune.chatformat.call_parts import CLOSE_ARGUMENT, CLOSE_KEY, OPEN_ARGUMENT, OPEN_KEY
from glmtune.chatformat.replies import CLOSE_CALL, CLOSE_THOUGHT, OPEN_CALL

if TYPE_CHECKING:
    from llguidance import LLMatcher

WORD_BITS = 32
GROWTH = 16
"""By how many tokens one token may make the way longer: `{"` begins an object with several members that it must have.
So many tokens before the limit each token is looked at."""
GROWTH_UNSEEN = 2
"""The same where it is not known which tokens are likely, and the way is taken at once."""
MOST_CANDIDATES = 4
"""Of the likeliest tokens that are looked at there."""
USUAL_WAY, LONGEST_WAY = 128, 512
"""Beyond the first, other steps are tried; beyond the second none."""
LETTERS = "a", "\n"
"""Where both may come, the text is free: neither JSON nor a pattern."""

BRACKETS = re.compile(r"[}\]]+")
STRING_ENDS = re.compile(r'"[}\]]*')
EMPTY_STRINGS = re.compile(r'""[}\]]*|"')
"""Or the beginning of one: behind that a bracket would be its first letter."""
SEPARATORS = (",", ":")
VALUES = ("[]", "{}", "null", "false", "true", "[", "{", "-")
CLOSING_TAGS = (CLOSE_THOUGHT, CLOSE_ARGUMENT, CLOSE_CALL, CLOSE_KEY)
"""The first ends a text in which the others may be spoken of."""
OPENING_TAGS = (OPEN_CALL, OPEN_KEY, OPEN_ARGUMENT)
BLANKS = "ĊĠĉč▁ \n\t\r"
"""Also as the letters that stand for them in vocabularies of bytes, and of SentencePiece."""
MOST_ALLOWED = 2000
"""Tokens among which the longest is taken where nothing else is known: of more, the text is as good as free."""


@dataclass(frozen=True)
class Closers:
    """The tokens of a vocabulary by which texts end, the best first."""

    tags: Sequence[int]
    brackets: Sequence[int]
    """Of objects and lists."""
    string_ends: Sequence[int]
    """Perhaps with brackets behind."""
    empty_strings: Sequence[int]
    separators: Sequence[int]
    """Before digits: a number that is whole goes on otherwise."""
    digits: Sequence[int]
    values: Sequence[int]
    """Other beginnings of values."""
    openings: Sequence[int]
    """Tags that open what the answer may have to hold."""
    letters: Sequence[int]
    """Ids of `LETTERS`."""
    spelled_tags: Sequence[Sequence[int]]
    """Closing tags that are no tokens of their own."""
    lengths: Any
    """Characters of each token, (V,); 0 for blanks and control tokens."""

    @classmethod
    def of(cls, tokenizer: Any, vocabulary: int) -> Closers:
        """Return those of a tokenizer, for logits of `vocabulary` entries."""
        ids: Mapping[str, int] = tokenizer.get_vocab()
        added: Mapping[str, int] = tokenizer.added_tokens_encoder
        texts = sorted((text for text in ids if text not in added), key=len, reverse=True)
        lengths = np.zeros(vocabulary, dtype=np.int32)
        for text in texts:
            lengths[ids[text]] = len(text.strip(BLANKS))
        spelled = [tag for tag in CLOSING_TAGS if tag not in added]
        return cls(
            tags=[added[tag] for tag in CLOSING_TAGS if tag in added],
            brackets=[ids[text] for text in texts if BRACKETS.fullmatch(text)],
            string_ends=[ids[text] for text in texts if STRING_ENDS.fullmatch(text)],
            empty_strings=[ids[text] for text in texts if EMPTY_STRINGS.fullmatch(text)],
            separators=[ids[text] for text in SEPARATORS if text in ids],
            digits=[ids[text] for text in "0123456789" if text in ids],
            values=[ids[text] for text in VALUES if text in ids],
            openings=[added[tag] for tag in OPENING_TAGS if tag in added],
            letters=[tokenizer.encode(text, add_special_tokens=False)[-1] for text in LETTERS],
            spelled_tags=[tokenizer.encode(tag, add_special_tokens=False) for tag in spelled],
            lengths=lengths,
        )

    def ordered(self, *, is_in_text: bool, num_taken: int) -> Iterator[int]:
        """Yield all of them, the best first: in a text a bracket is a letter as any other.

        Digits take turns by `num_taken`, or no multiple of seven would be found.
        """
        yield from self.tags
        yield from (*self.string_ends, *self.brackets) if is_in_text else (*self.brackets, *self.empty_strings)
        yield from self.separators
        first = (num_taken * num_taken + num_taken // 10) % 10
        yield from (*self.digits[first:], *self.digits[:first])
        yield from (*self.values, *self.openings)


class Closing:
    """Leads one answer to its end."""

    def __init__(self, closers: Closers, max_tokens: int) -> None:
        self._closers = closers
        self._max_tokens = max_tokens
        self._look_at = max_tokens
        """How many tokens are left when the way is looked for next."""
        self._ways: dict[int, list[int]] = {}
        """Behind each token that was allowed last, where these were looked at."""
        self.has_led = False
        """Whether a token that the model held for the likeliest was not allowed."""

    def lead(
        self,
        state: LLMatcher,
        mask: Any,
        scores: torch.Tensor | None,
        *,
        written: Sequence[int],
        stops: Collection[int],
    ) -> None:
        """Take from a mask the tokens behind which too few would be left.

        Args:
            state: Of the answer as it is; it is not changed.
            mask: Of the tokens that may come next, (W,); it is changed.
            scores: How much the model holds of each token, (V,); None where that is not known.
            written: Tokens of the answer so far.
            stops: Ids that end the answer.
        """
        left = self._max_tokens - len(written)
        if left > self._look_at:
            return
        way = self._way(state, written)
        if way is None or len(way) > left:  # it may be found, or be shorter, when more is written
            is_near = way is not None and len(way) <= left + GROWTH
            self._look_at = left - 1 if is_near else left * 7 // 8
            return
        slack = left - len(way)
        self._look_at = left - max(1, slack // GROWTH)
        if slack > (GROWTH if scores is not None else GROWTH_UNSEEN):
            return
        allowed = np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little"))
        candidates = [] if scores is None else _likeliest(allowed, scores)
        self._ways = {way[0]: way[1:]} if way else {}
        kept = [token for token in candidates if token in stops or self._fits(state, token, left - 1)]
        self.has_led |= bool(candidates) and candidates[0] not in kept
        kept = kept or way[:1]
        if kept:  # else it may end here, and nothing else
            ends = [token for token in stops if token in allowed]
            mask[:] = 0
            for token in (*kept, *ends):
                mask[token // WORD_BITS] |= np.uint32(1 << token % WORD_BITS)

    def _way(self, state: LLMatcher, written: Sequence[int]) -> list[int] | None:
        """Return the shorter of two ways: one found now, and what is left of one found before."""
        known = self._ways.get(written[-1]) if written else None
        self._ways = {}
        found = way_to_end(state.deep_copy(), self._closers)
        return min((way for way in (known, found) if way is not None), key=len, default=None)

    def _fits(self, state: LLMatcher, token: int, left: int) -> bool:
        """Whether there are tokens enough for the way behind a token."""
        if token in self._ways:
            return True
        behind = state.deep_copy()
        way = way_to_end(behind, self._closers, most=left) if behind.consume_token(token) else None
        if way is not None and len(way) <= left:
            self._ways[token] = way
        return token in self._ways


def way_to_end(state: LLMatcher, closers: Closers, *, most: int = LONGEST_WAY) -> list[int] | None:
    """Return tokens by which an answer would end, none where it may end here; None where no way is found.

    `state` is moved along it.
    """
    way: list[int] = []
    while len(way) <= most:
        if state.is_accepting():
            return way
        step = state.compute_ff_tokens() or _step(state, closers, len(way))
        if not step or not state.consume_tokens(step):
            return None
        way += step
    return None


def _step(state: LLMatcher, closers: Closers, num_taken: int) -> list[int]:
    """Return what leads nearer to the end, as far as that can be told."""
    mask = state.compute_bitmask()
    letter, line_break = (_is_in(mask, letter) for letter in closers.letters)
    if letter and line_break:
        for tag in closers.spelled_tags:
            behind = state.deep_copy()
            if behind.consume_tokens(list(tag)) and not _is_free(behind, closers):
                return list(tag)
    for token in closers.ordered(is_in_text=letter, num_taken=num_taken):
        if _is_in(mask, token):
            return [token]
    allowed = np.flatnonzero(np.unpackbits(np.frombuffer(mask, np.uint8), bitorder="little"))
    if not len(allowed):
        return []
    if len(allowed) > MOST_ALLOWED:
        allowed = allowed[:MOST_ALLOWED]
    # The longest is most of what is wanted; where that leads nowhere, as in `a+b`, another has its turn.
    longest = allowed[np.argsort(-closers.lengths[allowed], kind="stable")]
    return [int(longest[min(max(0, num_taken - USUAL_WAY) // 8, len(longest) - 1)])]


def _is_free(state: LLMatcher, closers: Closers) -> bool:
    if state.is_accepting():
        return False
    mask = state.compute_bitmask()
    return all(_is_in(mask, letter) for letter in closers.letters)


def _is_in(mask: bytes, token: int) -> bool:
    return bool(mask[token >> 3] >> (token & 7) & 1)


def _likeliest(allowed: Any, scores: torch.Tensor) -> list[int]:
    ids = torch.from_numpy(allowed).to(scores.device)
    places = scores[ids].topk(min(MOST_CANDIDATES, len(allowed))).indices
    return [int(token) for token in ids[places].tolist()]
