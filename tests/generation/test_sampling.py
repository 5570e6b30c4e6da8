"""Tokens are chosen as each row wants it, whatever else is in the batch."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import pytest
import torch
from transformers import RepetitionPenaltyLogitsProcessor

from glmtune.generation.sampling import NoNumbers, Sampler, Sampling, choose_tokens

LOGITS = torch.tensor([2.0, 1.0, 0.0, -1.0, -2.0])
CHANCES = LOGITS.softmax(-1)


def draws(sampling: Sampling, number: int = 4000, prompt: tuple[int, ...] = ()) -> torch.Tensor:
    """Return the shares of the tokens in many draws of rows of their own."""
    samplers = [Sampler(sampling, prompt) for _ in range(number)]
    tokens = choose_tokens(samplers, LOGITS.expand(number, -1).clone())
    assert all(sampler.failure is None for sampler in samplers)
    return torch.bincount(tokens, minlength=5) / number


def test_temperature_0_takes_the_most_likely_token() -> None:
    assert draws(Sampling(), 10).tolist() == [1, 0, 0, 0, 0]


def test_the_shares_are_those_of_the_softmax() -> None:
    torch.testing.assert_close(draws(Sampling(temperature=1)), CHANCES, atol=0.03, rtol=0)
    warm = (LOGITS / 2).softmax(-1)
    torch.testing.assert_close(draws(Sampling(temperature=2)), warm, atol=0.03, rtol=0)


def test_top_k_leaves_so_many() -> None:
    kept = CHANCES[:2] / CHANCES[:2].sum()
    torch.testing.assert_close(draws(Sampling(temperature=1, top_k=2))[:2], kept, atol=0.03, rtol=0)
    assert draws(Sampling(temperature=1, top_k=2))[2:].sum() == 0


def test_top_p_keeps_the_token_that_reaches_it() -> None:
    # 0.636, 0.234, 0.086: 0.7 needs the second one, too.
    assert (draws(Sampling(temperature=1, top_p=0.7)) > 0).tolist() == [True, True, False, False, False]
    assert draws(Sampling(temperature=1, top_p=0.0)).tolist() == [1, 0, 0, 0, 0]


@pytest.mark.parametrize("spread", [0.1, 4.0])
def test_the_tokens_are_those_of_the_sorted_vocabulary_with_their_ties(spread: float) -> None:
    generator = torch.Generator().manual_seed(3)
    logits = (torch.randn((6, 5000), generator=generator) * spread).round(decimals=2)  # many of them are equal
    wants = [{}, {"top_p": 0.8}, {"top_k": 40}, {"min_p": 0.2}, {"top_p": 0.9, "top_k": 2000}, {"top_k": 1}]
    for seed in range(20):
        samplings = [Sampling(temperature=1.3, seed=seed, **want) for want in wants]
        marks = [Sampler(sampling, ()).random.random() for sampling in samplings]
        tokens = choose_tokens([Sampler(sampling, ()) for sampling in samplings], logits.clone())
        for row, (sampling, mark, token) in enumerate(zip(samplings, marks, tokens.tolist())):
            ordered, order = logits[row].sort(descending=True, stable=True)
            chances = (ordered / 1.3).softmax(-1)
            chances[chances < sampling.min_p * chances[0]] = 0
            chances[sampling.top_k or 5000 :] = 0
            chances /= chances.sum()
            chances[chances.cumsum(-1) - chances >= sampling.top_p] = 0
            place = int(torch.searchsorted(chances.cumsum(-1) / chances.sum(), mark, right=True))
            assert abs(order.tolist().index(token) - place) <= 1  # rounding moves the border between two
            assert chances[order.tolist().index(token)] > 0


def test_equal_scores_are_drawn_alike() -> None:
    rows = torch.zeros((3000, 4))
    rows[:, 2] = -1.0
    tokens = choose_tokens([Sampler(Sampling(temperature=1.0), ()) for _ in rows], rows.clone())
    shares = torch.bincount(tokens, minlength=4) / len(rows)
    torch.testing.assert_close(shares, rows[0].softmax(-1), atol=0.04, rtol=0)


def test_sampling_a_whole_vocabulary_takes_a_small_part_of_sorting_it() -> None:
    logits = torch.randn((4, 151_552))
    samplers = [Sampler(Sampling(temperature=1.0, top_p=0.9), ()) for _ in logits]

    def seconds(act: Callable[[], object]) -> float:
        taken = []
        for _ in range(5):
            start = time.perf_counter()
            act()
            taken.append(time.perf_counter() - start)
        return min(taken)

    sorting = seconds(lambda: logits.sort(dim=-1, descending=True, stable=True))
    assert seconds(lambda: choose_tokens(samplers, logits)) < sorting


def test_a_very_low_temperature_is_finite() -> None:
    assert draws(Sampling(temperature=1e-9), 10).tolist() == [1, 0, 0, 0, 0]


def test_a_seed_gives_the_same_tokens_in_any_batch() -> None:
    wanted = Sampling(temperature=1.5, seed=7)

    def tokens(others: int) -> list[int]:
        samplers = [Sampler(wanted, ()), *(Sampler(Sampling(temperature=1), ()) for _ in range(others))]
        rows = LOGITS.expand(1 + others, -1)
        return [int(choose_tokens(samplers, rows.clone())[0]) for _ in range(20)]

    assert tokens(0) == tokens(5)
    assert len(set(tokens(0))) > 1


def test_penalties_lower_what_was_written() -> None:
    sampler = Sampler(Sampling(presence_penalty=0.4, frequency_penalty=0.4), ())
    # The first falls from 2.0 to 1.2, then to 0.8; the second from 1.0 to 0.2; the first to 0.4.
    assert [int(choose_tokens([sampler], LOGITS[None].clone())) for _ in range(5)] == [0, 0, 1, 0, 0]


def test_the_repetition_penalty_counts_the_prompt() -> None:
    assert draws(Sampling(repetition_penalty=3.0), 10, prompt=(0,)).tolist() == [0, 1, 0, 0, 0]


def test_the_repetition_penalty_is_that_of_transformers() -> None:
    seen = (0, 3, 4)
    logits = LOGITS.clone()
    Sampler(Sampling(repetition_penalty=1.5), seen).adjust(logits)
    expected = RepetitionPenaltyLogitsProcessor(1.5)(torch.tensor([seen]), LOGITS[None].clone())[0]
    assert logits.equal(expected)
    assert logits[3] < LOGITS[3]


def test_a_bias_is_added_to_the_logit() -> None:
    # 1.0 + 0.9 is less than 2.0, 1.0 + 1.5 more.
    assert draws(Sampling(logit_bias={1: 0.9}), 10).tolist() == [1, 0, 0, 0, 0]
    assert draws(Sampling(logit_bias={1: 1.5}), 10).tolist() == [0, 1, 0, 0, 0]


def test_a_bias_moves_a_token() -> None:
    assert draws(Sampling(logit_bias={4: 100.0}), 10).tolist() == [0, 0, 0, 0, 1]


def test_logprobs_are_those_before_temperature_and_bias() -> None:
    sampler = Sampler(Sampling(temperature=2, logit_bias={1: 5.0}, num_logprobs=2), ())
    token = int(choose_tokens([sampler, Sampler(Sampling(), ())], LOGITS.expand(2, -1).clone())[0])
    found = sampler.logprobs[0]
    assert found.token == pytest.approx(math.log(CHANCES[token]), abs=1e-5)
    assert [number for number, _ in found.top] == [0, 1]
    assert [chance for _, chance in found.top] == pytest.approx(CHANCES[:2].log().tolist(), abs=1e-5)


def test_each_row_gets_as_many_top_logprobs_as_it_asks_for() -> None:
    """Also where the rows of a batch ask for different numbers, or for none."""
    numbers = [2, None, 0, 5, 3]
    samplers = [Sampler(Sampling(num_logprobs=number), ()) for number in numbers]
    choose_tokens(samplers, LOGITS.expand(5, -1).clone())
    expected = [(place, pytest.approx(math.log(chance))) for place, chance in enumerate(CHANCES.tolist())]
    for sampler, number in zip(samplers, numbers):
        assert [list(logprobs.top) for logprobs in sampler.logprobs] == ([] if number is None else [expected[:number]])


def test_min_p_leaves_what_has_a_share_of_the_likeliest_ones_chance() -> None:
    # 0.636, 0.234, 0.086, ...: a third of the first leaves the second, half of it does not.
    kept = CHANCES[:2] / CHANCES[:2].sum()
    torch.testing.assert_close(draws(Sampling(temperature=1, min_p=1 / 3))[:2], kept, atol=0.03, rtol=0)
    assert draws(Sampling(temperature=1, min_p=1 / 3))[2:].sum() == 0
    assert draws(Sampling(temperature=1, min_p=0.5)).tolist() == [1, 0, 0, 0, 0]


def test_an_answer_does_not_end_before_it_may() -> None:
    sampler = Sampler(Sampling(min_tokens=2, stops=(0, 1)), ())
    assert [int(choose_tokens([sampler], LOGITS[None].clone())) for _ in range(4)] == [2, 2, 0, 0]


def test_a_limit_beyond_the_vocabulary_is_none() -> None:
    torch.testing.assert_close(draws(Sampling(temperature=1, top_k=2**70)), CHANCES, atol=0.03, rtol=0)
    sampler = Sampler(Sampling(num_logprobs=20), ())
    choose_tokens([sampler], LOGITS[None].clone())
    assert len(sampler.logprobs[0].top) == 5


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_a_row_without_a_highest_logit_fails_alone(number: float) -> None:
    wanted = Sampling(temperature=1.5, seed=7, num_logprobs=1)

    def tokens(rows: torch.Tensor) -> tuple[list[int], list[Sampler]]:
        samplers = [Sampler(wanted, ()) for _ in rows]
        return choose_tokens(samplers, rows.clone()).tolist(), samplers

    rows = LOGITS.expand(3, -1).clone()
    expected, _ = tokens(rows)
    if number == -math.inf:
        rows[1] = number
    else:
        rows[1, 3] = number
    found, samplers = tokens(rows)
    assert [found[0], found[2]] == [expected[0], expected[2]]
    assert [isinstance(sampler.failure, NoNumbers) for sampler in samplers] == [False, True, False]
    assert [len(sampler.logprobs) for sampler in samplers] == [1, 0, 1]


def test_what_cannot_be_drawn_leaves_the_others_their_random_numbers() -> None:
    right, wrong = Sampling(temperature=1.5, seed=7), Sampling(temperature=1.5, min_p=-1.0)

    def tokens(*wants: Sampling) -> list[int]:
        samplers = [Sampler(want, ()) for want in wants]
        return [int(choose_tokens(samplers, LOGITS.expand(len(wants), -1).clone())[0]) for _ in range(20)]

    assert tokens(right, wrong) == tokens(right)
