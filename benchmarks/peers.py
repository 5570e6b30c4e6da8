"""Other trainers, each in a virtual environment of its own: TRL and LLaMA-Factory.

python benchmarks/peers.py [FOLDER]

Makes what is not there yet in FOLDER (`~/.cache/glmtune/peers` where none is given), 2 GB each; the other benchmarks
look for them there, or where `--peers FOLDER` says. torch comes first, so that pip fits everything else to it.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import subprocess
import sys
import venv
from pathlib import Path

from glmtune.demo.model import cache_folder

PACKAGES = {"trl": "trl[peft]==1.16.0", "llamafactory": "llamafactory==0.9.5"}

NOT_FOR_CPUS = {"llamafactory": ("torchaudio",)}
"""Modules that a tool imports although text needs none of them, and which are not published for CPUs."""


def main() -> None:
    """Make the environments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=default_folder())
    arguments = parser.parse_args()
    for name in PACKAGES:
        make(name, arguments.folder)
        print(f"{name}: {python_of(name, arguments.folder)}")


def default_folder() -> Path:
    """Return where the environments lie if nothing else is said."""
    return cache_folder() / "peers"


def python_of(name: str, folder: Path) -> Path:
    """Return the interpreter of a tool's environment."""
    return folder / name / "bin" / "python"


def is_made(name: str, folder: Path) -> bool:
    """Whether the environment is complete."""
    return (folder / name / "complete").is_file()


def make(name: str, folder: Path) -> None:
    """Install a tool, with the torch that is installed here."""
    if is_made(name, folder):
        return
    venv.create(folder / name, with_pip=True, clear=True)
    pip = [str(python_of(name, folder)), "-m", "pip", "install", "--quiet"]
    torch = f"torch=={importlib.metadata.version('torch')}"
    subprocess.run([*pip, torch, "psutil"], check=True)
    subprocess.run([*pip, torch.partition("+")[0], PACKAGES[name]], check=True)
    site_packages = next((folder / name / "lib").glob("python3*/site-packages"))
    for module in NOT_FOR_CPUS.get(name, ()):
        _write_empty_module(site_packages, module)
    (folder / name / "complete").touch()


def _write_empty_module(site_packages: Path, name: str) -> None:
    """Put an empty module in the place of an installed one, which may be made for a CUDA that is not there."""
    pip = [str(site_packages.parents[2] / "bin" / "python"), "-m", "pip"]
    subprocess.run([*pip, "uninstall", "--quiet", "--yes", name], check=True)
    (site_packages / f"{name}.py").write_text('__version__ = "0"\n', encoding="utf-8")


def environment() -> dict[str, str]:
    """Return the environment variables that every tool is run with: two threads, no network, no reports."""
    return {
        **os.environ,
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "2"),
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "WANDB_DISABLED": "true",
        "DISABLE_VERSION_CHECK": "1",
        "PYTHONUNBUFFERED": "1",
        "PYTHONPATH": os.environ.get("PYTHONPATH") or str(Path(__file__).parents[1]),
    }


if __name__ == "__main__":
    sys.exit(main())
