"""A chat: history, commands, tool calls in a loop, all through the real terminal with stdin and stdout at hand."""

from __future__ import annotations

import json
import os
import signal
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hostile_text import ORDERS, is_harmless
from written_answers import Written

from glmtune.chat.chat_model import local_answers
from glmtune.chat.chat_session import Chat
from glmtune.chat.chat_terminal import ChatTerminal
from glmtune.chat.function_worker import functions_of, import_file, schema_of
from glmtune.chat.functions import FunctionWorker, Tools
from glmtune.chat.run import chat, run_chat
from glmtune.chatformat.replies import CutOff, Delta, ToolCall
from glmtune.data.conversation import Conversation
from glmtune.data.formats import to_conversations
from glmtune.data.reading.read_rows import read_rows
from glmtune.errors import GlmtuneError
from glmtune.generation.generate import generate

Talk = Callable[..., Chat]
HELLO = {"role": "user", "content": "hello"}
HI = {"role": "assistant", "content": "hi"}

FUNCTIONS = '''
def add(a: int, b: int) -> int:
    """Add.

    Args:
        a: First number.
        b: Second number.
    """
    return a + b


def fail() -> None:
    """Fail."""
    raise ValueError("broken")
'''


@pytest.fixture(scope="module")
def function_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("functions") / "sums.py"
    path.write_text(FUNCTIONS, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def schemas(function_file: Path) -> list[dict[str, Any]]:
    name = str(function_file)
    return [schema_of(function, name) for function in functions_of(import_file(name), name).values()]


@pytest.fixture
def tools(function_file: Path, schemas: list[dict[str, Any]]) -> Tools:
    """The functions, whose process starts with the first call."""
    return Tools(schemas=schemas, source=function_file, worker=FunctionWorker(function_file, 30))


def call(name: str, **arguments: Any) -> ToolCall:
    return ToolCall(name=name, arguments=json.dumps(arguments))


def saved(path: Path) -> list[Conversation]:
    """Return the conversations of a file, as training reads them."""
    return [conversation for row in read_rows(path) for conversation in to_conversations(json.loads(row.text))]


def test_answers_go_to_stdout_and_prompts_to_stderr(talk: Talk, capsys) -> None:
    answers = Written("hi", "bye\n")
    chat = talk(answers, "hello", "", "  ", "good night")
    assert answers.asked[1] == [HELLO, HI, {"role": "user", "content": "good night"}]
    assert chat.history[-1] == {"role": "assistant", "content": "bye"}
    written = capsys.readouterr()
    assert written.out == "hi\nbye\n"
    assert written.err == "> hello\n> \n>   \n> good night\n> \n"


@pytest.mark.parametrize("end", ["stop", "/stop", " stop "])
def test_stop_ends_the_chat(end: str, talk: Talk) -> None:
    assert talk(Written("hi"), "hello", end, "never asked").history == [HELLO, HI]


@pytest.mark.parametrize("command", ["clear", "/clear"])
def test_clear_forgets_the_conversation_but_not_the_system_message(command: str, talk: Talk, capsys) -> None:
    answers = Written("hi", "hi")
    talk(answers, "hello", command, "hello", system="Be brief.")
    assert answers.asked == [[{"role": "system", "content": "Be brief."}, HELLO]] * 2
    assert "the conversation is forgotten, but not the system message\n" in capsys.readouterr().err


def test_a_line_that_ends_with_a_backslash_goes_on(talk: Talk) -> None:
    chat = talk(Written("hi", "hi"), "one\\", "two\\", "three", "four\\")
    assert [message["content"] for message in chat.history[::2]] == ["one\ntwo\nthree", "four\n"[:-1]]


def test_a_line_that_begins_with_a_space_is_no_command(talk: Talk) -> None:
    assert talk(Written("hi"), " /etc/hosts?").history[0]["content"] == "/etc/hosts?"


def test_a_line_that_is_not_utf_8_is_told_and_the_chat_goes_on(talk: Talk, capsys) -> None:
    assert talk(Written("hi"), b"\xff", "hello").history == [HELLO, HI]
    assert "error: what was typed is not UTF-8" in capsys.readouterr().err


def test_the_system_message_is_set_shown_and_taken_away(talk: Talk, capsys) -> None:
    answers = Written("hi", "hi")
    talk(answers, "/system", "/system Be brief.", "/system", "hello", '/system ""', "hello")
    system = {"role": "system", "content": "Be brief."}
    assert answers.asked == [[system, HELLO], [HELLO, HI, HELLO]]
    told = [line for line in capsys.readouterr().err.splitlines() if not line.startswith(">")]
    assert told == ["there is no system message", *["system message: Be brief."] * 2, "there is no system message"]


def test_retry_answers_the_last_question_anew(talk: Talk) -> None:
    answers = Written("hi", "hm", "how are you?")
    chat = talk(answers, "hello", "well?", "/retry")
    assert answers.asked[2] == answers.asked[1]
    assert [message["content"] for message in chat.history] == ["hello", "hi", "well?", "how are you?"]


def test_retry_without_a_question_is_told(talk: Talk, capsys) -> None:
    talk(Written(), "/retry")
    assert capsys.readouterr().err == "> /retry\nerror: there is no question to answer again\n> \n"


def test_an_unknown_command_is_told_with_the_nearest_one(talk: Talk, capsys) -> None:
    talk(Written(), "/sistem hello")
    assert capsys.readouterr().err == (
        "> /sistem hello\n"
        "error: unknown command `/sistem` (did you mean `/system`?)\n"
        "hint: `/help` lists the commands; a line that begins with a space is no command\n> \n"
    )


def test_help_lists_every_command(talk: Talk, capsys) -> None:
    talk(Written(), "/help")
    text = capsys.readouterr().err
    for command in ("/clear", "/retry", "/system [TEXT]", "/tools [FILE]", "/save FILE.jsonl", "/help", "/stop"):
        assert command in text


def test_an_error_leaves_the_history_and_the_question_can_be_asked_again(talk: Talk, capsys) -> None:
    answers = Written("hi", GlmtuneError("the server is away"), [GlmtuneError("still away")], "here I am")
    answers.answers[1] = [Delta(text="he"), answers.answers[1]]
    chat = talk(answers, "hello", "where are you?", "/retry", "/retry")
    assert [message["content"] for message in chat.history] == ["hello", "hi", "where are you?", "here I am"]
    written = capsys.readouterr()
    assert written.out == "hi\nhe\nhere I am\n"
    assert "error: the server is away\n" in written.err


def test_a_question_without_an_answer_is_left_out_when_the_next_one_comes(talk: Talk) -> None:
    answers = Written([GlmtuneError("too long")], "hi")
    assert talk(answers, "a long story", "hello").history == [HELLO, HI]


def test_a_turn_whose_tools_have_filled_the_context_is_taken_back(talk: Talk, tools: Tools, capsys) -> None:
    asked = [Delta(text="I add."), call("add", a=1, b=2)]
    answers = Written("hi", asked, [GlmtuneError("too long")], asked, "3", asked, [GlmtuneError("too long")], "bye")
    chat = talk(answers, "hello", "add", "/retry", "again", "thanks", tools=tools)
    assert answers.asked[3] == [HELLO, HI, {"role": "user", "content": "add"}]
    assert answers.asked[-1] == [*chat.history[:6], {"role": "user", "content": "thanks"}]
    assert [message["content"] for message in chat.history] == [
        "hello",
        "hi",
        "add",
        "I add.",
        "3",
        "3",
        "thanks",
        "bye",
    ]
    note = "note: the question got no answer: the next one takes its place"
    assert capsys.readouterr().err.count(
        f"error: too long\n{note}, and what tools have answered to it is forgotten\n"
    ) == 2  # fmt: skip


def test_a_question_that_is_too_long_for_the_model_is_taken_back(talk: Talk, demo_model: str, capsys) -> None:
    answers = local_answers(demo_model, max_new_tokens=2)
    chat = talk(answers, "x " * 9000, "类型#卫衣")
    assert [message["role"] for message in chat.history] == ["user", "assistant"]
    assert "note: the question got no answer: the next one takes its place\n" in capsys.readouterr().err


def test_a_result_that_fills_the_context_is_taken_back(
    talk: Talk, demo_model: str, schemas: list[dict[str, Any]], capsys
) -> None:
    model = local_answers(demo_model, max_new_tokens=2)

    def answers(messages, tools):
        """Let the model answer all but the first question, to which it knows no call."""
        is_first = messages[-1]["content"] == "add"
        return Written([call("add", a=1, b=2)])(messages, tools) if is_first else model(messages, tools)

    chat = talk(answers, "add", "库存" * 9000, "类型#卫衣", tools=Tools(schemas=schemas))
    assert chat.history[0] == {"role": "user", "content": "类型#卫衣"}
    told = capsys.readouterr().err
    assert told.count("error: ") == 1
    assert "and what tools have answered to it is forgotten\n" in told


HOSTILE_RESULT = "a\nerror: forged\n\x1b[2J\u202e"


def test_no_line_of_a_result_looks_like_ours(talk: Talk, schemas, tmp_path: Path, capsys) -> None:
    path = tmp_path / "results.py"
    path.write_text(f"def add() -> str:\n    return {HOSTILE_RESULT!r}\n", encoding="utf-8")
    tools = Tools(schemas=[{"type": "function", "function": {"name": "add"}}], worker=FunctionWorker(path, 30))
    chat = talk(Written([call("add")], "hm"), "add", tools=tools)
    assert chat.history[2]["content"] == HOSTILE_RESULT
    assert "<- a\n   error: forged\n   \\x1b[2J\\u202e\n" in capsys.readouterr().err


@pytest.mark.parametrize(("order", "shown"), ORDERS.values(), ids=ORDERS)
def test_names_and_arguments_of_calls_steer_no_terminal(order: str, shown: str, talk: Talk, capsys) -> None:
    schemas = [{"type": "function", "function": {"name": order, "description": order}}]
    asked = ToolCall(name=order, arguments=json.dumps({}))
    unknown = ToolCall(name=f"{order}\nerror: forged", arguments=json.dumps({order: order}, ensure_ascii=False))
    talk(Written([asked, unknown], "b"), "a", "c", "/tools", tools=Tools(schemas=schemas))
    told = capsys.readouterr().err
    assert is_harmless(told)
    assert f"-> {shown} {{}}\n" in told
    assert f"what `{shown}` answers> c\n" in told
    assert f"-> {shown}\\nerror: forged {{" in told


def test_a_call_of_great_length_is_shown_in_part(talk: Talk, capsys) -> None:
    asked = ToolCall(name="f" * 5000, arguments=json.dumps({"a": "b" * 5000}))
    talk(Written([asked], "hm"), "a")
    assert f'-> {"f" * 2000}... (5,000 characters) {{"a": "{"b" * 1993}... (5,009 characters)\n' in (
        capsys.readouterr().err
    )


def test_an_answer_without_text_is_told_and_not_kept(talk: Talk, capsys) -> None:
    assert talk(Written([]), "hello").history == [HELLO]
    assert "note: the model answered nothing; `/retry` asks again\n" in capsys.readouterr().err


def test_an_answer_that_was_cut_off_is_told_and_not_trained(talk: Talk, capsys, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    talk(Written([Delta(text="once upon"), CutOff()]), "a story", f"/save {path}")
    told = capsys.readouterr().err
    assert "note: cut off at the longest length of an answer; `--max-new-tokens` may allow more" in told
    assert "answers that were stopped or cut off have `loss: 0`: they are not trained\n" in told
    assert saved(path)[0].messages[1].loss == 0


def test_reasoning_is_shown_beside_the_answer_and_kept_with_it(talk: Talk, capsys) -> None:
    chat = talk(Written([Delta(text="Hm.", is_reasoning=True), Delta(text="Yes.")]), "hello")
    assert chat.history[1] == {"role": "assistant", "content": "Yes.", "reasoning_content": "Hm."}
    written = capsys.readouterr()
    assert (written.out, written.err) == ("Yes.\n", "> hello\nHm.\n> \n")


def test_a_call_is_made_and_its_result_goes_back_to_the_model(talk: Talk, tools: Tools, capsys) -> None:
    first = [Delta(text="I add."), call("add", a=1, b=2), call("add", a=3, b=4)]
    answers = Written(first, "3 and 7")
    chat = talk(answers, "add", tools=tools)
    calls = [
        {"id": f"call0000{n}", "type": "function", "function": {"name": "add", "arguments": arguments}}
        for n, arguments in ((1, '{"a": 1, "b": 2}'), (2, '{"a": 3, "b": 4}'))
    ]
    assert chat.history == [
        {"role": "user", "content": "add"},
        {"role": "assistant", "content": "I add.", "tool_calls": calls},
        {"role": "tool", "tool_call_id": "call00001", "content": "3"},
        {"role": "tool", "tool_call_id": "call00002", "content": "7"},
        {"role": "assistant", "content": "3 and 7"},
    ]
    assert answers.asked[1] == chat.history[:4]
    assert answers.offered == [tools.schemas] * 2
    written = capsys.readouterr()
    assert written.out == "I add.\n3 and 7\n"
    assert written.err == '> add\n-> add {"a": 1, "b": 2}\n<- 3\n-> add {"a": 3, "b": 4}\n<- 7\n> \n'


@pytest.mark.parametrize(
    ("asked", "observation"),
    [
        (call("fail"), '{"error": "ValueError: broken (sums.py:14)"}'),
        (call("subtract"), '{"error": "there is no function `subtract`; there are: `add`, `fail`"}'),
        (call("add", a=1), '{"error": "`add`: `b` is missing"}'),
        (call("add", a=1, b="two"), '{"error": "`add`: `b` is \\"two\\"; expected integer"}'),
        (call("add", a=1, b=2, c=3), '{"error": "`add`: `c` is unknown; expected: `a`, `b`"}'),
    ],
)
def test_a_call_that_fails_is_an_observation(
    asked: ToolCall, observation: str, talk: Talk, tools: Tools, capsys
) -> None:
    chat = talk(Written([asked], "sorry"), "do it", tools=tools)
    assert chat.history[2]["content"] == observation
    assert chat.history[-1]["content"] == "sorry"
    assert f"<- {observation}\n" in capsys.readouterr().err


def test_a_call_over_several_lines_is_shown_on_one(talk: Talk, tools: Tools, capsys) -> None:
    asked = ToolCall(name="add", arguments='{\n  "a": 1,\n  "b": 2\n}')
    chat = talk(Written([asked], "3"), "add", tools=tools)
    assert chat.history[2]["content"] == "3"
    assert '-> add { "a": 1, "b": 2 }\n' in capsys.readouterr().err


def test_a_long_observation_is_shown_in_part_and_read_whole(talk: Talk, schemas, capsys) -> None:
    chat = talk(Written([call("add", a=1, b=2)], "oh"), "add", "x" * 3000, tools=Tools(schemas=schemas))
    assert chat.history[2]["content"] == "x" * 3000
    assert f"<- {'x' * 2000}... (3,000 characters)\n" in capsys.readouterr().err


def test_a_model_that_never_stops_calling_is_stopped(talk: Talk, tools: Tools, capsys) -> None:
    answers = Written(*([call("add", a=1, b=1)] for _ in range(3)), "well")
    chat = talk(answers, "add", "and?", tools=tools, max_tool_rounds=2)
    observations = [message["content"] for message in chat.history if message["role"] == "tool"]
    refusal = "not called, after 2 rounds of calls without an answer, which `--max-tool-rounds` allows"
    assert observations == ["2", "2", json.dumps({"error": refusal})]
    assert chat.history[-1]["content"] == "well"
    assert "note: stopped after 2 rounds of calls without an answer" in capsys.readouterr().err


def test_tools_without_code_are_answered_by_whoever_types(talk: Talk, schemas, tmp_path: Path, capsys) -> None:
    path = tmp_path / "tools.json"
    path.write_text(json.dumps(schemas), encoding="utf-8")
    answers = Written([call("add", a=1, b=2)], "3")
    chat = talk(answers, f"/tools {path}", "add", "three", "/tools", '/tools ""', "/tools")
    assert chat.history[2]["content"] == "three"
    told = capsys.readouterr().err
    assert "what `add` answers> three\n" in told
    assert told.count(f"tools of {path}\n") == 2
    assert "you tell what they answer\n" in told
    assert told.endswith('> /tools ""\nthere are no tools\n> /tools\nthere are no tools\n> \n')


def test_tools_can_be_loaded_while_chatting(talk: Talk, function_file: Path, tmp_path: Path, capsys) -> None:
    answers = Written([call("add", a=1, b=2)], "3")
    chat = talk(answers, "/tools nowhere.py", f"/tools {function_file}", "add")
    assert chat.history[2]["content"] == "3"
    assert "error: `nowhere.py` does not exist; expected a Python module or a JSON file of tools\n" in (
        capsys.readouterr().err
    )


def test_a_saved_chat_is_read_back_with_its_tools(talk: Talk, tools: Tools, tmp_path: Path, capsys) -> None:
    path = tmp_path / "chats.jsonl"
    path.write_text('{"messages": []}', encoding="utf-8")  # and no newline at its end
    answers = Written([Delta(text="I add."), call("add", a=1, b=2)], "3", "bye", [GlmtuneError("away")])
    talk(answers, "add", "thanks", "still there?", f"/save {path}", f"/save {path}", tools=tools, system="Calculate.")
    assert capsys.readouterr().err.endswith(
        f"> /save {path}\na row added to {path}\nwhat stands behind the last answer was left out\n" * 2 + "> \n"
    )
    lines = path.read_text(encoding="utf-8").splitlines()
    assert len(lines) == 3
    assert lines[0] == '{"messages": []}'
    [conversation] = to_conversations(json.loads(lines[1]))
    assert conversation.tools == tools.schemas
    assert [(message.role, message.metadata, message.content) for message in conversation.messages] == [
        ("system", "", "Calculate."),
        ("user", "", "add"),
        ("assistant", "", "I add."),
        ("assistant", "add", '{"a": 1, "b": 2}'),
        ("observation", "", "3"),
        ("assistant", "", "3"),
        ("user", "", "thanks"),
        ("assistant", "", "bye"),
    ]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("/save", "`/save` needs the name of a file\nhint: such as `/save chats.jsonl`"),
        ("/save a.txt", "`a.txt` is no `.jsonl` file\nhint: one conversation is one line: `/save chats.jsonl`"),
        ("/save no/folder.jsonl", "`no/folder.jsonl` cannot be written: No such file or directory"),
        ("/retry now", "`/retry` takes nothing behind it; found `now`"),
    ],
)
def test_a_command_that_cannot_be_done_is_told(line: str, message: str, talk: Talk, capsys) -> None:
    talk(Written("hi"), "hello", line)
    assert capsys.readouterr().err == f"> hello\n> {line}\nerror: {message}\n> \n"


