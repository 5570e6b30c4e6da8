"""The README's commands run as written, in order, and both languages show the same ones."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import preloaded
import pytest

REPOSITORY = Path(__file__).parents[1]
BLOCK = re.compile(r"^```(bash|shell|python|yaml|json)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(name: str, language: str) -> list[str]:
    text = (REPOSITORY / name).read_text(encoding="utf-8")
    return [body for kind, body in BLOCK.findall(text) if kind == language]


def without_comments(code: str) -> str:
    """Return code without comments: those are translated."""
    return "\n".join(line for line in (re.sub(r"\s*#.*", "", line) for line in code.splitlines()) if line.strip())


@pytest.mark.parametrize("language", ["bash", "shell", "python", "yaml", "json"])
def test_both_languages_show_the_same_commands(language: str) -> None:
    english, chinese = (
        [without_comments(block) for block in blocks(name, language)] for name in ("README.md", "README_zh.md")
    )
    assert english == chinese


@pytest.mark.slow
@pytest.mark.parametrize("starts", ["at once", pytest.param("as installed", marks=pytest.mark.long)])
def test_every_command_of_the_readme_runs_as_written(starts: str, tmp_path: Path) -> None:
    for name in ("configs", "data"):
        shutil.copytree(REPOSITORY / name, tmp_path / name)
    programs = tmp_path / "programs"
    programs.mkdir()
    path = os.pathsep.join([str(programs), str(Path(sys.executable).parent), os.environ["PATH"]])
    with preloaded.install(programs) if starts == "at once" else contextlib.nullcontext():
        for block in blocks("README.md", "bash"):
            done = subprocess.run(
                ["bash", "-e", "-c", block], cwd=tmp_path, capture_output=True, text=True, timeout=400, check=False,
                env=os.environ | {"PATH": path},
            )  # fmt: skip
            assert done.returncode == 0, f"{block}\n{done.stderr[-2000:]}"
