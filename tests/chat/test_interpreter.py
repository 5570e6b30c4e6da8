"""The kernel that runs what a model writes for `python`: apart from the user, bounded, and asked for first."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from written_answers import Written

from glmtune.chat import interpreter as interpreter_module
from glmtune.chat.chat_session import Chat, ModelAnswers
from glmtune.chat.functions import load_tools
from glmtune.chat.interpreter import Interpreter, Output, has_no_network
from glmtune.chatformat.replies import ToolCall
from glmtune.data.formats import to_conversations
from glmtune.data.reading.read_rows import read_rows
from glmtune.errors import GlmtuneError
from glmtune.family import TEXT_TOOLS

pytest.importorskip("ipykernel", reason="needs `pip install -e '.[interpreter]'`")
Talk = Callable[..., Chat]
PICTURE = (
    "from IPython.display import Image, display\nimport base64\n"
    "display(Image(base64.b64decode('iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==')))"
)


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Interpreter]:
    """One kernel for all that it survives."""
    os.environ["SECRET_API_KEY"] = "hush"
    running = Interpreter(
        tmp_path_factory.mktemp("kernel") / "files", time_limit_seconds=60, max_characters=1000, keys=["SECRET_API_KEY"]
    )
    try:
        yield running
    finally:
        running.close()
        del os.environ["SECRET_API_KEY"]


def asks(code: str) -> list[ToolCall]:
    return [ToolCall(name="python", arguments=json.dumps({"input": code}))]


@pytest.mark.parametrize(
    ("code", "shown"),
    [
        ("x = 41", "[no output]"),
        ("x + 1", "42"),
        ("print('a'); print('b', end=''); 'c'", "a\nb\n'c'"),
        ("```python\nprint('zwischen', '⌘')\n```", "zwischen ⌘"),
        ("import sys; print('err', file=sys.stderr)", "err"),
        ("import os; os.getcwd().rsplit('/', 1)[-1]", "'files'"),
        ("'SECRET_API_KEY' in os.environ", "False"),
    ],
)
def test_what_code_shows_comes_back_and_its_state_stays(code: str, shown: str, kernel: Interpreter) -> None:
    if code == "x + 1":
        kernel.run("x = 41")
    if "environ" in code:
        kernel.run("import os")
    assert kernel.run(code) == shown


def test_an_error_comes_back_without_colours(kernel: Interpreter) -> None:
    told = kernel.run("1 / 0")
    assert "ZeroDivisionError: division by zero" in told
    assert "\x1b" not in told


def test_code_reads_no_line_of_the_user(kernel: Interpreter) -> None:
    assert "StdinNotImplementedError" in kernel.run("input('password? ')")


def test_a_picture_is_saved_under_a_name_that_is_free(kernel: Interpreter, capsys) -> None:
    kernel.folder.mkdir(exist_ok=True)
    (kernel.folder / "picture-1.png").write_bytes(b"the user's")
    assert kernel.run(PICTURE) == "[picture: picture-2.png]"
    assert (kernel.folder / "picture-2.png").read_bytes().startswith(b"\x89PNG")
    assert (kernel.folder / "picture-1.png").read_bytes() == b"the user's"
    assert f"note: a picture: {kernel.folder / 'picture-2.png'}\n" in capsys.readouterr().err


def test_output_has_a_limit(kernel: Interpreter) -> None:
    told = kernel.run("print('x' * 3_000)")
    assert told == "x" * 1000 + "\n[cut off: the first 1,000 of 3,001 characters]"


@pytest.mark.skipif(not has_no_network(), reason="this system cannot forbid the network")
def test_code_has_no_network_not_even_this_machines(kernel: Interpreter, server) -> None:
    port = server.server_address[1]
    code = f"import socket\nsocket.create_connection(('127.0.0.1', {port}), 5)"
    assert "OSError" in kernel.run(code) or "unreachable" in kernel.run(code)


def test_code_that_goes_on_for_ever_is_stopped_and_its_state_stays(kernel: Interpreter) -> None:
    kernel.run("kept = 7")
    kernel.time_limit_seconds = 2
    try:
        told = kernel.run("print('begun')\nwhile True: pass")
    finally:
        kernel.time_limit_seconds = 60
    assert told == "begun\n[stopped after 2 s, the time limit; its state is kept]"
    assert kernel.run("kept") == "7"


def test_code_that_ends_its_kernel_is_told_and_the_next_call_has_another(kernel: Interpreter) -> None:
    kernel.run("kept = 7")
    assert kernel.run("import os; os._exit(3)").endswith(
        "[the interpreter has ended; it starts anew, with nothing of its state]"
    )
    assert "NameError" in kernel.run("kept")


def test_nothing_of_it_is_left_running(tmp_path: Path) -> None:
    running = Interpreter(tmp_path, time_limit_seconds=60)
    code = "import subprocess\nprint(subprocess.Popen(['sleep', '600'], start_new_session=True).pid)"
    pid = int(running.run(code))
    assert Path(f"/proc/{pid}").exists()
    running.close()
    deadline = time.monotonic() + 20
    while Path(f"/proc/{pid}").exists() and "Z" not in Path(f"/proc/{pid}/stat").read_text().rsplit(")")[-1]:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_system_that_cannot_forbid_the_network_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys
) -> None:
    monkeypatch.setattr(interpreter_module, "has_no_network", lambda: False)
    interpreter_module._tell_network.cache_clear()
    running = Interpreter(tmp_path, time_limit_seconds=60)
    try:
        assert running.run("1 + 1") == "2"
    finally:
        running.close()
    assert "note: this system cannot keep the interpreter from the network" in capsys.readouterr().err


class Recorded(Interpreter):
    """An interpreter that writes down what it is to run."""

    def __init__(self) -> None:
        self.codes: list[str] = []

    def run(self, code: str) -> str:
        self.codes.append(code)
        return "42"

    def close(self) -> None: ...


@pytest.mark.parametrize("answer", ["y", " YES ", "是"])
def test_code_is_shown_whole_and_run_after_a_yes(answer: str, talk: Talk, capsys) -> None:
    code = "a = 6\n" * 500 + "a * 7"
    recorded = Recorded()
    chat = talk(Written(asks(code), "42."), "6 * 7?", answer, interpreter=recorded)
    assert recorded.codes == [code]
    assert [message["content"] for message in chat.history if message["role"] == "tool"] == ["42"]
    told = capsys.readouterr().err
    assert told.count("   a = 6\n") == 500
    assert "   a * 7\nrun it? [y/N] " in told


@pytest.mark.parametrize("answer", ["n", "", "yep", None])
def test_without_a_yes_nothing_is_run(answer: str | None, talk: Talk) -> None:
    recorded = Recorded()
    lines = ["6 * 7?"] if answer is None else ["6 * 7?", answer]
    chat = talk(Written(asks("6 * 7"), "I may not."), *lines, interpreter=recorded)
    assert recorded.codes == []
    assert "[not run: the user has not said yes]" in [message["content"] for message in chat.history]


def test_yes_once_and_for_all(talk: Talk) -> None:
    recorded = Recorded()
    talk(Written(asks("1"), "."), "?", interpreter=recorded, asks_before_code=False)
    assert recorded.codes == ["1"]


def test_a_call_that_holds_no_code_is_told_to_the_model(talk: Talk) -> None:
    call = [ToolCall(name="python", arguments='{"x": 1}')]
    chat = talk(Written(call, "."), "?", interpreter=Recorded())
    [told] = [message["content"] for message in chat.history if message["role"] == "tool"]
    assert told == json.dumps({"error": "`python`: `input` is missing"})


BROWSER = '''
def simple_browser(command: str) -> str:
    """Browse.

    Args:
        command: What to do.
    """
    return "did " + command


def cogview(input: str) -> str:
    """Draw.

    Args:
        input: Of what.
    """
    return "drew " + input


def add(a: int, b: int) -> int:
    """Add.

    Args:
        a: One.
        b: Another.
    """
    return a + b
'''


def test_a_models_own_tools_are_offered_by_their_type_and_called_with_their_text(talk: Talk, tmp_path: Path) -> None:
    path = tmp_path / "own.py"
    path.write_text(BROWSER, encoding="utf-8")
    written = Written(
        [ToolCall(name="simple_browser", arguments='{"input": "search(\\"x\\")"}')],
        [ToolCall(name="cogview", arguments='{"input": "a cat"}')],
        "done",
    )
    rows = tmp_path / "rows.jsonl"
    answers = ModelAnswers(written, TEXT_TOOLS)
    chat = talk(answers, "?", f"/save {rows}", tools=load_tools(path), interpreter=Recorded())
    types = [tool["type"] for tool in written.offered[0]]
    assert types == ["simple_browser", "cogview", "function", "python"]
    assert [message["content"] for message in chat.history if message["role"] == "tool"] == [
        'did search("x")', "drew a cat",
    ]  # fmt: skip
    [row] = [conversation for row in read_rows(rows) for conversation in to_conversations(json.loads(row.text))]
    calls = [(message.metadata, message.content) for message in row.messages if message.metadata]
    assert calls == [("simple_browser", 'search("x")'), ("cogview", "a cat")]


def test_other_models_are_offered_functions(talk: Talk, tmp_path: Path) -> None:
    path = tmp_path / "tools.json"
    path.write_text('[{"type": "python"}, {"type": "cogview"}]', encoding="utf-8")
    written = Written([ToolCall(name="cogview", arguments='{"input": "a cat"}')], "done")
    chat = talk(written, "?", '"drawn"', tools=load_tools(path))
    assert [tool["function"]["name"] for tool in written.offered[0]] == ["python", "cogview"]
    assert '"drawn"' in [message["content"] for message in chat.history]


def test_a_file_in_the_place_of_its_folder_is_told(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("mine")
    with pytest.raises(GlmtuneError, match="is no folder"):
        Interpreter(tmp_path / "a")


def test_pieces_of_output_are_joined() -> None:
    output = Output(100)
    for piece in ("a", "\nb\n", "\nc\n"):
        output.add(piece)
    assert output.ended() == "a\nb\nc"


def test_without_the_packages_the_way_to_them_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str, *, extra: str) -> Any:
        raise GlmtuneError(f"no {name}", fix=extra)

    monkeypatch.setattr(interpreter_module, "require", missing)
    with pytest.raises(GlmtuneError, match="no jupyter_client"):
        Interpreter()
