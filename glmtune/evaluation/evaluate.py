"""Scoring a model on encoded rows: loss over trained tokens, answers to every turn, BLEU and ROUGE.

Under several processes each takes every n-th row. Every process runs the same number of batches, the last ones
perhaps on rows that count for nothing: under ZeRO-3 a forward pass is a meeting that nobody may miss.
"""

from __future__ import annotations

import itertools
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from transformers import GenerationConfig, PreTrainedTokenizerBase

from glmtune.console import quiet_libraries, show_evaluation
from glmtune.data.collating import collate
from glmtune.data.dataset import EncodedData, encode_file
from glmtune.data.encoding import Encoder
from glmtune.data.examples import Turn
from glmtune.data.reading import Reject
from glmtune.family import IGNORE_INDEX
from glmtune.modeling.loading import LoadedModel
from glmtune.modeling.loss import LabelledLoss
from glmtune.modeling.memory import LESS_IN_ANSWERING, memory_errors_explained

from .generate import as_loaded, decode_answer, generate_batch, generation_config, refuse_folder
from .metrics import score_texts

OnBatch = Callable[[int, int], None]


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

    def as_line(self) -> str:
        """Return the prediction as a line of JSON."""
        return json.dumps(vars(self), ensure_ascii=False) + "\n"


@dataclass(frozen=True, kw_only=True)
class Scores:
    """What an evaluation found."""

    metrics: dict[str, float]
    """`loss` and `perplexity` over trained tokens; `bleu-4`, `rouge-1`, `rouge-2`, `rouge-l` from 0 to 100."""
    predictions: tuple[Prediction, ...] = ()
    left_out: tuple[Reject, ...] = ()
    """Rows or turns that were not scored, and why."""


@dataclass(frozen=True, kw_only=True)
class GenerationPlan:
    """How answers are generated during an evaluation."""

    config: GenerationConfig
    max_input_length: int | None
    """Longest prompt in tokens; turns with a longer one are left out and reported."""
    batch_size: int
    synced_gpus: bool = False


@quiet_libraries()
@memory_errors_explained("scoring the model", LESS_IN_ANSWERING)
def evaluate(
    model: str | Path | LoadedModel,
    data_file: str | Path,
    *,
    output: str | Path | None = None,
    base_model: str | None = None,
    batch_size: int = 8,
    max_input_length: int | None = None,
    limit: int | None = None,
    combine: bool = False,
    trust_remote_code: bool = False,
    **generation_options: Any,
) -> Scores:
    """Score a checkpoint or model on a file of rows; without sampling unless `do_sample=True`.

    Args:
        model: A checkpoint, model folder, run folder, hub name or `demo`; or a model loaded before.
        data_file: Rows in a format that training takes.
        output: Where predictions go, one line of JSON each, as they come.
        base_model: Where the base model of an adapter is now, if it has moved.
        batch_size: Rows and prompts at once.
        max_input_length: Longest prompt in tokens; None for no limit.
        limit: Score the first rows only.
        combine: Score only the last assistant turn of each row.
        trust_remote_code: Run code that the model brings along.
        generation_options: Fields of `transformers.GenerationConfig`.
    """
    refuse_folder(Path(data_file))
    loaded = as_loaded(model, base_model=base_model, trust_remote_code=trust_remote_code)
    encoder = Encoder(loaded.tokenizer, loaded.family, train_on="last" if combine else "all")
    data = encode_file(Path(data_file), encoder)
    if limit is not None:
        data = data.first(limit)
    options = {"do_sample": False} | generation_options
    plan = GenerationPlan(
        config=generation_config(loaded.model, options), max_input_length=max_input_length, batch_size=batch_size
    )
    return score_model(
        loaded.model,
        loaded.tokenizer,
        data,
        batch_size=batch_size,
        plan=plan,
        output=output,
        on_batch=show_evaluation,
    )


def score_model(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    data: EncodedData,
    *,
    batch_size: int,
    plan: GenerationPlan | None,
    output: str | Path | None = None,
    on_batch: OnBatch = lambda done, total: None,
    forward_model: Any = None,
) -> Scores:
    """Score a loaded model on encoded rows; every process of the group gets the same metrics.

    Args:
        model: The model itself, for generation.
        tokenizer: Of the model.
        data: Encoded rows.
        batch_size: Rows at once for the loss.
        plan: How to generate; None computes the loss alone.
        output: Where the main process writes predictions.
        on_batch: Called after every batch with the number of batches done and of all.
        forward_model: The model as training wraps it, for the loss; `model` itself by default.
    """
    turns, left_out = _plan_turns(data, plan.max_input_length) if plan else ([], [])
    num_batches = _num_batches(len(data.dataset), batch_size) + (
        _num_batches(len(turns), plan.batch_size) if plan else 0
    )
    counter = itertools.count(1)

    def count_batch() -> None:
        on_batch(next(counter), num_batches)

    with quiet_evaluation(model):
        loss = mean_loss(forward_model or model, tokenizer, data, batch_size=batch_size, on_batch=count_batch)
        metrics = {"loss": loss, "perplexity": math.exp(min(loss, 700.0))}
        if plan is None:
            return Scores(metrics=metrics)
        started = time.monotonic()
        writer = _writer(Path(output)) if output else None
        predictions = list(_predict(model, tokenizer, turns, plan, writer, count_batch))
        metrics["generation_seconds"] = time.monotonic() - started
    texts = [(prediction.prediction, prediction.reference) for prediction in predictions]
    scores = score_texts([text for text, _ in texts], [text for _, text in texts])
    metrics |= scores.as_metrics()
    return Scores(metrics=metrics, predictions=tuple(predictions), left_out=(*data.rejects, *left_out))


