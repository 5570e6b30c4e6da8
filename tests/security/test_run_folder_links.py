"""A run folder of somebody else's leads nowhere: no link in it is read through, appended to, emptied or replaced."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from hostile_checkpoints import write_config

from glmtune import resume, train
from glmtune.errors import GlmtuneError
from glmtune.files.durable import replace_file
from glmtune.modeling.finding.links import refuse_links
from glmtune.modeling.finding.model_source import find_model
from glmtune.training.folder.run_lock import hold_run

CONTENT = b"a diary\n"
STATE = (
    *(".lock", "metrics.jsonl", ".metrics.jsonl", "run.yaml", ".run.yaml", "loss.png", ".loss.png", "rejects.jsonl"),
    *(".rejects.jsonl", ".shared-storage-probe", "evaluation-failures.log", "predictions/step-4.jsonl"),
    *("checkpoint-2/optimizer.pt", "checkpoint-2/trainer_state.json", "checkpoint-2/asked.json"),
    *("checkpoint-2/adapter_model.safetensors", "checkpoint-2/manifest.json", "notes.txt"),
)
FOLDERS = (".saving", "predictions", "checkpoint-2", "checkpoint-4", "runs", "swanlog")


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    folder = tmp_path / "outside"
    folder.mkdir()
    (folder / "diary").write_bytes(CONTENT)
    return folder


def everything(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def replaced_by(run: Path, name: str, make: Callable[[Path], object]) -> Path:
    path = run / name
    path.parent.mkdir(exist_ok=True)
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    make(path)
    return path


def refused(run: Path, path: Path, kind: str) -> None:
    with pytest.raises(GlmtuneError) as caught:
        resume(run)
    assert caught.value.what == f"`{path.relative_to(run)}` in `{run}` is {kind}; expected plain files and folders"
    assert caught.value.where == str(path)


@pytest.mark.parametrize("name", STATE)
def test_a_link_to_a_file_is_refused_and_what_it_leads_to_stays(name: str, run: Path, outside: Path) -> None:
    path = replaced_by(run, name, lambda path: path.symlink_to(outside / "diary"))
    refused(run, path, "a symbolic link")
    assert everything(outside) == {"diary": CONTENT}
    assert path.is_symlink()


@pytest.mark.parametrize("name", FOLDERS)
def test_a_link_to_a_folder_is_refused_and_what_it_leads_to_stays(name: str, run: Path, outside: Path) -> None:
    path = replaced_by(run, name, lambda path: path.symlink_to(outside, target_is_directory=True))
    refused(run, path, "a symbolic link")
    assert everything(outside) == {"diary": CONTENT}


@pytest.mark.parametrize("target", ["nowhere", "../outside/diary", "metrics.jsonl.real", "/dev/null", "/etc/passwd"])
def test_links_of_every_kind_are_refused(target: str, run: Path, outside: Path) -> None:
    path = replaced_by(run, "metrics.jsonl", lambda path: path.symlink_to(target))
    refused(run, path, "a symbolic link")
    assert everything(outside) == {"diary": CONTENT}


@pytest.mark.parametrize("name", ["metrics.jsonl", ".lock", "run.yaml", "checkpoint-2/optimizer.pt", "z.pt"])
def test_a_pipe_holds_nothing_up(name: str, run: Path) -> None:
    path = replaced_by(run, name, lambda path: os.mkfifo(path))
    refused(run, path, "a pipe")


def test_a_socket_is_refused(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(run)  # its whole path may be longer than a socket's may be
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("metrics.socket")
        refused(run, run / "metrics.socket", "a socket")


def test_a_run_folder_may_itself_be_a_link(run: Path, tmp_path: Path) -> None:
    (tmp_path / "linked").symlink_to(run, target_is_directory=True)
    resume(tmp_path / "linked")
    assert (run / "checkpoint-4").is_dir()


@pytest.mark.parametrize("name", [".saving", ".run.yaml", ".rejects.jsonl", ".loss.png", ".shared-storage-probe"])
def test_a_new_run_does_not_write_through_links_that_lie_in_its_folder(
    name: str, demo_data: Path, tmp_path: Path, outside: Path
) -> None:
    folder = tmp_path / "new"
    folder.mkdir()
    (folder / name).symlink_to(outside if name == ".saving" else outside / "diary")
    with pytest.raises(GlmtuneError, match=rf"`{name}` in `.*` is a symbolic link"):
        train(demo_data, "demo", write_config(tmp_path / "c.yaml", folder))
    assert everything(outside) == {"diary": CONTENT}


def test_the_lock_empties_no_file_that_a_link_leads_to(tmp_path: Path, outside: Path) -> None:
    run = tmp_path / "held"
    run.mkdir()
    (run / ".lock").symlink_to(outside / "diary")
    with pytest.raises(GlmtuneError, match=r"`\.lock` in the run's folder is a symbolic link"), hold_run(run):
        pass
    assert everything(outside) == {"diary": CONTENT}


@pytest.mark.parametrize("target", ["outside/diary", "nowhere"])
def test_a_file_is_never_replaced_through_a_link_beside_it(target: str, tmp_path: Path, outside: Path) -> None:
    (tmp_path / ".x.json").symlink_to(tmp_path / target)
    replace_file(tmp_path / "x.json", b"{}")
    assert (tmp_path / "x.json").read_bytes() == b"{}"
    assert everything(outside) == {"diary": CONTENT}
    assert not (tmp_path / "nowhere").exists()


def test_a_link_that_takes_the_place_of_the_file_is_replaced_itself(tmp_path: Path, outside: Path) -> None:
    (tmp_path / "x.json").symlink_to(outside / "diary")
    replace_file(tmp_path / "x.json", b"{}")
    assert not (tmp_path / "x.json").is_symlink()
    assert everything(outside) == {"diary": CONTENT}


@pytest.mark.parametrize("name", ["chat_template.jinja", "adapter_model.safetensors", "README.md"])
def test_a_checkpoint_that_leads_out_of_itself_is_not_loaded_nor_exported(name: str, run: Path, outside: Path) -> None:
    path = replaced_by(run / "checkpoint-2", name, lambda path: path.symlink_to(outside / "diary"))
    for model in (run, run / "checkpoint-2"):
        with pytest.raises(GlmtuneError) as caught:
            find_model(model)
        assert caught.value.what == f"`{name}` in `{path.parent}` leads out of it, to `{outside / 'diary'}`"


def test_a_checkpoint_that_is_a_link_is_not_taken_for_the_runs(run: Path, outside: Path) -> None:
    replaced_by(run, "checkpoint-9", lambda path: path.symlink_to(outside, target_is_directory=True))
    with pytest.raises(GlmtuneError, match=r"`checkpoint-9` in .* is a symbolic link"):
        find_model(run)


def test_a_model_in_the_hubs_cache_is_loaded_through_its_links(run: Path, demo_model: str, tmp_path: Path) -> None:
    snapshot = tmp_path / "models--a--b" / "snapshots" / "0123"
    blobs = tmp_path / "models--a--b" / "blobs"
    for folder in (snapshot, blobs):
        folder.mkdir(parents=True)
    for path in Path(demo_model).iterdir():
        shutil.copy(path, blobs / f"hash-of-{path.name}")
        (snapshot / path.name).symlink_to(f"../../blobs/hash-of-{path.name}")
    (blobs / "hash-of-manifest").write_text("{}", encoding="utf-8")
    (snapshot / "manifest.json").symlink_to("../../blobs/hash-of-manifest")
    assert find_model(snapshot).base == str(snapshot)


def test_a_base_model_may_lie_elsewhere(demo_model: str, tmp_path: Path) -> None:
    for path in Path(demo_model).iterdir():
        (tmp_path / path.name).symlink_to(path)
    assert find_model(tmp_path).base == str(tmp_path)


def test_what_trackers_keep_in_folders_of_theirs_is_theirs(run: Path) -> None:
    (run / "runs").mkdir()
    (run / "runs" / "latest").symlink_to("nowhere")
    refuse_links(run, not_inside=("runs",))
    with pytest.raises(GlmtuneError, match=r"^`runs/latest` in "):
        refuse_links(run)
