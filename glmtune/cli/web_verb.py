"""`glmtune web`: parses and calls one function. No torch is imported."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer


def web(
    folder: Annotated[Path, typer.Argument(help="A run's folder, or one that holds runs; by default this one.")] = Path(
        "."
    ),
    port: Annotated[int, typer.Option(help="0 takes a free one.", min=0, max=65535)] = 8800,
    host: Annotated[str, typer.Option(help="The default lets in browsers of this machine only.")] = "127.0.0.1",
    allowed_host: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Answer to this name or address, too; 421 to others."),
    ] = None,
    read_only: Annotated[bool, typer.Option("--read-only", help="Let nobody stop a run from the page.")] = False,
) -> None:
    """Watch runs in a browser. A key stands in the address that is printed; GLMTUNE_WEB_KEY gives one of yours."""
    from glmtune.page.run import KEY_VARIABLE
    from glmtune.page.run import web as run_web

    run_web(
        folder,
        host=host,
        port=port,
        key=os.environ.get(KEY_VARIABLE) or None,
        allowed_hosts=allowed_host or (),
        read_only=read_only,
    )