def test_there_is_nothing_to_save_before_the_first_answer(talk: Talk, tmp_path: Path, capsys) -> None:
    path = tmp_path / "a.jsonl"
    talk(Written(), f"/save {path}", system="Be brief.")
    assert capsys.readouterr().err.endswith("\nerror: there is no answer yet, so there is nothing to save\n> \n")
    assert not path.exists()


def press_ctrl_c() -> None:
    os.kill(os.getpid(), signal.SIGINT)
    signal.pause()


class PressingCtrlC(Written):
    """A model during whose answer Ctrl-C is pressed."""

    def __call__(self, messages, tools):
        yield from super().__call__(messages, tools)
        press_ctrl_c()


def at_terminal(answers: Any, type_lines, *lines: str) -> Chat:
    """Hold a chat whose person, unlike the test's stdin, is there."""
    type_lines(*lines)
    chat = Chat(answers=answers, terminal=ChatTerminal())
    chat.terminal.is_interactive = True
    run_chat(chat)
    return chat


def test_ctrl_c_stops_an_answer_and_keeps_what_was_written(type_lines, capsys) -> None:
    chat = at_terminal(PressingCtrlC("once upon", "a time"), type_lines, "a story", "go on")
    assert chat.history[1] == {"role": "assistant", "content": "once upon", "loss": 0}
    assert len(chat.history) == 4
    assert "note: stopped; what was written stays in the conversation\n" in capsys.readouterr().err


