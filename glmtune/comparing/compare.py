"""Models answer the same rows, one after the other; what each does better than the first, and how sure that is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from glmtune.console import say
from glmtune.errors import GlmtuneError
from glmtune.evaluation.evaluate import Scores, evaluate
from glmtune.evaluation.metrics import METRIC_NAMES
from glmtune.evaluation.predictions import Prediction
from glmtune.evaluation.tool_calls import FALSE_CALL, NO_CALL, OTHER_ARGUMENTS, OTHER_FUNCTION, SAME
from glmtune.files.new_file import check_new
from glmtune.files.user_paths import user_path
from glmtune.generation.generate import refuse_folder
from glmtune.python_arguments import expect_counts, expect_mapping, expect_paths

from .bootstrap import PairedDifference, difference
from .comparison import LENGTH, AgainstFirst, AnswerChange, Comparison, FileComparison
from .judge import judge
from .report import check_ending, write_report

CALL_NAMES = ("tool-name-accuracy", "tool-call-accuracy", "false-call-rate")
OF_ALL_TOKENS = ("loss", "perplexity")
"""Figures of a whole file, without an interval."""

RANKS = {None: 0, SAME: 3, OTHER_ARGUMENTS: 2, OTHER_FUNCTION: 1, NO_CALL: 0, FALSE_CALL: -1}
"""How good a turn's calls are, where calls tell two answers apart."""
NOTABLE = 1.0
"""Points of ROUGE-L by which an answer has to be better or worse to count as such."""

Key = tuple[str, int]
"""A turn: where its row stands, and its number in it."""


def compare(
    models: Sequence[str | Path],
    data_file: str | Path,
    *,
    retention: str | Path | None = None,
    judge_url: str | None = None,
    judge_model: str | None = None,
    judge_key_env: str | None = None,
    batch_size: int = 8,
    limit: int | None = None,
    combine: bool = False,
    columns: Mapping[str, str] | None = None,
    metrics: str | Path | None = None,
    output: Sequence[str | Path] = (),
    quantization: str | None = None,
    trust_remote_code: bool = False,
    **generation_options: Any,
) -> Comparison:
    """Let two or more models answer the same rows, and compare each with the first; without sampling by default.

    Args:
        models: Checkpoints, run folders, model folders, hub names; such as a base model and what was trained from it.
        data_file: Rows in a format that training takes.
        retention: Rows of another kind, which show what was forgotten; measured in the same way.
        judge_url: Of a server that speaks OpenAI's protocol, up to `/v1`: its model says which answers are better.
            It is sent the rows.
        judge_model: The judge's name there; the first that the server lists by default.
        judge_key_env: Environment variable that holds its key; `OPENAI_API_KEY` by default.
        batch_size: As in `glmtune.evaluate`, and so are all that follow but `output`.
        limit: Rows of each file at most.
        combine: Only the last assistant turn of each row.
        columns: Key of the format: what the files call it.
        metrics: A Python file with metrics of your own, which is run.
        output: Reports that are written: names that end with `.md`, `.json` or `.html`.
        quantization: `4bit` or `8bit` rounds the base models' weights while they are loaded.
        trust_remote_code: Run code that the models bring along.
        generation_options: Fields of `transformers.GenerationConfig`.

    Raises:
        GlmtuneError: Fewer than two models, one of them twice, no turn that all of them have answered, or a report
            that exists already.
    """
    expect_paths(data_file=data_file, retention=retention, metrics=metrics)
    expect_counts(batch_size=batch_size, limit=limit)
    expect_mapping(columns=columns)
    names = _names(models)
    reports = [user_path(path) for path in output]
    for report in reports:
        check_ending(report)
        check_new(report)
    files = [user_path(path) for path in (data_file, retention) if path is not None]
    for file in files:
        refuse_folder(file)
    found: dict[str, list[Scores]] = {}
    for name, model in zip(names, models):
        found[name] = []
        for file in files:
            say(f"{name}: {file}")
            found[name].append(
                evaluate(
                    model,
                    file,
                    batch_size=batch_size,
                    limit=limit,
                    combine=combine,
                    columns=columns,
                    metrics=metrics,
                    quantization=quantization,
                    trust_remote_code=trust_remote_code,
                    **generation_options,
                )
            )
    asked = {"url": judge_url, "model": judge_model, "api_key_env": judge_key_env} if judge_url else None
    comparison = Comparison(
        names=names,
        files=[
            compared_file(str(file), {name: scores[place] for name, scores in found.items()}, asked)
            for place, file in enumerate(files)
        ],
    )
    for report in reports:
        write_report(comparison, report)
    return comparison


def _names(models: Sequence[str | Path]) -> list[str]:
    names = [str(model) for model in models]
    if len(names) < 2:
        raise GlmtuneError("one model is compared with nothing", fix="name two or more, and then the rows")
    twice = [name for name, number in Counter(names).items() if number > 1]
    if twice:
        raise GlmtuneError(f"`{twice[0]}` is named twice", fix="name each model once")
    return names


