"""What stands beside the code and has to agree with it: licence, package data, changelog, the contributors' guide."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import glmtune

REPOSITORY = Path(__file__).parents[1]
PYPROJECT = (REPOSITORY / "pyproject.toml").read_text(encoding="utf-8")
CONTRIBUTING = (REPOSITORY / "CONTRIBUTING.md").read_text(encoding="utf-8")
CHANGELOG = (REPOSITORY / "CHANGELOG.md").read_text(encoding="utf-8")
KINDS = ["Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"]


def test_the_licence_is_the_whole_text_and_is_named() -> None:
    text = (REPOSITORY / "LICENSE").read_text(encoding="utf-8")
    assert re.findall(r"^   (\d)\. ", text, re.MULTILINE) == [str(number) for number in range(1, 10)]
    assert text.split()[:4] == ["Apache", "License", "Version", "2.0,"]
    assert "END OF TERMS AND CONDITIONS" in text
    assert text.rstrip().endswith("limitations under the License.")
    assert 'license = "Apache-2.0"' in PYPROJECT
    assert 'license-files = ["LICENSE"]' in PYPROJECT
    assert "License ::" not in PYPROJECT, "a classifier beside `license` is refused by the index"


def test_the_classifiers_name_the_pythons_that_are_allowed() -> None:
    lowest = re.search(r'requires-python = ">=3\.(\d+)"', PYPROJECT)
    assert lowest is not None
    pythons = [int(minor) for minor in re.findall(r"Python :: 3\.(\d+)", PYPROJECT)]
    assert pythons == list(range(int(lowest[1]), max(pythons) + 1))


def test_types_come_along() -> None:
    assert (REPOSITORY / "glmtune" / "py.typed").is_file()
    assert "Typing :: Typed" in PYPROJECT


def test_the_changelog_begins_with_what_is_not_released_and_knows_this_version() -> None:
    headings = re.findall(r"^## (.+)", CHANGELOG, re.MULTILINE)
    assert headings[0] == "Unreleased"
    assert headings[-1] == "What stays compatible"
    versions = [heading.split(" - ") for heading in headings[1:-1]]
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\d", date) for _, date in versions)
    assert versions[0][0] == glmtune.__version__
    assert f'version = "{glmtune.__version__}"' in PYPROJECT
    unreleased = CHANGELOG.split("\n## ")[1]
    kinds = re.findall(r"^### (.+)", unreleased, re.MULTILINE)
    assert kinds == [kind for kind in KINDS if kind in kinds]


def test_types_are_checked_strictly_everywhere() -> None:
    settings = PYPROJECT.split("[tool.mypy]")[1].split("[tool.pytest")[0]
    assert "\nstrict = true\n" in settings
    eased = re.findall(r"^(\w+) = ", settings, re.MULTILINE)
    needed = ["python_version", "packages", "strict", "module"]
    told = ["ignore_missing_imports", "implicit_reexport", "untyped_calls_exclude", "implicit_reexport"]
    assert sorted(eased) == sorted(needed + told), "whatever eases the check stands in CONTRIBUTING.md"


@pytest.mark.parametrize("name", ["CONTRIBUTING.md", "CHANGELOG.md"])
def test_what_is_named_is_there(name: str) -> None:
    text = (REPOSITORY / name).read_text(encoding="utf-8")
    paths = re.findall(r"`((?:glmtune|tests|benchmarks|\.ci|configs|examples)/[\w./-]*|[A-Z]\w+(?:\.md)?)`", text)
    paths += re.findall(r"\]\(([A-Z]+\.md)\)", text)
    files = [path for path in paths if "/" in path or path.endswith(".md") or path in ("Dockerfile", "Makefile")]
    assert files
    assert [path for path in files if not (REPOSITORY / path).exists()] == []


def test_every_target_of_make_that_is_named_is_there() -> None:
    targets = re.findall(r"^([a-z-]+):", (REPOSITORY / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert set(re.findall(r"(?:^|`)make ([a-z-]+)", CONTRIBUTING, re.MULTILINE)) <= set(targets)


def test_every_marker_is_explained() -> None:
    listed = re.search(r"^markers = \[(.*?)^\]", PYPROJECT, re.MULTILINE | re.DOTALL)
    assert listed is not None
    markers = re.findall(r'^    "(\w+):', listed[1], re.MULTILINE)
    explained = CONTRIBUTING.split("\n## Tests")[1].split("\n## ")[0]
    assert [marker for marker in markers if f"| `{marker}` |" not in explained] == []
