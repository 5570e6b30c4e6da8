"""The configurations that come along with glmtune: in the package where it was installed, beside it in a clone."""

from __future__ import annotations

from pathlib import Path

PACKAGE = Path(__file__).parents[1]


def shipped_folder(package: Path = PACKAGE) -> Path:
    """Return the folder of the shipped configurations and DeepSpeed files."""
    installed = package / "configs"
    return installed if installed.is_dir() else package.parent / "configs"


def shipped_name(name: str, package: Path = PACKAGE) -> str:
    """Return how a message names a shipped file: as a clone has it, or by the full path where glmtune was installed."""
    folder = shipped_folder(package)
    return str(folder / name) if folder.parent == package else f"configs/{name}"


def shipped_file(path: Path) -> Path | None:
    """Return the shipped file of the same name, or None."""
    file = shipped_folder() / path.name
    return file if file.is_file() else None
