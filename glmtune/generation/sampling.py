"""The next token of rows that each want to be sampled in their own way, in one batch.

What fails for one row fails for that row alone: its `Sampler.failure` says why, and the others get the tokens that they
would get without it.

Shape legend: B rows, V vocabulary.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch

from glmtune.constrained.compiling import CompiledGrammar
from glmtune.constrained.matching import Matcher, as_scores, next_masks, put_stops


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How one answer is sampled; OpenAI's names."""

    temperature: float = 0.0
    """0 takes the most likely token."""
    top_p: float = 1.0
    top_k: int = 0
    """0 is no limit."""
    min_p: float = 0.0
    """Tokens are drawn that have at least this share of the likeliest one's probability; 0 is no limit."""
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repetition_penalty: float = 1.0
    """As transformers has it: over the prompt, too."""
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    """Added to the logits of tokens."""
    num_logprobs: int | None = None
    """Most likely tokens to report beside each one; None reports nothing."""
    grammar: CompiledGrammar | None = None
    """What the answer has to follow; it ends where that may end."""
    max_tokens: int | None = None
    """Tokens within which an answer that follows a grammar is led to its end."""
    min_tokens: int = 0
    """Tokens before the first that may end the answer; one that follows a grammar may end before, where that does."""
    stops: Collection[int] = ()
    """Ids that end the answer, which it may not begin with where `min_tokens` is more than 0."""
    ignores_stops: bool = False
    """Whether an answer that follows a grammar ends only where nothing more may come."""
    seed: int | None = None


class NoNumbers(ArithmeticError):
    """Logits among which no highest can be found: the model computed NaN or infinity, or no token is allowed."""


@dataclass(frozen=True, kw_only=True)
class Logprobs:
    """How likely a token was, before temperature, grammar and all else, and which ones were more so."""

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
        self.num_chosen = 0
        self.seen = set(prompt) if sampling.repetition_penalty != 1 else set()
        self.matcher = None if sampling.grammar is None else Matcher(sampling.grammar)
        self.closing = None if self.matcher is None else self.matcher.closing(sampling.max_tokens)
        self.logprobs: list[Logprobs] = []
        """Of every token so far, where they are wanted."""
        self.failure: BaseException | None = None
        """Why no token could be chosen; what was returned in its place means nothing."""
        self._seen_ids: torch.Tensor | None = None
        self._bias: tuple[torch.Tensor, torch.Tensor] | None = None

    @property
    def is_plain(self) -> bool:
        """Whether the row takes its logits as they are."""
        wants = self.sampling
        penalties = wants.frequency_penalty, wants.presence_penalty, wants.repetition_penalty - 1
        return not (any(penalties) or wants.logit_bias or self._may_not_end)

    @property
    def is_early(self) -> bool:
        """Whether the answer is to go on, if anything may follow."""
        return self.sampling.ignores_stops or self.num_chosen < self.sampling.min_tokens

    @property
    def _may_not_end(self) -> bool:
        # Where a grammar is followed, its mask has the stop tokens.
        return self.matcher is None and self.num_chosen < self.sampling.min_tokens and bool(self.sampling.stops)

    def adjust(self, logits: torch.Tensor) -> None:
        """Change the logits of the row, (V,), as it wants them."""
        wants = self.sampling
        if wants.logit_bias:
            if self._bias is None:  # made once: some requests name a thousand tokens
                ids = torch.tensor(list(wants.logit_bias), device=logits.device)
                self._bias = ids, torch.tensor(list(wants.logit_bias.values()), device=logits.device)
            logits[self._bias[0]] += self._bias[1]
        if self.counts and (wants.frequency_penalty or wants.presence_penalty):
            tokens = list(self.counts)
            counts = torch.tensor([self.counts[token] for token in tokens], dtype=logits.dtype, device=logits.device)
            logits[tokens] -= wants.frequency_penalty * counts + wants.presence_penalty
        if self.seen:
            if self._seen_ids is None or len(self._seen_ids) != len(self.seen):
                self._seen_ids = torch.tensor(list(self.seen), device=logits.device)
            old = logits[self._seen_ids]
            new = torch.where(old > 0, old / wants.repetition_penalty, old * wants.repetition_penalty)
            logits[self._seen_ids] = new
        if self._may_not_end:
            logits[list(wants.stops)] = -torch.inf

    def note(self, token: int) -> None:
        """Take down the token that was chosen."""
        self.counts[token] += 1
        self.num_chosen += 1
        if self.sampling.repetition_penalty != 1:
            self.seen.add(token)
        if self.matcher is not None and token not in self.sampling.stops:
            self.matcher.advance(token)


