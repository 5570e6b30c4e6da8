"""Scoring a model on encoded rows: loss over trained tokens, answers to every turn, BLEU, ROUGE and tool calls.

Under several processes each takes its share. All of them run the same number of forward passes, some perhaps on rows
that count for nothing: under ZeRO-3 a forward pass is a meeting that nobody may miss.
"""

from __future__ import annotations

import itertools
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, fields
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from glmtune.chatformat.encoding import Encoder
from glmtune.chatformat.replies import reply_layout
from glmtune.console import notice, quiet_libraries, show_evaluation
from glmtune.data.conversion import row_format
from glmtune.data.formats import AUTO, RowFormat
from glmtune.data.known_columns import is_read
from glmtune.data.reading.read_rows import Reject, read_rows
from glmtune.encoded.dataset import EncodedData, encode_file
from glmtune.errors import require
from glmtune.files.new_file import reserved
from glmtune.files.user_paths import user_path
from glmtune.generation.answering import num_reports
from glmtune.generation.generate import as_loaded, generation_config, note_short_context, refuse_folder
from glmtune.modeling.context import context_tokens
from glmtune.modeling.finding.run_record import columns_of_run
from glmtune.modeling.library_errors import answering_explained
from glmtune.modeling.loading import LoadedModel
from glmtune.modeling.out_of_memory import LESS_IN_ANSWERING, memory_errors_explained
from glmtune.processes.groups import gather, world_size
from glmtune.python_arguments import expect_counts, expect_mapping, expect_paths

from .mean_loss import mean_loss, plan_loss
from .metrics import Scorer, means
from .own_metrics import MetricsFailed, OwnMetrics, load_metrics
from .predictions import GenerationPlan, Prediction, join_shares, plan_turns, predict
from .tool_calls import call_metrics

OnBatch = Callable[[int, int], None]
NUM_ROWS_TRIED = 20
"""Of a file: whether they can be read as a run reads its own."""


@dataclass(frozen=True, kw_only=True)
class Scores:
    """What an evaluation found."""

    metrics: dict[str, float]
    """`loss` and `perplexity` over trained tokens; `bleu-4`, `rouge-1`, `rouge-2`, `rouge-l` from 0 to 100.

    Where references call functions, `tool-name-accuracy`, `tool-call-accuracy` and `false-call-rate`, too."""
    predictions: tuple[Prediction, ...] = ()
    text_scores: tuple[Mapping[str, float], ...] = ()
    """BLEU and ROUGE of each prediction."""
    left_out: tuple[Reject, ...] = ()
    """Rows or turns that were not scored, and why."""
    failed: MetricsFailed | None = None
    """Why the user's own metrics are missing."""

    def __repr__(self) -> str:
        """Return the metrics, and the numbers of predictions and of what was left out."""
        metrics = ", ".join(f"{name} {value:.4g}" for name, value in self.metrics.items())
        left_out = f", {len(self.left_out):,} left out" if self.left_out else ""
        return f"<Scores: {metrics}; {len(self.predictions):,} predictions{left_out}>"

    def to_pandas(self) -> Any:
        """Return the predictions as a data frame of pandas, a row for each turn."""
        columns = [each.name for each in fields(Prediction)]
        return require("pandas").DataFrame([vars(each) for each in self.predictions], columns=columns)


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
    columns: Mapping[str, str] | None = None,
    metrics: str | Path | None = None,
    trust_remote_code: bool = False,
    quantization: str | None = None,
    **generation_options: Any,
) -> Scores:
    """Score a checkpoint or model on a file of rows; without sampling unless `do_sample=True`.

    Args:
        model: A checkpoint, model folder, run folder, hub name or `demo`; or a model loaded before.
        data_file: Rows in a format that training takes.
        output: Where predictions go, one line of JSON each, as they come; at the end in the order of the data. A
            file that is there already is an error.
        base_model: Where the base model of an adapter is now, if it has moved.
        batch_size: Rows and prompts at once where all are as long as the longest; more of them where they are shorter.
        max_input_length: Longest prompt in tokens; None for no limit.
        limit: Score the first rows only.
        combine: Score only the last assistant turn of each row.
        columns: Key of the format: what the file calls it; by default as the run, of which the model is, reads its
            rows, where those of the file can be read so.
        metrics: A Python file with metrics of your own, which is run: see `glmtune.evaluation.own_metrics`.
        trust_remote_code: Run code that the model brings along.
        quantization: `4bit` or `8bit` rounds the base model's weights while they are loaded.
        generation_options: Fields of `transformers.GenerationConfig`.
    """
    expect_paths(data_file=data_file, output=output, metrics=metrics)
    expect_counts(batch_size=batch_size, limit=limit, max_input_length=max_input_length)
    expect_mapping(columns=columns)
    data_file = user_path(data_file)
    output = user_path(output) if output is not None else None
    refuse_folder(data_file)
    own_metrics = load_metrics(metrics) if metrics is not None else None
    with reserved(output) if output is not None else nullcontext():
        loaded = as_loaded(model, base_model=base_model, trust_remote_code=trust_remote_code, quantization=quantization)
        encoder = Encoder(
            loaded.tokenizer,
            loaded.family,
            train_on="last" if combine else "all",
            # A row that the model has no room for is left out, and reported: its loss would mean nothing.
            max_length_tokens=context_tokens(loaded.model),
            truncation="drop",
        )
        row_format = RowFormat(columns=columns) if columns else _row_format_of(model, data_file)
        data = encode_file(data_file, encoder, row_format=row_format, limit=limit)
        for line in data.unread.lines("scored"):
            notice(line)
        options = {"do_sample": False} | generation_options
        note_short_context(options, context_tokens(loaded.model))
        plan = GenerationPlan(
            config=generation_config(loaded.model, options),
            max_input_length=max_input_length,
            batch_size=batch_size,
            layout=reply_layout(encoder.renderer),
        )
        with answering_explained(loaded.model):
            return score_model(
                loaded.model,
                loaded.tokenizer,
                data,
                batch_size=batch_size,
                plan=plan,
                output=output,
                own_metrics=own_metrics,
                on_batch=show_evaluation,
            )


