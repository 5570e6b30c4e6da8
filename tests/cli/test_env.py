"""`glmtune env`: what a report of a mistake needs, wherever it is asked for, and nothing that should stay private."""

from __future__ import annotations

import getpass
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import command_line
from test_architecture import HEAVY, modules_loaded_by_command

from glmtune import __version__
from glmtune.environment import as_text


@pytest.fixture
def broken_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "modules").mkdir()
    reason = "libcudart.so.12: cannot open shared object file: No such file or directory"
    (tmp_path / "modules" / "torch.py").write_text(f"raise OSError({reason!r})\n", encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    return reason


def test_it_says_versions_devices_memory_and_where_the_cache_is(tmp_path: Path) -> None:
    done = command_line("env", "--json", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    assert found["glmtune"]["version"] == __version__
    assert "(tested up to " in found["packages"]["transformers"]
    # A build says more of itself than its package does: `2.13.0+cu130`.
    built, packaged = (
        text.partition(" ")[0].partition("+")[0] for text in (found["torch"]["version"], found["packages"]["torch"])
    )
    assert built == packaged
    assert {"system", "processor", "cores", "memory", "memory available"} <= found["machine"].keys()
    assert found["cache"]["can be written"] is True
    assert found["cache"]["room"] > 0
    assert isinstance(found["devices"], list)


def test_it_works_where_torch_is_broken(broken_torch: str, tmp_path: Path) -> None:
    done = command_line("env", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"\ntorch:\n  error: OSError: {broken_torch}\ndevices: none\n" in done.stdout


def test_it_loads_nothing_heavy_itself() -> None:
    assert not modules_loaded_by_command("env") & set(HEAVY)


def test_neither_secrets_nor_the_users_name_are_told(
    broken_torch: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    monkeypatch.setenv("LOGNAME", "wang.wei")
    monkeypatch.setenv("HF_TOKEN", "hf_abcdefghijklmnopqrstuvwxyz")
    monkeypatch.setenv("HF_ENDPOINT", "https://me:secret-word@mirror.example")
    monkeypatch.setenv("HF_HOME", "/home/somebody/hf")
    monkeypatch.setenv("TORCH_HOME", "/data/wang.wei/torch")
    monkeypatch.setenv("GLMTUNE_CACHE", "/data/wang.wei/cache")
    done = command_line("env", cwd=tmp_path)
    for private in ("/home/somebody", "wang.wei", "hf_abc", "secret-word"):
        assert private not in done.stdout
    for line in ("HF_TOKEN: (set)", "HF_HOME: ~/hf", "TORCH_HOME: /data/USER/torch", "folder: /data/USER/cache"):
        assert f"  {line}\n" in done.stdout
    assert getpass.getuser() == "wang.wei"


def test_sizes_are_told_in_gigabytes_and_parts_without_content_as_none() -> None:
    found = {"devices": [{"name": "NVIDIA H200", "bytes": 150_000_000_000, "capability": "9.0"}], "driver": [],
             "machine": {"cores": 16, "memory": 128_000_000_000}}  # fmt: skip
    assert as_text(found) == (
        "devices:\n  NVIDIA H200, bytes 150.0 GB, capability 9.0\ndriver: none\n"
        "machine:\n  cores: 16\n  memory: 128.0 GB"
    )


def test_it_needs_neither_a_home_folder_nor_a_place_to_write(broken_torch: str, tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name not in ("HOME", "GLMTUNE_CACHE")}
    environment |= {"XDG_CACHE_HOME": "/proc/nowhere", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-m", "glmtune", "env"], env=environment, cwd=tmp_path, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "  folder: /proc/nowhere/glmtune\n" in done.stdout
