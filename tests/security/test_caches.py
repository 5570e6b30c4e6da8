"""Caches: nobody else writes into them, nothing else is removed from them, and what is damaged is made anew."""

from __future__ import annotations

import json
import marshal
import os
import stat
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from glmtune.chatformat.encoding import Encoder
from glmtune.data.conversion import convert_data
from glmtune.demo.model import demo_model_path
from glmtune.encoded.dataset import EncodedData, encode_file
from glmtune.encoded.store import encoded_folder, file_hash, remove_unused
from glmtune.errors import GlmtuneError
from glmtune.family import GLM
from glmtune.files import cache_files
from glmtune.files.cache_files import cache_folder, lent_folder, make_folder, private_folder, write_file

ROW = json.dumps({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]})
POSIX = pytest.mark.skipif(not hasattr(os, "getuid"), reason="modes of files say nothing on this system")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GLMTUNE_CACHE", str(tmp_path / "kept" / "cache"))
    return tmp_path / "kept" / "cache"


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text(f"{ROW}\n" * 3 + "{\n", encoding="utf-8")
    return path


@pytest.fixture
def encoder(demo_tokenizer) -> Encoder:
    return Encoder(demo_tokenizer, GLM)


def encode(path: Path, encoder: Encoder) -> EncodedData:
    return encode_file(path, encoder, content_hash=file_hash(path))


def entry(cache: Path) -> Path:
    [folder] = [path for path in (cache / "encoded").iterdir() if path.is_dir() and not path.name.startswith(".")]
    return folder


def fill(cache: Path, rows: Path, encoder: Encoder) -> None:
    encode(rows, encoder)
    write_file(cache / "arithmetic" / "x.json", b"{}")
    demo_model_path()
    private_folder("jieba")


@POSIX
@pytest.mark.parametrize(
    ("umask", "folders", "files"),
    [(0o000, 0o775, 0o664), (0o002, 0o775, 0o664), (0o022, 0o755, 0o644), (0o077, 0o700, 0o600)],
)
def test_rights_are_those_of_the_umask_and_never_everybodys(
    umask: int, folders: int, files: int, cache: Path, rows: Path, encoder: Encoder
) -> None:
    before = os.umask(umask)
    try:
        fill(cache, rows, encoder)
    finally:
        os.umask(before)
    own = f"jieba-{os.getuid()}"
    for path in (cache.parent, cache, *cache.rglob("*")):
        mode = stat.S_IMODE(path.stat().st_mode)
        assert not mode & stat.S_IWOTH, path
        if path.name == own:
            assert mode == 0o700
        elif path.is_dir():
            assert mode & ~0o755 == folders & ~0o755, path  # what the group may is as the umask says
        else:
            assert mode & 0o022 == files & 0o022, path


@POSIX
def test_a_cache_of_ours_that_was_open_to_all_is_closed(cache: Path, rows: Path, encoder: Encoder) -> None:
    (cache / "encoded").mkdir(parents=True)
    (cache / "encoded").chmod(0o777)
    encode(rows, encoder)
    assert stat.S_IMODE((cache / "encoded").stat().st_mode) == 0o775


@POSIX
def test_a_cache_of_others_that_is_open_to_all_is_refused(
    cache: Path, rows: Path, encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    (cache / "encoded").mkdir(parents=True)
    (cache / "encoded").chmod(0o777)
    own = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: own + 1)
    with pytest.raises(GlmtuneError, match="everybody may write to"):
        encode(rows, encoder)
    assert stat.S_IMODE((cache / "encoded").stat().st_mode) == 0o777


@POSIX
def test_the_folder_for_temporary_files_stays_as_it_is(tmp_path: Path) -> None:
    folder = tmp_path / "tmp"
    folder.mkdir()
    folder.chmod(0o1777)
    with pytest.raises(GlmtuneError, match="everybody may write to"):
        make_folder(folder)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o1777


