"""What has its name has reached the disk: every file is waited for before the rename, the folder after it."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import IO

import pytest
import torch
from safetensors.torch import save_file

from glmtune.data.conversion import convert_data
from glmtune.exporting.run import _written_aside
from glmtune.files import durable
from glmtune.files.durable import FOLDERS_NOT_SYNCED, put_in_place, replace_file, sync, sync_tree
from glmtune.training.folder.checkpoint import publish

Event = tuple[str, str]


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> list[Event]:
    """What is waited for and what is renamed, by name, in order; the size that a file had counts, too."""
    events: list[Event] = []
    fsync, rename, replace = os.fsync, Path.rename, Path.replace

    def watched_fsync(descriptor: int) -> None:
        fsync(descriptor)
        events.append(("sync", Path(os.readlink(f"/proc/self/fd/{descriptor}")).name))

    def watched_move(move: Callable[[Path, Path], Path]) -> Callable[[Path, Path], Path]:
        def moved(self: Path, target: Path) -> Path:
            events.append(("rename", Path(target).name))
            return move(self, target)

        return moved

    monkeypatch.setattr(os, "fsync", watched_fsync)
    monkeypatch.setattr(Path, "rename", watched_move(rename))
    monkeypatch.setattr(Path, "replace", watched_move(replace))
    return events


def test_a_checkpoint_has_reached_the_disk_before_it_has_its_name(tmp_path: Path, watched: list[Event]) -> None:
    staged = tmp_path / "run" / ".saving" / "checkpoint-4"
    (staged / "global_step4").mkdir(parents=True)
    save_file({"norm": torch.ones(4)}, staged / "model.safetensors")
    (staged / "global_step4" / "shard").write_text("weights")
    publish(staged, tmp_path / "run", {"norm": (4,)})
    before, (rename, *after) = watched[:-2], watched[-2:]
    parts = ("model.safetensors", "manifest.json", "shard", "global_step4", "checkpoint-4")
    assert sorted(before) == sorted(("sync", name) for name in parts)
    assert rename == ("rename", "checkpoint-4")
    assert after == [("sync", "run")]


def test_an_export_has_reached_the_disk_before_it_has_its_name(tmp_path: Path, watched: list[Event]) -> None:
    folder = tmp_path / "merged"
    folder.mkdir()  # empty: it gives way
    with _written_aside(folder) as staged:
        (staged / "config.json").write_text("{}")
        assert watched == []
    assert watched == [("sync", "config.json"), ("sync", "merged"), ("rename", "merged"), ("sync", tmp_path.name)]
    assert (folder / "config.json").read_text() == "{}"


def test_converted_rows_have_reached_the_disk_before_they_have_their_name(tmp_path: Path, watched: list[Event]) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "a", "response": "b"}\n')
    convert_data(rows, tmp_path / "out.jsonl")
    staged, *rest = watched
    assert staged[0] == "sync"
    assert staged[1].startswith(".out.jsonl.")
    assert rest == [("rename", "out.jsonl"), ("sync", tmp_path.name)]


def test_a_file_takes_the_place_of_another_at_once(tmp_path: Path, watched: list[Event]) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    old.write_text("old")
    new.write_text("new")
    put_in_place(new, old)
    assert (old.read_text(), new.exists()) == ("new", False)
    assert watched == [("sync", "new"), ("rename", "old"), ("sync", tmp_path.name)]


def test_new_content_is_whole_before_it_takes_the_place_of_the_old(
    tmp_path: Path, watched: list[Event], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "metrics.json"
    path.write_text("old")
    replace_file(path, b"new")
    assert (path.read_text(), os.listdir(tmp_path)) == ("new", [path.name])
    assert watched == [("sync", f".{path.name}"), ("rename", path.name), ("sync", tmp_path.name)]

    def half(path: Path) -> IO[bytes]:
        path.write_bytes(b"n")
        return Path("/dev/full").open("wb", buffering=0)

    monkeypatch.setattr(durable, "open_anew", half)
    with pytest.raises(OSError, match="No space"):
        replace_file(path, b"newer")
    assert path.read_text() == "new"


def test_a_folder_that_holds_something_gives_way_to_none(tmp_path: Path) -> None:
    staged, final = tmp_path / "staged", tmp_path / "final"
    staged.mkdir()
    final.mkdir()
    (final / "of the user").touch()
    with pytest.raises(OSError, match="not empty"):
        put_in_place(staged, final)
    assert (final / "of the user").exists()


def refuse(code: int) -> Callable[[int], None]:
    def fsync(descriptor: int) -> None:
        raise OSError(code, os.strerror(code))

    return fsync


@pytest.mark.parametrize("name", ["EACCES", "EPERM", "EISDIR", "EBADF", "EINVAL", "ENOTSUP"])
def test_a_folder_is_not_waited_for_where_the_system_cannot(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", refuse(getattr(errno, name)))
    sync(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=str(getattr(errno, name))):
        sync_tree(tmp_path)


@pytest.mark.parametrize("name", ["ENOSPC", "EDQUOT", "EIO"])
@pytest.mark.parametrize("is_folder", [True, False])
def test_a_disk_that_fails_is_never_passed_over(
    name: str, is_folder: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path if is_folder else tmp_path / "file"
    monkeypatch.setattr(os, "fsync", refuse(getattr(errno, name)))
    if not is_folder:
        path.touch()
    with pytest.raises(OSError, match=str(getattr(errno, name))):
        sync(path)


def test_every_reason_is_tried_here() -> None:
    assert {errno.errorcode[code] for code in FOLDERS_NOT_SYNCED} <= {
        "EACCES", "EPERM", "EISDIR", "EBADF", "EINVAL", "ENOTSUP", "EOPNOTSUPP"
    }  # fmt: skip
