"""The shape of the code: imports point downhill, nothing heavy at start-up, every configuration key explained."""

from __future__ import annotations

import ast
import dataclasses
import graphlib
import inspect
import itertools
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from glmtune.config.run_config import DataConfig, RunConfig

PACKAGE = Path(__file__).parents[1] / "glmtune"

# From the ground up: what stands in a line may import from the lines before it, and from itself. A name is a room, a
# package below one, or a module; the longest one that fits counts.
ROOMS = [
    *("library_logs", "moved", "text", "notebook", "python_terms", "errors", "python_arguments"),
    *("operating_system", "family", "compat"),
    *("console", "files", "standard_streams", "tested_versions", "processes", "environment", "config", "demo"),
    *("data.conversation", "data.json_text", "data.verdicts", "data.parts", "data.formats", "data.reading"),
    *("data.known_columns", "data.unused", "data.conversion", "chatformat", "encoded", "kernels", "modeling"),
    *("constrained", "generation", "evaluation", "reports", "runs"),
    *("training.folder", "training.distributed", "training.events", "training.methods"),
    *("training.setup", "training.trainer", "training.callbacks", "training"),
    *("memory", "datatools", "starting", "chat", "comparing", "server", "page", "exporting", "cli", "__main__"),
]
MOST_FILES = 15
"""In a folder; more hold more than one idea."""

HEAVY = ["torch", "transformers", "peft", "accelerate", "datasets", "deepspeed", "jieba", "nltk", "matplotlib", "yaml"]


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def imports_of(module: str) -> set[str]:
    """Return the modules of ours that one imports: relatively, inside functions and for types alone, too."""
    path = MODULES[module]
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            origin = ".".join([*above, *([node.module] if node.module else [])])
            found |= {
                f"{origin}.{alias.name}" if f"{origin}.{alias.name}" in MODULES else origin for alias in node.names
            }
    return (found & MODULES.keys()) - {module, "glmtune"}


IMPORTS = {module: imports_of(module) for module in MODULES}


def room_of(module: str) -> str | None:
    name = module.removeprefix("glmtune.")
    return max((room for room in ROOMS if name == room or name.startswith(f"{room}.")), key=len, default=None)


@pytest.mark.parametrize("module", [name for name, path in MODULES.items() if path.name != "__init__.py"])
def test_every_module_has_a_room_and_imports_point_downhill(module: str) -> None:
    room = room_of(module)
    assert room is not None, f"`{module}` is in no room: give it its place in the list"
    below = ROOMS[: ROOMS.index(room) + 1]
    assert {name for name in IMPORTS[module] if room_of(name) not in (*below, None)} == set()


def test_every_room_is_there() -> None:
    assert set(ROOMS) == {room for room in map(room_of, MODULES) if room is not None}


def test_no_module_imports_itself_by_way_of_others() -> None:
    order = graphlib.TopologicalSorter(IMPORTS)
    order.prepare()  # raises with the circle, if there is one


def test_no_folder_holds_more_files_than_one_can_survey() -> None:
    folders = {path.parent for path in MODULES.values()}
    sizes = {
        str(folder): len([path for path in folder.glob("*.py") if path.name != "__init__.py"]) for folder in folders
    }
    assert {folder: size for folder, size in sizes.items() if size > MOST_FILES} == {}


def test_every_package_goes_into_the_wheel() -> None:
    tool = (PACKAGE.parent / "pyproject.toml").read_text(encoding="utf-8")
    listed = re.search(r"^packages = \[(.*?)^\]", tool, re.MULTILINE | re.DOTALL)
    assert listed is not None
    packages = {module_name(path) for path in PACKAGE.rglob("__init__.py")} | {"glmtune.configs"}
    assert set(re.findall(r'"([\w.]+)"', listed[1])) == packages


def modules_loaded_by(code: str) -> set[str]:
    command = [sys.executable, "-c", f"{code}\nimport sys\nprint(*sys.modules)"]
    loaded = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    return {name.partition(".")[0] for name in loaded}


def test_importing_glmtune_loads_nothing_heavy() -> None:
    assert not modules_loaded_by("import glmtune") & set(HEAVY)


