"""The `glmtune data` verbs: every one parses, calls one function and prints. Heavy modules are imported inside."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from glmtune.console import notice, put_json, say
from glmtune.errors import GlmtuneError, shown
from glmtune.files.new_file import check_new
from glmtune.files.user_paths import user_path
from glmtune.text.plain_json import plain_json

from .argument_order import check_order
from .options import Column, Strict, check_files, columns_of, strict_setting

data_app = typer.Typer(
    help="Look at rows before they are trained on, convert, encode them.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

Data = Annotated[str, typer.Argument(help="A file of rows, a quoted pattern, a folder, or hub:OWNER/NAME.")]
Tokenizer = Annotated[
    str, typer.Argument(help="Whose tokenizer: a model folder, a checkpoint, a hub name, `demo` or `demo-sft`.")
]
Config = Annotated[
    Path | None, typer.Option(help="Read and encode as this configuration says (files, format, lengths).")
]
TrustRemoteCode = Annotated[bool, typer.Option(help="Run Python code that the model brings along. Read it first.")]
MAX_REJECTS_SHOWN = 5


@data_app.command()
def inspect(
    data: Data,
    model: Tokenizer,
    row: Annotated[int | None, typer.Option(help="Number of the row, from 0; the first by default.", min=0)] = None,
    config: Config = None,
    column: Column = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print {row, input_ids, labels} for every row.")] = False,
    html: Annotated[
        Path | None, typer.Option(help="Write the rows as a web page to this file: all, or the one of --row.")
    ] = None,
    limit: Annotated[int, typer.Option(help="Rows of the web page at most.", min=1)] = 200,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Show every token of a row with its id and its label."""
    if html is not None:
        check_new(user_path(html))
    check_order("data inspect", rows=data, model=model)
    check_files(rows=data, config=config)
    from glmtune.datatools.data_inspection import inspect_rows, write_html
    from glmtune.encoded.inspection import format_text, format_tokens

    show_all = as_json or html is not None
    inspected = inspect_rows(
        data,
        model,
        config=config,
        columns=columns_of(column),
        row=row if row is not None or show_all else 0,
        trust_remote_code=trust_remote_code,
    )
    if html is not None:
        say(f"{write_html(html, inspected, title=str(data), limit=limit):,} rows in {html}")
        return
    color = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    for item in inspected.rows:
        if as_json:
            line: dict[str, Any] = {"row": item.row}
            line |= {"error": item.problem} if item.problem else {"input_ids": item.input_ids, "labels": item.labels}
            put_json(plain_json(line | ({"weights": item.weights} if item.weights else {})))
        elif item.problem:
            raise GlmtuneError(item.problem, where=item.where)
        else:
            print(shown(f"row {item.row} ({item.where})"))
            print(format_tokens(inspected.tokenizer, item.input_ids, item.labels, color=color))
            print(format_text(inspected.tokenizer, item.input_ids, item.labels, color=color))


@data_app.command()
def check(
    data: Data,
    model: Annotated[
        str | None, typer.Argument(help="Whose tokenizer counts and checks; left out, only the rows are read.")
    ] = None,
    config: Config = None,
    column: Column = None,
    plot: Annotated[Path | None, typer.Option(help="Draw the lengths in tokens to this PNG; needs MODEL.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
    max_bad: Annotated[
        float, typer.Option(help="Exit with 2 above so many rejected rows; below 1 a share of all.", min=0)
    ] = 0,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Count what is in the rows, and which cannot be trained on."""
    check_order("data check", rows=data, model=model)
    check_files(rows=data, config=config)
    from glmtune.datatools.data_inspection import check_data

    if max_bad > 1 and max_bad % 1:
        raise GlmtuneError(
            f"`--max-bad` is {max_bad:g}; expected a whole number of rows, or a share below 1", fix="such as 0.01 or 10"
        )
    if plot is not None and model is None:
        raise GlmtuneError("`--plot` needs a MODEL, whose tokenizer counts tokens")
    if plot is not None:
        for path in _plots(plot, has_config=config is not None):
            check_new(user_path(path))
    found = check_data(data, model, config=config, columns=columns_of(column), trust_remote_code=trust_remote_code)
    if as_json:
        put_json(plain_json({split: each.as_dict() for split, each in found.items()}, indent=2))
    for split, each in found.items():
        if not as_json:
            print(f"== {split} ==" if config else shown(str(data)))
            print(each.table())
        if plot is not None:
            from glmtune.datatools.histogram import draw_lengths

            path = plot if len(found) == 1 else _plot_of(plot, split)
            draw_lengths(path, each.lengths, each.max_length_tokens)
            say(f"lengths drawn to {path}")
    num_bad = sum(each.num_rejected for each in found.values())
    if any(each.is_too_bad(max_bad) for each in found.values()):
        raise GlmtuneError(
            f"{num_bad:,} of {sum(each.num_rows for each in found.values()):,} rows cannot be trained on",
            fix="mend them, or allow some with `--max-bad`: a number, or a share below 1",
        )


@data_app.command()
def convert(
    data: Data,
    out: Annotated[Path, typer.Argument(help="File to write: `.jsonl` or `.jsonl.gz`.")],
    from_format: Annotated[
        str | None, typer.Option("--from", metavar="FORMAT", help="Format of the rows; found out by default.")
    ] = None,
    column: Column = None,
    strict: Strict = False,
) -> None:
    """Write rows of any format as GLM-4 messages. Formats are listed by `glmtune data formats`."""
    check_files(rows=data)
    from glmtune.data.conversion import convert_data

    converted = convert_data(data, out, from_format=from_format, columns=columns_of(column), strict=strict)
    say(f"{converted.num_rows:,} rows in {out}")
    for line in converted.unread.lines():
        notice(line)
    for reject in converted.rejects[:MAX_REJECTS_SHOWN]:
        say(f"left out: {reject.where}: {reject.reason}")
    if len(converted.rejects) > MAX_REJECTS_SHOWN:
        say(f"left out: {len(converted.rejects):,} rows in all; `glmtune data check {data}` counts them by reason")


@data_app.command()
def formats() -> None:
    """List the formats that rows may have."""
    from glmtune.data.formats import FORMATS
    from glmtune.text.text_table import format_table

    print(format_table(["format", "what it is"], [[name, each.summary] for name, each in FORMATS.items()]))


@data_app.command()
def prepare(
    data_dir: Annotated[Path, typer.Argument(help="Folder of the files that the configuration names.")],
    model: Tokenizer,
    config: Annotated[Path, typer.Argument(help="YAML file, such as configs/lora.yaml.")],
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a key, as in `glmtune train`.")
    ] = None,
    strict: Strict = False,
) -> None:
    """Encode and keep the rows of a run, so that it starts at once."""
    check_order("data prepare", rows=data_dir, model=model, config=config)
    check_files(data_dir=data_dir, config=config)
    from glmtune.training.setup.preparation import prepare_data

    settings = [*(overrides or ()), *strict_setting(strict)]
    say(f"encoded rows are kept in {prepare_data(data_dir, model, config, overrides=settings)}")


def _plot_of(plot: Path, split: str) -> Path:
    """Return where the lengths of a split are drawn, where there are several."""
    return plot.with_stem(f"{plot.stem}-{split}")


def _plots(plot: Path, *, has_config: bool) -> list[Path]:
    """Return every file that the lengths may be drawn to: which splits there are, the rows alone can tell."""
    return [plot, *(_plot_of(plot, split) for split in ("train", "val", "test") if has_config)]
