"""The shape of the code: imports point downhill, nothing heavy at start-up, every configuration key explained."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import itertools
import subprocess
import sys
from pathlib import Path

import pytest

from glmtune.config import DataConfig, RunConfig

PACKAGE = Path(__file__).parents[1] / "glmtune"

# From the ground up; a room may import from itself and from rooms below it.
ROOMS = [
    "library_logs",
    "visible_text",
    "secret_values",
    "errors",
    "file_kinds",
    "plain_json",
    "new_file",
    "python_arguments",
    "operating_system",
    "own_path",
    "user_paths",
    "text_encoding",
    "console",
    "cache_files",
    "compat",
    "standard_streams",
    "shipped",
    "tested_versions",
    "launching",
    "text_table",
    "family",
    "yaml_source",
    "config_types",
    "config_adapter_keys",
    "config_training_keys",
    "generation_options",
    "config_keys",
    "config_sections",
    "config",
    "demo",
    "data",
    "modeling",
    "evaluation",
    "serving",
    "training",
    "tour",
    "cli_options",
    "cli_serve",
    "cli_chat",
    "cli_data",
    "cli_export",
    "cli",
    "__main__",
]
HEAVY = ["torch", "transformers", "peft", "accelerate", "datasets", "deepspeed", "jieba", "nltk", "matplotlib", "yaml"]


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports_of(path: Path) -> set[str]:
    """Return the rooms that a module imports, inside functions, too."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level == 0 and (node.module or "").startswith("glmtune."):
            names.add(node.module.split(".")[1])
        if isinstance(node, ast.ImportFrom) and node.module == "glmtune":
            names.update(alias.name for alias in node.names if alias.name in ROOMS)
    return names


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_downhill(path: Path) -> None:
    room = room_of(path)
    if room == "__init__":
        return
    assert room in ROOMS, f"`{room}` is a new room: give it its place in the list"
    uphill = {name for name in imports_of(path) if ROOMS.index(name) > ROOMS.index(room)}
    assert not uphill


def modules_loaded_by(code: str) -> set[str]:
    command = [sys.executable, "-c", f"{code}\nimport sys\nprint(*sys.modules)"]
    loaded = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    return {name.partition(".")[0] for name in loaded}


def test_importing_glmtune_loads_nothing_heavy() -> None:
    assert not modules_loaded_by("import glmtune") & set(HEAVY)


def modules_loaded_by_command(*arguments: str) -> set[str]:
    code = (
        f"import sys\nfrom glmtune import cli\nsys.argv = ['glmtune', *{arguments}]\n"
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


def test_token_ids_are_never_written_as_numbers() -> None:
    for path in PACKAGE.rglob("*.py"):
        assert "1513" not in path.read_text(encoding="utf-8"), path
