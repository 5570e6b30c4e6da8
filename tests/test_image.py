"""The Dockerfile, read without docker: what it installs, whose rights it runs with, and what can get into the image.

`.ci/image` builds it where docker works, and runs its commands in a fresh environment elsewhere.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest

from glmtune.text.secret_values import is_secret

REPOSITORY = Path(__file__).parents[1]
PYPROJECT = (REPOSITORY / "pyproject.toml").read_text(encoding="utf-8")
CONSTRAINTS = ".ci/constraints.txt"


def instructions() -> list[tuple[str, str]]:
    """Return name and rest of every instruction, continued lines joined."""
    text = (REPOSITORY / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [(line.partition(" ")[0], line.partition(" ")[2]) for line in lines]


def of(name: str) -> list[str]:
    return [rest for kind, rest in instructions() if kind == name]


def installs() -> list[list[str]]:
    """Return the words of every command that installs Python packages, for a CUDA image."""
    commands = [command for run in of("RUN") for command in run.split("&&") if "pip install" in command]
    return [shlex.split(re.sub(r"\$\{TORCH_BACKEND:\+[^}]*\}", "", command)) for command in commands]


def test_the_default_has_cuda_and_an_argument_gives_a_cpu_image() -> None:
    arguments = dict(argument.split("=", 1) for argument in of("ARG"))
    assert arguments["BASE"].startswith("nvidia/cuda:")
    assert arguments["TORCH_BACKEND"] == ""
    assert of("FROM") == ["${BASE}"]
    assert "${TORCH_BACKEND:+--torch-backend $TORCH_BACKEND} torch" in " ".join(of("RUN"))


def test_torch_is_installed_before_the_package_as_the_readme_says() -> None:
    packages = [command[-1] for command in installs()]
    assert packages == ["uv", "torch", ".[report,serve,schema]"]
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    told = re.findall(r"^(?:uv )?pip install (?:-e )?'?(torch|\.)", readme, re.MULTILINE)
    assert not told or told[0] == "torch"


def test_the_extras_are_those_of_pyproject_and_all_versions_are_pinned() -> None:
    extras = re.findall(r"^(\w+) = \[", PYPROJECT.split("[project.optional-dependencies]")[1], re.MULTILINE)
    wanted = re.search(r"\[(.*)\]", installs()[-1][-1])
    assert wanted is not None
    assert set(wanted[1].split(",")) <= set(extras)
    for command in installs():
        assert command[command.index("--constraint") + 1] == CONSTRAINTS, command


def test_what_is_installed_can_be_resolved(tmp_path: Path) -> None:
    uv = Path(sys.executable).with_name("uv")
    if not uv.is_file():
        pytest.skip("needs `uv` beside this Python (`pip install -e '.[dev]'`)")
    pins = dict(re.findall(r"^([\w.-]+)==([\w.]+)$", (REPOSITORY / CONSTRAINTS).read_text("utf-8"), re.MULTILINE))
    for package in ("torch", "transformers", "uvicorn", "matplotlib"):
        try:
            here = version(package).partition("+")[0]
        except PackageNotFoundError:
            here = "none"
        if here != pins.get(package, here):
            pytest.skip(f"needs what `make` installs: {package} is {here} here, pinned is {pins[package]}")
    for copied in [word for rest in of("COPY") for word in rest.split()[:-1]]:
        source, target = REPOSITORY / copied, tmp_path / copied
        target.parent.mkdir(exist_ok=True)
        shutil.copytree(source, target) if source.is_dir() else shutil.copy(source, target)
    for command in installs():
        words = command[command.index("install") + 1 :]
        done = subprocess.run(
            [str(uv), "pip", "install", "--dry-run", "--offline", "--no-build-isolation",
             *(word for word in words if not word.startswith("--no-cache")), "--no-cache"],
            cwd=tmp_path, env=os.environ | {"VIRTUAL_ENV": sys.prefix, "UV_NO_CONFIG": "1"}, capture_output=True,
            text=True, timeout=120, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        changes = re.findall(r"^ [+~-] (?!glmtune)(\S+)", done.stderr, re.MULTILINE)
        assert changes == [], "the environment of the tests has all that the image installs"


def test_commands_run_with_the_rights_of_a_user() -> None:
    names = [kind for kind, _ in instructions()]
    assert "useradd --create-home glmtune" in " ".join(of("RUN"))
    assert of("USER") == ["glmtune"]
    assert names.index("USER") > max(index for index, name in enumerate(names) if name in ("RUN", "COPY"))
    assert of("ENTRYPOINT") == ['["glmtune"]']


def test_no_secret_and_nothing_that_is_not_named_can_get_into_the_image() -> None:
    settings = [word.partition("=")[0] for rest in (*of("ARG"), *of("ENV")) for word in rest.split()]
    assert not [name for name in settings if is_secret(name)]
    assert of("ADD") == []
    ignored = (REPOSITORY / ".dockerignore").read_text(encoding="utf-8").split("\n")
    let_through = {line[1:] for line in ignored if line.startswith("!")}
    copied = {word for rest in of("COPY") for word in rest.split()[:-1]}
    assert "*" in ignored
    assert copied == let_through
    assert all((REPOSITORY / name).exists() for name in copied)
