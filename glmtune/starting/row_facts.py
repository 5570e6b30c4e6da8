"""What a first configuration has to know of the rows: which files they are, how they are read, how long they are."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path

from glmtune.chatformat.encoding import Encoder
from glmtune.chatformat.examples import Example
from glmtune.console import notice
from glmtune.data.conversation import Conversation, RowError
from glmtune.data.formats import AUTO, RowFormat
from glmtune.data.known_columns import columns_by_name, first_rows, is_read
from glmtune.data.reading.read_rows import read_rows
from glmtune.data.reading.row import Row
from glmtune.data.reading.sources import DataFile, command_line_files
from glmtune.data.unused import Unread
from glmtune.errors import GlmtuneError
from glmtune.family import IGNORE_INDEX
from glmtune.files.user_paths import expand

SPLIT_NAMES = {
    "train_file": ("train", "training", "训练", "训练集"),
    "val_file": ("dev", "val", "valid", "validation", "eval", "验证", "验证集"),
    "test_file": ("test", "testing", "测试", "测试集"),
}
"""What files of a folder are called, without their suffix, and which key of `data_config` names such a one."""
NUM_ROWS_ENCODED = 2_000
"""Of each file, to see how long its rows are."""


@dataclass(frozen=True, kw_only=True)
class Files:
    """The files of a run: a folder, and what lies in it, as `data_config` names it."""

    folder: Path
    names: Mapping[str, str | list[str]]
    """By key of `data_config`, relative to the folder."""
    train: Sequence[DataFile]
    val: Sequence[DataFile] = ()


@dataclass(frozen=True, kw_only=True)
class RowFacts:
    """What the training rows are like."""

    num_rows: int
    """That can be trained on; of a large file, as far as its first rows tell."""
    num_distinct: int
    """Of those looked at, rows that differ: equal ones are on one side, in training or in validation."""
    unread: Sequence[str]
    """Lines for the user: what of the rows looked at is not used."""
    num_rejected: int
    """Of the rows looked at."""
    first_problem: tuple[str, str]
    """`file:line` of the first of them, and what is wrong with it; empty where there is none."""
    columns: Mapping[str, str]
    """Key of the format: what the file calls it, where it has another name."""
    prompt_tokens: Sequence[int]
    """Of the rows looked at: tokens up to the last answer."""
    answer_tokens: Sequence[int]
    """Likewise: the longest answer of each."""
    row_tokens: Sequence[int]
    num_val_rows: int
    """In files of their own; 0 where there are none."""
    formats: Mapping[str, int]


def find_files(data: str) -> Files:
    """Return the files that an argument names: one file, a pattern, a folder or a data set on the hub."""
    found = command_line_files(data)
    if isinstance(found[0].path, str):
        return Files(folder=Path(), names={"train_file": data}, train=found)
    name = Path(expand(data))
    if not name.is_dir():
        paths = [Path(each.path) for each in found]
        folder = Path(os.path.commonpath([path.parent for path in paths]))
        is_alone = len(paths) == 1
        names = paths[0].name if is_alone else [path.relative_to(folder).as_posix() for path in paths]
        return Files(folder=folder, names={"train_file": names}, train=found)
    by_key = _by_split(name, [Path(each.path) for each in found])
    by_name = {Path(each.path).relative_to(name).as_posix(): each for each in found}
    return Files(
        folder=name,
        names={key: _alone(by_key[key]) for key in SPLIT_NAMES if key in by_key},
        train=[by_name[own] for own in by_key["train_file"]],
        val=[by_name[own] for own in by_key.get("val_file", ())],
    )


def _by_split(folder: Path, paths: Sequence[Path]) -> dict[str, list[str]]:
    """Return the files of a folder by the key that names them; all are for training where no name says otherwise."""
    by_key: dict[str, list[str]] = {}
    others = []
    for path in paths:
        stem = path.name.split(".")[0].lower()
        key = next((key for key, names in SPLIT_NAMES.items() if stem in names), None)
        name = path.relative_to(folder).as_posix()
        if key is None:
            others.append(name)
        else:
            by_key.setdefault(key, []).append(name)
    if "train_file" not in by_key:
        by_key["train_file"] = others
    elif others:
        notice(f"not trained on: {', '.join(f'`{name}`' for name in others)} beside `{by_key['train_file'][0]}`")
    if not by_key["train_file"]:
        held = ", ".join(f"`{name}`" for names in by_key.values() for name in names)
        raise GlmtuneError(
            f"`{folder}` holds no file to train on, only {held}",
            where=str(folder),
            fix="give the file of training rows by its own name, or call it `train`",
        )
    return by_key


def _alone(names: list[str]) -> str | list[str]:
    return names[0] if len(names) == 1 else names


def find_columns(files: Sequence[DataFile], given: Mapping[str, str]) -> dict[str, str]:
    """Return what the rows call the keys of their format: as given, else as known names in the first rows tell.

    Raises:
        GlmtuneError: None of the first rows can be read, and their columns have no names that are known.
    """
    if given:
        return dict(given)
    rows = first_rows(file.path for file in files)
    if not rows:
        raise GlmtuneError("there are no rows to train on", where=str(files[0].path))
    columns = columns_by_name(rows)
    if not any(is_read(row, RowFormat(columns=columns)) for row in rows):
        raise GlmtuneError(f"no row can be trained on; the first: {_problem(rows[0], AUTO)}", where=rows[0].where)
    return columns


def _problem(row: Row, row_format: RowFormat) -> str:
    return next((str(part) for part in row.parts(row_format) if isinstance(part, RowError)), "it says nothing")


def look_at(files: Files, encoder: Encoder, columns: Mapping[str, str]) -> RowFacts:
    """Return what the training rows are like, as a model reads them.

    Raises:
        GlmtuneError: Not one row can be trained on.
    """
    row_format = RowFormat(columns=columns)
    conversations: list[Conversation] = []
    formats: Counter[str] = Counter()
    problems: list[tuple[str, str]] = []
    num_read = num_more = 0
    unread = Unread()
    for file in files.train:
        rows = read_rows(file.path, row_format)
        for row in islice(rows, NUM_ROWS_ENCODED):
            num_read += 1
            read = row.read(row_format)
            unread.add(read)
            formats[read.format_name] += 1
            problems += [(row.where, str(part)) for part in read.parts if isinstance(part, RowError)][:1]
            whole = (part for part in read.parts if isinstance(part, Conversation))
            conversations += chain.from_iterable(map(encoder.unfold, whole))
        num_more += sum(1 for _ in rows)
    results = encoder.encode_batch(conversations)
    examples = [result for result in results if isinstance(result, Example)]
    problems += [(str(files.train[0].path), str(result)) for result in results if isinstance(result, RowError)]
    if not examples:
        where, problem = problems[0] if problems else (str(files.train[0].path), "there is none")
        raise GlmtuneError(f"no row can be trained on; the first: {problem}", where=where)
    lengths = [_lengths(example) for example in examples]
    return RowFacts(
        num_rows=len(examples) + round(num_more * len(examples) / num_read),
        num_distinct=len({tuple(example.input_ids) for example in examples}),
        unread=tuple(unread.lines()),
        num_rejected=len(problems),
        first_problem=problems[0] if problems else ("", ""),
        columns=columns,
        prompt_tokens=[prompt for prompt, _ in lengths],
        answer_tokens=[answer for _, answer in lengths],
        row_tokens=[len(example.input_ids) for example in examples],
        num_val_rows=sum(1 for file in files.val for _ in read_rows(file.path, row_format)),
        formats=formats,
    )


def _lengths(example: Example) -> tuple[int, int]:
    """Return the tokens before the last answer of a row, and those of its longest answer."""
    prompt, longest = 0, 0
    for start, end in _trained_runs(example.labels):
        prompt, longest = start, max(longest, end - start)
    return prompt, longest


def _trained_runs(labels: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Yield beginning and end of every stretch of tokens that are trained."""
    start = None
    for place, label in enumerate(chain(labels, [IGNORE_INDEX])):
        if label != IGNORE_INDEX and start is None:
            start = place
        elif label == IGNORE_INDEX and start is not None:
            yield start, place
            start = None
