"""README and `docs/`: commands run as written, both languages show the same ones, the reference says what code says."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import make_reference
import preloaded
import pytest

REPOSITORY = Path(__file__).parents[1]
BLOCK = re.compile(r"^```(bash|shell|python|yaml|json)\n(.*?)^```", re.MULTILINE | re.DOTALL)
LANGUAGES = ("bash", "shell", "python", "yaml", "json")
# As the navigation lists them: the commands of a page may need what those before it have made.
NAVIGATION = (REPOSITORY / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:\n")[2]
PAGES = re.findall(r"^ +- ([\w/-]+\.md)$", NAVIGATION, re.MULTILINE)
PAIRS = {"README": ("README.md", "README_zh.md")} | {page: (f"docs/en/{page}", f"docs/zh/{page}") for page in PAGES}


def read(name: str) -> str:
    return (REPOSITORY / name).read_text(encoding="utf-8")


def blocks(name: str, language: str) -> list[str]:
    return [body for kind, body in BLOCK.findall(read(name)) if kind == language]


def without_comments(code: str) -> str:
    """Return code without comments: those are translated."""
    return "\n".join(line for line in (re.sub(r"\s*#.*", "", line) for line in code.splitlines()) if line.strip())


@pytest.mark.parametrize("page", PAIRS)
def test_both_languages_show_the_same_commands(page: str) -> None:
    for language in LANGUAGES:
        english, chinese = ([without_comments(block) for block in blocks(name, language)] for name in PAIRS[page])
        assert english == chinese


@pytest.mark.parametrize("language", make_reference.LANGUAGES)
def test_every_page_stands_in_the_navigation(language: str) -> None:
    folder = REPOSITORY / "docs" / language
    assert {path.relative_to(folder).as_posix() for path in folder.rglob("*.md")} == set(PAGES)


@pytest.mark.parametrize("name", PAIRS["README"])
def test_the_readme_is_short_and_its_links_lead_somewhere(name: str) -> None:
    assert len(read(name).splitlines()) <= 200
    links = re.findall(r"\]\(([^)#:]+)\)", read(name))
    assert links
    assert [link for link in links if not (REPOSITORY / link).exists()] == []


@pytest.mark.parametrize("language", make_reference.LANGUAGES)
def test_the_reference_says_what_the_code_says(language: str) -> None:
    for name, text in make_reference.pages(language).items():
        assert read(f"docs/{language}/reference/{name}") == text, "run `python docs/make_reference.py`"


def test_no_translation_is_left_over() -> None:
    assert make_reference.unused_translations() == set()


def test_every_option_that_is_shown_exists() -> None:
    known = {name for verb in make_reference.verbs() for option in verb.options for name in option.names}
    known = (
        {part for name in known for part in name.split("/")}
        | {"--help", "--debug", "--version"}
        | {"--install-completion", "--show-completion"}
    )
    for page, names in PAIRS.items():
        shown = [block for kind in ("bash", "shell") for block in blocks(names[0], kind)]
        lines = [line for block in shown for line in re.sub(r"\\\n", " ", block).splitlines()]
        commands = [re.split("[|&;]", line)[0] for line in lines if line.startswith("glmtune ")]
        tables = [line for name in names for line in read(name).splitlines() if line.startswith("| `--")]
        cells = [line.split("|")[1] for line in tables if page != "guides/from-other-tools.md"]  # options of those
        found = re.findall(r"(?<![\w-])--[a-z][a-z-]*", re.sub("'[^']*'", "", "\n".join((*commands, *cells))))
        assert set(found) <= known, page


@pytest.mark.slow
@pytest.mark.parametrize("starts", ["at once", pytest.param("as installed", marks=pytest.mark.long)])
def test_every_command_runs_as_written(starts: str, tmp_path: Path) -> None:
    for name in ("configs", "data"):
        shutil.copytree(REPOSITORY / name, tmp_path / name)
    programs = tmp_path / "programs"
    programs.mkdir()
    path = os.pathsep.join([str(programs), str(Path(sys.executable).parent), os.environ["PATH"]])
    with preloaded.install(programs) if starts == "at once" else contextlib.nullcontext():
        for page, (english, _) in PAIRS.items():
            for block in blocks(english, "bash"):
                done = subprocess.run(
                    ["bash", "-e", "-c", block], cwd=tmp_path, capture_output=True, text=True, timeout=400, check=False,
                    env=os.environ | {"PATH": path},
                )  # fmt: skip
                assert done.returncode == 0, f"{page}\n{block}\n{done.stderr[-2000:]}"
