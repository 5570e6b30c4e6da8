"""Functions of tools have neither the chat's stdin nor its keys, and steer no terminal; results have a limit."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from written_answers import Written

from glmtune.chat import function_isolation, functions
from glmtune.chat.function_isolation import FunctionOutput, key_variables
from glmtune.chat.functions import FunctionWorker, Tools, load_tools
from glmtune.chatformat.replies import ToolCall

MODULE = r'''
import os, subprocess, sys, threading, time


def say(text: str, how: str) -> str:
    """Print.

    Args:
        text: What to print.
        how: In which way.
    """
    if how == "print":
        print(text)
    elif how == "stderr":
        sys.stderr.write(text + "\n")
    elif how == "raw":
        os.write(1, text.encode() + b"\n")
    elif how == "child":
        code = "import sys; print(sys.argv[1]); print(sys.argv[1], file=sys.stderr)"
        subprocess.run([sys.executable, "-c", code, text])
    elif how == "last words":
        os.write(2, text.encode() + b"\n")
        os._exit(1)
    elif how == "bytes":
        os.write(1, b"\xff\xe4\xbd")
        os.write(1, b"\xa0 50%\r100%\r\n no end")
    elif how == "later":
        threading.Thread(target=lambda: (time.sleep(0.2), print(text, flush=True)), daemon=True).start()
    elif how == "much":
        print("x" * 500_000)
    return "said"


def read(how: str) -> str:
    """Read stdin.

    Args:
        how: In which way.
    """
    if how == "input":
        return input("? ")
    if how == "child":
        code = "import sys; print(repr(sys.stdin.read()))"
        return subprocess.run([sys.executable, "-c", code], stdout=-1).stdout.decode()
    return repr(os.read(0, 100))


def streams() -> list:
    """Tell which of all open files are terminals."""
    return [number for number in range(256) if os.isatty(number)]


def environment(names: list[str]) -> dict:
    """Tell variables, as this process and its children have them, and as they were when it began.

    Args:
        names: Of variables.
    """
    code = "import os, sys; print(*(os.environ.get(name, '-') for name in sys.argv[1:]))"
    child = subprocess.run([sys.executable, "-c", code, *names], stdout=-1).stdout.decode().split()
    at_start = open("/proc/self/environ").read() if sys.platform == "linux" else ""
    return {"own": [os.environ.get(name, "-") for name in names], "child": child, "start": at_start}


def huge(length: int, kind: str):
    """Return much.

    Args:
        length: Of it.
        kind: Of result.
    """
    if kind == "error":
        raise ValueError("x" * length)
    return ["雾" * length] if kind == "list" else "雾" * length
'''


TAMPERING = r'''
import os, stat, struct


def tamper(how: str) -> str:
    """Tamper with all open files.

    Args:
        how: In which way.
    """
    if how == "close":
        os.closerange(3, 256)
    for number in range(3, 256):
        try:
            if stat.S_ISSOCK(os.fstat(number).st_mode):
                os.write(number, b"\xff" * 100 if how == "length" else (struct.pack("!i", 7) + b"unasked") * 3)
        except OSError:
            pass
    return "tampered"


def add() -> int:
    """Add."""
    return 1 + 1
'''


@pytest.fixture(scope="module")
def module(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("functions") / "tools.py"
    path.write_text(MODULE, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def worker(module: Path) -> Iterator[FunctionWorker]:
    worker = FunctionWorker(module, 30, max_characters=1000)
    yield worker
    worker.close()


def call(worker: FunctionWorker, name: str, **arguments: Any) -> str:
    return worker.call(name, json.dumps(arguments))


@pytest.mark.parametrize("how", ["print", "stderr", "raw", "child", "last words"])
def test_what_functions_print_steers_no_terminal(how: str, worker: FunctionWorker, capsys) -> None:
    call(worker, "say", text="\x1b[2J\x9b31m\u202e\u2066雾\tb", how=how)
    times = 2 if how == "child" else 1
    told = capsys.readouterr()
    assert (told.out, told.err) == ("", "\\x1b[2J\\x9b31m\\u202e\\u2066雾\tb\n" * times)


def test_bytes_and_lines_of_any_kind_are_shown_as_lines(worker: FunctionWorker, capsys) -> None:
    call(worker, "say", text="", how="bytes")
    assert capsys.readouterr().err == "\\xff你 50%\n100%\n no end\n"


def test_much_is_shown_in_part_before_the_result_and_the_next_call_is_shown_again(
    worker: FunctionWorker, capsys
) -> None:
    for _ in range(2):
        call(worker, "say", text="", how="much")
        assert capsys.readouterr().err == (
            "x" * 100_000
            + "\nnote: what the functions print beyond 100,000 characters is not shown, until the next call\n"
        )


@pytest.mark.parametrize("how", ["close", "length", "unasked"])
def test_a_function_that_tampers_with_what_it_is_called_by_harms_no_other_call(how: str, tmp_path: Path) -> None:
    path = tmp_path / "tools.py"
    path.write_text(TAMPERING, encoding="utf-8")
    worker = FunctionWorker(path, 30)
    result = call(worker, "tamper", how=how)
    assert result == "unasked" if how == "unasked" else "`tamper` ended its process" in result
    assert call(worker, "add") == "2"
    worker.close()


def test_where_a_pipe_is_no_file_functions_print_to_stderr(
    module: Path, monkeypatch: pytest.MonkeyPatch, capfd
) -> None:
    monkeypatch.setattr(functions, "PIPES_ARE_FILES", False)
    worker = FunctionWorker(module, 30)
    assert call(worker, "say", text="雾", how="print") == "said"
    worker.close()
    told = capfd.readouterr()
    assert (told.out, told.err) == ("", "雾\n")


def test_what_was_printed_before_a_result_is_shown_before_it(capsys) -> None:
    output = FunctionOutput(multiprocessing.get_context("spawn"))
    os.write(output.writer.fileno(), "雾".encode())
    output.catch_up()  # nothing else shows anything yet
    assert capsys.readouterr().err == "雾\n"
    output.begin()
    output.close()


def test_what_is_printed_between_calls_is_shown(worker: FunctionWorker, capsys) -> None:
    call(worker, "say", text="\x1b[2J", how="later")
    told, deadline = "", time.monotonic() + 10
    while "\n" not in told and time.monotonic() < deadline:
        told += capsys.readouterr().err
        time.sleep(0.02)
    assert told == "\\x1b[2J\n"


def test_what_is_printed_while_the_module_is_imported_or_ends_is_shown(tmp_path: Path, capsys) -> None:
    path = tmp_path / "tools.py"
    path.write_text('import atexit\nprint("\\x1b[2J")\ndef f():\n    """Do."""\n', encoding="utf-8")
    worker = FunctionWorker(path, 30)
    worker.start()
    worker.close()
    assert capsys.readouterr().err == "\\x1b[2J\n"


@pytest.mark.parametrize(
    ("how", "result"),
    [("input", '{"error": "EOFError: EOF when reading a line (tools.py:41)"}'), ("child", "''\n"), ("raw", "b''")],
)
def test_functions_and_their_children_read_nothing(
    how: str, result: str, module: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read_end, write_end = os.pipe()
    stdin = os.dup(0)
    os.write(write_end, b"typed for the chat\n")
    os.dup2(read_end, 0)
    worker = FunctionWorker(module, 30)
    try:
        assert call(worker, "read", how=how) == result
        assert os.read(0, 100) == b"typed for the chat\n"
    finally:
        worker.close()
        os.dup2(stdin, 0)
        for number in (stdin, read_end, write_end):
            os.close(number)


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_functions_hold_no_terminal(module: Path) -> None:
    own, its = os.openpty()
    kept = [os.dup(number) for number in range(3)]
    for number in range(3):
        os.dup2(its, number)
    worker = FunctionWorker(module, 30)
    try:
        assert call(worker, "streams") == "[]"
    finally:
        worker.close()
        for number in range(3):
            os.dup2(kept[number], number)
        for number in (own, its, *kept):
            os.close(number)


KEYS = [
    "OPENAI_API_KEY", "GITHUB_TOKEN", "STRIPE_SECRET", "DB_PASSWORD", "AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID",
    "DEEPL_KEY", "PGPASSWORD", "MYSQL_PWD", "GH_PAT", "GOOGLE_APPLICATION_CREDENTIALS", "my_api_key",
]  # fmt: skip
OTHERS = ["PATH", "HOME", "PWD", "OLDPWD", "MAX_TOKENS", "KEYBOARD", "MONKEY", "TOKENIZERS_PARALLELISM", "AUTHOR"]


def test_variables_of_keys_are_known_by_their_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", dict.fromkeys([*KEYS, *OTHERS, "MINE"], "value"))
    assert key_variables() == tuple(sorted(KEYS))
    assert key_variables(kept=["DEEPL_KEY"], more=["MINE"]) == tuple(sorted({*KEYS, "MINE"} - {"DEEPL_KEY"}))


def test_functions_do_not_get_keys_and_it_is_told_once(module: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    function_isolation.tell_hidden.cache_clear()
    for name in key_variables():
        monkeypatch.delenv(name)
    for name in ("OPENAI_API_KEY", "DEEPL_KEY", "WEATHER_TOKEN", "MINE", "PLAIN"):
        monkeypatch.setenv(name, f"value-{name}")
    names = ["OPENAI_API_KEY", "DEEPL_KEY", "WEATHER_TOKEN", "MINE", "PLAIN"]
    tools = load_tools(module, shown_variables=["WEATHER_TOKEN"], hidden_variables=["MINE"])
    assert tools.worker is not None
    told = json.loads(call(tools.worker, "environment", names=names))
    assert told["own"] == ["-", "-", "value-WEATHER_TOKEN", "-", "value-PLAIN"]
    assert told["child"] == told["own"]
    assert not re.search("value-(OPENAI|DEEPL|MINE)", told["start"])
    call(tools.worker, "say", text="", how="last words")  # it starts anew
    assert json.loads(call(tools.worker, "environment", names=names))["own"] == told["own"]
    tools.close()
    function_isolation.tell_hidden(("DEEPL_KEY", "MINE", "OPENAI_API_KEY"))
    assert os.environ["OPENAI_API_KEY"] == "value-OPENAI_API_KEY"  # the chat itself needs it
    assert capsys.readouterr().err == (
        "note: the functions do not get `DEEPL_KEY`, `MINE`, `OPENAI_API_KEY`: `--tool-env NAME` lets them have one\n\n"
    )


def test_a_long_result_is_cut_and_says_so(worker: FunctionWorker) -> None:
    assert call(worker, "huge", length=1000, kind="text") == "雾" * 1000
    note = "[cut off: the first 1,000 of {} characters]"
    assert call(worker, "huge", length=30_000_000, kind="text") == f"{'雾' * 1000}\n{note.format('30,000,000')}"
    listed = call(worker, "huge", length=5000, kind="list")
    assert listed == f'["{"雾" * 998}\n{note.format("5,004")}'
    error = call(worker, "huge", length=5000, kind="error")
    assert error.startswith('{"error": "ValueError: xxx')
    assert len(error) < 1100


def test_a_result_that_was_cut_is_shown_as_the_model_reads_it(talk, module: Path, capsys) -> None:
    asked = ToolCall(name="huge", arguments='{"length": 5000, "kind": "text"}')
    tools = Tools(
        schemas=[{"type": "function", "function": {"name": "huge"}}],
        worker=FunctionWorker(module, 30, max_characters=10),
    )
    chat = talk(Written([asked], "much"), "ask", tools=tools)
    assert chat.history[2]["content"] == f"{'雾' * 10}\n[cut off: the first 10 of 5,000 characters]"
    told = capsys.readouterr().err
    assert f"<- {'雾' * 10}\n   [cut off: the first 10 of 5,000 characters]\n" in told
