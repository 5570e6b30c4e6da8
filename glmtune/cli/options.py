"""Options that several verbs of the command line have, and what they stand for."""

from __future__ import annotations

import functools
import inspect
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, get_type_hints

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
Quantization = Annotated[
    str | None, typer.Option(metavar="BITS", help="`4bit` or `8bit` for the base model's weights (`glmtune[quant]`).")
]
TrustRemoteCode = Annotated[bool, typer.Option(help="Run Python code that the model brings along. Read it first.")]
BatchSize = Annotated[int, typer.Option(help="Rows or prompts at once.", min=1)]
Combine = Annotated[bool, typer.Option(help="Score the last assistant turn of each row only.")]
OwnMetrics = Annotated[
    Path | None,
    typer.Option(help="Python file whose `compute(predictions, references)` returns more metrics; it is run."),
]
MaxNewTokens = Annotated[int | None, typer.Option(help="Longest answer in tokens.", min=1)]
Thinking = Annotated[
    bool | None,
    typer.Option("--thinking/--no-thinking", help="Switch reasoning on or off, where the chat template knows how."),
]
Strict = Annotated[
    bool, typer.Option("--strict", help="Stop at the first row that cannot be used, instead of leaving it out.")
]
Column = Annotated[
    list[str] | None,
    typer.Option(metavar="KEY=NAME", help="What the file calls a key of the format: instruction=question."),
]
Schema = Annotated[
    Path | None, typer.Option(metavar="FILE", help="JSON Schema that every answer follows; needs `glmtune[schema]`.")
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


def columns_of(entries: Sequence[str] | None) -> dict[str, str]:
    """Return what `--column` maps: a key of the format, and the file's own name for it."""
    columns: dict[str, str] = {}
    for entry in entries or ():
        key, equals, name = (part.strip() for part in entry.partition("="))
        if not key or not equals or not name:
            raise GlmtuneError(f"`--column {entry}` is not KEY=NAME", fix="such as `--column instruction=question`")
        if columns.get(key, name) != name:
            raise GlmtuneError(
                f"`--column` names `{columns[key]}` and `{name}` for `{key}`", fix="leave one of them out"
            )
        columns[key] = name
    return columns


def given(**options: Any) -> dict[str, Any]:
    """Return the options that the user gave; the others are the model's own."""
    return {name: value for name, value in options.items() if value is not None}


@dataclass(frozen=True, kw_only=True)
class SamplingOptions:
    """How answers are written, as the options of a verb say it; None is the model's own setting."""

    max_new_tokens: MaxNewTokens = None
    temperature: Annotated[float | None, typer.Option(help="Above 0; higher is more varied. 0 is --greedy.")] = None
    top_p: Annotated[float | None, typer.Option(help="Sample from the most likely tokens of this share.")] = None
    top_k: Annotated[int | None, typer.Option(help="Sample from this many most likely tokens.")] = None
    repetition_penalty: Annotated[float | None, typer.Option(help="Above 1 discourages repetition.")] = None
    greedy: Annotated[bool, typer.Option("--greedy", help="Always take the most likely token.")] = False

    def __post_init__(self) -> None:
        """Raise where a value is out of range, or contradicts another."""
        for flag, value, expected, holds in self._bounds():
            if value is not None and not holds:
                raise GlmtuneError(f"`{flag}` is {value}; expected {expected}")
        idle = given(**{"--temperature": self.temperature or None, "--top-p": self.top_p, "--top-k": self.top_k})
        if self.is_greedy and idle:
            flag = "--greedy" if self.greedy else "--temperature 0"
            raise GlmtuneError(
                f"`{flag}` always takes the most likely token, so `{next(iter(idle))}` would do nothing",
                fix="leave one of them out",
            )

    @property
    def is_greedy(self) -> bool:
        """Whether an option rules sampling out."""
        return self.greedy or self.temperature == 0

    def generation_options(self) -> dict[str, Any]:
        """Return the fields of `transformers.GenerationConfig` that the options stand for."""
        options = given(
            max_new_tokens=self.max_new_tokens,
            temperature=self.temperature or None,
            top_p=self.top_p,
            top_k=self.top_k,
            repetition_penalty=self.repetition_penalty,
        )
        if self.is_greedy:
            options["do_sample"] = False
        elif {"temperature", "top_p", "top_k"} & set(options):
            options["do_sample"] = True
        return options

    def _bounds(self) -> Iterator[tuple[str, float | None, str, bool]]:
        """Yield option, value, what is expected of it, and whether it is so."""
        temperature, top_p, penalty = self.temperature or 0, self.top_p or 0, self.repetition_penalty or 0
        yield "--temperature", self.temperature, "0 or more", 0 <= temperature < math.inf
        yield "--top-p", self.top_p, "a number above 0, at most 1", 0 < top_p <= 1
        yield "--top-k", self.top_k, "1 or more", (self.top_k or 0) >= 1
        yield "--repetition-penalty", self.repetition_penalty, "a number above 0", 0 < penalty < math.inf


def with_sampling_options(verb: Callable[..., None]) -> Callable[..., None]:
    """Return a verb that has the options of `SamplingOptions` in the place of its parameter `sampling`."""
    hints = {name: hint for name, hint in get_type_hints(verb, include_extras=True).items() if name != "return"}
    own = get_type_hints(SamplingOptions, include_extras=True)
    parameters = []
    for parameter in inspect.signature(verb).parameters.values():
        if parameter.name != "sampling":
            parameters.append(parameter.replace(annotation=hints[parameter.name]))
            continue
        parameters += [
            parameter.replace(name=field.name, annotation=own[field.name], default=field.default)
            for field in fields(SamplingOptions)
        ]

    @functools.wraps(verb)
    def command(**arguments: Any) -> None:
        sampling = SamplingOptions(**{field.name: arguments.pop(field.name) for field in fields(SamplingOptions)})
        verb(**arguments, sampling=sampling)

    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return command
