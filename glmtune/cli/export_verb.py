"""`glmtune export`: parse, call one function, print."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from glmtune.console import ended_as_by_ctrl_c
from glmtune.errors import shown

from .options import check_model


def export(
    checkpoint: Annotated[
        str, typer.Argument(help="A checkpoint, a run, a model folder, a hub name, `demo` or `demo-sft`.")
    ],
    out: Annotated[Path, typer.Argument(help="Folder to write; it must be empty or absent.")],
    base_model: Annotated[
        str | None, typer.Option(help="Where the base model of an adapter is now, if it has moved.")
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(help="`bfloat16`, `float16` or `float32`; by default that of the base model's files.")
    ] = None,
    max_shard_size: Annotated[str, typer.Option(help="Largest file of weights.")] = "5GB",
    prompts: Annotated[
        Path | None,
        typer.Option(help="JSON lines with `prompt` or `messages` for the check; by default rows of the run's data."),
    ] = None,
    gguf: Annotated[
        bool, typer.Option("--gguf", help="Also write a GGUF file, by llama.cpp's converter where it is installed.")
    ] = False,
    gguf_type: Annotated[
        str | None, typer.Option(metavar="TYPE", help="`auto`, `f32`, `f16`, `bf16` or `q8_0`; means --gguf, too.")
    ] = None,
    push: Annotated[
        str | None,
        typer.Option(metavar="OWNER/NAME", help="Also upload to this repository of the hub; new ones are private."),
    ] = None,
    trust_remote_code: Annotated[
        bool, typer.Option(help="Run Python code that the model brings along. Read it first.")
    ] = False,
) -> None:
    """Write a checkpoint as a folder for other tools, adapter merged. Check that it is the same model."""
    check_model(checkpoint, base_model=base_model)
    from glmtune.exporting.export_report import report
    from glmtune.exporting.run import export as export_checkpoint

    with ended_as_by_ctrl_c():
        exported = export_checkpoint(
            checkpoint,
            out,
            base_model=base_model,
            dtype=dtype,
            max_shard_size=max_shard_size,
            prompts=prompts,
            gguf=gguf_type or ("auto" if gguf else None),
            push_to=push,
            trust_remote_code=trust_remote_code,
        )
    for line in report(exported):
        print(shown(line))