def mean_loss(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    data: EncodedData,
    *,
    batch_size: int,
    on_batch: Callable[[], None] = lambda: None,
) -> float:
    """Return the mean cross entropy over every trained token of the data; each counts as much as any other."""
    rank, world_size = _rank(), _world_size()
    device = next(model.parameters()).device
    losses = LabelledLoss(_unwrapped(model))
    total = torch.zeros(2, dtype=torch.float64, device="cpu")
    with torch.no_grad():
        for indices, counts in _shares(len(data.dataset), batch_size, rank, world_size):
            batch = collate([data.dataset[index] for index in indices], tokenizer.pad_token_id)
            labels = batch.pop("labels")
            for name in ("rows", "lengths", "weights"):
                batch.pop(name, None)
            inputs = {name: tensor.to(device) for name, tensor in batch.items()}
            loss = losses.summed(model, inputs, labels.to(device))
            if counts:
                total += torch.tensor([loss.item(), (labels[:, 1:] != IGNORE_INDEX).sum().item()], dtype=torch.float64)
            on_batch()
    sums = _gather(total.tolist())
    return sum(entry[0] for entry in sums) / max(1.0, sum(entry[1] for entry in sums))


@contextmanager
def quiet_evaluation(model: Any) -> Iterator[None]:
    """Switch to evaluation mode and back; random numbers drawn meanwhile do not change the training that follows."""
    was_training = model.training
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        model.eval()
        try:
            yield
        finally:
            model.train(was_training)


def _plan_turns(data: EncodedData, max_input_length: int | None) -> tuple[list[tuple[str, int, Turn]], list[Reject]]:
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


def _predict(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    turns: Sequence[tuple[str, int, Turn]],
    plan: GenerationPlan,
    writer: Callable[[Sequence[Prediction]], None] | None,
    on_batch: Callable[[], None],
) -> Iterator[Prediction]:
    """Yield the prediction of every turn, in order; the main process writes them as they come."""
    rank, world_size = _rank(), _world_size()
    for indices, counts in _shares(len(turns), plan.batch_size, rank, world_size):
        batch = [turns[index] for index in indices]
        prompts = [turn.prompt_ids for _, _, turn in batch]
        answers = generate_batch(model, tokenizer, prompts, plan.config, synced_gpus=plan.synced_gpus)
        own = [
            Prediction(
                where=where,
                turn=number,
                prompt=_decode(tokenizer, turn.prompt_ids),
                reference=decode_answer(tokenizer, turn.answer_ids),
                prediction=decode_answer(tokenizer, answer),
            )
            for (where, number, turn), answer in zip(batch, answers)
        ]
        done = [prediction for share in _gather(own if counts else []) for prediction in share]
        if writer and rank == 0:
            writer(done)
        on_batch()
        yield from done


def _writer(path: Path) -> Callable[[Sequence[Prediction]], None]:
    """Return a function that appends predictions to a fresh file, whole lines at a time."""
    if _rank() == 0:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("", encoding="utf-8")

    def write(predictions: Sequence[Prediction]) -> None:
        with path.open("a", encoding="utf-8") as file:
            file.writelines(prediction.as_line() for prediction in predictions)

    return write


def _num_batches(length: int, batch_size: int) -> int:
    return math.ceil(length / (batch_size * _world_size()))


def _shares(length: int, batch_size: int, rank: int, world_size: int) -> Iterator[tuple[list[int], bool]]:
    """Yield this process's batches of indices, and whether they count; every process gets as many batches."""
    if not length:
        return
    step = batch_size * world_size
    for start in range(0, length, step):
        own = list(range(start + rank * batch_size, min(start + (rank + 1) * batch_size, length)))
        yield (own, True) if own else ([0], False)


def _decode(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    """Return the text of a prompt with its control tokens, so that its roles can be read."""
    text = tokenizer.decode(list(ids))
    assert isinstance(text, str), "one sequence decodes to one text"
    return text


def _rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def _world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def _gather(value: Any) -> list[Any]:
    """Return the values of all processes, in order of their ranks."""
    if _world_size() == 1:
        return [value]
    values: list[Any] = [None] * _world_size()
    dist.all_gather_object(values, value)
    return values


def _unwrapped(model: Any) -> Any:
    return model.module if hasattr(model, "module") else model
