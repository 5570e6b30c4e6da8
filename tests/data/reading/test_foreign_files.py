"""Files that are not what their name promises are told by their first bytes, whatever they are called."""

from __future__ import annotations

import gzip
import io
import pickle
import sqlite3
import tarfile
import zipfile
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from glmtune.data.reading.foreign_files import BY_SUFFIX, FOREIGN_FILES, IN_ARCHIVES
from glmtune.data.reading.read_rows import read_rows
from glmtune.errors import GlmtuneError

TEXT_FILES = ["a.jsonl", "a.json", "a.csv", "a.tsv", "a"]


def error_of(path: Path) -> GlmtuneError:
    with pytest.raises(GlmtuneError) as caught:
        list(read_rows(path))
    assert caught.value.where == str(path)
    assert caught.value.fix
    return caught.value


@pytest.mark.parametrize("name", TEXT_FILES)
@pytest.mark.parametrize(("first_bytes", "about"), FOREIGN_FILES.items(), ids=lambda each: repr(each)[:30])
def test_every_kind_is_told_by_its_first_bytes(
    first_bytes: bytes, about: tuple[str, str], name: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    path.write_bytes(first_bytes + b"\x07 the rest")
    error = error_of(path)
    assert (error.what, error.fix) == (f"the file is {about[0]}; expected UTF-8 text", about[1])


@pytest.mark.parametrize("suffix", [".parquet", ".arrow"])
@pytest.mark.parametrize(("first_bytes", "about"), FOREIGN_FILES.items(), ids=lambda each: repr(each)[:30])
def test_tables_are_told_by_their_first_bytes_too(
    first_bytes: bytes, about: tuple[str, str], suffix: str, tmp_path: Path
) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_bytes(first_bytes + b"\x07 the rest, which is long enough to be looked at from both of its ends")
    error = error_of(path)
    if f"ends with `{suffix}`" in about[1]:
        assert error.what.startswith("the file cannot be read: ")
    else:
        expected = {".parquet": "a parquet file", ".arrow": "an Arrow file"}[suffix]
        assert error.what == f"the file is {about[0]}; expected {expected}"


def archive(path: Path, *names: str) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        for name in names:
            file.writestr(name, "x")
    return path


@pytest.mark.parametrize("name", TEXT_FILES)
@pytest.mark.parametrize("folder", IN_ARCHIVES)
def test_documents_of_an_office_are_told_by_what_they_hold(folder: str, name: str, tmp_path: Path) -> None:
    path = archive(tmp_path / name, "[Content_Types].xml", f"{folder}document.xml")
    assert error_of(path).what == f"the file is {IN_ARCHIVES[folder][0]}; expected UTF-8 text"


@pytest.mark.parametrize("suffix", BY_SUFFIX)
def test_documents_of_an_office_are_told_by_their_names(suffix: str, tmp_path: Path) -> None:
    first_bytes = b"PK\x03\x04" if suffix.endswith(("x", "m")) else b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"
    (tmp_path / f"a{suffix}").write_bytes(first_bytes + bytes(600))
    assert error_of(tmp_path / f"a{suffix}").what == f"the file is {BY_SUFFIX[suffix][0]}; expected UTF-8 text"


@pytest.mark.parametrize(
    ("names", "kind"),
    [
        (["train.jsonl"], "a ZIP archive"),
        (["archive/data.pkl", "archive/data/0"], "a file of PyTorch's `torch.save`, which could run code"),
        (["ids.npy", "labels.npy"], "arrays of NumPy"),
        ([], "an empty ZIP archive"),
    ],
)
def test_archives_are_told_by_what_they_hold(names: list[str], kind: str, tmp_path: Path) -> None:
    assert error_of(archive(tmp_path / "a.jsonl", *names)).what == f"the file is {kind}; expected UTF-8 text"


def made_by_programs(kind: str, path: Path) -> None:
    if kind == "pickle":
        path.write_bytes(pickle.dumps([{"text": "a"}]))
    elif kind == "sqlite":
        connection = sqlite3.connect(path)
        connection.execute("create table rows (text)")
        connection.close()
    elif kind == "tar":
        with tarfile.open(path, "w") as file:
            file.addfile(tarfile.TarInfo("a.jsonl"), io.BytesIO())
    elif kind == "parquet":
        parquet.write_table(pyarrow.table({"text": ["a"]}), path)
    elif kind == "arrow":
        with pyarrow.OSFile(str(path), "wb") as sink, pyarrow.ipc.new_file(sink, pyarrow.schema([])):
            pass
    else:
        with pyarrow.OSFile(str(path), "wb") as sink, pyarrow.ipc.new_stream(sink, pyarrow.schema([])):
            pass


@pytest.mark.parametrize(
    ("kind", "words"),
    {
        "pickle": "a pickle of Python",
        "sqlite": "a SQLite database",
        "tar": "a tar archive",
        "parquet": "a parquet file",
        "arrow": "an Arrow file",
        "stream": "an Arrow stream",
    }.items(),
)
def test_what_programs_write_is_told(kind: str, words: str, tmp_path: Path) -> None:
    made_by_programs(kind, tmp_path / "a.jsonl")
    assert f"the file is {words}" in error_of(tmp_path / "a.jsonl").what


def test_a_packed_archive_is_told_from_packed_rows(tmp_path: Path) -> None:
    made_by_programs("tar", tmp_path / "a.tar")
    (tmp_path / "a.tar.gz").write_bytes(gzip.compress((tmp_path / "a.tar").read_bytes()))
    assert error_of(tmp_path / "a.tar.gz").what == "the file is a tar archive; expected UTF-8 text"


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.jsonl.gz", "a.json.zst", "a.parquet", "a.arrow"])
@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 9\n", "a pointer of git-lfs"),
        (b"\xef\xbb\xbf\n<!DOCTYPE HTML><html lang=en>" + b" " * 600, "a web page (HTML)"),
        (b"<html><body>" + b" " * 600, "a web page (HTML)"),
        (b"<?xml version='1.0'?>" + b" " * 600, "XML"),
    ],
    ids=["git-lfs", "HTML", "bare HTML", "XML"],
)
def test_a_page_or_a_pointer_in_place_of_a_download_is_told(
    content: bytes, kind: str, name: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    assert f"the file is {kind}" in error_of(tmp_path / name).what


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.json"])
@pytest.mark.parametrize("codec", ["utf-16-le", "utf-16-be"])
def test_text_of_two_bytes_a_character_without_a_mark_is_told_with_the_command_that_mends_it(
    codec: str, name: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    path.write_bytes('{"text": "你好"}\n'.encode(codec))
    iconv = {"utf-16-le": "UTF-16LE", "utf-16-be": "UTF-16BE"}[codec]
    error = error_of(path)
    assert error.what == "the file is UTF-16 text; expected UTF-8 text"
    assert error.fix == f"save it as UTF-8: `iconv -f {iconv} -t UTF-8 {path} > {tmp_path}/utf8-{name}`"
