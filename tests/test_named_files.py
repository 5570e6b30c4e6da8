"""Modules that comments, docstrings and the documentation name are there."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
CODE = sorted(
    path
    for folder in ("benchmarks", "docs", "examples", "glmtune", "tests")
    for path in (REPOSITORY / folder).rglob("*.py")
)
PAGES = sorted(
    [*REPOSITORY.glob("*.md"), *(REPOSITORY / "benchmarks").glob("*.md"), *(REPOSITORY / "docs").rglob("*.md")]
)
NAMES = {path.name for path in CODE}

OTHERS = {
    "finetune_demo/finetune.py": "of the original GLM-4 demo",
    "module.py": "stands for a user's file",
    "my_metrics.py": "likewise",
    "my_tools.py": "likewise",
    "swift/trainers/arguments.py": "of ms-swift",
    "utils.py": "what no module is named",
    "json.py": "a user's file, in the place of Python's own module",
    "torch.py": "a user's file, in the place of a library",
}
"""Files that are named and are not ours; what stands in `runs/`, examples have written there."""


def prose_of(path: Path) -> Iterator[str]:
    """Yield a page, or the docstrings and comments of a module."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".md":
        yield text
        return
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            yield node.value.value
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            yield token.string


def is_there(name: str, beside: Path) -> bool:
    """Return whether a file is there, by its name alone or by a path from where a reader would look for it."""
    if "/" not in name:
        return name in NAMES
    roots = (REPOSITORY, REPOSITORY / "glmtune", REPOSITORY / "tests", beside)
    return any((root / name).is_file() for root in roots)


def is_module_or_within_one(name: str) -> bool:
    """Return whether a dotted name is a module, or one of a module's own names."""
    parts = name.split(".")
    for count in range(len(parts), 0, -1):
        stem = REPOSITORY.joinpath(*parts[:count])
        path = next((each for each in (stem.with_suffix(".py"), stem / "__init__.py") if each.is_file()), None)
        if path is not None:
            return (
                count == len(parts) or re.search(rf"\b{parts[count]}\b", path.read_text(encoding="utf-8")) is not None
            )
    return False


def test_files_that_are_named_are_there() -> None:
    for path in (*CODE, *PAGES):
        found = re.findall(r"(?<![\w/.])[\w./-]*\w\.py\b(?!\.)", "\n".join(prose_of(path)))
        missing = {name for name in found if not is_there(name, path.parent) and not name.startswith("runs/")}
        assert missing - OTHERS.keys() == set(), path


OLD_NAMES = {
    Path(__file__),
    *(REPOSITORY / name for name in ("CHANGELOG.md", "glmtune/moved.py", "tests/test_moved.py")),
}
"""Where modules are named as they were called before, or as none is called."""

NO_MODULES = (
    "glmtune.egg-info",
    "glmtune.schema.json",
    "glmtune.yaml",
    "glmtune.configs",
    "glmtune.lock",
    "glmtune.__file__",
)
"""Names of files and folders, the package that the wheel makes of `configs/`, and what every module has."""


def test_modules_that_are_named_are_there() -> None:
    """In code, too: in what is run only on a GPU, and in texts that other processes run."""
    for path in {*CODE, *PAGES} - OLD_NAMES:
        text = path.read_text(encoding="utf-8")
        for name in NO_MODULES:
            text = text.replace(name, "")
        found = set(re.findall(r"(?<![\w./-])glmtune(?:\.[A-Za-z_]\w*)+", text))
        assert {name for name in found if not is_module_or_within_one(name)} == set(), path