def modules_loaded_by_command(*arguments: str) -> set[str]:
    code = (
        f"import sys\nfrom glmtune.cli import app as cli\nsys.argv = ['glmtune', *{arguments}]\n"
        "import contextlib, io\n"
        "with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):\n    cli.main()"
    )
    return modules_loaded_by(code)


def test_the_help_of_the_command_line_loads_nothing_heavy() -> None:
    assert not modules_loaded_by_command("--help") & set(HEAVY)


@pytest.mark.parametrize(
    "command",
    [["train", "data", "no/such/model", "config.yaml"], ["estimate", "no/such/model", "config.yaml"],
     ["eval", "no/such/model", "rows.jsonl"], ["infer", "no/such/model"], ["chat", "no/such/model"],
     ["serve", "no/such/model"], ["export", "no/such/model", "out"]],
    ids=lambda command: command[0],
)  # fmt: skip
def test_a_model_that_is_not_there_is_told_before_anything_heavy_is_loaded(command: list[str]) -> None:
    assert not modules_loaded_by_command(*command) & set(HEAVY)


def test_rows_are_counted_without_what_trains_on_them(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"instruction": "a", "output": "b"}\n')
    loaded = modules_loaded_by_command("data", "check", str(tmp_path / "rows.jsonl"))
    assert not loaded & {"torch", "peft", "accelerate", "datasets"}


@pytest.mark.parametrize(
    "command",
    [["train", "no-data", "demo", "config.yaml"], ["train", "/", "demo", "no.yaml"], ["resume", "no-run"],
     ["estimate", "demo", "no.yaml"], ["eval", "demo", "no.jsonl"], ["infer", "demo", "--input", "no.jsonl"],
     ["data", "check", "no.jsonl"], ["data", "check", "/", "demo", "--config", "no.yaml"],
     ["data", "inspect", "no.jsonl", "demo"], ["data", "convert", "no.jsonl", "out.jsonl"],
     ["data", "prepare", "/", "demo", "no.yaml"]],
    ids=" ".join,
)  # fmt: skip
def test_a_file_that_is_not_there_is_told_before_anything_heavy_is_loaded(command: list[str]) -> None:
    assert not modules_loaded_by_command(*command) & set(HEAVY)


@pytest.mark.parametrize("section", [DataConfig, RunConfig])
def test_every_configuration_key_is_explained(section: type) -> None:
    body = ast.parse(inspect.getsource(section)).body[0].body
    explained = {
        field.target.id
        for field, following in itertools.pairwise(body)
        if isinstance(field, ast.AnnAssign)
        and isinstance(following, ast.Expr)
        and isinstance(following.value, ast.Constant)
    }
    assert explained == {field.name for field in dataclasses.fields(section)}


def test_every_shipped_configuration_loads() -> None:
    from glmtune import load_config

    configs = sorted((PACKAGE.parent / "configs").glob("*.yaml"))
    assert [path.name for path in configs] == ["lora.yaml", "ptuning_v2.yaml", "sft.yaml"]
    assert [load_config(path).method for path in configs] == ["lora", "ptuning_v2", "sft"]


def test_no_two_modules_and_no_two_classes_have_one_name() -> None:
    """But for `run.py`, the page that a room begins with, and what every package has."""
    modules = Counter(path.stem for path in MODULES.values())
    del modules["__init__"], modules["run"]
    classes = Counter(
        node.name
        for path in MODULES.values()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ClassDef)
    )
    assert [name for name, count in (modules + classes).items() if count > 1] == []


def test_role_tokens_are_named_in_one_place() -> None:
    """Not in docstrings and comments, nor in the demo's chat template."""
    for module, path in MODULES.items():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        docs = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        found = [
            node.value
            for node in ast.walk(tree)
            if isinstance(node, ast.Constant) and id(node) not in docs and re.search(r"<\|[a-z]+\|>", str(node.value))
        ]
        assert not found or module in ("glmtune.family", "glmtune.demo.model"), (module, found)


def test_token_ids_are_never_written_as_numbers() -> None:
    for path in PACKAGE.rglob("*.py"):
        assert "1513" not in path.read_text(encoding="utf-8"), path