def choose_tokens(samplers: Sequence[Sampler], logits: torch.Tensor) -> torch.Tensor:
    """Return the next token of every row, (B,), and take down its logprobs where they are wanted.

    Args:
        samplers: One for each row; those whose rows fail say so.
        logits: (B, V) in float32.
    """
    scores = logits
    if not all(sampler.is_plain for sampler in samplers):
        scores = logits.clone()
        for row, sampler in zip(scores, samplers):
            if not sampler.is_plain:
                with _failing_alone(sampler):
                    sampler.adjust(row)
    rows = [row for row, sampler in enumerate(samplers) if sampler.matcher is not None and sampler.failure is None]
    if rows:
        scores = scores.clone() if scores is logits else scores
        _follow_grammars([samplers[row] for row in rows], rows, scores)
    best, tokens = scores.max(dim=-1)  # NaN counts as the highest
    if not best.isfinite().all():
        for sampler, is_finite in zip(samplers, best.isfinite().tolist()):
            if not is_finite and sampler.failure is None:
                sampler.failure = NoNumbers("the highest of the logits is no finite number")
    drawn = [
        row for row, sampler in enumerate(samplers) if sampler.sampling.temperature > 0 and sampler.failure is None
    ]
    if drawn:
        _draw_each([samplers[row] for row in drawn], drawn, scores, tokens)
    _take_down_logprobs(samplers, logits, tokens)
    for sampler, token in zip(samplers, tokens.tolist()):
        if sampler.failure is None:
            with _failing_alone(sampler):
                sampler.note(token)
    return tokens


def _follow_grammars(samplers: Sequence[Sampler], rows: Sequence[int], scores: torch.Tensor) -> None:
    """Take from some rows of `scores`, (B, V), all tokens that the rows' grammars do not allow next."""
    matchers = [sampler.matcher for sampler in samplers if sampler.matcher is not None]
    masks, failures = next_masks(matchers)
    for row, sampler, matcher, mask, failure in zip(rows, samplers, matchers, masks, failures):
        with _failing_alone(sampler):
            if failure is not None:
                raise failure
            stops = sampler.sampling.stops
            put_stops(mask, stops, may_end=matcher.may_end, is_early=sampler.is_early)
            if sampler.closing is not None:
                sampler.closing.lead(matcher.state, mask, scores[row], written=matcher.written, stops=stops)
    allowed = as_scores(masks, scores.shape[-1], scores.device)
    if len(rows) == len(scores):
        scores += allowed
    else:
        scores[rows] += allowed


@contextmanager
def _failing_alone(sampler: Sampler) -> Iterator[None]:
    """Keep to a row what is thrown for it, whatever it is: what is written in Rust throws no `Exception`."""
    try:
        yield
    except BaseException as error:
        sampler.failure = error


def _draw_each(samplers: Sequence[Sampler], rows: Sequence[int], scores: torch.Tensor, tokens: torch.Tensor) -> None:
    """Put the tokens of some rows, drawn with each row's own random number, into `tokens`, (B,)."""
    wants = [sampler.sampling for sampler in samplers]
    marks = [sampler.random.random() for sampler in samplers]
    try:
        tokens[rows] = _draw(wants, marks, scores[rows])
    except Exception:  # whosever it is: one by one, it fails where it belongs, with the same random numbers
        for sampler, row, want, mark in zip(samplers, rows, wants, marks):
            with _failing_alone(sampler):
                tokens[row] = _draw([want], [mark], scores[row : row + 1])[0]


