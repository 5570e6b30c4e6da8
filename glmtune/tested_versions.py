"""The newest version of each library that glmtune was tested with, and the note for a run that meets a newer one.

pip never installs a newer one, since `pyproject.toml` has the same bounds (a test compares them); a user can.
"""

from __future__ import annotations

import functools
import importlib.metadata
import re

from glmtune.console import notice

NEWEST_TESTED = {
    "torch": (2, 15),
    "transformers": (5, 24),
    "peft": (0, 21),
    "accelerate": (1, 15),
    "deepspeed": (0, 19),
    "datasets": (5, 2),
    "typer": (0, 29),
    "pyyaml": (6, 0),
    "jieba": (0, 42),
    "rouge-chinese": (1, 0),
    "nltk": (3, 10),
    "numpy": (2, 5),
    "pyarrow": (26, 0),
    "psutil": (7, 2),
    "filelock": (4, 3),
    "jinja2": (3, 1),
    "tqdm": (4, 70),
    "prompt_toolkit": (3, 0),
    "matplotlib": (3, 11),
    "liger-kernel": (0, 8),
    "bitsandbytes": (0, 50),
    "fastapi": (0, 165),
    "uvicorn": (0, 54),
    "openai": (3, 57),
    "prometheus-client": (0, 26),
    "llguidance": (1, 9),
    "swanlab": (0, 10),
    "modelscope": (1, 40),
    "jupyter_client": (8, 10),
    "ipykernel": (7, 4),
}
"""By name in `pyproject.toml`: major and minor version."""


@functools.cache  # one verb calls others, and a program many
def note_untested_versions() -> None:
    """Say once which libraries are newer than those that glmtune was tested with."""
    newer = untested_versions()
    if newer:
        notice(f"newer than glmtune was tested with: {', '.join(newer)}")


def untested_versions() -> list[str]:
    """Return the installed libraries that are newer than the tested ones, as the note names them."""
    newer = []
    for package, tested in NEWEST_TESTED.items():
        try:
            installed = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:  # of an extra, or of Linux alone
            continue
        numbers = re.match(r"(\d+)(?:\.(\d+))?", installed)
        if numbers and (int(numbers[1]), int(numbers[2] or 0)) > tested:
            newer.append(f"{package} {installed} (up to {tested[0]}.{tested[1]})")
    return newer