OLD = time.time() - 400 * 86_400
FOREIGN = ["thesis.doc", "notes", ".hidden", "leaks.json", f"{31 * 'a'}", f"{32 * 'g'}", f"{32 * 'a'}.txt", "a.lock"]


def test_only_own_names_are_removed(cache: Path, tmp_path: Path) -> None:
    folder = cache / "encoded"
    folder.mkdir(parents=True)
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").write_bytes(b"")
    for name in FOREIGN:
        (folder / name).write_bytes(b"")
        os.utime(folder / name, (OLD, OLD))
    own = [32 * "a", f".{32 * 'b'}-0123", f"{32 * 'c'}.lock", f"leaks-{32 * 'd'}.json"]
    for name in own[:2]:
        (folder / name).mkdir()
        (folder / name / "rows.arrow").write_bytes(b"")
        os.utime(folder / name, (OLD, OLD))
    for name in own[2:]:
        (folder / name).write_bytes(b"")
        os.utime(folder / name, (OLD, OLD))
    (folder / (32 * "e")).symlink_to(outside)
    os.utime(folder / (32 * "e"), (OLD, OLD), follow_symlinks=False)
    remove_unused(folder)
    assert sorted(path.name for path in folder.iterdir()) == sorted(FOREIGN)
    assert (outside / "kept").is_file()


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


DAMAGES = {
    "no rows": lambda folder: (folder / "rows.arrow").unlink(),
    "half of the rows": lambda folder: cut(folder / "rows.arrow"),
    "no Arrow": lambda folder: (folder / "rows.arrow").write_bytes(b"x" * 1000),
    "an empty file": lambda folder: (folder / "rows.arrow").write_bytes(b""),
    "rejects that are no JSON": lambda folder: (folder / "rejects.jsonl").write_text("{\n", encoding="utf-8"),
    "rejects of another kind": lambda folder: (folder / "rejects.jsonl").write_text("[1]\n", encoding="utf-8"),
    "deep JSON": lambda folder: (folder / "unread.json").write_text(100_000 * "[", encoding="utf-8"),
    "no UTF-8": lambda folder: (folder / "unread.json").write_bytes(b"\xff"),
    "JSON of another kind": lambda folder: (folder / "unread.json").write_text("[]", encoding="utf-8"),
    "no account": lambda folder: (folder / "whole.json").unlink(),
    "another account": lambda folder: (folder / "whole.json").write_text('{"rows": 1}', encoding="utf-8"),
    "a folder in place of a file": lambda folder: ((folder / "cuts.jsonl").unlink(), (folder / "cuts.jsonl").mkdir()),
    "a file in its place": lambda folder: (folder.rename(folder.with_name("moved")), folder.write_bytes(b"")),
    "a link in its place": lambda folder: (folder.rename(folder.parent.parent / "x"), folder.symlink_to("nowhere")),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_entry_is_made_anew(damage, cache: Path, rows: Path, encoder: Encoder, capsys) -> None:
    first = encode(rows, encoder).dataset.to_list()
    damage(entry(cache))
    again = encode(rows, encoder)
    assert again.dataset.to_list() == first
    assert len(again.rejects) == 1
    capsys.readouterr()
    assert encode(rows, encoder).dataset.to_list() == first
    assert "damaged" not in capsys.readouterr().err


def test_a_damaged_demo_model_is_made_anew() -> None:
    folder = demo_model_path()
    weights = (folder / "model.safetensors").read_bytes()
    for damage in (
        lambda: (folder / "model.safetensors").unlink(),
        lambda: (folder / "tokenizer.json").write_bytes(b"{"),
        lambda: (folder / "config.json").write_text('{"auto_map": {}}', encoding="utf-8"),
        lambda: (folder / "extra.py").write_bytes(b""),
        lambda: (folder / ".digests.json").write_text("[]", encoding="utf-8"),
    ):
        damage()
        assert demo_model_path() == folder
        assert (folder / "model.safetensors").read_bytes() == weights
        assert not (folder / "extra.py").exists()


def test_concurrent_writers_leave_one_whole_entry(cache: Path, rows: Path, encoder: Encoder) -> None:
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda _: encode(rows, encoder).dataset.to_list(), range(6)))
        list(pool.map(lambda number: write_file(cache / "one.json", b"%d" % number), range(200)))
    assert all(each == found[0] for each in found)
    names = {path.name for path in (cache / "encoded").iterdir() if not path.name.endswith(".lock")}
    assert len(names) == 1
    assert (cache / "one.json").read_bytes().isdigit()
    assert not list(cache.glob(".one*"))


