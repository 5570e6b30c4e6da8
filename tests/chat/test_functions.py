"""Python functions as tools: described from their code, called in a process of their own, never a crash."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from glmtune.chat.function_worker import functions_of, import_file, schema_of
from glmtune.chat.functions import FunctionWorker, Tools, call_problem, load_tools
from glmtune.errors import GlmtuneError

MODULE = '''
"""Tools of the tests."""

import enum
import os
import subprocess
import time
from functools import lru_cache
from pathlib import Path

num_counted = 0


class Unit(enum.Enum):
    METRE = "m"
    FOOT = "ft"


def count(step: int = 1) -> int:
    """Count on.

    Args:
        step: How far.
    """
    global num_counted
    num_counted += step
    print("counting")
    return num_counted


def sleep(seconds: float) -> str:
    """Sleep, and something with it.

    Args:
        seconds: How long.
    """
    child = subprocess.Popen(["sleep", str(seconds)])
    Path("child").write_text(str(child.pid))
    time.sleep(seconds)
    return "awake"


def fail(kind: str):
    """Fail in some way.

    Args:
        kind: Of failure.
    """
    if kind == "exit":
        os._exit(3)
    if kind == "quit":
        raise SystemExit(4)
    if kind == "bytes":
        return b"0"
    if kind == "nan":
        return float("nan")
    if kind == "half":
        return "\\ud83d"
    raise ValueError(f"no {kind}")


@lru_cache
def length(text: str, unit: str = "m") -> dict:
    """Measure.

    Args:
        text: What to measure.
        unit: Of the result. (choices: ["m", "ft"])
    """
    return {"length": len(text), "unit": unit}


def nothing() -> None:
    """Return nothing."""


def empty() -> str:
    """Return an empty text."""
    return ""


def _hidden() -> None:
    pass
'''

DESCRIBED = {
    "type": "function",
    "function": {
        "name": "length",
        "description": "Measure.",
        "parameters": {
            "type": "object",
            "properties": {
                "text": {"type": "string", "description": "What to measure."},
                "unit": {"type": "string", "enum": ["m", "ft"], "description": "Of the result."},
            },
            "required": ["text"],
        },
    },
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tools")
    (folder / "tools.py").write_text(MODULE, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def tools(folder: Path) -> Iterator[Tools]:
    loaded = load_tools(folder / "tools.py")
    yield loaded
    loaded.close()


@pytest.fixture
def worker(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FunctionWorker]:
    """The same functions, with half a second for each call."""
    monkeypatch.chdir(folder)
    worker = FunctionWorker(Path("tools.py"), 0.5)
    worker.start()
    yield worker
    worker.close()


def has_ended(pid: int) -> bool:
    """Whether a process is gone, or a zombie that nobody has buried yet."""
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        status = Path(f"/proc/{pid}/stat")
        if not status.exists() or status.read_text().rpartition(")")[2].split()[0] == "Z":
            return True
        time.sleep(0.02)
    return False


def test_the_public_functions_of_a_module_become_tools(tools: Tools) -> None:
    names = [tool["function"]["name"] for tool in tools.schemas]
    assert names == ["count", "sleep", "fail", "length", "nothing", "empty"]
    assert tools.schemas[3] == DESCRIBED


def test_a_module_keeps_its_state_between_calls(tools: Tools) -> None:
    assert tools.worker is not None
    assert [tools.worker.call("count", "{}"), tools.worker.call("count", '{"step": 2}')] == ["1", "3"]


def test_what_a_function_prints_does_not_go_to_stdout(capfd, folder: Path) -> None:
    worker = FunctionWorker(folder / "tools.py", 30)
    worker.start()
    worker.call("count", "{}")
    written = capfd.readouterr()
    worker.close()
    assert (written.out, written.err) == ("", "counting\n")


@pytest.mark.parametrize(
    ("name", "arguments", "observation"),
    [
        ("length", {"text": "雾"}, '{"length": 1, "unit": "m"}'),
        ("nothing", {}, "null"),
        ("empty", {}, '""'),
        ("fail", {"kind": "half"}, "?"),
        ("fail", {"kind": "luck"}, '{"error": "ValueError: no luck (tools.py:59)"}'),
        ("fail", {"kind": "quit"}, '{"error": "SystemExit: 4 (tools.py:52)"}'),
    ],
)
def test_a_result_or_an_error_is_what_the_model_reads(
    name: str, arguments: dict[str, Any], observation: str, tools: Tools
) -> None:
    assert tools.worker is not None
    assert tools.worker.call(name, json.dumps(arguments)) == observation


@pytest.mark.parametrize("kind", ["nan", "bytes"])
def test_a_result_that_json_cannot_hold_is_told(kind: str, tools: Tools) -> None:
    assert tools.worker is not None
    observation = json.loads(tools.worker.call("fail", json.dumps({"kind": kind})))
    assert observation["error"].startswith("the result is no JSON: ")


def test_a_call_over_the_time_limit_is_stopped_and_the_module_starts_anew(worker: FunctionWorker) -> None:
    worker.call("count", "{}")
    started = time.monotonic()
    observation = worker.call("sleep", '{"seconds": 30}')
    assert time.monotonic() - started < 5
    assert observation == '{"error": "`sleep` was stopped after 0.5 s, the time limit; its module starts anew"}'
    assert has_ended(int(Path("child").read_text()))
    worker.time_limit_seconds = 30
    assert worker.call("count", "{}") == "1"


def test_a_function_that_ends_its_process_is_an_observation(worker: FunctionWorker) -> None:
    observation = worker.call("fail", '{"kind": "exit"}')
    assert observation == '{"error": "`fail` ended its process (exit code 3); it starts anew with the next call"}'
    worker.time_limit_seconds = 30
    assert worker.call("count", "{}") == "1"


def test_a_module_that_was_broken_meanwhile_is_an_observation(worker: FunctionWorker, tmp_path: Path) -> None:
    worker.call("fail", '{"kind": "exit"}')
    worker.path = tmp_path / "gone.py"
    worker.path.write_text("import no_such_package\n", encoding="utf-8")
    error = "the module cannot be imported: ModuleNotFoundError: No module named 'no_such_package'"
    assert json.loads(worker.call("count", "{}")) == {"error": error}


def test_nothing_is_left_running_when_the_tools_are_closed(worker: FunctionWorker) -> None:
    worker.time_limit_seconds = 30
    worker.call("sleep", '{"seconds": 0}')
    pid = json.loads(worker.call("count", "{}")) and worker._process.pid  # type: ignore[union-attr]
    assert pid is not None
    os.kill(pid, 0)
    worker.close()
    assert has_ended(pid)


@pytest.mark.slow
def test_functions_end_with_a_chat_that_is_killed(folder: Path) -> None:
    (folder / "child").unlink(missing_ok=True)
    code = (
        "from pathlib import Path\nfrom glmtune.chat.functions import FunctionWorker\n"
        "worker = FunctionWorker(Path('tools.py'), 100)\nworker.start()\nprint(worker._process.pid, flush=True)\n"
        """worker.call('sleep', '{"seconds": 100}')"""
    )
    with subprocess.Popen([sys.executable, "-c", code], cwd=folder, stdout=subprocess.PIPE, text=True) as chat:
        assert chat.stdout is not None
        worker_pid = int(chat.stdout.readline())
        while not (folder / "child").is_file() or not (folder / "child").read_text():
            time.sleep(0.05)
        chat.kill()
    assert has_ended(worker_pid)
    assert has_ended(int((folder / "child").read_text()))


WRONG_MODULES = {
    "no docstring": (
        "def f(x: int):\n    return x\n",
        "`f` has no docstring, from which the model learns what it is for\n  --> {path}:1\n"
        'hint: write `"""What it does."""` below its `def`, or begin its name with `_` if it is no tool',
    ),
    "no type": (
        '\ndef f(x):\n    """Do.\n\n    Args:\n        x: A number.\n    """\n',
        "the argument `x` of `f` has no type\n  --> {path}:2\nhint: write one, such as `x: str`",
    ),
    "any number of arguments": (
        'def f(*x: int):\n    """Do."""\n',
        "the argument `*x: int` of `f` has no name to give it by; a model names all arguments\n  --> {path}:1",
    ),
    "an argument without a description": (
        'def f(x: int):\n    """Do."""\n',
        "`f` cannot be described to the model: Cannot generate JSON schema for f because the docstring has no "
        "description for the argument 'x'\n  --> {path}:1\n"
        "hint: describe each argument in the docstring, below `Args:`, as `city: Name of the city.`",
    ),
    "no function": (
        "from os.path import join\n_x = 1\n",
        "the module defines no public function\n  --> {path}\n"
        "hint: define one with a docstring and typed arguments; names that begin with `_` are not offered",
    ),
    "no Python": ("def f(:\n", "not Python: invalid syntax\n  --> {path}:1"),
    "a failing import": (
        "x = 1\n1 / 0\n",
        "the module cannot be imported: ZeroDivisionError: division by zero\n  --> {path}:2",
    ),
    "a missing package": (
        "import no_such_package\n",
        "the module cannot be imported: ModuleNotFoundError: No module named 'no_such_package'\n  --> {path}:1\n"
        "hint: install what it needs into this environment",
    ),
}


def describe(path: str) -> None:
    """Do in this process, where torch is loaded already, what the process of the functions does first."""
    for function in functions_of(import_file(path), path).values():
        schema_of(function, path)


@pytest.mark.parametrize("mistake", WRONG_MODULES)
def test_a_module_that_cannot_become_tools_is_told_with_its_line(mistake: str, tmp_path: Path) -> None:
    code, message = WRONG_MODULES[mistake]
    path = tmp_path / "wrong.py"
    path.write_text(code, encoding="utf-8")
    with pytest.raises(GlmtuneError) as caught:
        describe(str(path))
    assert str(caught.value) == message.format(path=path)


def test_a_mistake_in_the_module_comes_back_from_its_process(tmp_path: Path) -> None:
    path = tmp_path / "wrong.py"
    path.write_text("1 / 0\n", encoding="utf-8")
    with pytest.raises(GlmtuneError) as caught:
        load_tools(path)
    assert (caught.value.what, caught.value.where) == (
        "the module cannot be imported: ZeroDivisionError: division by zero", f"{path}:1",
    )  # fmt: skip


def test_a_module_that_ends_its_process_is_told(tmp_path: Path) -> None:
    path = tmp_path / "ends.py"
    path.write_text("import os\nos._exit(5)\n", encoding="utf-8")
    with pytest.raises(GlmtuneError, match=r"ended its process while it was imported \(exit code 5\)"):
        load_tools(path)


def test_a_module_may_import_its_neighbours_and_be_called_like_a_module_of_python(tmp_path: Path) -> None:
    (tmp_path / "neighbour_of_json.py").write_text("VALUE = 7\n", encoding="utf-8")
    path = tmp_path / "json.py"
    path.write_text('import json\nfrom neighbour_of_json import VALUE\ndef f():\n    """Do."""\n    return VALUE\n')
    worker = FunctionWorker(path, 30)
    worker.start()
    assert worker.call("f", "{}") == "7"
    worker.close()


def test_the_value_of_an_enumeration_becomes_its_member(tmp_path: Path) -> None:
    path = tmp_path / "units.py"
    path.write_text(
        "import enum\nclass Unit(enum.Enum):\n    METRE = 'm'\n"
        'def f(unit: Unit):\n    """Do."""\n    return unit.name\n', encoding="utf-8",
    )  # fmt: skip
    worker = FunctionWorker(path, 30)
    worker.start()
    assert worker.call("f", '{"unit": "m"}') == "METRE"
    worker.close()


def test_a_json_file_holds_tools_without_code(tmp_path: Path) -> None:
    path = tmp_path / "tools.json"
    path.write_text(json.dumps([DESCRIBED, {"name": "bare", "parameters": {}}]), encoding="utf-8")
    tools = load_tools(path)
    bare = {"type": "function", "function": {"name": "bare", "parameters": {}}}
    assert tools == Tools(schemas=[DESCRIBED, bare], source=path, worker=None)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.json", "{", "not JSON: Expecting property name enclosed in double quotes: line 1 column 2 (char 1)"),
        ("a.json", '{"name": "f"}', "the file is an object; expected a list of tool objects"),
        ("a.json", '[{"description": "d"}]', "tool 0 of the file has no function name"),
        ("a.yaml", "[]", "`{path}` is neither a Python module (`.py`) nor a JSON file (`.json`) of tools"),
        (None, None, "`{path}` does not exist; expected a Python module or a JSON file of tools"),
    ],
)
def test_a_file_without_tools_is_told(name: str | None, text: str | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / (name or "nowhere.py")
    if text is not None:
        path.write_text(text, encoding="utf-8")
    with pytest.raises(GlmtuneError) as caught:
        load_tools(path)
    assert caught.value.what == message.format(path=path)


NESTED = {
    "type": "function",
    "function": {
        "name": "plan",
        "parameters": {
            "properties": {
                "days": {"type": "array", "items": {"type": "integer"}},
                "mode": {"type": "string", "enum": ["fast", "slow"]},
                "who": {"type": "object", "properties": {"age": {"type": "number"}}, "required": ["age"]},
                "note": {"type": "string", "nullable": True},
                "size": {"anyOf": [{"type": "integer"}, {"type": "array"}]},
                "any": {},
            },
            "required": ["mode"],
        },
    },
}


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"mode": "fast", "days": [1, 2.0], "who": {"age": 1.5, "name": "x"}, "note": None, "any": [1]}, None),
        ({}, "`plan`: `mode` is missing"),
        ({"mode": 3}, "`plan`: `mode` is 3; expected string"),
        ({"mode": "mid"}, '`plan`: `mode` is "mid"; expected one of "fast", "slow"'),
        ({"mode": "fast", "days": [1, "x"]}, '`plan`: `days[1]` is "x"; expected integer'),
        ({"mode": "fast", "days": [True]}, "`plan`: `days[0]` is true; expected integer"),
        ({"mode": "fast", "who": {}}, "`plan`: `who.age` is missing"),
        ({"mode": "fast", "size": [1]}, None),
        ({"mode": "fast", "size": "x"}, '`plan`: `size` is "x"; expected integer'),
        (
            {"mode": "fast", "when": 1},
            "`plan`: `when` is unknown; expected: `days`, `mode`, `who`, `note`, `size`, `any`",
        ),
    ],
)
def test_arguments_are_checked_against_the_schema(arguments: dict[str, Any], problem: str | None) -> None:
    assert call_problem("plan", json.dumps(arguments), [NESTED]) == problem


def test_a_function_without_arguments_takes_none() -> None:
    schema = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
    assert call_problem("f", "{}", [schema]) is None
    assert call_problem("f", '{"x": 1}', [schema]) == "`f`: `x` is unknown; expected: none"


def test_a_function_that_is_not_there_is_told_with_those_that_are() -> None:
    assert call_problem("g", "{}", [NESTED]) == "there is no function `g`; there are: `plan`"
    assert call_problem("g", "{}", []) == "there is no function `g`; there are: none"
