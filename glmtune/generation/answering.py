"""Answers to many prompts: by continuous batching where the model and the options allow it, else batch by batch."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedTokenizerBase

from glmtune.console import notice
from glmtune.constrained.compiling import CompiledGrammar
from glmtune.constrained.held_answers import HeldAnswers
from glmtune.kernels.virtual_tokens import num_tokens_before_rows
from glmtune.modeling.context import context_tokens
from glmtune.processes.groups import rank, world_size

from .completion import Completion
from .continuous_batching import answer_continuously, reason_against_continuous_batching

OnAnswers = Callable[[list[tuple[int, list[int]]]], None]
"""Takes pairs: the place of a prompt, and the ids of its answer."""


def longest_first(lengths: Sequence[int]) -> list[int]:
    """Return the places of the longest, the next longest, and so on: a lack of memory shows at once."""
    return sorted(range(len(lengths)), key=lambda place: -lengths[place])


def num_reports(num_prompts: int, batch_size: int, num_processes: int = 1) -> int:
    """Return how often `answer_prompts` reports, on every process."""
    return math.ceil(num_prompts / (batch_size * num_processes))


def answer_prompts(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    config: GenerationConfig,
    *,
    batch_size: int,
    in_group: bool = False,
    synced_gpus: bool = False,
    grammar: CompiledGrammar | None = None,
    on_answers: OnAnswers,
) -> None:
    """Answer prompts, the longest first, and report the answers as they come.

    Args:
        model: Possibly with an adapter.
        tokenizer: Of the model.
        prompts: Ids.
        config: How the answers are generated.
        batch_size: Prompts at once where all are as long as the longest; shorter ones are taken together in greater
            number, in no more memory.
        in_group: Whether all processes answer the same prompts together, each its share.
        synced_gpus: Whether a forward pass is a meeting of the processes, batch by batch.
        grammar: What the answers have to follow.
        on_answers: Gets the answers of this process since its last call; it is called `num_reports` times, on all
            processes at the same forward pass.
    """
    order = longest_first([len(prompt) for prompt in prompts])
    num_processes = world_size() if in_group else 1
    share = order[rank() :: num_processes] if in_group else order
    reports = num_reports(len(prompts), batch_size, num_processes)
    if not reports:
        return
    reason = reason_against_continuous_batching(model, config)
    if reason is not None:
        say_once_that_batches_wait(reason)
        for number in range(reports):
            places = share[number * batch_size : (number + 1) * batch_size]
            # As many rows on every process; the shortest prompt fills up, and counts for nothing.
            width = len(order[::num_processes][number * batch_size : (number + 1) * batch_size])
            batch = [prompts[place] for place in [*places, *order[-1:] * (width - len(places))]]
            answers = generate_batch(model, tokenizer, batch, config, synced_gpus=synced_gpus, grammar=grammar)
            on_answers(list(zip(places, answers)))
        return
    fresh: list[tuple[int, list[int]]] = []
    num_made = 0
    most = math.ceil(len(prompts) / num_processes)

    def report(number: int) -> None:
        nonlocal num_made
        while num_made < number:
            num_made += 1
            on_answers(fresh.copy())
            fresh.clear()

    def on_pass(ended: list[Completion], num_unfinished: int) -> None:
        report((most - num_unfinished) // batch_size)
        fresh.extend((share[answer.index], answer.written) for answer in ended)

    answer_continuously(
        model,
        [prompts[place] for place in share],
        config,
        rooms=rooms_for_answers(model, [prompts[place] for place in share], config),
        batch_size=batch_size,
        max_tokens=batch_size * (len(prompts[order[0]]) + (config.max_new_tokens or 1)),
        in_group=in_group,
        on_pass=on_pass,
        grammar=grammar,
    )
    report(reports)


@cache
def say_once_that_batches_wait(reason: str) -> None:
    """Tell the user that answers take longer than they might; a run evaluates often, and once is enough."""
    notice(f"answers are written batch by batch, each as slow as its longest: {reason}")


def generate_batch(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    config: GenerationConfig,
    *,
    synced_gpus: bool = False,
    streamer: Any = None,
    stop: Callable[[], bool] = lambda: False,
    grammar: CompiledGrammar | None = None,
) -> list[list[int]]:
    """Return the ids that the model writes after each prompt, up to its stop token and without it.

    The prompts are padded on the left: the new token of every row then stands in the same column. Where `stop` says
    so after a token, the answers end there. Virtual tokens of prompt tuning stand before the padding, which would part
    them from the row: its rows are answered one by one.
    """
    if len(prompts) > 1 and num_tokens_before_rows(model):
        return [
            generate_batch(model, tokenizer, [prompt], config, synced_gpus=synced_gpus, stop=stop, grammar=grammar)[0]
            for prompt in prompts
        ]
    longest = max(len(prompt) for prompt in prompts)
    rooms = rooms_for_answers(model, prompts, config)
    if max(rooms) < (config.max_new_tokens or 1):
        config = copy.deepcopy(config)
        config.max_new_tokens = max(rooms)
    device = model.device
    input_ids = torch.full((len(prompts), longest), tokenizer.pad_token_id, dtype=torch.long)
    attention_mask = torch.zeros_like(input_ids)
    for row, prompt in enumerate(prompts):
        input_ids[row, longest - len(prompt) :] = torch.tensor(prompt)
        attention_mask[row, longest - len(prompt) :] = 1
    held = None if grammar is None else HeldAnswers(grammar, config.eos_token_id or [], config.max_new_tokens)
    # Not inference_mode: weights that ZeRO-3 gathers meanwhile would be unfit for training afterwards.
    with torch.no_grad():
        output = model.generate(
            input_ids=input_ids.to(device),
            attention_mask=attention_mask.to(device),
            generation_config=config,
            synced_gpus=synced_gpus,
            streamer=streamer,
            prefix_allowed_tokens_fn=None if held is None else held.allowed_in(longest),
            stopping_criteria=[lambda ids, scores: torch.full((len(ids),), stop(), device=ids.device)],
        )
    stops = set(config.eos_token_id or [])
    return [_until_stop(row[longest:].tolist(), stops)[:room] for row, room in zip(output, rooms)]


def rooms_for_answers(model: Any, prompts: Sequence[Sequence[int]], config: GenerationConfig) -> list[int]:
    """Return how long the answer to each prompt may become: as the options say, within the model's context."""
    limit, most = context_tokens(model), config.max_new_tokens or 1
    return [most if limit is None else max(1, min(most, limit - len(prompt))) for prompt in prompts]


def _until_stop(ids: list[int], stops: set[int]) -> list[int]:
    end = next((index for index, token in enumerate(ids) if token in stops), len(ids))
    return ids[:end]