def test_no_link_is_written_through(cache: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_bytes(b"mine")
    cache.mkdir(parents=True)
    (cache / "it.json").symlink_to(target)
    write_file(cache / "it.json", b"new")
    assert target.read_bytes() == b"mine"
    assert (cache / "it.json").read_bytes() == b"new"


@pytest.mark.parametrize("name", ["out.jsonl", "out.jsonl.gz"])
def test_data_convert_follows_no_link_that_waits_for_it(name: str, rows: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_bytes(b"mine")
    (tmp_path / f".{name}.{os.getpid()}").symlink_to(target)
    convert_data(rows, tmp_path / name)
    assert target.read_bytes() == b"mine"
    assert (tmp_path / f".{name}.{os.getpid()}").is_symlink()
    assert (tmp_path / name).is_file()


SCORE = """
import sys
from glmtune.evaluation.metrics import score_texts
print(score_texts(["我爱北京天安门"], ["我爱北京的天安门"]).bleu_4)
"""


def score(**environment: str) -> str:
    command = [sys.executable, "-c", SCORE]
    paths = {"PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run(
        command, capture_output=True, text=True, check=True, env={**os.environ, **paths, **environment}
    ).stdout


def test_jieba_reads_no_cache_of_others_and_mends_its_own(cache: Path, tmp_path: Path) -> None:
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    usual = score(TMPDIR=str(temporary))
    assert list(temporary.iterdir()) == []
    words = {"我爱北京": 10**9, "天安门": 10**9}
    (temporary / "jieba.cache").write_bytes(marshal.dumps((words, 10**10)))
    assert score(TMPDIR=str(temporary)) == usual
    [own] = cache.glob("jieba*/jieba.cache")
    for damaged in (marshal.dumps((words, 10**10)), b"x" * 100):
        own.write_bytes(damaged)
        assert score(TMPDIR=str(temporary)) == usual
    assert own.stat().st_size > 1_000_000


@POSIX
def test_a_folder_that_others_may_write_to_is_not_lent(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for prepare in (
        lambda path: (path.mkdir(parents=True), path.chmod(0o777)),
        lambda path: (path.rmdir(), path.symlink_to(tmp_path)),
        lambda path: (path.unlink(), path.write_bytes(b"")),
    ):
        prepare(cache / f"jieba-{os.getuid()}")
        assert not lent_folder("jieba").is_relative_to(cache)
        assert "note: nothing is kept for jieba between commands: " in capsys.readouterr().err


def test_matplotlib_keeps_its_fonts_in_ours(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.delenv("MPLCONFIGDIR", raising=False)
    cache_files.require_matplotlib()
    assert Path(os.environ["MPLCONFIGDIR"]).parent == cache_folder()
    monkeypatch.setenv("MPLCONFIGDIR", "mine")
    cache_files.require_matplotlib()
    assert os.environ["MPLCONFIGDIR"] == "mine"


def test_leaks_that_are_remembered_wrongly_are_looked_for_again(cache: Path) -> None:
    from glmtune.training.setup.leak_report import _remembered

    path = encoded_folder() / "leaks-x.json"
    path.parent.mkdir(parents=True)
    for content in (b"{", b"{}", b"[1]", b"\xff", 100_000 * b"["):
        path.write_bytes(content)
        assert _remembered(path) is None
    path.write_bytes(b'["a"]')
    assert _remembered(path) == ["a"]