def test_a_call_in_a_stopped_answer_is_not_made(type_lines, capsys) -> None:
    chat = at_terminal(PressingCtrlC([call("add", a=1, b=2)]), type_lines, "add")
    assert chat.history == [{"role": "user", "content": "add"}]
    assert "note: stopped before any text\n" in capsys.readouterr().err


def test_without_a_terminal_ctrl_c_ends_the_chat(talk: Talk) -> None:
    with pytest.raises(KeyboardInterrupt):
        talk(PressingCtrlC("once upon"), "a story")


def test_the_demo_model_chats_as_infer_answers(talk: Talk, demo_model: str, capsys) -> None:
    answers = local_answers(demo_model, max_new_tokens=12)
    chat = talk(answers, "类型#风衣", "类型#卫衣")
    first, second = (message for message in chat.history if message["role"] == "assistant")
    options = {"max_new_tokens": 12}
    assert generate(demo_model, ["类型#风衣"], **options) == [first["content"]]
    assert generate(demo_model, [chat.history[:3]], **options) == [second["content"]]
    assert capsys.readouterr().out == f"{first['content']}\n{second['content']}\n"


def test_a_conversation_beyond_the_context_is_told_and_the_next_one_goes_on(
    talk: Talk, demo_model: str, capsys
) -> None:
    answers = local_answers(demo_model, max_new_tokens=2)
    chat = talk(answers, "x " * 9000, "clear", "类型#卫衣")
    told = capsys.readouterr().err
    assert "tokens, and the model's context ends at 8,192\nhint: `clear` begins a new conversation\n" in told
    assert [message["role"] for message in chat.history] == ["user", "assistant"]