def compared_file(
    data_file: str, scores: Mapping[str, Scores], asked: Mapping[str, Any] | None = None
) -> FileComparison:
    """Compare the scores that models have reached on one file.

    Args:
        data_file: Its name.
        scores: Of each model, by its name; the first is what the others are compared with.
        asked: `url`, `model` and `api_key_env` of a judge, if one is asked.

    Raises:
        GlmtuneError: There is no turn that every model has answered.
    """
    turns = {name: _by_turn(each) for name, each in scores.items()}
    first, *others = turns
    common = [key for key in turns[first] if all(key in each for each in turns.values())]
    if not common:
        raise GlmtuneError("there is no turn that every model has answered", where=data_file)
    figures = {name: _figures([each[key] for key in common]) for name, each in turns.items()}
    rows = [where for where, _ in common]
    return FileComparison(
        data_file=data_file,
        num_turns=len(common),
        num_left_out=max(len(each.left_out) for each in scores.values()),
        metrics={name: dict(_means(figures[name], scores[name])) for name in turns},
        others=[
            _against_first(
                name,
                [(turns[first][key], turns[name][key]) for key in common],
                {
                    figure: difference(values, figures[name][figure], rows)
                    for figure, values in figures[first].items()
                    if not all(value != value for value in values)
                },
                asked,
            )
            for name in others
        ],
    )


Answered = tuple[Prediction, Mapping[str, float]]


def _by_turn(scores: Scores) -> dict[Key, Answered]:
    pairs = zip(scores.predictions, scores.text_scores, strict=True)
    return {(made.where, made.turn): (made, texts) for made, texts in pairs}


def _figures(answered: Sequence[Answered]) -> dict[str, list[float]]:
    """Return the figures of each turn, NaN where a turn has none; shares are 0 or 100."""
    figures: dict[str, list[float]] = {name: [texts[name] for _, texts in answered] for name in METRIC_NAMES}
    figures[LENGTH] = [float(len(made.prediction)) for made, _ in answered]
    outcomes = [made.tool_call for made, _ in answered]
    calls = [outcome not in (None, FALSE_CALL) for outcome in outcomes]
    if any(calls):
        good = ((SAME, OTHER_ARGUMENTS), (SAME,), (FALSE_CALL,))
        for name, counted, is_of in zip(CALL_NAMES, good, (True, True, False)):
            figures[name] = [
                100.0 * (outcome in counted) if is_call == is_of else float("nan")
                for outcome, is_call in zip(outcomes, calls)
            ]
    return figures


def _means(figures: Mapping[str, Sequence[float]], scores: Scores) -> Iterator[tuple[str, float]]:
    """Yield the figures of a model: those of all tokens, those of the turns that all have answered, its own ones."""
    yield from ((name, scores.metrics[name]) for name in OF_ALL_TOKENS)
    for name, values in figures.items():
        there = [value for value in values if value == value]
        if there:
            yield name, sum(there) / len(there)
    known = {*OF_ALL_TOKENS, *METRIC_NAMES, *CALL_NAMES, "generation_seconds"}
    yield from ((name, value) for name, value in scores.metrics.items() if name not in known)


def _against_first(
    name: str,
    pairs: Sequence[tuple[Answered, Answered]],
    differences: Mapping[str, PairedDifference],
    asked: Mapping[str, Any] | None,
) -> AgainstFirst:
    changed = sorted(((_gain(*pair), pair) for pair in pairs), key=lambda each: each[0], reverse=True)
    outcomes = Counter((one.tool_call or "-", other.tool_call or "-") for (one, _), (other, _) in pairs)
    return AgainstFirst(
        name=name,
        differences=differences,
        better=[_changed(*pair) for gain, pair in changed if gain > 0],
        worse=[_changed(*pair) for gain, pair in reversed(changed) if gain < 0],
        num_equal=sum(one.prediction == other.prediction for (one, _), (other, _) in pairs),
        calls={change: number for change, number in outcomes.items() if change != ("-", "-")},
        judgement=judge([one for (one, _), _ in pairs], [other for _, (other, _) in pairs], **asked) if asked else None,
    )


def _gain(first: Answered, second: Answered) -> float:
    """Return by how much the second answer is better: by its calls where they differ, else by ROUGE-L; 0 if hardly."""
    ranks = RANKS[second[0].tool_call] - RANKS[first[0].tool_call]
    if ranks:
        return 1000.0 * ranks
    points = second[1]["rouge-l"] - first[1]["rouge-l"]
    return points if abs(points) >= NOTABLE else 0.0


def _changed(first: Answered, second: Answered) -> AnswerChange:
    (one, one_scores), (other, other_scores) = first, second
    return AnswerChange(
        where=one.where,
        turn=one.turn,
        prompt=one.prompt,
        reference=one.reference,
        answers=(one.prediction, other.prediction),
        rouge_l=(one_scores["rouge-l"], other_scores["rouge-l"]),
        tool_calls=(one.tool_call, other.tool_call),
    )
