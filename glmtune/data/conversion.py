"""Rows of any format to GLM-4 messages, one row a line."""

from __future__ import annotations

import fnmatch
import glob
import gzip
import json
import os
import secrets
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from glmtune.config.run_config import DataConfig
from glmtune.data.reading.read_rows import read_rows
from glmtune.data.reading.row import Reject
from glmtune.data.reading.sources import DataFile, command_line_files
from glmtune.errors import GlmtuneError, nearest, shown
from glmtune.files.durable import put_in_place
from glmtune.files.new_file import check_new, refuse_taken
from glmtune.files.user_paths import expand, user_path
from glmtune.notebook import interrupts_without_traceback
from glmtune.python_arguments import expect_mapping, expect_paths

from .conversation import Conversation, RowError
from .formats import AUTO, FORMATS, RowFormat, to_row
from .known_columns import columns_by_name, first_rows
from .unused import Unread

SUFFIXES = (".jsonl", ".jsonl.gz")


@dataclass(kw_only=True)
class Converted:
    """What became of the rows."""

    num_rows: int = 0
    """Conversations written; several may come of one row."""
    rejects: list[Reject] = field(default_factory=list)
    unread: Unread = field(default_factory=Unread)
    """What of the rows is not written."""

    def __repr__(self) -> str:
        """Return the numbers, and the first reason."""
        if not self.rejects:
            return f"<Converted: {self.num_rows:,} conversations>"
        first = self.rejects[0]
        left_out = f"{len(self.rejects):,} rows left out, the first at {first.where}: {first.reason}"
        return f"<Converted: {self.num_rows:,} conversations; {shown(left_out)}>"


@interrupts_without_traceback()
def convert_data(
    data: str | Path,
    out: str | Path,
    *,
    from_format: str | None = None,
    columns: Mapping[str, str] | None = None,
    strict: bool = False,
) -> Converted:
    """Write rows of any format as GLM-4 messages.

    Args:
        data: A file, a pattern, a folder or `hub:OWNER/NAME`.
        out: The `.jsonl` or `.jsonl.gz` to write.
        from_format: A name of `FORMATS`; None finds the format out row by row.
        columns: Key of the format: what the file calls it; by default as known names in the first rows tell.
        strict: Whether the first row that cannot be converted is an error; otherwise such rows are returned.
    """
    expect_paths(data=data, out=out)
    expect_mapping(columns=columns)
    rows_are = row_format(from_format, columns or {}, "--from")
    files, target = command_line_files(str(data)), user_path(out)
    _refuse_among_the_read(expand(str(data)), target)
    if from_format is None and not columns:
        rows_are = RowFormat(columns=columns_by_name(first_rows(file.path for file in files)))
    return convert(files, target, row_format=rows_are, strict=strict)


def _refuse_among_the_read(data: str, out: Path) -> None:
    """Raise where the rows would be written among those that are read: the next time they would be read with them."""
    name, where = os.path.abspath(data), os.path.abspath(out)
    is_folder = Path(name).is_dir()
    if is_folder:
        is_among = Path(name).resolve() == out.parent.resolve()
    else:
        has_depth = "**" in name or name.count(os.sep) == where.count(os.sep)
        is_among = has_depth and glob.has_magic(data) and fnmatch.fnmatch(where, name.replace("**/", "*"))
    if is_among:
        raise GlmtuneError(
            f"`{out}` would lie among the files that are read, and be read with them the next time",
            fix=f"write it to another folder than `{data}`"
            if is_folder
            else f"give it a name that `{data}` does not match",
        )


def convert(files: Sequence[DataFile], out: Path, *, row_format: RowFormat = AUTO, strict: bool = False) -> Converted:
    """Write every row of the files to `out` as GLM-4 messages; the file appears when all rows are in it.

    Rows that cannot be converted are returned, and the first of them is an error where `strict`.

    Raises:
        GlmtuneError: `out` exists, or is no `.jsonl`; or not one row could be converted.
    """
    if not str(out).endswith(SUFFIXES):
        raise GlmtuneError(f"cannot write `{out.name}`: expected a name that ends with `.jsonl` or `.jsonl.gz`")
    check_new(out)
    converted = Converted()
    staging = out.with_name(f".{out.name}.{os.getpid()}-{secrets.token_hex(4)}")
    try:
        with ExitStack() as stack:
            file = stack.enter_context(_open(staging, packed=out.suffix == ".gz"))
            for source in files:
                _convert_file(source, file, row_format, strict, converted)
        if not converted.num_rows:
            first = converted.rejects[0] if converted.rejects else Reject(where=str(files[0].path), reason="no rows")
            raise GlmtuneError(f"no row could be converted; the first: {first.reason}", where=first.where)
        refuse_taken(out)
        put_in_place(staging, out)
    finally:
        staging.unlink(missing_ok=True)
    return converted


def row_format(name: str | None, columns: Mapping[str, str], key: str) -> RowFormat:
    """Return how rows are read, or raise where there is no format of the name; `key` is where the user wrote it."""
    if name is not None and name not in FORMATS:
        raise GlmtuneError(
            f"`{key}` is `{name}`{nearest(name, list(FORMATS))}",
            fix=f"expected one of {', '.join(f'`{each}`' for each in FORMATS)}",
        )
    return RowFormat(name=name, columns=columns)


def row_format_of(settings: DataConfig) -> RowFormat:
    """Return how rows are read, or raise where there is no such format."""
    return row_format(settings.format, dict(settings.columns), "data_config.format")


def _convert_file(source: DataFile, file: IO[str], row_format: RowFormat, strict: bool, converted: Converted) -> None:
    for row in read_rows(source.path, row_format):
        read = row.read(row_format)
        converted.unread.add(read)
        for part in map(_trainable, read.parts):
            if isinstance(part, Conversation):
                file.write(json.dumps(to_row(part), ensure_ascii=False) + "\n")
                converted.num_rows += 1
            elif strict:
                raise GlmtuneError(
                    str(part), where=row.where, fix="mend the row; without `--strict` it is left out and listed"
                )
            else:
                converted.rejects.append(Reject(where=row.where, reason=str(part)))


def _trainable(part: Conversation | RowError) -> Conversation | RowError:
    """Return the conversation, or the error of one that has no answer to train, such as a blank one."""
    if isinstance(part, Conversation):
        try:
            part.check_trainable()
        except RowError as error:
            return error
    return part


def _open(path: Path, *, packed: bool) -> IO[str]:
    # The same bytes on every system. A new file: what stands there, such as a link, is somebody else's.
    if packed:
        return gzip.open(path, "xt", encoding="utf-8", newline="\n")
    return path.open("x", encoding="utf-8", newline="\n")
