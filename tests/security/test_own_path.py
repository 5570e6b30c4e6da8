"""Nothing is imported from the folder that a command is started in, by whichever process of it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from glmtune.evaluation.metrics import Scorer
from glmtune.processes import own_path
from glmtune.processes.own_path import PACKAGE_ROOT, environment_of_others, path_for_children, shut_out_current_folder

SAFE = pytest.mark.skipif(sys.version_info < (3, 11), reason="Python 3.10 has no PYTHONSAFEPATH")

TRAP = "import pathlib\npathlib.Path(__file__).with_name('caught').touch()\nraise SystemExit('a trap was imported')\n"
BAITS = ("torch", "transformers", "typer", "yaml", "psutil", "numpy", "jieba")
"""Names of packages that the commands import."""
OWN_BAITS = ("socket", "random", "pickle", "tempfile")
"""Names of Python's own modules, which its helpers import as the first thing."""


@pytest.fixture
def trapped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder full of modules that must not be imported; it is the current one."""
    folder = tmp_path / "trapped"
    folder.mkdir()
    for name in (*BAITS, *OWN_BAITS):
        (folder / f"{name}.py").write_text(TRAP, encoding="utf-8")
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture(autouse=True)
def _path_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in (own_path.SAFE_PATH, own_path.SEARCHED):
        monkeypatch.setenv(name, os.environ.get(name, ""))  # so that it is put back
    monkeypatch.delenv(own_path.SAFE_PATH)


def run(folder: Path, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *command],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": PACKAGE_ROOT, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_python_m_takes_the_current_folder_out_before_it_imports_any_package(tmp_path: Path) -> None:
    for name in BAITS:
        (tmp_path / f"{name}.py").write_text(TRAP, encoding="utf-8")
    done = run(tmp_path, "-m", "glmtune", "--version")
    assert (done.returncode, done.stderr) == (0, "")
    assert not (tmp_path / "caught").exists()


@pytest.mark.parametrize("first", ["", "{here}"])
def test_the_current_folder_goes_from_the_head_of_the_path(first: str, trapped: Path) -> None:
    sys.path.insert(0, first.format(here=os.getcwd()))
    if sys.version_info >= (3, 11) and sys.flags.safe_path:
        pytest.skip("this Python has it left out already")
    os.environ["PYTHONPATH"] = ""
    shut_out_current_folder()
    assert os.getcwd() not in sys.path
    assert "" not in sys.path
    assert PACKAGE_ROOT in map(os.path.realpath, sys.path)


@pytest.mark.parametrize("searched", [":/opt/lib", "/opt/lib:", "/opt/lib::/opt/other", ":"])
def test_an_empty_part_of_pythonpath_is_not_the_current_folder(searched: str, trapped: Path) -> None:
    os.environ["PYTHONPATH"] = searched
    sys.path[:0] = [part or os.getcwd() for part in searched.split(":")]
    shut_out_current_folder()
    assert os.getcwd() not in sys.path
    assert "" not in os.environ.get("PYTHONPATH", "x").split(":")


def test_a_folder_that_pythonpath_names_stays_though_it_is_the_current_one(trapped: Path) -> None:
    os.environ["PYTHONPATH"] = str(trapped)
    sys.path[:0] = ["/usr/bin", str(trapped)]
    shut_out_current_folder()
    assert str(trapped) in sys.path
    assert str(trapped) in os.environ["PYTHONPATH"]


@SAFE
def test_what_is_started_from_here_inherits_it(trapped: Path) -> None:
    shut_out_current_folder()
    done = subprocess.run([sys.executable, "-c", "import random, socket"], check=False, capture_output=True)
    assert done.returncode == 0
    assert not (trapped / "caught").exists()


def test_an_empty_entry_of_the_path_does_not_become_the_current_folder_of_a_child(monkeypatch) -> None:
    monkeypatch.setattr(sys, "path", ["", "/opt/lib"])
    assert path_for_children() == {"PYTHONPATH": "/opt/lib", "PYTHONSAFEPATH": "1"}


def test_programs_that_are_not_ours_find_what_lies_beside_them(tmp_path: Path) -> None:
    (tmp_path / "beside.py").write_text("VALUE = 7\n", encoding="utf-8")
    script = tmp_path / "script.py"
    script.write_text("import beside\nprint(beside.VALUE)\n", encoding="utf-8")
    os.environ["PYTHONSAFEPATH"] = "1"
    done = subprocess.run(
        [sys.executable, str(script)], env=environment_of_others(), capture_output=True, text=True, check=True
    )
    assert done.stdout == "7\n"


@SAFE
def test_the_scoring_worker_does_not_import_from_the_current_folder(trapped: Path) -> None:
    with Scorer(1_000) as scorer:
        scorer.add({0: ("a b", "a b")})
        assert scorer.scores()[0]["rouge-1"] > 99
    assert not (trapped / "caught").exists()


@SAFE
def test_the_process_of_functions_does_not_import_from_the_current_folder(trapped: Path, tmp_path: Path) -> None:
    (tmp_path / "tools.py").write_text('def f() -> int:\n    """Do."""\n    return 7\n', encoding="utf-8")
    program = tmp_path / "asks.py"
    program.write_text(
        "from glmtune.processes.own_path import shut_out_current_folder\nshut_out_current_folder()\n"
        "from pathlib import Path\nfrom glmtune.chat.functions import FunctionWorker\n"
        "if __name__ == '__main__':\n"
        f"    worker = FunctionWorker(Path({str(tmp_path / 'tools.py')!r}), 30)\n"
        "    worker.start()\n    print(worker.call('f', '{}'))\n    worker.close()\n",
        encoding="utf-8",
    )
    done = run(trapped, str(program))
    assert (done.stdout, done.stderr) == ("7\n", "")
    assert not (trapped / "caught").exists()


@pytest.mark.multi
@SAFE
def test_the_workers_of_a_run_do_not_import_from_the_current_folder(trapped: Path, demo_data: Path) -> None:
    config = {
        "data_config": {"train_file": "train.jsonl"},
        "max_input_length": 64,
        "max_output_length": 64,
        "training_args": {"output_dir": str(trapped / "run"), "max_steps": 1, "warmup_steps": 0},
        "peft_config": None,
    }
    (trapped / "c.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    script = Path(sys.executable).with_name("glmtune")
    done = run(trapped, str(script), "train", str(demo_data), "demo", "c.yaml", "--nproc", "1")
    assert done.returncode == 0, done.stderr
    assert not (trapped / "caught").exists()
    assert (trapped / "run" / "checkpoint-1").is_dir()
