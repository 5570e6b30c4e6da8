"""What training would make of rows, without training: one by one for `inspect`, counted for `check`."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from glmtune.chatformat.encoding import Encoder
from glmtune.chatformat.examples import Example
from glmtune.config.run_config import SPLITS, AnyConfig, RunConfig, as_config
from glmtune.console import notice, quiet_libraries
from glmtune.data.conversation import TEXT, Conversation, RowError
from glmtune.data.conversion import row_format_of
from glmtune.data.formats import AUTO, RowFormat
from glmtune.data.known_columns import columns_by_name, first_rows
from glmtune.data.reading.read_rows import read_rows
from glmtune.data.reading.row import Row
from glmtune.data.reading.sources import DataFile, command_line_files, find_data_files
from glmtune.data.unused import AS_TEXT
from glmtune.errors import GlmtuneError
from glmtune.family import IGNORE_INDEX
from glmtune.files.new_file import check_new
from glmtune.files.user_paths import expand, user_path
from glmtune.modeling.finding.model_source import find_model
from glmtune.python_arguments import expect_mapping, expect_paths

from .inspection_html import PageRow, write_page
from .statistics import Statistics

ROWS_PER_BATCH = 256


@dataclass(frozen=True, kw_only=True)
class InspectedRow:
    """One conversation as training sees it, or why training refuses it."""

    row: int
    """Number of its row, from 0; several conversations may come of one row."""
    where: str
    input_ids: list[int] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    weights: list[float] | None = None
    problem: str = ""


@dataclass(frozen=True, kw_only=True)
class Inspected:
    """The rows asked for, and the tokenizer to show them with."""

    tokenizer: PreTrainedTokenizerBase
    rows: Iterator[InspectedRow]


def open_encoder(model: str, settings: RunConfig | None = None, *, trust_remote_code: bool = False) -> Encoder:
    """Return the encoder for a model, as a configuration asks for it; without one, rows are not cut."""
    from glmtune.modeling.config_loading import (  # torch takes seconds; rows alone do without
        load_family,
        load_tokenizer,
    )

    source = find_model(model, needs_weights=False)
    tokenizer = load_tokenizer(source, trust_remote_code=trust_remote_code)
    family = load_family(source, trust_remote_code=trust_remote_code)
    return Encoder.from_config(tokenizer, family, settings) if settings else Encoder(tokenizer, family)


def inspect_rows(
    data: str | Path,
    model: str,
    *,
    config: AnyConfig | None = None,
    columns: Mapping[str, str] | None = None,
    row: int | None = None,
    trust_remote_code: bool = False,
) -> Inspected:
    """Encode one row of the data, or every row where `row` is None, exactly as training would.

    `columns` says what the rows call the keys of their format, on top of what the configuration says.
    """
    expect_paths(data=data)
    expect_mapping(columns=columns)
    data = expand(str(data))
    settings = as_config(config) if config is not None else None
    encoder = open_encoder(model, settings, trust_remote_code=trust_remote_code)
    row_format = _row_format(data, settings, columns)
    if settings is None and (Path(data) / "train.jsonl").is_file():
        data = Path(data) / "train.jsonl"  # what a run trains on by the names that the demos use
    rows: Iterator[tuple[int, Row]] = enumerate(_rows(_files(data, settings, "train"), row_format))
    if row is not None:
        rows = itertools.islice(rows, row, row + 1)
    first = next(rows, None)
    if first is None:
        count = sum(1 for _ in _rows(_files(data, settings, "train"), row_format))
        problem = f"there is no row {row}: the file has {count}, numbered from 0" if count else "the file has no rows"
        raise GlmtuneError(problem, where=str(data))
    wanted = itertools.chain([first], rows)
    return Inspected(
        tokenizer=encoder.tokenizer,
        rows=_inspect_all(wanted, encoder, row_format),
    )


@quiet_libraries()
def check_data(
    data: str | Path,
    model: str | None = None,
    *,
    config: AnyConfig | None = None,
    columns: Mapping[str, str] | None = None,
    trust_remote_code: bool = False,
) -> Mapping[str, Statistics]:
    """Read and encode every row and return what was found, by split.

    Args:
        data: A file, pattern, folder or `hub:OWNER/NAME`; with `config` the folder that its file names are relative to.
        model: Whose tokenizer counts tokens and checks the encoding; None reads the rows alone.
        config: A run's configuration, as `train` takes it: its files, format, lengths and what it trains on.
        columns: Key of the format: what the rows call it, on top of what the configuration says.
        trust_remote_code: Run code that the model brings along.
    """
    expect_paths(data=data)
    expect_mapping(columns=columns)
    data = expand(str(data))
    settings = as_config(config) if config is not None else None
    encoder = open_encoder(model, settings, trust_remote_code=trust_remote_code) if model else None
    row_format = _row_format(data, settings, columns)
    splits = [split for split in SPLITS if settings and getattr(settings.data_config, f"{split}_file")]
    found: dict[str, Statistics] = {}
    for split in splits or ["train"]:
        files = _files(data, settings, split)
        found[split] = _count(_rows(files, row_format), encoder, row_format)
        if not found[split].num_rows:
            raise GlmtuneError("there are no rows to check", where=", ".join(str(file.path) for file in files[:3]))
    return found


def _row_format(data: str | Path, settings: RunConfig | None, columns: Mapping[str, str] | None) -> RowFormat:
    """Return how the rows are read: as the configuration says, where there is one, and as the columns on top of it.

    Where nothing says anything, columns are known by their names, as by a run without a configuration.
    """
    own = row_format_of(settings.data_config) if settings else AUTO
    if settings is None and not columns:
        columns = columns_by_name(first_rows(file.path for file in _files(data, None, "train")))
    return replace(own, columns={**own.columns, **columns}) if columns else own


def _files(data: str | Path, settings: RunConfig | None, split: str) -> list[DataFile]:
    """Return the files to look into: those of the configuration where its folder is given, else what `data` names."""
    if settings and Path(data).is_dir():
        key = f"{split}_file"
        return find_data_files(Path(data), getattr(settings.data_config, key), key)
    return command_line_files(str(data))


def _rows(files: list[DataFile], row_format: RowFormat) -> Iterator[Row]:
    for file in files:
        yield from read_rows(file.path, row_format)


def _inspect_all(rows: Iterator[tuple[int, Row]], encoder: Encoder, row_format: RowFormat) -> Iterator[InspectedRow]:
    """Yield what comes of all rows, and tell every special token where it first stands in a text."""
    seen: set[str] = set()
    for number, row in rows:
        parts = [part for part in row.parts(row_format) if isinstance(part, Conversation)]
        new = {name for part in parts for name in encoder.special_tokens_in(part)} - seen
        if new:
            seen |= new
            names = ", ".join(f"`{name}`" for name in sorted(new))
            notice(f"special tokens in the text of row {number} are {AS_TEXT}: {names}")
        yield from _inspect(number, row, encoder, row_format)


def _inspect(number: int, row: Row, encoder: Encoder, row_format: RowFormat) -> Iterator[InspectedRow]:
    for result in _encoded(row, encoder, row_format):
        if isinstance(result, RowError):
            yield InspectedRow(row=number, where=row.where, problem=str(result))
        else:
            yield InspectedRow(
                row=number,
                where=row.where,
                input_ids=result.input_ids,
                labels=result.labels,
                weights=result.weights,
            )


def _encoded(row: Row, encoder: Encoder, row_format: RowFormat) -> list[Example | RowError]:
    """Return what comes of one row."""
    results: list[Example | RowError] = []
    for part in row.parts(row_format):
        results += encoder.encode_batch(encoder.unfold(part)) if isinstance(part, Conversation) else [part]
    return results


def _count(rows: Iterator[Row], encoder: Encoder | None, row_format: RowFormat) -> Statistics:
    """Count all rows; a row that cannot be trained on is a reject and nothing else."""
    limit = encoder.max_length_tokens if encoder else None
    statistics = Statistics(max_length_tokens=limit)
    while batch := list(itertools.islice(rows, ROWS_PER_BATCH)):
        conversations: list[Conversation] = []
        origins: list[tuple[str, str]] = []  # `file:line` and format of every conversation
        for row in batch:
            read = row.read(row_format)
            statistics.unread.add(read)
            special: set[str] = set()
            for part in read.parts:
                if isinstance(part, RowError):
                    statistics.add_reject(str(part), row.where)
                    continue
                conversations += encoder.unfold(part) if encoder else [part]
                special |= encoder.special_tokens_in(part) if encoder else set()
                origin = (row.where, read.format_name)
                origins += [origin] * (len(conversations) - len(origins))
            statistics.unread.add_tokens(special)
        results = encoder.encode_batch(conversations) if encoder else [_readable(each) for each in conversations]
        for conversation, (where, format_name), result in zip(conversations, origins, results):
            if isinstance(result, RowError):
                statistics.add_reject(str(result), where)
                continue
            statistics.add_conversation(conversation, format_name)
            if result is not None:
                num_trained = sum(label != IGNORE_INDEX for label in result.labels)
                left_out = result.num_tokens_left_out
                statistics.add_example(len(result.input_ids) + left_out, num_trained, left_out > 0)
    return statistics


def _readable(conversation: Conversation) -> RowError | None:
    """Return why a row cannot be trained on whatever the model; None where it can."""
    try:
        conversation.check_trainable()
    except RowError as error:
        return error
    trained = [message for message in conversation.messages if message.role in ("assistant", TEXT)]
    if all(message.loss == 0 for message in trained):
        return RowError("every answer of the row has a weight of 0, so there is nothing to train on")
    return None


def write_html(path: Path, inspected: Inspected, *, title: str, limit: int) -> int:
    """Write rows as a web page and return how many; a file that stands there already is left alone."""
    path = user_path(path)
    check_new(path)
    rows = list(itertools.islice(inspected.rows, limit))
    pages = (
        PageRow(
            number=each.row,
            where=each.where,
            input_ids=each.input_ids,
            labels=each.labels,
            weights=each.weights,
            problem=each.problem,
        )
        for each in rows
    )
    write_page(path, pages, inspected.tokenizer, title)
    return len(rows)
