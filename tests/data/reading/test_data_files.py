"""Which files an entry of the configuration, or an argument, stands for, and what is wrong with it."""

from __future__ import annotations

import errno
import os
import socket
from pathlib import Path
from typing import Any

import pytest

from glmtune.data.reading.read_rows import read_rows
from glmtune.data.reading.sources import DataFile, command_line_files, find_data_file, find_data_files
from glmtune.encoded.store import file_hash
from glmtune.errors import GlmtuneError


def write(path: Path, content: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, encoding="utf-8")
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    names = ["b.jsonl", "a.JSONL.gz", "more/part-2.csv", "more/part-1.tsv", "more/.hidden.jsonl", "more/notes.txt"]
    for name in [*names, "more/deep/part-3.json", "other/readme.md", "empty/.keep"]:
        write(tmp_path / name, "")
    return tmp_path


def found(folder: Path, entry: Any) -> list[tuple[str, float]]:
    """Return names relative to the folder, and weights."""
    files = find_data_files(folder, entry, "train_file")
    return [
        (file.path.relative_to(folder).as_posix() if isinstance(file.path, Path) else file.path, file.weight)
        for file in files
    ]


FOUND: dict[str, tuple[Any, list[tuple[str, float]]]] = {
    "a file": ("b.jsonl", [("b.jsonl", 1)]),
    "a file of an unknown kind": ("more/notes.txt", [("more/notes.txt", 1)]),
    "a list keeps its order": (["b.jsonl", "a.JSONL.gz"], [("b.jsonl", 1), ("a.JSONL.gz", 1)]),
    "weights": (
        [{"path": "b.jsonl", "weight": 2}, "a.JSONL.gz", {"path": "more/part-1.tsv", "weight": 0.5}],
        [("b.jsonl", 2), ("a.JSONL.gz", 1), ("more/part-1.tsv", 0.5)],
    ),
    "a path without a weight": ([{"path": "b.jsonl"}], [("b.jsonl", 1)]),
    "one entry with a weight": ({"path": "b.jsonl", "weight": 3}, [("b.jsonl", 3)]),
    "a pattern": ("more/part-*", [("more/part-1.tsv", 1), ("more/part-2.csv", 1)]),
    "a pattern through folders": (
        "**/part-*",
        [("more/deep/part-3.json", 1), ("more/part-1.tsv", 1), ("more/part-2.csv", 1)],
    ),
    "a pattern with a weight": (
        [{"path": "more/part-[12].*", "weight": 2}],
        [("more/part-1.tsv", 2), ("more/part-2.csv", 2)],
    ),
    "a folder": ("more", [("more/part-1.tsv", 1), ("more/part-2.csv", 1)]),
    "the folder itself": (".", [("a.JSONL.gz", 1), ("b.jsonl", 1)]),
    "the hub": ("hub:acme/rows", [("hub:acme/rows:train", 1)]),
    "a split on the hub": (
        ["b.jsonl", {"path": "hub:acme/rows:test", "weight": 2}],
        [("b.jsonl", 1), ("hub:acme/rows:test", 2)],
    ),
}


@pytest.mark.parametrize(("entry", "files"), FOUND.values(), ids=FOUND)
def test_an_entry_stands_for_files(entry: Any, files: list[tuple[str, float]], folder: Path) -> None:
    assert found(folder, entry) == files


def test_a_file_may_have_a_name_like_a_pattern(folder: Path) -> None:
    write(folder / "rows[1].jsonl", "")
    write(folder / "rows1.jsonl", "")
    assert found(folder, "rows[1].jsonl") == [("rows[1].jsonl", 1)]


def test_an_entry_may_be_a_full_path(folder: Path, tmp_path: Path) -> None:
    for entry in (str(folder / "b.jsonl"), str(folder / "b.*")):
        assert find_data_files(folder / "more", entry, "train_file") == [DataFile(path=folder / "b.jsonl")]