def _row_format_of(model: Any, data_file: Path) -> RowFormat:
    """Return how the run that a model comes from reads its rows, where the first rows of a file can be read so."""
    name, columns = (None, {}) if isinstance(model, LoadedModel) else columns_of_run(model)
    if name is None and not columns:
        return AUTO
    own = row_format(name, columns, "data_config.format")
    if not any(is_read(row, own) for row in islice(read_rows(data_file, own), NUM_ROWS_TRIED)):
        return AUTO
    told = ", ".join(
        [*([f"format `{name}`"] if name else []), *(f"`{key}` is `{own}`" for key, own in columns.items())]
    )
    notice(f"the rows are read as the run reads its own: {told}")
    return own


def score_model(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    data: EncodedData,
    *,
    batch_size: int,
    plan: GenerationPlan | None,
    output: str | Path | None = None,
    own_metrics: OwnMetrics | None = None,
    on_batch: OnBatch = lambda done, total: None,
    forward_model: Any = None,
) -> Scores:
    """Score a loaded model on encoded rows; every process of the group gets the same metrics.

    Args:
        model: The model itself, for generation.
        tokenizer: Of the model.
        data: Encoded rows.
        batch_size: Rows at once for the loss, where all are as long as the longest.
        plan: How to generate; None computes the loss alone.
        output: Where the main process writes predictions.
        own_metrics: The user's, computed of the same predictions.
        on_batch: Called after every batch with the number of batches done and of all.
        forward_model: The model as training wraps it, for the loss; `model` itself by default.
    """
    turns, left_out = plan_turns(data, plan.max_input_length) if plan else ([], [])
    num_batches = len(plan_loss(data, batch_size)) // world_size()
    if plan:
        num_batches += num_reports(len(turns), plan.batch_size, world_size())
    counter = itertools.count(1)

    def count_batch() -> None:
        on_batch(next(counter), num_batches)

    with quiet_evaluation(model):
        loss = mean_loss(forward_model or model, tokenizer, data, batch_size=batch_size, on_batch=count_batch)
        metrics = {"loss": loss, "perplexity": _perplexity(loss)}
        if not math.isfinite(loss):
            notice(f"the loss over these rows is {loss}: the model's weights, or the type it computes in, are not fit")
        if plan is None:
            return Scores(metrics=metrics)
        started = time.monotonic()
        with Scorer(len(turns) // world_size()) as scorer:
            predictions = predict(
                model, tokenizer, turns, plan, user_path(output) if output else None, scorer, count_batch
            )
            metrics["generation_seconds"] = time.monotonic() - started
            rows = join_shares(gather(scorer.scores()))
    text_scores = tuple(rows[place] for place in sorted(rows))
    metrics |= means(text_scores)
    metrics |= call_metrics([prediction.tool_call for prediction in predictions])
    failed: MetricsFailed | None = None
    if own_metrics is not None:
        try:
            metrics |= own_metrics.values(
                [each.prediction for each in predictions], [each.reference for each in predictions]
            )
        except MetricsFailed as error:
            # The figures that are there already are worth more than an end: whoever asked says what is missing.
            failed = error
            metrics |= dict.fromkeys(own_metrics.names, math.nan)
    return Scores(
        metrics=metrics,
        predictions=tuple(predictions),
        text_scores=text_scores,
        left_out=(*data.rejects, *left_out),
        failed=failed,
    )


def _perplexity(loss: float) -> float:
    """Return e to the power of the loss; infinite where that is more than a number can be, NaN where the loss is."""
    return math.inf if loss > math.log(sys.float_info.max) else math.exp(loss)


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