def _draw(wants: Sequence[Sampling], marks: Sequence[float], scores: torch.Tensor) -> torch.Tensor:
    """Return a token for each row: the one that holds the row's mark, from 0 to 1; scores: (B, V)."""
    temperatures = torch.tensor([want.temperature for want in wants], device=scores.device)[:, None]
    top_p = torch.tensor([want.top_p for want in wants], device=scores.device)[:, None]
    vocabulary = scores.shape[-1]
    top_k = torch.tensor([min(want.top_k or vocabulary, vocabulary) for want in wants], device=scores.device)[:, None]
    descending = _sorted(scores)
    # The highest score becomes 0: at a low temperature the exponentials of others would be infinite.
    ordered = (descending - descending[:, :1]) / temperatures.clamp(min=1e-4)
    ordered[torch.arange(vocabulary, device=scores.device) >= top_k] = -torch.inf
    if any(want.min_p for want in wants):
        least = torch.tensor([math.log(want.min_p) if want.min_p else -math.inf for want in wants])
        ordered[ordered < least.to(scores.device)[:, None]] = -torch.inf
    chances = ordered.softmax(dim=-1)
    before = chances.cumsum(dim=-1) - chances
    chances[before >= top_p] = 0.0
    chances[:, 0] = chances[:, 0].clamp(min=1e-9)  # `top_p` 0 keeps the most likely one
    sums = chances.cumsum(dim=-1)
    marked = torch.tensor(marks, device=scores.device)[:, None] * sums[:, -1:]
    places = torch.searchsorted(sums, marked, right=True).clamp(max=vocabulary - 1)
    # The mark may lie behind the last token with a chance, by rounding.
    last = (chances > 0).sum(dim=-1, keepdim=True) - 1
    return _tokens_at(torch.minimum(places, last), descending, scores)


def _sorted(scores: torch.Tensor) -> torch.Tensor:
    """Return the scores of each row, the highest first, without the tokens that they belong to.

    Of 8 rows of 151,552, one core of an AMD EPYC sorts the values alone in 3 ms by numpy, which has vector instructions
    for it, and in 89 ms with their places by torch.
    """
    if scores.device.type == "cpu":
        return torch.from_numpy(np.sort(scores.numpy(), axis=-1)).flip(-1)
    return scores.sort(dim=-1, descending=True).values


def _tokens_at(places: torch.Tensor, descending: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    """Return the token at a place, (B, 1), of each row's order, (B,); of equal scores the lower token comes first."""
    found = descending.gather(1, places)
    number = places - (descending > found).sum(dim=-1, keepdim=True)  # among those of the same score
    return ((scores == found).cumsum(dim=-1) > number).int().argmax(dim=-1)


def _take_down_logprobs(samplers: Sequence[Sampler], logits: torch.Tensor, tokens: torch.Tensor) -> None:
    rows = [
        row
        for row, sampler in enumerate(samplers)
        if sampler.sampling.num_logprobs is not None and sampler.failure is None
    ]
    if not rows:
        return
    logprobs = logits[rows].log_softmax(dim=-1)
    chosen = logprobs.gather(1, tokens[rows][:, None]).squeeze(1).tolist()
    most = max(samplers[row].sampling.num_logprobs or 0 for row in rows)
    values, ids = logprobs.topk(min(most, logits.shape[-1]), dim=-1)
    for row, own, top, top_ids in zip(rows, chosen, values.tolist(), ids.tolist()):
        number = samplers[row].sampling.num_logprobs
        samplers[row].logprobs.append(Logprobs(token=own, top=tuple(zip(top_ids, top))[:number]))
