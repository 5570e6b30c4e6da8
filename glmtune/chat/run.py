"""A chat in a terminal: the page to read first. A line is a command or a question; answers are shown while written."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

from glmtune.console import say
from glmtune.constrained.schemas import read_schema
from glmtune.errors import GlmtuneError

from .chat_commands import run_command
from .chat_server import server_answers
from .chat_session import Chat
from .chat_terminal import ChatTerminal
from .function_isolation import key_variables
from .functions import MAX_RESULT_CHARACTERS, Tools, load_tools
from .interpreter import Interpreter

STOP = ("stop", "/stop")


def chat(
    model: str | None,
    *,
    url: str | None = None,
    server_model: str | None = None,
    api_key_env: str | None = None,
    system: str | None = None,
    tools: Path | None = None,
    tool_timeout_seconds: float = 30.0,
    max_tool_rounds: int = 8,
    max_tool_result: int = MAX_RESULT_CHARACTERS,
    tool_env: Sequence[str] = (),
    schema: Path | None = None,
    interpreter: bool = False,
    interpreter_folder: Path | None = None,
    asks_before_code: bool = True,
    **options: Any,
) -> None:
    """Chat until the input ends.

    Args:
        model: A checkpoint, model folder, run folder, hub name or `demo`; None where `url` is given.
        url: Of a server that speaks OpenAI's protocol, up to `/v1`.
        server_model: Its name there; the first that the server lists by default.
        api_key_env: Environment variable that holds the server's key; `OPENAI_API_KEY` by default, if it is set.
        system: The system message.
        tools: A Python module, whose functions are really called, or a JSON file of schemas.
        tool_timeout_seconds: Longest time that a call may take.
        max_tool_rounds: Rounds of calls before an answer.
        max_tool_result: Characters of the longest result; what is beyond is cut off.
        tool_env: Variables of the environment that functions may have although they are named like keys.
        schema: A file with a JSON Schema, which every answer follows; calls of tools may come all the same.
        interpreter: Whether what the model writes for `python` is run, in a Jupyter kernel.
        interpreter_folder: Where the kernel works, and leaves its pictures; `interpreter-files` by default.
        asks_before_code: Whether a person says yes before any of it is run.
        options: As `local_answers` and `server_answers` take them.
    """
    if (model is None) == (url is None):
        found = "neither a model nor `--url` is given" if url is None else "both a model and `--url` are given"
        raise GlmtuneError(found, fix="give a checkpoint, or the URL of a server: `--url http://localhost:8000/v1`")
    terminal = ChatTerminal()
    own_keys = [api_key_env] if api_key_env else []
    kernel = None
    if interpreter:
        kernel = Interpreter(
            interpreter_folder,
            time_limit_seconds=tool_timeout_seconds,
            max_characters=max_tool_result,
            keys=key_variables(kept=tool_env, more=own_keys),
        )
    load = partial(
        load_tools,
        time_limit_seconds=tool_timeout_seconds,
        max_characters=max_tool_result,
        shown_variables=tool_env,
        hidden_variables=own_keys,
    )
    if schema is not None:
        options["schema"] = read_schema(schema, is_followed_here=url is None)
    with closing(load(tools) if tools else Tools()) as offered:
        if url is None:
            from .chat_model import local_answers  # torch takes seconds, which a chat with a server need not wait for

            answers = local_answers(str(model), **options)
        else:
            answers = server_answers(url, model=server_model, api_key_env=api_key_env, **options)
        talk = Chat(
            answers=answers,
            terminal=terminal,
            tools=offered,
            system=system or "",
            load_tools=load,
            max_tool_rounds=max_tool_rounds,
            interpreter=kernel,
            asks_before_code=asks_before_code,
        )
        with closing(talk):  # it may have loaded other tools by its end
            run_chat(talk)


def run_chat(talk: Chat) -> None:
    """Read and answer line by line, until `stop` or the end of the input; an error is told, and the chat goes on."""
    if talk.terminal.is_interactive:
        say("`/help` lists what you can do; `stop` or Ctrl-D ends the chat")
    while True:
        try:
            line = talk.terminal.read("> ")
            if line.strip() in STOP:
                return
            respond(talk, line)
        except EOFError:
            return
        except KeyboardInterrupt:
            if not talk.terminal.is_interactive:
                raise
            say("`stop` or Ctrl-D ends the chat")
        except GlmtuneError as error:
            talk.terminal.end_line()
            say(*f"error: {error}".split("\n"))
            talk.tell_taken_back()


def respond(talk: Chat, line: str) -> None:
    """Do what a line asks for."""
    if line.strip() == "clear":
        run_command(talk, "/clear")
    elif line.startswith("/"):
        run_command(talk, line)
    elif line.strip():
        talk.ask(line.strip())
