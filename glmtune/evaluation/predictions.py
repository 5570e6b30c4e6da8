"""The answers that a model gives to the turns of a data set, written into a file as they come.

Under several processes each takes every n-th prompt of them all, sorted by length.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from transformers import GenerationConfig, PreTrainedTokenizerBase

from glmtune.chatformat.examples import Turn
from glmtune.chatformat.replies import ReplyLayout
from glmtune.data.reading.read_rows import Reject
from glmtune.encoded.dataset import EncodedData
from glmtune.files.durable import put_in_place
from glmtune.generation.answering import answer_prompts
from glmtune.generation.decoding import decode_sections, join_sections
from glmtune.processes.groups import gather, rank, world_size
from glmtune.text.plain_json import plain_json

from .metrics import Scorer
from .tool_calls import CallReader, compare_calls

PlannedTurn = tuple[str, int, Turn]
"""Where the row stands, the number of the turn in it, and the turn."""


@dataclass(frozen=True, kw_only=True)
class GenerationPlan:
    """How answers are generated during an evaluation."""

    config: GenerationConfig
    max_input_length: int | None
    """Longest prompt in tokens; turns with a longer one are left out and reported."""
    batch_size: int
    layout: ReplyLayout
    """How the model writes tool calls."""
    synced_gpus: bool = False

    def shortened(self, num_tokens: int) -> GenerationPlan:
        """Return the plan for answers of so many tokens at most, where the options do not ask for more at least."""
        config = copy.deepcopy(self.config)
        most = max(num_tokens, config.min_new_tokens or 0)
        config.max_new_tokens = min(config.max_new_tokens or most, most)
        return replace(self, config=config)


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What the model wrote for one turn."""

    where: str
    """`file:line` of the row."""
    turn: int
    """Number of the turn in its row, from 0."""
    prompt: str
    reference: str
    prediction: str
    tool_call: str | None = None
    """How the calls of the prediction compare with those of the reference; None where neither calls a function."""

    def as_line(self) -> str:
        """Return the prediction as a line of JSON."""
        fields = {name: value for name, value in vars(self).items() if value is not None}
        return plain_json(fields) + "\n"


def plan_turns(data: EncodedData, max_input_length: int | None) -> tuple[list[tuple[str, int, Turn]], list[Reject]]:
    """Return what to generate, (where, number of the turn, turn), and the turns whose prompt is too long."""
    planned: list[tuple[str, int, Turn]] = []
    left_out: list[Reject] = []
    number, last = 0, None
    for where, turn in data.turns():
        number = number + 1 if where == last else 0
        last = where
        length = len(turn.prompt_ids)
        if max_input_length is not None and length > max_input_length:
            reason = f"turn {number}: prompt of {length} tokens, over `max_input_length` ({max_input_length})"
            left_out.append(Reject(where=where, reason=reason))
        else:
            planned.append((where, number, turn))
    return planned, left_out


def has_calls(
    tokenizer: PreTrainedTokenizerBase, data: EncodedData, layout: ReplyLayout, max_input_length: int | None
) -> bool:
    """Whether any turn that would be answered is to call a function, so that there is an accuracy of calls."""
    turns, _ = plan_turns(data, max_input_length)
    references = [decode_sections(tokenizer, turn.answer_ids) for _, _, turn in turns]
    calls = CallReader.for_references(layout, references)
    return any(
        calls.read(sections, _decode(tokenizer, turn.prompt_ids)) for (_, _, turn), sections in zip(turns, references)
    )


def predict(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    turns: Sequence[PlannedTurn],
    plan: GenerationPlan,
    output: Path | None,
    scorer: Scorer,
    on_batch: Callable[[], None],
) -> list[Prediction]:
    """Return the prediction of every turn, in order; `scorer` gets those of this process.

    The main process writes them into `output` as they come, and in order at the end.
    """
    predictions: dict[int, Prediction] = {}
    references = [decode_sections(tokenizer, turn.answer_ids) for _, _, turn in turns]
    calls = CallReader.for_references(plan.layout, references)
    path = output if rank() == 0 else None
    if path:
        _write(path, [])

    def predicted(place: int, answer: Sequence[int]) -> Prediction:
        where, number, turn = turns[place]
        prompt, sections = _decode(tokenizer, turn.prompt_ids), decode_sections(tokenizer, answer)
        return Prediction(
            where=where,
            turn=number,
            prompt=prompt,
            reference=join_sections(references[place]),
            prediction=join_sections(sections),
            tool_call=compare_calls(calls.read(references[place], prompt), calls.read(sections, prompt)),
        )

    def keep(answers: Sequence[tuple[int, list[int]]]) -> None:
        own = {place: predicted(place, ids) for place, ids in answers}
        scorer.add({place: (made.prediction, made.reference) for place, made in own.items()})
        fresh = join_shares(gather(own))
        predictions.update(fresh)
        if path:
            _write(path, list(fresh.values()), mode="a")
        on_batch()

    answer_prompts(
        model,
        tokenizer,
        [turn.prompt_ids for _, _, turn in turns],
        plan.config,
        batch_size=plan.batch_size,
        in_group=world_size() > 1,
        synced_gpus=plan.synced_gpus,
        on_answers=keep,
    )
    in_order = [predictions[place] for place in range(len(turns))]
    if path:
        aside = path.with_name(f".{path.name}.{os.getpid()}")
        _write(aside, in_order)
        put_in_place(aside, path)
    return in_order


def join_shares(shares: Sequence[dict[int, Any]]) -> dict[int, Any]:
    """Return what the processes have for the places that each of them has taken."""
    return {place: value for share in shares for place, value in share.items()}


def _write(path: Path, predictions: Sequence[Prediction], mode: str = "w") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open(mode, encoding="utf-8") as file:
        file.writelines(prediction.as_line() for prediction in predictions)


def _decode(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    """Return the text of a prompt with its control tokens, so that its roles can be read."""
    text = tokenizer.decode(list(ids))
    assert isinstance(text, str), "one sequence decodes to one text"
    return text
