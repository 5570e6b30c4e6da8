"""A conversation: questions, answers, and the calls of tools between them.

    question ──▶ answer ──calls tools?──no──▶ done
                   ▲            │yes
                   └─observations◀ executed, at most `max_tool_rounds` times

The history has OpenAI's form, which servers take and `glmtune train` reads.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from glmtune.chatformat.replies import CutOff, Delta, ToolCall
from glmtune.console import notice
from glmtune.data.parts.text_tools import INPUT, name_of
from glmtune.errors import GlmtuneError
from glmtune.text.visible_text import visible

from .chat_terminal import ChatTerminal
from .function_worker import error_text
from .functions import Tools, call_problem, load_tools
from .interpreter import Interpreter
from .offered_tools import as_called, as_function, as_offered

Message = dict[str, Any]
Event = Delta | ToolCall | CutOff
Answers = Callable[[Sequence[Message], Sequence[dict[str, Any]]], Generator[Event]]
"""Messages and schemas of tools to an answer while it is written; who closes the generator stops the writing."""


@dataclass(frozen=True)
class ModelAnswers:
    """Answers of a model that knows some tools by their type."""

    answer: Answers
    text_tools: tuple[str, ...] = ()

    def __call__(self, messages: Sequence[Message], tools: Sequence[dict[str, Any]]) -> Generator[Event]:
        """Answer."""
        return self.answer(messages, as_offered(tools, self.text_tools))


MAX_SHOWN = 2000
"""Characters of an observation that a person is shown; the model gets all of them."""

PYTHON = "python"
"""The tool whose text the interpreter runs."""
YES = ("y", "yes", "是", "好", "好的")

BEGIN_ANEW = "`clear` begins a new conversation"


@dataclass
class Chat:
    """What a chat knows."""

    answers: Answers
    terminal: ChatTerminal
    tools: Tools = field(default_factory=Tools)
    system: str = ""
    load_tools: Callable[[Path], Tools] = load_tools
    """Reads a file of tools for this chat."""
    interpreter: Interpreter | None = None
    """Runs what the model writes for `python`."""
    asks_before_code: bool = True
    """Whether a person says yes to each piece of it."""
    max_tool_rounds: int = 8
    history: list[Message] = field(default_factory=list)
    """Without the system message."""
    num_calls: int = 0
    """So far; calls are numbered, for an observation to name its call by."""
    taken_back: str = ""
    """What is to be told of a question that has got no answer."""

    def close(self) -> None:
        """End what runs for the tools."""
        self.tools.close()
        if self.interpreter is not None:
            self.interpreter.close()

    @property
    def schemas(self) -> list[dict[str, Any]]:
        """The functions that may be called."""
        schemas = self.tools.schemas
        if self.interpreter is None:
            return schemas
        return [*(each for each in schemas if name_of(each) != PYTHON), as_function({"type": PYTHON})]

    @property
    def offered(self) -> list[dict[str, Any]]:
        """The tools as the model is shown them."""
        return as_offered(self.schemas, getattr(self.answers, "text_tools", ()))

    @property
    def messages(self) -> list[Message]:
        """What the model is shown."""
        return [{"role": "system", "content": self.system}, *self.history] if self.system else self.history

    def ask(self, question: str) -> None:
        """Answer a question. One before it that got no answer is left out: it was too long, or the server away."""
        while self.history and self.history[-1]["role"] == "user":
            self.history.pop()
        self.history.append({"role": "user", "content": question})
        self._answer()

    def retry(self) -> None:
        """Answer the last question anew."""
        places = [place for place, message in enumerate(self.history) if message["role"] == "user"]
        if not places:
            raise GlmtuneError("there is no question to answer again")
        del self.history[places[-1] + 1 :]
        self._answer()

    def _answer(self) -> None:
        """Answer the last question, or take back all that has come after it and raise: it may be too long to go on."""
        begin = len(self.history)
        try:
            self._answer_with_tools()
        except GlmtuneError:
            self.taken_back = "the question got no answer: the next one takes its place"
            if len(self.history) > begin:
                self.taken_back += ", and what tools have answered to it is forgotten"
            del self.history[begin:]
            raise

    def tell_taken_back(self) -> None:
        """Say what an error has taken out of the conversation, once."""
        if self.taken_back:
            notice(self.taken_back)
            self.taken_back = ""

    def _answer_with_tools(self) -> None:
        """Let the model answer, and call tools in between."""
        for _ in range(self.max_tool_rounds):
            calls = self._write_answer()
            if not calls or not self._call_tools(calls):
                return
        calls = self._write_answer()
        if calls:
            limit = f"{self.max_tool_rounds} rounds of calls without an answer, which `--max-tool-rounds` allows"
            for call in calls:
                self._observe(call, error_text(f"not called, after {limit}"))
            notice(f"stopped after {limit}")

    def _write_answer(self) -> list[Message]:
        """Show one answer while it is written, and keep it; returns the calls in it.

        What was written before Ctrl-C stays, but is marked as nothing to train on.
        """
        text: list[str] = []
        reasoning: list[str] = []
        calls: list[Message] = []
        is_stopped = is_cut = False
        try:
            with closing(self.answers(self.messages, self.schemas)) as events:
                for event in events:
                    if isinstance(event, Delta):
                        (reasoning if event.is_reasoning else text).append(event.text)
                        (self.terminal.write_aside if event.is_reasoning else self.terminal.write)(event.text)
                    elif isinstance(event, ToolCall):
                        calls.append(self._numbered(event))
                    is_cut = isinstance(event, CutOff)
        except KeyboardInterrupt:
            if not self.terminal.is_interactive:
                raise
            is_stopped, calls = True, []
        finally:
            self.terminal.end_line()
        content = "".join(text).strip()
        self._keep(content, "".join(reasoning), calls, is_whole=not (is_stopped or is_cut))
        if is_stopped:
            notice("stopped; what was written stays in the conversation" if content else "stopped before any text")
        elif is_cut:
            notice("cut off at the longest length of an answer; `--max-new-tokens` may allow more")
        elif not content and not calls:
            notice("the model answered nothing; `/retry` asks again")
        return calls

    def _numbered(self, call: ToolCall) -> Message:
        """Return a call in OpenAI's form. Some templates insist on an id of nine letters and digits."""
        self.num_calls += 1
        function = {"name": call.name, "arguments": call.arguments}
        return {"id": f"call{self.num_calls:05}", "type": "function", "function": function}

    def _keep(self, text: str, reasoning: str, calls: Sequence[Message], *, is_whole: bool) -> None:
        if not text and not calls:
            return
        message: Message = {"role": "assistant", "content": text}
        if reasoning:
            message["reasoning_content"] = reasoning
        if calls:
            message["tool_calls"] = list(calls)
        if not is_whole:
            message["loss"] = 0
        self.history.append(message)

    def _call_tools(self, calls: Sequence[Message]) -> bool:
        """Make the calls, one after the other; returns whether the model is to go on. Ctrl-C ends them all."""
        waiting = list(calls)
        try:
            while waiting:
                function = waiting[0]["function"]
                self._show_call(**function)
                text = self._result(**function)
                self._observe(waiting.pop(0), text)
            return True
        except KeyboardInterrupt:
            if not self.terminal.is_interactive:
                raise
            return False
        finally:
            for call in waiting:  # servers refuse a conversation in which a call has no observation
                self._observe(call, error_text("stopped before it had answered"))

    def _result(self, name: str, arguments: str) -> str:
        """Return what a function answers: the function itself, or the person who plays it."""
        arguments = as_called(self.schemas, name, arguments)
        problem = call_problem(name, arguments, self.schemas)
        if problem is not None:
            return error_text(problem)
        if self.interpreter is not None and name == PYTHON:
            return self._run_code(self.interpreter, json.loads(arguments)[INPUT])
        if self.tools.worker is not None:
            return self.tools.worker.call(name, arguments)
        return self.terminal.read(f"what `{name}` answers> ") or '""'

    def _show_call(self, name: str, arguments: str) -> None:
        code = self._code_in(name, arguments)
        if code is None:
            shown = _shortened(_on_one_line(arguments))
            self.terminal.show_aside(visible(f"-> {_shortened(name)} {shown}", "\t"))
        else:  # a person says yes to it: all of it is shown
            self.terminal.show_aside(f"-> {name}\n   " + code.strip("\n").replace("\n", "\n   "))

    def _code_in(self, name: str, arguments: str) -> str | None:
        """Return the code of a call to the interpreter; None of other calls."""
        if self.interpreter is None or name != PYTHON or call_problem(name, arguments, self.schemas) is not None:
            return None
        return str(json.loads(arguments)[INPUT])

    def _run_code(self, interpreter: Interpreter, code: str) -> str:
        if self.asks_before_code:
            try:
                answer = self.terminal.read("run it? [y/N] ").strip().lower()
            except EOFError:
                answer = ""
            if answer not in YES:
                return "[not run: the user has not said yes]"
        return interpreter.run(code)

    def _observe(self, call: Message, text: str) -> None:
        # No line of it begins where ours do.
        self.terminal.show_aside("<- " + _shortened(text).replace("\n", "\n   "))
        self.history.append({"role": "tool", "tool_call_id": call["id"], "content": text})


def _shortened(text: str) -> str:
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}... ({len(text):,} characters)"


def _on_one_line(arguments: str) -> str:
    return re.sub(r"\n\s*", " ", arguments)  # texts inside JSON hold no line breaks