NUMBER = (
    "; expected a number above 0, at most 10,000\n"
    "hint: 2 shows every row twice in an epoch, 0.5 half of the rows once; to leave the file out, take it away"
)
ONCE = "\nhint: name it once; to show its rows more often, write `{{path: FILE, weight: 2}}`"
REFUSED: dict[str, tuple[Any, str]] = {
    "an unknown key": (
        ["b.jsonl", {"path": "b.jsonl", "wieght": 2}],
        "entry 2 of `data_config.train_file` has the unknown key `wieght` (did you mean `weight`?); "
        "expected `path` and `weight`",
    ),
    "no path": (
        [{"weight": 2}],
        "entry 1 of `data_config.train_file` has no `path`; expected the name of a file",
    ),
    "a number": (
        [3],
        "entry 1 of `data_config.train_file` is `3`; expected the name of a file, or `path` and `weight`",
    ),
    "an empty name": (
        "",
        "`data_config.train_file` is `''`; expected the name of a file, or `path` and `weight`",
    ),
    "an empty list": (
        [],
        "`data_config.train_file` is an empty list; expected the name of a file\n  --> {folder}",
    ),
    **{
        f"the weight {weight!r}": (
            [{"path": "b.jsonl", "weight": weight}],
            f"entry 1 of `data_config.train_file` has `weight: {weight}`{NUMBER}",
        )
        for weight in (0, -1, float("nan"), float("inf"), True, "2", None)
    },
    "a file that is not there": (
        ["b.jsonl", "c.jsonl"],
        "`train_file` names `c.jsonl`, which is not in `{folder}` (did you mean `b.jsonl`?)\n  --> {folder}\n"
        "hint: the folder holds `a.JSONL.gz`, `b.jsonl`; set `data_config.train_file` to one of them",
    ),
    "a folder without data": (
        "other",
        "there is no data file in `{folder}/other`\n  --> {folder}/other\n"
        "hint: the folder holds `readme.md`; expected files that end with `.jsonl`, `.json`, `.csv`, `.tsv`, "
        "`.parquet`, `.arrow`, or these and `.gz` or `.zst`",
    ),
    "a pattern without a match": (
        "*.parquet",
        "no file matches `*.parquet`\n  --> {folder}\nhint: the folder holds `a.JSONL.gz`, `b.jsonl`",
    ),
    "a pattern that matches folders alone": (
        "mor*",
        "no file matches `mor*`\n  --> {folder}\nhint: the folder holds `a.JSONL.gz`, `b.jsonl`",
    ),
    "a file twice": (["b.jsonl", "b.jsonl"], "`{folder}/b.jsonl` is named twice" + ONCE),
    "a file twice with weights": (
        [{"path": "b.jsonl", "weight": 2}, {"path": "./more/../b.jsonl", "weight": 3}],
        "`{folder}/more/../b.jsonl` is named twice" + ONCE,
    ),
    "a file by its name and by a pattern": (["*.jsonl", "b.jsonl"], "`{folder}/b.jsonl` is named twice" + ONCE),
    "a split twice": (["hub:a/b", "hub:a/b:train"], "`hub:a/b:train` is named twice" + ONCE),
    "a name the hub cannot have": (
        "hub:rows",
        "`hub:rows` is no data set of the hub; expected `hub:OWNER/NAME` or `hub:OWNER/NAME:SPLIT`",
    ),
    "an empty split": (
        "hub:acme/rows:",
        "`hub:acme/rows:` is no data set of the hub; expected `hub:OWNER/NAME` or `hub:OWNER/NAME:SPLIT`",
    ),
}


@pytest.mark.parametrize(("entry", "message"), REFUSED.values(), ids=REFUSED)
def test_an_entry_that_cannot_be_meant_says_why(entry: Any, message: str, folder: Path) -> None:
    with pytest.raises(GlmtuneError) as caught:
        find_data_files(folder, entry, "train_file")
    assert str(caught.value) == message.format(folder=folder)


def test_a_missing_folder_is_an_error_for_every_kind_of_entry(tmp_path: Path) -> None:
    for entry in ("b.jsonl", "*.jsonl", ["b.jsonl"], "."):
        with pytest.raises(GlmtuneError) as caught:
            find_data_files(tmp_path / "none", entry, "train_file")
        assert caught.value.what == f"data folder `{tmp_path / 'none'}` does not exist"


