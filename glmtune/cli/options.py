"""Options that several verbs of the command line have, and what they stand for."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Annotated, Any

import typer

from glmtune.errors import GlmtuneError
from glmtune.files.missing import (
    RUN_FILE,
    is_missing,
    missing_configuration,
    missing_folder,
    missing_metrics,
    missing_rows,
    missing_run,
)
from glmtune.files.user_paths import expand, user_path

BaseModel = Annotated[str | None, typer.Option(help="Where the base model of an adapter is now, if it has moved.")]
TrustRemoteCode = Annotated[bool, typer.Option(help="Run Python code that the model brings along. Read it first.")]
MaxNewTokens = Annotated[int | None, typer.Option(help="Longest answer in tokens.", min=1)]
Temperature = Annotated[float | None, typer.Option(help="Above 0; higher is more varied. 0 is --greedy.")]
TopP = Annotated[float | None, typer.Option(help="Sample from the most likely tokens of this share.")]
TopK = Annotated[int | None, typer.Option(help="Sample from this many most likely tokens.")]
RepetitionPenalty = Annotated[float | None, typer.Option(help="Above 1 discourages repetition.")]
Thinking = Annotated[
    bool | None,
    typer.Option("--thinking/--no-thinking", help="Switch reasoning on or off, where the chat template knows how."),
]
Greedy = Annotated[bool, typer.Option("--greedy", help="Always take the most likely token.")]
Strict = Annotated[
    bool, typer.Option("--strict", help="Stop at the first row that cannot be used, instead of leaving it out.")
]
Seed = Annotated[int | None, typer.Option(help="Makes sampling repeatable.")]


def check_model(name: str, *, base_model: str | None = None, needs_weights: bool = True) -> None:
    """Raise where a model is not there, before anything is imported that loads one: that takes seconds."""
    from glmtune.modeling.finding.model_source import EMBEDDED, find_model

    # A group of processes tells its errors once, by means that are imported with the rest.
    if name in EMBEDDED or "RANK" in os.environ:
        return
    source = find_model(name, base_model=base_model, needs_weights=needs_weights)
    if not os.path.isdir(source.base):
        from glmtune.modeling.finding.hub_access import hub_options

        hub_options(source.base)  # whether the hub answers; that is remembered


def check_files(
    *,
    data_dir: Path | None = None,
    config: Path | None = None,
    run_dir: Path | None = None,
    rows: Path | str | None = None,
    metrics: Path | None = None,
) -> None:
    """Raise where a file or folder of the command line is not there: before seconds go into imports, as above."""
    if {"RANK", "WORLD_SIZE"} & os.environ.keys():
        return
    if data_dir is not None and is_missing(expand(str(data_dir))):
        raise missing_folder(user_path(data_dir))
    if str(rows).startswith("hub:"):
        from glmtune.data.reading.hub import ask_hub

        ask_hub(str(rows))
    if rows is not None and str(rows).strip() and is_missing(expand(str(rows))):
        raise missing_rows(expand(str(rows)))
    if metrics is not None and is_missing(expand(str(metrics))):
        raise missing_metrics(user_path(metrics))
    if run_dir is not None and not (user_path(run_dir) / RUN_FILE).is_file():
        raise missing_run(user_path(run_dir))
    if config is not None and not os.path.lexists(user_path(config)):
        raise missing_configuration(expand(str(config)))


def strict_setting(strict: bool) -> list[str]:
    """Return the override that `--strict` stands for."""
    return ["data_config.strict=true"] if strict else []


def given(**options: Any) -> dict[str, Any]:
    """Return the options that the user gave; the others are the model's own."""
    return {name: value for name, value in options.items() if value is not None}


def sampling_options(
    *,
    greedy: bool,
    temperature: float | None,
    top_p: float | None,
    top_k: int | None,
    repetition_penalty: float | None,
    **others: Any,
) -> dict[str, Any]:
    """Return the generation options that the flags stand for; raises where they contradict each other."""
    is_greedy = greedy or temperature == 0
    _check_sampling(
        "--greedy" if greedy else "--temperature 0" if is_greedy else "",
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        repetition_penalty=repetition_penalty,
    )
    options = given(
        temperature=temperature or None, top_p=top_p, top_k=top_k, repetition_penalty=repetition_penalty, **others
    )
    if is_greedy:
        options["do_sample"] = False
    elif {"temperature", "top_p", "top_k"} & set(options):
        options["do_sample"] = True
    return options


def _check_sampling(
    greedy: str,
    *,
    temperature: float | None,
    top_p: float | None,
    top_k: int | None,
    repetition_penalty: float | None,
) -> None:
    """Raise where a sampling flag is out of range, or contradicts `greedy`, the flag that rules sampling out."""
    for flag, value, expected, holds in (
        ("--temperature", temperature, "0 or more", 0 <= (temperature or 0) < math.inf),
        ("--top-p", top_p, "a number above 0, at most 1", top_p is None or 0 < top_p <= 1),
        ("--top-k", top_k, "1 or more", top_k is None or top_k >= 1),
        (
            "--repetition-penalty",
            repetition_penalty,
            "a number above 0",
            repetition_penalty is None or 0 < repetition_penalty < math.inf,
        ),
    ):
        if not holds:
            raise GlmtuneError(f"`{flag}` is {value}; expected {expected}")
    sampling = given(**{"--temperature": temperature or None, "--top-p": top_p, "--top-k": top_k})
    if greedy and sampling:
        raise GlmtuneError(
            f"`{greedy}` always takes the most likely token, so `{next(iter(sampling))}` would do nothing",
            fix="leave one of them out",
        )
