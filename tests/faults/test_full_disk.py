"""A full disk and a folder that cannot be written to: one clear error, and nothing that was good is lost."""

from __future__ import annotations

import os
import re
import resource
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from small_run import hashes, logged, write_config

from glmtune import load_config, resume, train
from glmtune.errors import EXIT_FAILURE, GlmtuneError

NOBODY = 65534


@contextmanager
def files_up_to(num_bytes: int) -> Iterator[None]:
    """Let this process write no larger files."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@contextmanager
def without_rights() -> Iterator[None]:
    """Be a user whom nothing belongs to; root may write everywhere."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own; `mount -o remount,size=` changes its size."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", folder], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"a small file system needs the right to mount one: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def saved(run: Path) -> dict[str, str]:
    """Return the hashes of what a failed save must not touch."""
    return {name: value for name, value in hashes(run).items() if name.startswith("checkpoint-") or name == "run.yaml"}


@pytest.mark.parametrize(
    ("num_bytes", "too_large"), [(100_000, "adapter_model.safetensors"), (200_000, "optimizer.pt")]
)
def test_a_save_that_does_not_fit_leaves_the_earlier_checkpoints(
    num_bytes: int, too_large: str, run: Path, whole_run: Path
) -> None:
    assert (run / "checkpoint-4" / too_large).stat().st_size > num_bytes
    before = saved(run)
    with files_up_to(num_bytes), pytest.raises(GlmtuneError) as caught:
        resume(run)
    assert str(caught.value) == (
        f"the disk is full: the checkpoint could not be written\n  --> {run}\n"
        f"hint: free some space, then `glmtune resume {run}`; earlier checkpoints are whole"
    )
    assert caught.value.exit_code == EXIT_FAILURE
    assert saved(run) == before
    assert not (run / ".saving").exists()
    resume(run)
    weights = "checkpoint-6/adapter_model.safetensors"
    assert (run / weights).read_bytes() == (whole_run / weights).read_bytes()
    assert logged(run) == logged(whole_run)


@pytest.mark.parametrize("share", [0.2, 0.45, 0.7, 0.95])
def test_a_disk_without_room_for_a_first_checkpoint_is_told_before_the_first_step(
    share: float, rows: Path, whole_run: Path, small_disk: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    needed = sum(path.stat().st_size for path in (whole_run / "checkpoint-2").iterdir())
    size = int(needed * share) + 16_384  # beside `run.yaml`
    subprocess.run(["mount", "-o", f"remount,size={size}", small_disk], check=True)
    run = small_disk / "run"
    config = write_config(tmp_path / "config.yaml", run, validation=False, max_steps=6)
    with pytest.raises(GlmtuneError) as caught:
        train(rows, "demo", config)
    assert re.fullmatch(
        r"the disk is full: the checkpoint could not be written|"
        r"the disk has 0\.\d MB left, and a checkpoint of this run needs 0\.\d MB",
        caught.value.what,
    )
    assert caught.value.fix == "free some space, or choose another folder: `--set training_args.output_dir=...`"
    assert caught.value.exit_code == EXIT_FAILURE
    assert "step 1/6" not in capsys.readouterr().err
    assert not run.exists()


def test_a_disk_without_room_for_the_next_checkpoint_is_told_before_it_is_begun(
    run: Path, whole_run: Path, small_disk: Path
) -> None:
    here = small_disk / "run"
    shutil.copytree(run, here)
    used = shutil.disk_usage(small_disk).used
    subprocess.run(["mount", "-o", f"remount,size={used + 300_000}", small_disk], check=True)
    before = saved(here)
    with pytest.raises(GlmtuneError) as caught:
        resume(here)
    assert str(caught.value) == (
        f"the disk has 0.3 MB left, and a checkpoint needs 0.6 MB\n  --> {here}\n"
        f"hint: free some space (or set `save_total_limit`), then `glmtune resume {here}`"
    )
    assert saved(here) == before
    subprocess.run(["mount", "-o", "remount,size=64m", small_disk], check=True)
    resume(here)
    weights = "checkpoint-6/adapter_model.safetensors"
    assert (here / weights).read_bytes() == (whole_run / weights).read_bytes()


def test_a_folder_that_cannot_be_written_to_is_refused_before_anything_runs(run: Path, capsys) -> None:
    with tempfile.TemporaryDirectory() as room:  # pytest's own folders are closed to others
        here = Path(room) / "run"
        shutil.copytree(run, here)
        Path(room).chmod(0o755)
        here.chmod(0o555)
        before = hashes(here)
        capsys.readouterr()
        with without_rights(), pytest.raises(GlmtuneError) as caught:
            resume(here)
        assert str(caught.value) == (
            f"nothing can be written into the run's folder: Permission denied\n  --> {here}\n"
            "hint: make it writable for this user, or go on in a copy of it"
        )
        assert capsys.readouterr().err == ""
        assert hashes(here) == before
        here.chmod(0o755)


def test_a_folder_that_cannot_be_made_is_an_error(rows: Path, tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory() as room:
        Path(room).chmod(0o555)
        config = write_config(tmp_path / "config.yaml", Path(room) / "run", validation=False, max_steps=6)
        loaded = load_config(config)
        with without_rights(), pytest.raises(GlmtuneError) as caught:
            train(rows, "demo", loaded)
        assert str(caught.value) == (
            f"the run's folder cannot be made: Permission denied\n  --> {Path(room) / 'run'}\n"
            "hint: choose another with `--set training_args.output_dir=...`"
        )
        Path(room).chmod(0o755)
