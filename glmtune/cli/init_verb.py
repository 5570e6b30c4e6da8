"""`glmtune init`: parses, calls one function, writes what it returns. Heavy modules are imported inside."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from glmtune.console import notice, say
from glmtune.errors import GlmtuneError, shown
from glmtune.files.durable import replace_file
from glmtune.files.new_file import check_new, free_path
from glmtune.files.user_paths import user_path
from glmtune.standard_streams import argument_text
from glmtune.starting.choices import METHODS, check_method

from .options import Column, TrustRemoteCode, check_files, check_model, columns_of

DEFAULT_MODEL = "demo-sft"
DEFAULT_OUTPUT = Path("glmtune.yaml")
ROW_FILES = ("*.csv", "*.tsv", "*.jsonl", "*.json", "*.parquet")

Method = Annotated[
    str | None, typer.Option(metavar="METHOD", help=f"One of {', '.join(METHODS)}; {METHODS[0]} by default.")
]


def init(
    data: Annotated[
        str | None, typer.Argument(help="A file of rows, a quoted pattern, a folder, or hub:OWNER/NAME.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help=f"A model folder, a hub name, or `demo`; `{DEFAULT_MODEL}` by default.")
    ] = None,
    method: Method = None,
    output: Annotated[
        Path | None, typer.Option(help=f"YAML file to write, a new one; `{DEFAULT_OUTPUT}` by default.")
    ] = None,
    column: Column = None,
    from_file: Annotated[
        Path | None,
        typer.Option("--from", help="Translate this configuration of LLaMA-Factory, ms-swift or axolotl instead."),
    ] = None,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Write a configuration that fits your rows and this machine.

    At a terminal it asks for what is left out.
    """
    check_method(method)
    if from_file is not None:
        _refuse_beside_from(data=data, method=method, column=column)
        _translate(from_file, model, user_path(output or DEFAULT_OUTPUT))
        return
    if data is None:
        data, model, method, output = _asked(model, method, output)
    check_files(rows=data)
    model, method, output = model or DEFAULT_MODEL, method or METHODS[0], user_path(output or DEFAULT_OUTPUT)
    check_new(output)
    check_model(model)
    from glmtune.starting.run import first_config

    first = first_config(
        argument_text(data), model, method=method, columns=columns_of(column), trust_remote_code=trust_remote_code
    )
    for line in (*first.notes, *first.unread):
        notice(line)
    _write(output, first.text, first.data_dir, model, first.num_gpus)


def _translate(source: Path, model: str | None, output: Path) -> None:
    """Write the configuration that comes of another tool's, and list what has no place in it."""
    check_new(output)
    from glmtune.starting.run import translated_config

    translated = translated_config(source)
    for line in translated.left_out:
        say(f"not translated: {line}")
    _write(output, translated.text, Path(translated.data_dir), model or translated.model or "MODEL", num_gpus=1)


def _write(output: Path, text: str, data_dir: Path, model: str, num_gpus: int) -> None:
    """Write a configuration to a new file, and say how it is trained with."""
    check_new(output)
    replace_file(output, text.encode())
    processes = ["--nproc", str(num_gpus)] if num_gpus > 1 else []
    say(f"written: {output}; every value in it may be changed")
    say(f"next: {shlex.join(['glmtune', 'train', str(data_dir), model, str(output), *processes])}")


def _refuse_beside_from(**given: Any) -> None:
    """Raise where something is given that the other tool's file says itself."""
    for name, value in given.items():
        if value:
            option = "rows" if name == "data" else f"`--{name}`"
            raise GlmtuneError(f"`--from` takes {option} from the file that it names", fix="leave one of them out")


def _asked(model: str | None, method: str | None, output: Path | None) -> tuple[str, str, str, Path]:
    """Ask at the terminal for what is not given; each question has an answer that Enter takes."""
    if not sys.stdin.isatty():
        raise GlmtuneError("no rows are given", fix="name a file or a folder: `glmtune init rows.csv --model MODEL`")
    if output is not None:
        check_new(user_path(output))
    files = sorted(str(path) for pattern in ROW_FILES for path in Path().glob(pattern))
    # What is shown otherwise than it is called would be another file's name.
    offered = next((name for name in files if name == shown(name).strip()), None)
    data = _ask("Your rows: a file or a folder", offered, lambda answer: check_files(rows=answer))
    model = model or _ask("The model to fine-tune", DEFAULT_MODEL, check_model)
    method = method or _ask(f"The method, one of {', '.join(METHODS)}", METHODS[0], check_method)
    free = str(free_path(DEFAULT_OUTPUT))
    output = output or Path(_ask("The file to write", free, lambda answer: check_new(user_path(answer))))
    return data, model, method, output


def _ask(question: str, default: str | None, check: Callable[[str], None]) -> str:
    """Return the answer to a question, without blanks around it; what is wrong with one is told, and asked again."""
    while True:
        try:
            answer = typer.prompt(question, default=default, err=True).strip() or default
        except typer.Abort:  # Ctrl-C or Ctrl-D, behind which the cursor still stands
            say("")
            raise KeyboardInterrupt from None
        if answer is None:
            continue
        try:
            check(answer)
        except GlmtuneError as error:
            say(error.what, *([f"hint: {error.fix}"] if error.fix else []))
        else:
            return answer
