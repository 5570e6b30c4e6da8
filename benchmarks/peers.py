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

from glmtune.files.cache_files import cache_folder

PACKAGES = {"trl": "trl[peft]==1.16.0", "llamafactory": "llamafactory==0.9.5"}

IMPORTED_IN_VAIN = {"llamafactory": ("torchaudio",)}
"""Packages that a tool imports although text needs none of them: made for CUDA alone, an empty module serves."""

UNUSED = {"llamafactory": ("torchvision",)}
"""Packages that transformers imports where they are installed: made for CUDA, they break it on a machine without."""


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
    torch = f"torch=={importlib.metadata.version('torch').partition('+')[0]}"
    subprocess.run([*pip, torch], check=True)
    subprocess.run([*pip, torch, PACKAGES[name]], check=True)
    site_packages = next((folder / name / "lib").glob("python3*/site-packages"))
    for package in (*IMPORTED_IN_VAIN.get(name, ()), *UNUSED.get(name, ())):
        subprocess.run([*pip[:3], "uninstall", "--quiet", "--yes", package], check=True)
    for module in IMPORTED_IN_VAIN.get(name, ()):
        (site_packages / f"{module}.py").write_text('__version__ = "0"\n', encoding="utf-8")
    (folder / name / "complete").touch()


def environment() -> dict[str, str]:
    """Return the environment variables that every tool is run with: two threads, no network, no reports."""
    return {
        **os.environ,
        "OMP_NUM_THREADS": "2",
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "DISABLE_VERSION_CHECK": "1",  # LLaMA-Factory's, of packages that it has not been tried with
        "PYTHONUNBUFFERED": "1",
        "PYTHONPATH": os.environ.get("PYTHONPATH") or str(Path(__file__).parents[1]),
    }


if __name__ == "__main__":
    sys.exit(main())
