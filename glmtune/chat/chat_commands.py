"""What a line of a chat that begins with `/` does."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glmtune.console import say
from glmtune.data.conversation import RowError
from glmtune.data.formats import to_conversation, to_row
from glmtune.errors import GlmtuneError, nearest
from glmtune.files.user_paths import user_path
from glmtune.text.text_table import format_table

from .chat_session import Chat
from .functions import Tools

NOTHING = '""'
"""Takes away what a command had set."""


@dataclass(frozen=True, kw_only=True)
class Command:
    """What may stand behind a `/`."""

    run: Callable[[Chat, str], None]
    argument: str = ""
    help: str


def run_command(chat: Chat, line: str) -> None:
    """Run a line that begins with `/`."""
    name, *rest = line.split(maxsplit=1)
    argument = "".join(rest).strip()
    command = COMMANDS.get(name)
    if command is None:
        raise GlmtuneError(
            f"unknown command `{name}`{nearest(name, [*COMMANDS, '/stop'])}",
            fix="`/help` lists the commands; a line that begins with a space is no command",
        )
    if argument and not command.argument:
        raise GlmtuneError(f"`{name}` takes nothing behind it; found `{argument}`")
    command.run(chat, argument)


def clear(chat: Chat, argument: str) -> None:
    """Forget the conversation."""
    chat.history.clear()
    kept = [name for name, is_set in (("the system message", chat.system), ("the tools", chat.tools.schemas)) if is_set]
    say("the conversation is forgotten" + (f", but not {' and '.join(kept)}" if kept else ""))


def system(chat: Chat, argument: str) -> None:
    """Set or show the system message."""
    if argument:
        chat.system = "" if argument == NOTHING else argument
    say(f"system message: {chat.system}" if chat.system else "there is no system message")


def tools(chat: Chat, argument: str) -> None:
    """Load tools, or list them."""
    if argument:
        loaded = Tools() if argument == NOTHING else chat.load_tools(user_path(argument))
        chat.tools.close()
        chat.tools = loaded
    say(*described(chat.tools, chat.schemas).split("\n"))


def described(tools: Tools, schemas: Sequence[dict[str, Any]]) -> str:
    """Return a table of the tools, for a person."""
    if not schemas:
        return "there are no tools"
    rows = []
    for tool in schemas:
        function = tool.get("function", {})
        rows.append([function.get("name", tool["type"]), (function.get("description") or "").partition("\n")[0]])
    source = f" of {tools.source}" if tools.source else ""
    end = "" if tools.worker or not tools.schemas else "\nyou tell what they answer"
    return f"tools{source}\n{format_table(['name', 'what it does'], rows)}{end}"


def save(chat: Chat, argument: str) -> None:
    """Add the conversation to a file, as a row to train on."""
    if not argument:
        raise GlmtuneError("`/save` needs the name of a file", fix="such as `/save chats.jsonl`")
    path = user_path(argument)
    if path.suffix != ".jsonl":
        raise GlmtuneError(f"`{path}` is no `.jsonl` file", fix="one conversation is one line: `/save chats.jsonl`")
    messages = chat.messages
    while messages and messages[-1]["role"] != "assistant":
        messages = messages[:-1]
    if not messages:
        raise GlmtuneError("there is no answer yet, so there is nothing to save")
    try:
        conversation = to_conversation({"messages": messages, "tools": chat.offered})
        conversation.check_order()
        line = json.dumps(to_row(conversation), ensure_ascii=False)
        existed = path.exists()
        _add_line(path, line)
    except RowError as error:
        raise GlmtuneError(f"the conversation cannot be saved: {error}") from None
    except OSError as error:
        raise GlmtuneError(f"`{path}` cannot be written: {error.strerror}") from None
    say(f"a row {'added to' if existed else 'written to'} {path}")
    if messages != chat.messages:
        say("what stands behind the last answer was left out")
    if any(message.get("loss") == 0 for message in messages):
        say("answers that were stopped or cut off have `loss: 0`: they are not trained")


def _add_line(path: Path, line: str) -> None:
    """Write a line at the end of a file, which may lack a newline there."""
    with path.open("a+b") as file:
        if file.tell():
            file.seek(-1, 2)
            line = line if file.read(1) == b"\n" else "\n" + line
        file.write(f"{line}\n".encode())


def retry(chat: Chat, argument: str) -> None:
    """Answer the last question anew."""
    chat.retry()


def show_help(chat: Chat, argument: str) -> None:
    """List the commands."""
    rows = [[f"{name} {command.argument}".strip(), command.help] for name, command in COMMANDS.items()]
    rows.append(["/stop, stop, Ctrl-D", "ends the chat"])
    say(*format_table(["command", "what it does"], rows).split("\n"), *KEYS.split("\n"))


KEYS = """\
Enter sends. Alt-Enter begins a new line, and so does Enter behind a backslash; pasted text may have several lines.
Ctrl-C stops an answer or a tool; at the prompt it drops what is typed.
A line that begins with a space is no command."""

COMMANDS = {
    "/clear": Command(run=clear, help="forgets the conversation; `clear` does the same"),
    "/retry": Command(run=retry, help="answers the last question anew; without sampling the answer is the same"),
    "/system": Command(run=system, argument="[TEXT]", help=f"sets the system message; {NOTHING} takes it away"),
    "/tools": Command(run=tools, argument="[FILE]", help=f"offers the tools of a .py or .json file; {NOTHING}: none"),
    "/save": Command(run=save, argument="FILE.jsonl", help="adds the conversation to a file, as a row to train on"),
    "/help": Command(run=show_help, help="shows this"),
}
