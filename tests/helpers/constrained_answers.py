"""Answers of a model that knows nothing, which follow a grammar all the same."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from glmtune.constrained.compiling import CompiledGrammar, Compiler
from glmtune.constrained.grammars import Grammar
from glmtune.generation.sampling import Sampler, Sampling, choose_tokens

MAX_TOKENS = 300
CLOSERS = ('"', "}", "]", "</", "1")
"""Tokens that such a model prefers, or its texts would hardly end."""


class RandomModel:
    """Logits by chance, on the vocabulary of a tokenizer."""

    def __init__(self, tokenizer: Any, stops: Sequence[str]) -> None:
        self.tokenizer = tokenizer
        self.stops = [tokenizer.convert_tokens_to_ids(stop) for stop in stops]
        self.vocabulary = len(tokenizer) + 7  # as GLM-4's, which has more logits than tokens
        self.compiler = Compiler(tokenizer, vocabulary=self.vocabulary, stops=self.stops)
        self._closers = [
            token for text in CLOSERS for token in tokenizer.encode(text, add_special_tokens=False)[:1]
        ]  # fmt: skip

    def compiled(self, grammar: Grammar | None) -> CompiledGrammar:
        assert grammar is not None
        return self.compiler.compiled(grammar)

    def answer(self, grammar: Grammar | None, seed: int, written: str = "", **wanted: Any) -> tuple[str, bool]:
        """Return the text of an answer, control tokens in it, and whether it has ended by itself.

        It begins with what is `written`.
        """
        ids, has_ended = self.ids(grammar, seed, written=written, **wanted)
        return self.tokenizer.decode(ids), has_ended

    def ids(self, grammar: Grammar | None, seed: int, written: str = "", **wanted: Any) -> tuple[list[int], bool]:
        """Return the ids of an answer, and whether it has ended by itself."""
        sampling = Sampling(
            **{"temperature": 1, "grammar": self.compiled(grammar), "stops": self.stops, "seed": seed} | wanted
        )
        sampler = Sampler(sampling, ())
        chance = torch.Generator().manual_seed(seed)
        ids: list[int] = self.tokenizer.encode(written, add_special_tokens=False)
        for token in ids:
            sampler.note(token)
        while len(ids) < (MAX_TOKENS if sampling.max_tokens is None else sampling.max_tokens):
            logits = torch.randn(1, self.vocabulary, generator=chance)
            logits[:, self._closers] += 3 + len(ids) / 50
            logits[:, self.stops] += len(ids) / 50
            token = int(choose_tokens([sampler], logits)[0])
            if sampler.failure is not None:
                raise sampler.failure
            if token in sampling.stops:
                return ids, True
            ids.append(token)
        return ids, False
