"""A damaged checkpoint is passed over and named, whichever of its files it is; what is whole is not touched."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file
from small_run import hashes, logged, write_config

from glmtune import resume, train
from glmtune.encoded.store import file_hash
from glmtune.errors import GlmtuneError
from glmtune.training.folder.checkpoint import choose, discard_staging, find_damage, rotate

FILES = (
    "README.md",
    "adapter_config.json",
    "adapter_model.safetensors",
    "asked.json",
    "chat_template.jinja",
    "generation_config.json",
    "loss_window.json",
    "manifest.json",
    "optimizer.pt",
    "rng_state.pth",
    "scheduler.pt",
    "tokenizer.json",
    "tokenizer_config.json",
    "trainer_state.json",
)


def seal(checkpoint: Path) -> None:
    """Write a manifest that fits what the folder holds now."""
    files = [path for path in checkpoint.iterdir() if path.name != "manifest.json"]
    facts = {path.name: {"size": path.stat().st_size, "sha256": file_hash(path)} for path in files}
    (checkpoint / "manifest.json").write_text(json.dumps({"files": facts}), encoding="utf-8")


def passed_over(run: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """Return what is said where a run has to go on from `checkpoint-2`; nothing is touched."""
    before = hashes(run)
    capsys.readouterr()
    assert choose(run, None) == run / "checkpoint-2"
    assert hashes(run) == before
    return capsys.readouterr().err


def test_the_list_of_files_is_complete(whole_run: Path) -> None:
    assert tuple(sorted(path.name for path in (whole_run / "checkpoint-4").iterdir())) == FILES


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_byte_is_noticed_in_every_file(name: str, run: Path, capsys) -> None:
    path = run / "checkpoint-4" / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    problem = "cannot be read" if name == "manifest.json" else "has changed since it was saved"
    assert passed_over(run, capsys) == f"note: passed over `checkpoint-4`: `{name}` {problem}\n"


@pytest.mark.parametrize("name", FILES)
def test_a_truncated_file_is_noticed(name: str, run: Path, capsys) -> None:
    path = run / "checkpoint-4" / name
    size = path.stat().st_size
    for kept in (size - 1, size // 2, 0):
        path.write_bytes(path.read_bytes()[:kept])
        problem = "cannot be read" if name == "manifest.json" else f"has {kept} bytes instead of {size}"
        assert passed_over(run, capsys) == f"note: passed over `checkpoint-4`: `{name}` {problem}\n"


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_noticed(name: str, run: Path, capsys) -> None:
    (run / "checkpoint-4" / name).unlink()
    problem = "it has no `manifest.json`" if name == "manifest.json" else f"`{name}` is missing"
    assert passed_over(run, capsys) == f"note: passed over `checkpoint-4`: {problem}\n"


def test_no_flipped_bit_of_a_manifest_goes_unnoticed(run: Path) -> None:
    checkpoint = run / "checkpoint-4"
    for path in checkpoint.iterdir():
        if path.name not in ("manifest.json", "asked.json", "loss_window.json"):
            path.unlink()
    seal(checkpoint)
    path = checkpoint / "manifest.json"
    content = path.read_bytes()
    assert find_damage(checkpoint) == ""
    for place in range(len(content)):
        for bit in range(8):
            damaged = bytearray(content)
            damaged[place] ^= 1 << bit
            path.write_bytes(damaged)
            assert find_damage(checkpoint), f"byte {place}, bit {bit}: {bytes(damaged)!r}"


def test_a_run_with_a_damaged_checkpoint_goes_on_from_the_one_before(run: Path, whole_run: Path, capsys) -> None:
    weights = run / "checkpoint-4" / "adapter_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    good = hashes(run / "checkpoint-2")
    capsys.readouterr()
    resume(run)
    told = capsys.readouterr().err
    assert told.startswith(
        "note: passed over `checkpoint-4`: `adapter_model.safetensors` has changed since it was saved\n"
    )
    assert f"resuming {run} at step 2 of 6\n" in told
    assert hashes(run / "checkpoint-2") == good
    for step in (4, 6):
        name = f"checkpoint-{step}/adapter_model.safetensors"
        assert (run / name).read_bytes() == (whole_run / name).read_bytes()
    assert logged(run) == logged(whole_run)


def test_where_none_is_whole_all_are_named(run: Path, capsys) -> None:
    (run / "checkpoint-2" / "scheduler.pt").unlink()
    (run / "checkpoint-4" / "manifest.json").unlink()
    before = hashes(run)
    capsys.readouterr()
    with pytest.raises(GlmtuneError) as caught:
        resume(run)
    assert str(caught.value) == (
        "the run has no complete checkpoint to resume from:\n"
        "  - `checkpoint-4`: it has no `manifest.json`\n"
        "  - `checkpoint-2`: `scheduler.pt` is missing\n"
        f"  --> {run}\n"
        "hint: train anew, into another folder"
    )
    assert hashes(run) == before


def test_a_missing_shard_is_named_and_the_run_goes_on_from_the_checkpoint_before(
    rows: Path, tmp_path: Path, capsys
) -> None:
    from transformers import AutoModelForCausalLM

    config = write_config(tmp_path / "config.yaml", tmp_path / "run", peft_config=None, validation=False, max_steps=3)
    run = train(rows, "demo", config, overrides=["training_args.save_steps=1"])
    expected = load_file(run / "checkpoint-3" / "model.safetensors")
    shutil.rmtree(run / "checkpoint-3")
    for step in (1, 2):
        checkpoint = run / f"checkpoint-{step}"
        model = AutoModelForCausalLM.from_pretrained(checkpoint)
        (checkpoint / "model.safetensors").unlink()
        model.save_pretrained(checkpoint, max_shard_size="2MB")
        seal(checkpoint)
    shards = sorted((run / "checkpoint-2").glob("model-*.safetensors"))
    assert len(shards) > 1
    shards[-1].unlink()
    capsys.readouterr()
    resume(run)
    told = capsys.readouterr().err
    assert told.startswith(f"note: passed over `checkpoint-2`: `{shards[-1].name}` is missing\n")
    assert f"resuming {run} at step 1 of 3\n" in told
    found = load_file(run / "checkpoint-3" / "model.safetensors")
    assert found.keys() == expected.keys()
    assert all(found[name].equal(tensor) for name, tensor in expected.items())


def test_a_deletion_that_is_cut_off_leaves_no_half_of_a_checkpoint(run: Path, monkeypatch) -> None:
    def cut_off(path: Path, **_: object) -> None:
        (path / "manifest.json").unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", cut_off)
        with pytest.raises(KeyboardInterrupt):
            rotate(run, 1, best=None)
    assert [path.name for path in run.glob("checkpoint-*")] == ["checkpoint-4"]
    discard_staging(run)
    assert not list(run.glob(".*"))