def test_an_argument_stands_for_files(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    for entry, names in {
        "b.jsonl": ["b.jsonl"],
        "more": ["more/part-1.tsv", "more/part-2.csv"],
        "*.jsonl": ["b.jsonl"],
        str(folder / "b.jsonl"): [str(folder / "b.jsonl")],
    }.items():
        assert command_line_files(entry) == [DataFile(path=Path(name)) for name in names]
    assert command_line_files("hub:acme/rows") == [DataFile(path="hub:acme/rows:train")]


def test_an_argument_that_names_no_file_says_so(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    for entry, message in {
        "c.jsonl": "data file `c.jsonl` does not exist (did you mean `b.jsonl`?)",
        "none/c.jsonl": "data file `none/c.jsonl` does not exist",
    }.items():
        with pytest.raises(GlmtuneError) as caught:
            command_line_files(entry)
        assert str(caught.value) == message


def special(kind: str, path: Path) -> None:
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        socket.socket(socket.AF_UNIX).bind(str(path))
    elif kind == "device":
        path.symlink_to("/dev/null")
    elif kind == "link":
        path.symlink_to("gone.jsonl")
    else:
        path.symlink_to(path.name)


SPECIAL = {
    "pipe": "is a pipe; expected a file, which can be read more than once",
    "socket": "is a socket; expected a file, which can be read more than once",
    "device": "is a device; expected a file, which can be read more than once",
    "link": "is a link to `gone.jsonl`, which does not exist",
    "link to itself": "cannot be opened: Too many levels of symbolic links",
}


@pytest.mark.parametrize("kind", SPECIAL)
def test_what_is_no_file_is_named_for_what_it_is(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # the path of a socket is short
    path = Path("rows.jsonl")
    special(kind, path)
    for find in (
        lambda: command_line_files("rows.jsonl"),
        lambda: find_data_files(Path(), "rows.jsonl", "train_file"),
        lambda: find_data_file(Path(), "rows.jsonl", "val_file"),
        lambda: list(read_rows(path)),
    ):
        with pytest.raises(GlmtuneError) as caught:
            find()
        assert caught.value.what == f"`rows.jsonl` {SPECIAL[kind]}"
        assert caught.value.fix


@pytest.mark.parametrize("name", ["x" * 300, "a\0b", '{"messages": ' + "x" * 5_000])
def test_a_name_that_no_file_can_have_is_an_error(name: str, tmp_path: Path) -> None:
    for find in (lambda: command_line_files(name), lambda: find_data_files(tmp_path, name, "train_file")):
        with pytest.raises(GlmtuneError, match="cannot be opened: ") as caught:
            find()
        assert len(str(caught.value)) < 400


def test_a_file_or_folder_that_may_not_be_read_is_an_error(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **options: Any) -> Any:
        raise PermissionError(errno.EACCES, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", refuse)
        for read in (lambda: list(read_rows(folder / "b.jsonl")), lambda: file_hash(folder / "b.jsonl")):
            with pytest.raises(GlmtuneError) as caught:
                read()
            assert str(caught.value) == (
                f"the file cannot be read: Permission denied\n  --> {folder / 'b.jsonl'}\n"
                "hint: let its owner give you the right to read it, or copy it to a place of your own"
            )
    with monkeypatch.context() as patch:
        patch.setattr(Path, "iterdir", refuse)
        with pytest.raises(GlmtuneError, match="the folder cannot be read: Permission denied"):
            find_data_files(folder, "more", "train_file")


def test_a_folder_below_that_holds_the_data_is_named(tmp_path: Path) -> None:
    write(tmp_path / "README.md", "")
    write(tmp_path / "data" / "train-00000-of-00001.parquet", "")
    write(tmp_path / "images" / "a.png", "")
    with pytest.raises(GlmtuneError) as caught:
        command_line_files(str(tmp_path))
    assert "the folder holds `README.md`; its folder `data` holds data files, and can be named; " in str(caught.value)


def test_files_that_describe_data_are_no_rows_of_a_folder(tmp_path: Path) -> None:
    for name in ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "alpaca_zh.json"):
        write(tmp_path / name, "[]")
    assert command_line_files(str(tmp_path)) == [DataFile(path=tmp_path / "alpaca_zh.json")]


def test_a_data_file_is_found_in_its_folder(tmp_path: Path) -> None:
    path = write(tmp_path / "train.jsonl", "")
    assert find_data_file(tmp_path, "train.jsonl", "train_file") == path
    assert find_data_file(tmp_path / "elsewhere", str(path), "train_file") == path


def missing(folder: Path, name: str) -> str:
    with pytest.raises(GlmtuneError) as caught:
        find_data_file(folder, name, "val_file")
    return str(caught.value)


def test_a_missing_data_file_is_named_with_what_the_folder_holds(tmp_path: Path) -> None:
    for name in ("dev.jsonl", "train.jsonl"):
        write(tmp_path / name, "")
    (tmp_path / "folder.jsonl").mkdir()
    assert missing(tmp_path, "dev.json") == (
        f"`val_file` names `dev.json`, which is not in `{tmp_path}` (did you mean `dev.jsonl`?)\n"
        f"  --> {tmp_path}\n"
        "hint: the folder holds `dev.jsonl`, `train.jsonl`; set `data_config.val_file` to one of them"
    )
    assert missing(tmp_path, "folder.jsonl").startswith(
        f"`val_file` names `folder.jsonl`, which is not in `{tmp_path}`"
    )


def test_a_missing_data_file_lists_eight_files_at_most(tmp_path: Path) -> None:
    for number in range(10):
        write(tmp_path / f"{number}.txt", "")
    listing = ", ".join(f"`{number}.txt`" for number in range(8))
    assert missing(tmp_path, "x") == (
        f"`val_file` names `x`, which is not in `{tmp_path}`\n"
        f"  --> {tmp_path}\n"
        f"hint: the folder holds {listing} and 2 more; set `data_config.val_file` to one of them"
    )


def test_an_empty_folder_has_no_file_to_set(tmp_path: Path) -> None:
    assert missing(tmp_path, "x") == (
        f"`val_file` names `x`, which is not in `{tmp_path}`\n"
        f"  --> {tmp_path}\n"
        "hint: the folder holds no files; give the folder that holds your data files"
    )


def test_a_missing_folder_is_an_error(tmp_path: Path) -> None:
    assert missing(tmp_path / "none", "x") == (
        f"data folder `{tmp_path / 'none'}` does not exist\nhint: give the folder that holds your data files"
    )


def test_a_file_in_place_of_the_folder_is_an_error(tmp_path: Path) -> None:
    path = write(tmp_path / "train.jsonl", "")
    assert missing(path, "x").startswith(f"`{path}` is a file; expected the folder that holds `x`")
