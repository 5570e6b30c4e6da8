"""Answers of `infer` and `chat` that follow one grammar, whichever way they are written: row by row, or by `generate`.

Shape legend: B rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Sequence
from typing import Any

import torch

from .closing import Closing
from .compiling import CompiledGrammar
from .matching import Matcher, allowed_ids, as_scores, next_masks, put_stops


class HeldAnswers:
    """Follows each answer by a key of its own."""

    def __init__(self, grammar: CompiledGrammar, stops: Collection[int], max_tokens: int | None = None) -> None:
        """Begin to hold answers, each of which ends within `max_tokens`, where its grammar lets it."""
        self._grammar = grammar
        self._stops = stops
        self._max_tokens = max_tokens
        self._matchers: dict[Hashable, Matcher] = {}
        self._closings: dict[Hashable, Closing | None] = {}

    def scores(self, keys: Sequence[Hashable], logits: torch.Tensor) -> torch.Tensor:
        """Return the logits, (B, V), without the tokens that may not come next; a row whose key is None is free."""
        rows = [row for row, key in enumerate(keys) if key is not None]
        if not rows:
            return logits
        masks = self._masks([keys[row] for row in rows], logits[rows])
        held = logits.clone()
        held[rows] += as_scores(masks, logits.shape[-1], logits.device)
        return held

    def note(self, keys: Sequence[Hashable], tokens: torch.Tensor) -> None:
        """Take the tokens that were chosen, (B,)."""
        for key, token in zip(keys, tokens.tolist()):
            if key is not None and token not in self._stops:
                self._matcher(key).advance(token)

    def allowed_in(self, width: int) -> Callable[[int, torch.Tensor], torch.Tensor]:
        """Return what `generate` takes as `prefix_allowed_tokens_fn`, for prompts that are so wide."""
        num_taken: dict[int, int] = {}

        def allowed(row: int, input_ids: torch.Tensor) -> torch.Tensor:
            written = input_ids[width:].tolist()
            if any(token in self._stops for token in written):  # it has ended, and is filled up
                return torch.tensor(sorted(self._stops), device=input_ids.device)
            for token in written[num_taken.get(row, 0) :]:
                self._matcher(row).advance(token)
            num_taken[row] = len(written)
            [mask] = self._masks([row])
            return allowed_ids(mask, self._matcher(row).vocabulary).to(input_ids.device)

        return allowed

    def _matcher(self, key: Hashable) -> Matcher:
        if key not in self._matchers:
            self._matchers[key] = Matcher(self._grammar)
            self._closings[key] = self._matchers[key].closing(self._max_tokens)
        return self._matchers[key]

    def _masks(self, keys: Sequence[Hashable], scores: torch.Tensor | None = None) -> Any:
        matchers = [self._matcher(key) for key in keys]
        masks, failures = next_masks(matchers)
        for row, (matcher, mask, failure) in enumerate(zip(matchers, masks, failures)):
            if failure is not None:
                raise failure
            put_stops(mask, self._stops, may_end=matcher.may_end)
            if (closing := self._closings[keys[row]]) is not None:
                held = None if scores is None else scores[row]
                closing.lead(matcher.state, mask, held, written=matcher.written, stops=self._stops)
        return masks
