"""Whether an exported model answers as the one it was made of, and how far apart their logits are.

A model in bfloat16 has eight bits for a weight: merging rounds each changed weight once more, and a token that was
ahead by less than that may be overtaken. How far rounding alone moves the logits is measured, not assumed: the same
weights are rounded at random, and the logits compared. An export that differs by much more than that is wrong.

Shape legend: A tokens of an answer, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import GenerationConfig
from transformers.utils import logging

MAX_NEW_TOKENS = 32
TOLERANCE = 4.0
"""How many times the differences of random rounding are still put down to rounding.

Measured (typical difference) over LoRA, rsLoRA and DoRA adapters of the embedded model and of one four times as wide
with twelve layers: right exports were at 0.8 to 1.1 times in 16 bits and at 1.0 to 2.5 times in float32. Those that
had lost the adapter would be at 8 to 15 times in bfloat16, but at 3.5 where it changes a single layer a little.
"""


@dataclass(frozen=True, kw_only=True)
class ComparedAnswer:
    """What a model wrote, and what it thought at each token."""

    prompt: list[int]
    ids: list[int]
    """With the stop token at the end, where it has one."""
    logits: torch.Tensor
    """(A, V), on the CPU in the model's dtype: of the token at the same place in `ids`."""


@dataclass(frozen=True, kw_only=True)
class Distance:
    """How far two models' logits are apart over all answers."""

    largest: float
    typical: float
    """Root of the mean square."""


@dataclass(frozen=True, kw_only=True)
class Difference:
    """An answer that became another."""

    number: int
    """Of the prompt, from 1."""
    token: int
    """The first that differs, from 1."""
    before: str
    after: str
    gap: float
    """How far the first model's logits of the two tokens are apart; infinite where one of them had ended already."""


@dataclass(frozen=True, kw_only=True)
class Check:
    """What a comparison found."""

    num_prompts: int
    distance: Distance
    rounding: Distance
    """What rounding the same weights at random does; zero where it was not needed."""
    differences: tuple[Difference, ...] = ()

    @property
    def is_faithful(self) -> bool:
        """Whether rounding explains every difference. Not so where a logit is no number."""
        closest = TOLERANCE * self.rounding.largest
        return self.distance.typical <= TOLERANCE * self.rounding.typical and all(
            difference.gap <= closest for difference in self.differences
        )


def ask(model: Any, prompts: Sequence[Sequence[int]]) -> list[ComparedAnswer]:
    """Return the greedy answers of a model, one after another."""
    answers = []
    for prompt in prompts:
        ids = _greedy(model, prompt)
        answers.append(ComparedAnswer(prompt=[*prompt], ids=ids, logits=_logits(model, prompt, ids)))
    return answers


def distance_to(model: Any, answers: Sequence[ComparedAnswer]) -> Distance:
    """Return how far a model's logits are from those of the answers, over the same tokens."""
    return _distance(_all_logits(model, answers), [answer.logits for answer in answers])


def compare(answers: Sequence[ComparedAnswer], model: Any, tokenizer: Any, changed: Sequence[str] | None) -> Check:
    """Return how a model's answers and logits compare with those of another.

    Args:
        answers: Of the other.
        model: The exported one; spoiled afterwards, where its rounding had to be measured.
        tokenizer: To name tokens.
        changed: Beginnings of the names of the weights that merging changed; None for all.
    """
    differences = []
    for number, answer in enumerate(answers, start=1):
        ids = _greedy(model, answer.prompt)
        if ids != answer.ids:
            differences.append(_first_difference(number, answer, ids, tokenizer))
    logits = _all_logits(model, answers)
    distance = _distance(logits, [answer.logits for answer in answers])
    rounding = Distance(largest=0.0, typical=0.0)
    if distance.largest != 0:
        _round_at_random(model, changed)
        rounding = _distance(_all_logits(model, answers), logits)
    return Check(num_prompts=len(answers), distance=distance, rounding=rounding, differences=tuple(differences))


def _greedy(model: Any, prompt: Sequence[int]) -> list[int]:
    """Return the most likely answer as ids, up to and with the model's own stop token."""
    own = model.generation_config
    config = GenerationConfig(
        do_sample=False, max_new_tokens=MAX_NEW_TOKENS, eos_token_id=own.eos_token_id, pad_token_id=own.pad_token_id
    )
    input_ids = torch.tensor([prompt], device=model.device)
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # it warns of the model's own settings, such as a temperature, in every answer
    try:
        with torch.no_grad():
            output = model.generate(
                input_ids=input_ids, attention_mask=torch.ones_like(input_ids), generation_config=config
            )
    finally:
        logging.set_verbosity(verbosity)
    ids: list[int] = output[0, len(prompt) :].tolist()
    return ids


def _all_logits(model: Any, answers: Sequence[ComparedAnswer]) -> list[torch.Tensor]:
    return [_logits(model, answer.prompt, answer.ids) for answer in answers]


def _logits(model: Any, prompt: Sequence[int], ids: Sequence[int]) -> torch.Tensor:
    """Return the logits (A, V) of an answer's tokens, each computed from all before it."""
    input_ids = torch.tensor([[*prompt, *ids]], device=model.device)
    with torch.no_grad():
        logits: torch.Tensor = model(input_ids=input_ids, attention_mask=torch.ones_like(input_ids)).logits
    return logits[0, -len(ids) - 1 : -1].cpu()


def _distance(logits: Sequence[torch.Tensor], others: Sequence[torch.Tensor]) -> Distance:
    """Return how far logits are apart; not a number where one of them is none."""
    largest, squares, count = torch.zeros(()), 0.0, 0
    for own, other in zip(logits, others):
        apart = own.float() - other.float()
        largest = torch.maximum(largest, apart.abs().max())  # which keeps NaN
        squares += float(apart.square().sum(dtype=torch.float64))
        count += apart.numel()
    return Distance(largest=float(largest), typical=math.sqrt(squares / count))


def _first_difference(number: int, answer: ComparedAnswer, ids: Sequence[int], tokenizer: Any) -> Difference:
    """Return where another answer leaves this one, and how close the two tokens were there."""
    place = next((i for i, (old, new) in enumerate(zip(answer.ids, ids)) if old != new), min(len(answer.ids), len(ids)))
    names, gap = ["the end", "the end"], math.inf
    for side, whose in enumerate((answer.ids, ids)):
        if place < len(whose):
            names[side] = repr(tokenizer.decode(whose[place : place + 1]))
    if place < min(len(answer.ids), len(ids)):
        logits = answer.logits[place].float()
        gap = float((logits[answer.ids[place]] - logits[ids[place]]).abs())
    return Difference(number=number, token=place + 1, before=names[0], after=names[1], gap=gap)


def _round_at_random(model: Any, changed: Sequence[str] | None) -> None:
    """Move each of the weights by up to half of its last bit, as rounding does."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if changed is not None and not name.startswith(tuple(changed)):
                continue
            generator = torch.Generator(weight.device).manual_seed(0)
            last_bit = torch.finfo(weight.dtype).eps
            wider = torch.float64 if weight.dtype == torch.float32 else torch.float32
            for part in weight.split(1024):  # so that little memory is needed
                noise = torch.rand(part.shape, generator=generator, dtype=wider, device=part.device) - 0.5
                part.copy_(part.to(wider) * (1 + last_bit * noise))
