"""Checkpoints: every weight whole, the last good one never deleted, the best one found wherever the run is now."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from glmtune import resume, train
from glmtune.errors import RunFailure
from glmtune.training.folder.checkpoint import (
    MANIFEST,
    choose,
    disk_errors_explained,
    place_in,
    publish,
    read_state,
    rotate,
)
from glmtune.training.folder.weight_check import check_weights, saved_shapes

SHAPES = {"embedding": (6, 4), "norm": (4,)}


def write_weights(folder: Path, **changes: torch.Tensor | None) -> None:
    """Write the weights of `SHAPES`, some of them otherwise, or (None) not at all."""
    weights = {name: torch.ones(shape) for name, shape in SHAPES.items()} | changes
    save_file({name: value for name, value in weights.items() if value is not None}, folder / "model.safetensors")


def refusal(folder: Path) -> str:
    with pytest.raises(RunFailure) as caught:
        check_weights(folder, SHAPES)
    return str(caught.value)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"norm": torch.ones(0)}, "weight `norm` was saved empty"),
        ({"embedding": torch.ones(3, 4)}, "weight `embedding` was saved as (3, 4) instead of (6, 4)"),
        ({"embedding": torch.ones(24)}, "weight `embedding` was saved as (24,) instead of (6, 4)"),
        ({"norm": torch.tensor([1, torch.nan, 1, 1])}, "weight `norm` holds numbers that are not finite"),
        ({"norm": torch.tensor([1, 1, 1, torch.inf])}, "weight `norm` holds numbers that are not finite"),
    ],
)
def test_a_weight_that_is_not_whole_is_named(tmp_path: Path, changes: dict[str, torch.Tensor], problem: str) -> None:
    write_weights(tmp_path, **changes)
    assert refusal(tmp_path) == f"{problem}\n  --> {tmp_path / 'model.safetensors'}"


def test_a_weight_that_was_not_saved_is_named(tmp_path: Path) -> None:
    write_weights(tmp_path, norm=None)
    assert refusal(tmp_path) == (
        f"the checkpoint holds 24 of the model's 28 numbers; weight `norm` was not saved\n  --> {tmp_path}"
    )


@pytest.mark.parametrize(
    "changes",
    [{}, {"embedding": None, "upper": torch.ones(3, 4), "lower": torch.ones(3, 4)}],
    ids=["whole", "in pieces"],
)
def test_weights_pass_where_all_numbers_are_there(changes: dict[str, torch.Tensor | None], tmp_path: Path) -> None:
    staged = tmp_path / ".saving" / "checkpoint-5"
    staged.mkdir(parents=True)
    write_weights(staged, **changes)
    publish(staged, tmp_path, SHAPES)
    assert (tmp_path / "checkpoint-5" / "model.safetensors").is_file()


def test_a_missing_shard_is_told(tmp_path: Path) -> None:
    save_file({"embedding": torch.ones(6, 4)}, tmp_path / "model-00001-of-00002.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    places = {"embedding": "model-00001-of-00002.safetensors", "norm": "model-00002-of-00002.safetensors"}
    index.write_text(json.dumps({"weight_map": places}), encoding="utf-8")
    assert refusal(tmp_path) == (
        f"weight `norm` is missing: `model-00002-of-00002.safetensors` does not hold it\n  --> {index}"
    )


def test_a_file_that_is_cut_off_is_told(tmp_path: Path) -> None:
    write_weights(tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-8])
    assert refusal(tmp_path).startswith("`model.safetensors` cannot be read back: ")


def test_the_share_of_one_process_is_not_taken_for_the_weight() -> None:
    weight = SimpleNamespace(shape=(0,), ds_shape=(6, 4))
    model = SimpleNamespace(named_parameters=lambda: [("embedding", weight)])
    assert saved_shapes(model) == {"embedding": (6, 4)}


def test_a_checkpoint_that_is_not_whole_never_appears(tmp_path: Path) -> None:
    staged = tmp_path / ".saving" / "checkpoint-5"
    staged.mkdir(parents=True)
    write_weights(staged, norm=torch.ones(0))
    with pytest.raises(RunFailure):
        publish(staged, tmp_path, SHAPES)
    assert not (tmp_path / "checkpoint-5").exists()


def make_checkpoints(run: Path, *steps: int) -> None:
    for step in steps:
        staged = run / ".saving" / f"checkpoint-{step}"
        staged.mkdir(parents=True)
        write_weights(staged)
        publish(staged, run, SHAPES)


def names(run: Path) -> list[str]:
    return sorted(path.name for path in run.glob("checkpoint-*"))


@pytest.mark.parametrize(
    ("limit", "best", "left"),
    [
        (None, None, [10, 20, 30, 40]),
        (0, None, [10, 20, 30, 40]),
        (1, None, [40]),
        (2, None, [30, 40]),
        (1, 20, [20, 40]),
        (2, 10, [10, 40]),
        (3, 20, [20, 30, 40]),
        (9, None, [10, 20, 30, 40]),
    ],
)
def test_the_oldest_go_and_the_newest_and_the_best_stay(
    tmp_path: Path, limit: int | None, best: int | None, left: list[int]
) -> None:
    make_checkpoints(tmp_path, 10, 20, 30, 40)
    rotate(tmp_path, limit, f"/elsewhere/checkpoint-{best}" if best else None)
    assert names(tmp_path) == [f"checkpoint-{step}" for step in left]


def test_the_newest_is_that_of_the_highest_step_whatever_its_name_sorts_like(tmp_path: Path) -> None:
    make_checkpoints(tmp_path, 9, 10, 100)
    assert choose(tmp_path, None).name == "checkpoint-100"
    (tmp_path / "checkpoint-100" / MANIFEST).unlink()
    assert choose(tmp_path, None).name == "checkpoint-10"


def test_nothing_is_deleted_where_the_newest_has_lost_a_file(tmp_path: Path) -> None:
    make_checkpoints(tmp_path, 10, 20)
    (tmp_path / "checkpoint-20" / "model.safetensors").unlink()
    rotate(tmp_path, 1, None)
    assert names(tmp_path) == ["checkpoint-10", "checkpoint-20"]


def test_replaced_checkpoints_go_first(tmp_path: Path) -> None:
    make_checkpoints(tmp_path, 10)
    make_checkpoints(tmp_path, 10)
    assert names(tmp_path) == ["checkpoint-10", "checkpoint-10.replaced-1"]
    rotate(tmp_path, 5, None)
    assert names(tmp_path) == ["checkpoint-10"]


def test_a_recorded_checkpoint_is_found_where_the_run_is_now(tmp_path: Path) -> None:
    make_checkpoints(tmp_path, 10)
    assert place_in(tmp_path, "/before/run/checkpoint-10") == str(tmp_path / "checkpoint-10")
    assert place_in(tmp_path, "/before/run/checkpoint-99") is None
    assert place_in(tmp_path, None) is None


@pytest.mark.parametrize("limit", [1, 2])
def test_rotation_best_model_and_resume_agree_after_the_run_was_moved(
    limit: int, demo_data: Path, write_config, read_weights, tmp_path: Path
) -> None:
    """The first evaluation is the best one: what follows has a learning rate that ruins the model."""
    config = write_config(
        "sft", max_steps=8, save_steps=2, eval_steps=2, save_total_limit=limit, learning_rate=0.3, warmup_steps=4,
        load_best_model_at_end=True, metric_for_best_model="eval_loss", predict_with_generate=False,
    )  # fmt: skip
    run = train(demo_data, "demo", config)
    best = Path(read_state(run / "checkpoint-8")["best_model_checkpoint"])
    assert best.parent == run
    assert best.name != "checkpoint-8"
    assert names(run) == sorted({best.name, "checkpoint-8"})
    expected = read_weights(best)

    moved = tmp_path / "moved"
    run.rename(moved)
    shutil.rmtree(moved / "checkpoint-8")
    assert names(moved) == [best.name]
    resume(moved)
    assert read_state(moved / "checkpoint-8")["best_model_checkpoint"] == str(moved / best.name)
    assert names(moved) == sorted({best.name, "checkpoint-8"})
    assert all(read_weights(moved / best.name)[name].equal(tensor) for name, tensor in expected.items())


@pytest.mark.parametrize("name", ["ENOSPC", "EDQUOT", "EFBIG"])
def test_every_way_of_a_system_to_say_that_a_disk_is_full_is_told_as_one(name: str, tmp_path: Path) -> None:
    with pytest.raises(RunFailure, match=r"^the disk is full") as caught, disk_errors_explained(tmp_path):
        raise OSError(getattr(errno, name), "in the words of the system")
    assert str(caught.value.fix).startswith("free some space")


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("[enforce fail at inline_container.cc:783] . PytorchStreamWriter failed writing file data/1"),
        RuntimeError("unexpected pos 64 vs 0"),
        RuntimeError("Disk quota exceeded"),
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
        SafetensorError("Error while serializing: I/O error: File too large (os error 27)"),
    ],
    ids=str,
)
def test_what_libraries_say_of_a_full_disk_is_told_as_one(error: Exception, tmp_path: Path) -> None:
    with pytest.raises(RunFailure, match=r"^the disk is full"), disk_errors_explained(tmp_path):
        raise error


@pytest.mark.parametrize("error", [OSError(errno.EIO, "Input/output error"), RuntimeError("shapes differ")], ids=str)
def test_other_errors_of_a_save_pass(error: Exception, tmp_path: Path) -> None:
    with pytest.raises(type(error)) as caught, disk_errors_explained(tmp_path):
        raise error
    assert caught.value is error


def test_a_full_disk_at_the_sync_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    staged = tmp_path / ".saving" / "checkpoint-2"
    staged.mkdir(parents=True)
    write_weights(staged)

    def fsync(descriptor: int) -> None:
        raise OSError(errno.EDQUOT, "Disk quota exceeded")  # NFS says so only here

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(RunFailure, match=r"^the disk is full"), disk_errors_explained(tmp_path):
        publish(staged, tmp_path, SHAPES)
    assert not (tmp_path / "checkpoint-2").exists()


def test_a_manifest_reads_the_same_on_every_system(tmp_path: Path) -> None:
    staged = tmp_path / ".saving" / "checkpoint-2"
    (staged / "global_step2").mkdir(parents=True)
    write_weights(staged)
    (staged / "global_step2" / "shard").touch()
    manifest = json.loads((publish(staged, tmp_path, SHAPES) / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["files"].keys() == {"global_step2/shard", "model.safetensors"}
