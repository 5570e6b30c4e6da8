"""What `--help` shows: whole lines, examples that can be typed as they are; and what a shell completes."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from command_line import command_line
from typer.main import get_command

from glmtune.cli.app import app
from glmtune.cli.verb_examples import EXAMPLES


def verbs(command: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    below = getattr(command, "commands", {})
    if not below:
        yield name, command
    for each, child in below.items():
        yield from verbs(child, f"{name} {each}".strip())


VERBS = dict(verbs(get_command(app)))


def test_every_verb_has_examples() -> None:
    assert EXAMPLES.keys() == VERBS.keys()


@pytest.mark.parametrize("example", [each for examples in EXAMPLES.values() for each in examples])
def test_every_example_can_be_typed_as_it_is(example: str) -> None:
    words = shlex.split(example.rpartition("| ")[2].partition(" > ")[0])
    assert words[0] == "glmtune"
    name = next(name for length in (2, 1) if (name := " ".join(words[1 : 1 + length])) in VERBS)
    with VERBS[name].make_context(name, words[1 + len(name.split()) :]) as context:
        assert context.command.name == name.split()[-1]


@pytest.mark.parametrize("verb", EXAMPLES)
def test_the_help_of_a_verb_ends_with_its_examples(verb: str, tmp_path: Path) -> None:
    shown = command_line(*verb.split(), "-h", cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout == command_line(*verb.split(), "--help", cwd=tmp_path).stdout
    assert shown.stdout.endswith("".join(f"    {example}\n" for example in EXAMPLES[verb]))


@pytest.mark.parametrize("group", [[], ["data"], ["config"]], ids=str)
def test_no_line_of_a_list_of_verbs_is_cut(group: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    shown = command_line(*group, "-h", cwd=tmp_path).stdout.partition("Commands:\n")[2].splitlines()
    assert shown
    assert [line for line in shown if not re.fullmatch(r"  [a-z]+ +\S.*\w\.", line) or line.endswith("...")] == []


@pytest.fixture
def folder_of_programs(tmp_path: Path) -> Path:
    """Return a folder that holds `glmtune`, as pip makes it."""
    program = tmp_path / "bin" / "glmtune"
    program.parent.mkdir()
    program.write_text(f"#!{sys.executable}\nfrom glmtune.cli.app import main\nmain()\n", encoding="utf-8")
    program.chmod(0o755)
    return program.parent


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
@pytest.mark.parametrize(
    "installed_by", ["glmtune", f"{shlex.quote(sys.executable)} -m glmtune"], ids=["own", "python"]
)
def test_bash_completes_verbs_and_options(installed_by: str, folder_of_programs: Path, tmp_path: Path) -> None:
    cases = {"glmtune est": "estimate", "glmtune train --dry": "--dry-run", "glmtune data con": "convert"}
    lines = [f'eval "$({installed_by} --show-completion)"']
    for typed in cases:
        words = " ".join(map(shlex.quote, typed.split()))
        lines.append(f"COMP_WORDS=({words}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); _glmtune_completion glmtune")
        lines.append('echo "${COMPREPLY[@]}"')
    environment = {**os.environ, "PATH": f"{folder_of_programs}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "-c", "\n".join(lines)], env=environment, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (done.stdout.splitlines(), done.stderr) == (list(cases.values()), "")
