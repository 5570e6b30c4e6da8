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


def option_tables(name: str) -> list[dict[str, str]]:
    """Return the tables of options on a page: what stands in the row of each option."""
    tables: list[dict[str, str]] = []
    for table in re.findall(r"(?:^\|.*\n)+", read(name), re.MULTILINE):
        rows = [row.strip("|").partition("|") for row in table.splitlines()[2:]]
        if rows[0][0].strip().startswith("`--"):
            tables.append({option: row for cell, _, row in rows for option in re.findall(r"`(--[a-z-]+)", cell)})
    return tables


TABLES = {
    "guides/ask.md": ("glmtune infer", "glmtune chat"),
    "guides/serve.md": ("glmtune serve",),
    "guides/export.md": ("glmtune export",),
    "guides/from-other-tools.md": (),  # other tools' options
}
"""Verbs whose options stand in a table of a guide."""

IN_WORDS = {"4194304": "4 MiB", "30.0": "30"}
"""Defaults as people write them."""


@pytest.mark.parametrize("language", make_reference.LANGUAGES)
def test_the_tables_of_options_have_every_option_with_its_default(language: str) -> None:
    verbs = {verb.name: {each.names[0].split("/")[0]: each for each in verb.options} for verb in make_reference.verbs()}
    for page in PAGES:
        tables = option_tables(f"docs/{language}/{page}")
        if page.startswith("reference/") or TABLES.get(page) == ():
            continue
        assert len(tables) == len(TABLES.get(page, ())), page
        for verb, table in zip(TABLES.get(page, ()), tables):
            switches = {name.replace("--", "--no-", 1) for name in verbs[verb]}  # the way back need not be shown
            assert table.keys() - switches == verbs[verb].keys(), verb
            for name, option in verbs[verb].items():
                shown = re.escape(IN_WORDS.get(option.default, option.default))
                assert re.search(rf"(?<!\w){shown}(?!\w)", table[name]), (verb, name)
                if "[infer]" in table[name]:
                    expected = verbs["glmtune infer"][name]
                    assert (option.help, option.default) == (expected.help, expected.default), (verb, name)


def test_the_site_is_built_without_a_word_and_leaves_no_other_file(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs", reason="needs `pip install -e '.[docs]'`")
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    before = set((REPOSITORY / "docs").rglob("*"))
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--quiet", "--site-dir", str(tmp_path / "site")],
        cwd=REPOSITORY, capture_output=True, text=True, timeout=120, check=False,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1", "TMPDIR": str(temporary), "PYTHONDONTWRITEBYTECODE": "1"},
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert [*temporary.iterdir()] == []
    assert set((REPOSITORY / "docs").rglob("*")) == before
    assert (tmp_path / "site" / "zh" / "index.html").is_file()


def session(name: str) -> str:
    """Return the commands of a page as one script for bash, its Python with them: what one starts, the next may end."""
    lines = []
    for number, (kind, body) in enumerate(BLOCK.findall(read(name)), 1):
        if kind in ("bash", "python"):
            lines.append(f"echo '== block {number} of the page, {kind} ==' >&2\n")
            lines.append(f"python - <<'END_OF_PYTHON'\n{body}END_OF_PYTHON\n" if kind == "python" else body)
    return "".join(lines)


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
            done = subprocess.run(
                ["bash", "-e", "-c", session(english)], cwd=tmp_path, capture_output=True, text=True, timeout=900,
                check=False, env=os.environ | {"PATH": path},
            )  # fmt: skip
            assert done.returncode == 0, f"{page}\n{done.stderr[-2000:]}"
