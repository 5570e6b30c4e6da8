"""The next token of rows that each want to be sampled in their own way, in one batch.

Shape legend: B rows, V vocabulary.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How one answer is sampled; OpenAI's names."""

    temperature: float = 0.0
    """0 takes the most likely token."""
    top_p: float = 1.0
    top_k: int = 0
    """0 is no limit."""
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repetition_penalty: float = 1.0
    """As transformers has it: over the prompt, too."""
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    """Added to the logits of tokens."""
    num_logprobs: int | None = None
    """Most likely tokens to report beside each one; None reports nothing."""
    openings: tuple[tuple[int, ...], ...] = ()
    """Ids, one of which the answer must begin with; empty leaves it free."""
    seed: int | None = None


@dataclass(frozen=True, kw_only=True)
class Logprobs:
    """How likely a token was, before temperature and all else, and which ones were more so."""

    token: float
    """Natural logarithm of its probability."""
    top: tuple[tuple[int, float], ...]
    """Ids and logprobs, the most likely first."""


class Sampler:
    """Chooses the tokens of one answer; its random numbers are its own, whatever else is in the batch."""

    def __init__(self, sampling: Sampling, prompt: Sequence[int]) -> None:
        self.sampling = sampling
        self.random = random.Random(sampling.seed)
        self.counts: Counter[int] = Counter()
        self.seen = set(prompt) if sampling.repetition_penalty != 1 else set()
        self.openings = sampling.openings
        self.logprobs: list[Logprobs] = []
        """Of every token so far, where they are wanted."""

    @property
    def is_plain(self) -> bool:
        """Whether the row takes its logits as they are."""
        wants = self.sampling
        penalties = wants.frequency_penalty, wants.presence_penalty, wants.repetition_penalty - 1
        return not (any(penalties) or wants.logit_bias or self.openings)

    def adjust(self, logits: torch.Tensor) -> None:
        """Change the logits of the row, (V,), as it wants them."""
        wants = self.sampling
        if self.openings:
            allowed = sorted({opening[0] for opening in self.openings})
            kept = logits[allowed].clone()
            logits.fill_(-torch.inf)
            logits[allowed] = kept
        for token, bias in wants.logit_bias.items():
            logits[token] += bias
        if self.counts and (wants.frequency_penalty or wants.presence_penalty):
            tokens = list(self.counts)
            counts = torch.tensor([self.counts[token] for token in tokens], dtype=logits.dtype, device=logits.device)
            logits[tokens] -= wants.frequency_penalty * counts + wants.presence_penalty
        if self.seen:
            tokens = list(self.seen)
            old = logits[tokens]
            logits[tokens] = torch.where(old > 0, old / wants.repetition_penalty, old * wants.repetition_penalty)

    def note(self, token: int) -> None:
        """Take down the token that was chosen."""
        self.counts[token] += 1
        if self.sampling.repetition_penalty != 1:
            self.seen.add(token)
        rests = [opening[1:] for opening in self.openings if opening[0] == token]
        # As soon as one of them is written out, the answer goes on freely.
        self.openings = () if () in rests else tuple(rests)


def choose_tokens(samplers: Sequence[Sampler], logits: torch.Tensor) -> torch.Tensor:
    """Return the next token of every row, (B,), and take down its logprobs where they are wanted.

    Args:
        samplers: One for each row.
        logits: (B, V) in float32.
    """
    scores = logits
    if not all(sampler.is_plain for sampler in samplers):
        scores = logits.clone()
        for row, sampler in zip(scores, samplers):
            if not sampler.is_plain:
                sampler.adjust(row)
    tokens = scores.argmax(dim=-1)
    drawn = [row for row, sampler in enumerate(samplers) if sampler.sampling.temperature > 0]
    if drawn:
        tokens[drawn] = _draw([samplers[row] for row in drawn], scores[drawn])
    _take_down_logprobs(samplers, logits, tokens)
    for sampler, token in zip(samplers, tokens.tolist()):
        sampler.note(token)
    return tokens


def _draw(samplers: Sequence[Sampler], scores: torch.Tensor) -> torch.Tensor:
    """Return a token for each row, drawn with the row's own random number; scores: (B, V)."""
    wants = [sampler.sampling for sampler in samplers]
    temperatures = torch.tensor([want.temperature for want in wants], device=scores.device)[:, None]
    top_p = torch.tensor([want.top_p for want in wants], device=scores.device)[:, None]
    vocabulary = scores.shape[-1]
    top_k = torch.tensor([want.top_k or vocabulary for want in wants], device=scores.device)[:, None]
    ordered, order = scores.sort(dim=-1, descending=True, stable=True)
    # The highest score becomes 0: at a low temperature the exponentials of others would be infinite.
    ordered = (ordered - ordered[:, :1]) / temperatures.clamp(min=1e-4)
    ordered[torch.arange(vocabulary, device=scores.device) >= top_k] = -torch.inf
    chances = ordered.softmax(dim=-1)
    before = chances.cumsum(dim=-1) - chances
    chances[before >= top_p] = 0.0
    chances[:, 0] = chances[:, 0].clamp(min=1e-9)  # `top_p` 0 keeps the most likely one
    sums = chances.cumsum(dim=-1)
    marks = torch.tensor([[sampler.random.random()] for sampler in samplers], device=scores.device)
    places = torch.searchsorted(sums, marks * sums[:, -1:], right=True).clamp(max=vocabulary - 1)
    # The mark may lie behind the last token with a chance, by rounding.
    last = (chances > 0).sum(dim=-1, keepdim=True) - 1
    return order.gather(1, torch.minimum(places, last)).squeeze(1)


def _take_down_logprobs(samplers: Sequence[Sampler], logits: torch.Tensor, tokens: torch.Tensor) -> None:
    rows = [row for row, sampler in enumerate(samplers) if sampler.sampling.num_logprobs is not None]
    if not rows:
        return
    logprobs = logits[rows].log_softmax(dim=-1)
    chosen = logprobs.gather(1, tokens[rows][:, None]).squeeze(1).tolist()
    most = max(samplers[row].sampling.num_logprobs or 0 for row in rows)
    values, ids = logprobs.topk(most, dim=-1)
    for row, own, top, top_ids in zip(rows, chosen, values.tolist(), ids.tolist()):
        number = samplers[row].sampling.num_logprobs
        samplers[row].logprobs.append(Logprobs(token=own, top=tuple(zip(top_ids, top))[:number]))