def test_an_answer_ends_where_the_context_ends(talk: Talk, demo_model: str, demo_tokenizer) -> None:
    answers = local_answers(demo_model, max_new_tokens=500)
    num_around = len(demo_tokenizer("<|user|>\n<|assistant|>")["input_ids"])
    word = demo_tokenizer(" x", add_special_tokens=False)["input_ids"]
    chat = talk(answers, "x " * ((8192 - 3 - num_around) // len(word)))
    answer = chat.history[1]
    assert answer["loss"] == 0
    assert 0 < len(demo_tokenizer(answer["content"], add_special_tokens=False)["input_ids"]) < 20
    assert not answer["content"].endswith("\ufffd")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model": None}, "neither a model nor `--url` is given"),
        ({"model": "demo", "url": "http://localhost:1/v1"}, "both a model and `--url` are given"),
    ],
)
def test_a_chat_needs_a_model_or_a_server(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(GlmtuneError) as caught:
        chat(**arguments)
    assert caught.value.what == message


WRONG_FLAGS = {
    ("--url", "http://localhost:1/v1", "--base-model", "x"): (
        "error: `--base-model` has no meaning for a server's model\nhint: leave it out\n"
    ),
    ("demo", "--api-key-env", "KEY"): "error: `--api-key-env` has no meaning for a local model\nhint: leave it out\n",
    ("demo", "--greedy", "--top-p", "0.5"): (
        "error: `--greedy` always takes the most likely token, so `--top-p` would do nothing\n"
        "hint: leave one of them out\n"
    ),
    ("demo", "--tools", "nowhere.py"): (
        "error: `nowhere.py` does not exist; expected a Python module or a JSON file of tools\n"
    ),
}


@pytest.mark.parametrize("flags", WRONG_FLAGS, ids=" ".join)
def test_flags_that_make_no_sense_are_told(flags: tuple[str, ...], capsys, monkeypatch) -> None:
    from glmtune.cli import app as cli

    monkeypatch.setattr(sys, "argv", ["glmtune", "chat", *flags])
    with pytest.raises(SystemExit) as ended, warnings.catch_warnings():
        cli.main()
    assert ended.value.code == 2
    assert capsys.readouterr().err == WRONG_FLAGS[flags]
