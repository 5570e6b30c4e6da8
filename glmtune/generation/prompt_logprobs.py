"""How likely the tokens of a prompt are, each behind those before it.

Shape legend: N tokens, K most likely ones beside each of them, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from .sampling import Logprobs

TOKENS_AT_ONCE = 128
"""Logits of so many tokens are turned into likelihoods together: 78 MB in float32 where V is 151,552, twice over."""
LEAST = -9999.0
"""In the place of minus infinity, which JSON does not know; OpenAI writes the same."""


@dataclass(frozen=True, kw_only=True)
class PromptLogprobs:
    """Of the tokens of a prompt but for the first, which nothing comes before."""

    tokens: torch.Tensor
    """(N,), natural logarithms of their probabilities."""
    ranks: torch.Tensor
    """(N,), from 1, which is the most likely one."""
    top_ids: torch.Tensor
    """(N, K)"""
    top: torch.Tensor
    """(N, K), the most likely first."""

    def __len__(self) -> int:
        return len(self.tokens)

    def listed(self) -> list[tuple[Logprobs, int]]:
        """Return the likelihoods of each token, and its rank."""
        columns = (self.tokens.tolist(), self.ranks.tolist(), self.top_ids.tolist(), self.top.tolist())
        return [(Logprobs(token=own, top=tuple(zip(top_ids, top))), rank) for own, rank, top_ids, top in zip(*columns)]


def score(logits: torch.Tensor, tokens: torch.Tensor, num_top: int) -> PromptLogprobs:
    """Return how likely tokens are by the logits before each of them; (N, V) and (N,)."""
    parts = []
    for start in range(0, len(tokens), TOKENS_AT_ONCE):
        logprobs = logits[start : start + TOKENS_AT_ONCE].float().log_softmax(dim=-1).clamp(min=LEAST)
        own = logprobs.gather(1, tokens[start : start + TOKENS_AT_ONCE, None])
        top, top_ids = logprobs.topk(min(num_top, logprobs.shape[-1]), dim=-1)
        ranks = (logprobs > own).sum(dim=-1) + 1
        parts.append(
            PromptLogprobs(tokens=own.squeeze(1).cpu(), ranks=ranks.cpu(), top_ids=top_ids.int().cpu(), top=top.cpu())
        )
    return joined(parts)


def joined(parts: Sequence[PromptLogprobs]) -> PromptLogprobs:
    """Return the likelihoods of a whole prompt; of one token alone there are none."""
    if not parts:
        none = torch.empty(0)
        return PromptLogprobs(tokens=none, ranks=none, top_ids=none[:, None], top=none[:, None])
    return PromptLogprobs(
        tokens=torch.cat([part.tokens for part in parts]),
        ranks=torch.cat([part.ranks for part in parts]),
        top_ids=torch.cat([part.top_ids for part in parts]),
        top=torch.cat([part.top for part in parts]),
    )
