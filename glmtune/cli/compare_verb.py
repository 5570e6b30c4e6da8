"""`glmtune compare`: parses, calls one function and prints. Heavy modules are imported inside."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from glmtune.console import put, put_json, say
from glmtune.errors import GlmtuneError, shown
from glmtune.files.user_paths import user_path
from glmtune.text.plain_json import plain_json
from glmtune.text.visible_text import ANSWER_KEEPS

from .argument_order import check_order
from .options import (
    BatchSize,
    Column,
    Combine,
    MaxNewTokens,
    OwnMetrics,
    Quantization,
    TrustRemoteCode,
    check_files,
    check_model,
    columns_of,
    given,
)


def compare(
    models_and_data: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL_A MODEL_B [MODEL_C ...] DATA_FILE",
            help="Checkpoints, runs, model folders, hub names, two or more; the rows come last.",
        ),
    ],
    retention: Annotated[
        Path | None, typer.Option(help="Rows of another kind, which show what was forgotten; scored in the same way.")
    ] = None,
    output: Annotated[
        list[Path] | None,
        typer.Option(help="Report to write, as its ending says: .md, .json, .html. May stand several times."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
    batch_size: BatchSize = 8,
    max_new_tokens: MaxNewTokens = None,
    limit: Annotated[int | None, typer.Option(help="Score the first rows of each file only.", min=1)] = None,
    combine: Combine = False,
    column: Column = None,
    metrics: OwnMetrics = None,
    judge: Annotated[
        str | None, typer.Option(help="URL up to /v1 of a server whose model compares the answers. It gets the rows.")
    ] = None,
    judge_model: Annotated[str | None, typer.Option(help="Name of the judge there; the first by default.")] = None,
    judge_key_env: Annotated[
        str | None, typer.Option(help="Environment variable that holds its key; OPENAI_API_KEY by default.")
    ] = None,
    quantization: Quantization = None,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Compare models on the same rows. Scores side by side, what got better and worse, and how sure that is."""
    *models, data_file = models_and_data
    if len(models) < 2:
        raise GlmtuneError(
            "`compare` needs two models and a file of rows", fix="`glmtune compare MODEL_A MODEL_B DATA_FILE`"
        )
    check_order("compare", model=models[0], rows=data_file)
    check_files(rows=data_file, metrics=metrics)
    check_files(rows=retention)
    for model in models:
        check_model(model)
    from glmtune.comparing.compare import compare as compare_models
    from glmtune.comparing.report import as_dict, markdown

    found = compare_models(
        models,
        user_path(data_file),
        retention=retention,
        judge_url=judge,
        judge_model=judge_model,
        judge_key_env=judge_key_env,
        batch_size=batch_size,
        limit=limit,
        combine=combine,
        columns=columns_of(column) or None,
        metrics=metrics,
        output=output or (),
        quantization=quantization,
        trust_remote_code=trust_remote_code,
        **given(max_new_tokens=max_new_tokens),
    )
    if as_json:
        put_json(plain_json(as_dict(found), indent=2))
    else:
        put(shown(markdown(found, with_turns=False), ANSWER_KEEPS), end="")
    for path in output or ():
        say(f"report: {path}")
