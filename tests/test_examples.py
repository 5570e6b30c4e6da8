"""The examples run as they are, on the embedded model: commands in the heads of files, a script, a notebook."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import command_line
from json_lines import json_lines

from glmtune import load_config

REPOSITORY = Path(__file__).parents[1]
EXAMPLES = REPOSITORY / "examples"
CONFIGS = sorted(EXAMPLES.glob("*/*.yaml"))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder that holds what a clone holds, as far as the examples read it."""
    for name in ("examples", "configs", "data"):
        shutil.copytree(REPOSITORY / name, tmp_path / name)
    return tmp_path


def commands(config: Path) -> list[list[str]]:
    """Return the commands in the first comment of a file, but for those that need a hub and a GPU."""
    head = config.read_text(encoding="utf-8").split("\n\n")[0].replace("\\\n#", "")
    found = [shlex.split(line) for line in re.findall(r"^#   (\w.*)", head, re.MULTILINE)]
    return [command for command in found if not any(word.startswith("zai-org/") for word in command)]


def logged_losses(run: Path) -> list[float]:
    lines = json_lines(run / "metrics.jsonl")
    return [line["loss"] for line in lines if "loss" in line]


def test_the_readme_names_every_example() -> None:
    named = re.findall(
        r"^\| \[`([\w-]+)/`\]\((\S+)\)", (EXAMPLES / "README.md").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert sorted(name for name, _ in named) == sorted(path.name for path in EXAMPLES.iterdir() if path.is_dir())
    assert all((EXAMPLES / link).is_file() for _, link in named)


def test_every_configuration_loads_and_begins_with_its_commands() -> None:
    assert [path.name for path in CONFIGS] == ["customer_service.yaml", "tool_calls.yaml", "two_gpus.yaml"]
    for path in CONFIGS:
        assert load_config(path).notices == ()
        assert len(commands(path)) == 3, path


@pytest.mark.slow
@pytest.mark.parametrize("name", ["customer_service", "tool_calls"])
def test_the_commands_of_a_configuration_run(name: str, root: Path) -> None:
    config = next(path for path in CONFIGS if path.stem == name)
    for command in commands(config):
        assert command[0] == "glmtune"
        done = command_line(*command[1:], cwd=root)
        assert done.returncode == 0, done.stderr
    losses = logged_losses(root / "runs" / config.parent.name)
    assert losses[-1] < losses[0]


@pytest.mark.multi
def test_two_processes_train_the_same_steps_by_either_launcher_and_one_goes_on(root: Path) -> None:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {"PATH": path, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    told = []
    for command in commands(EXAMPLES / "two-gpus" / "two_gpus.yaml"):
        start = [sys.executable, "-m", "glmtune", *command[1:]] if command[0] == "glmtune" else command
        done = subprocess.run(
            start, cwd=root, env=os.environ | environment, capture_output=True, text=True, timeout=300, check=False
        )
        assert done.returncode == 0, done.stderr
        told.append(done.stderr)
        if len(told) == 1:
            expected = logged_losses(root / "runs" / "two-gpus")
    assert len(expected) == 8
    assert expected[-1] < expected[0]
    assert logged_losses(root / "runs" / "two-gpus-torchrun") == pytest.approx(expected, abs=1e-4)
    assert "the run began with 2 processes, now 1" in told[2]
    assert logged_losses(root / "runs" / "two-gpus") == pytest.approx(expected, abs=1e-4)


def run_python(*arguments: str, root: Path) -> str:
    done = subprocess.run(
        [sys.executable, *arguments], cwd=root, env=os.environ | {"PYTHONPATH": str(REPOSITORY)}, capture_output=True,
        text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_script_trains_scores_asks_and_exports(root: Path) -> None:
    told = run_python("examples/python/finetune.py", root=root)
    assert told.startswith("loss ")
    assert (root / "runs" / "from-python-merged" / "model.safetensors").is_file()


def test_the_notebook_is_kept_without_outputs() -> None:
    notebook = json.loads((EXAMPLES / "notebook" / "finetune.ipynb").read_text(encoding="utf-8"))
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells)


@pytest.mark.slow
def test_the_notebook_runs_in_a_kernel(tmp_path: Path) -> None:
    nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed")
    pytest.importorskip("ipykernel", reason="ipykernel is not installed")
    nbformat = pytest.importorskip("nbformat", reason="nbformat is not installed")
    notebook = nbformat.read(EXAMPLES / "notebook" / "finetune.ipynb", as_version=4)
    checks = """
assert metrics["loss"].dropna().index.tolist() == [1, 2, 3, 4, 5, 6]
assert isinstance(answer, str)
assert len(predictions) == 4
"""
    notebook.cells.append(nbformat.v4.new_code_cell(checks))
    client = nbclient.NotebookClient(notebook, timeout=240, resources={"metadata": {"path": str(tmp_path)}})
    environment = {"PYTHONPATH": str(REPOSITORY), "IPYTHONDIR": str(tmp_path / "ipython"), "OMP_NUM_THREADS": "1"}
    client.execute(env=os.environ | environment)  # raises where a cell does
    outputs = [output for cell in notebook.cells if cell["cell_type"] == "code" for output in cell["outputs"]]
    shown = [output["data"] for output in outputs if "data" in output]
    assert [text for data in shown if (text := data["text/plain"]).startswith("100%|")], "the bar of a run"
    assert any("image/png" in data for data in shown), "the plot of the losses"
    assert not [output["text"] for output in outputs if "Warning" in output.get("text", "")]
    assert (tmp_path / "runs" / "notebook" / "checkpoint-8").is_dir()
    assert (tmp_path / "runs" / "notebook-merged" / "model.safetensors").is_file()
