r"""What a model wrote, taken apart: reasoning, text and tool calls, all at once or while it is being written.

GLM-4 writes a call as the function's name on the role line and a JSON object below; a newline right behind
`<|assistant|>` begins a plain answer instead. A text and its calls are sections of one answer:

    <|assistant|>\nI will look.<|assistant|>get_weather\n{"city": "Bath"}<|observation|>
                  └── section ─┘            └────── section ───────┘

Below the name of a tool that takes a text, such as GLM-4's `python`, stands that text, up to the end of its section.

GLM-4.5 and ChatML models put their calls between tags, inside the text. Whatever is not exactly a call stays text: the
answer "The answer is\n42", a name without an object, an object cut off in its middle.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from glmtune.data.parts.text_tools import arguments_of, offered_texts

from .call_parts import (
    CLOSE_ARGUMENT,
    CLOSE_KEY,
    OPEN_ARGUMENT,
    OPEN_KEY,
    ArgumentParts,
    CallPart,
    ObjectParts,
    members,
)
from .rendering import ChatRenderer

OPEN_THOUGHT, CLOSE_THOUGHT = "<think>", "</think>"
OPEN_CALL, CLOSE_CALL = "<tool_call>", "</tool_call>"
TAGS = (
    *(OPEN_THOUGHT, CLOSE_THOUGHT, OPEN_CALL, CLOSE_CALL),
    *(OPEN_KEY, CLOSE_KEY, OPEN_ARGUMENT, CLOSE_ARGUMENT),
)
FUNCTION_NAME = re.compile(r"[A-Za-z_][\w.-]{0,127}", re.ASCII)
OBJECT_START = re.compile(r'\s*\{\s*["}]')
JSON_CALL = re.compile(
    r'\s*\{\s*"name"\s*:\s*(?P<name>"(?:[^"\\]|\\.)*")\s*,\s*"(?:arguments|parameters)"\s*:\s*(?=\{)'
)
MAX_JSON_CALL = 2000
"""Characters of a call in which its arguments begin, or come as a whole."""

ROLE_LINE, JSON_TAGS, ARGUMENT_TAGS = "role line", "JSON in tags", "arguments in tags"
"""How calls are written: by GLM-4, by ChatML models (Qwen, Hermes), by GLM-4.5 and later."""


@dataclass(frozen=True, kw_only=True)
class ToolCall:
    """A call that a model asks for."""

    name: str
    arguments: str
    """JSON text of an object, as the model wrote it where it wrote JSON."""
    is_streamed: bool = field(default=False, compare=False)
    """Whether it has been given out as parts already."""


@dataclass(frozen=True, kw_only=True)
class Delta:
    """A stretch of text that is certain while the rest is still being written."""

    text: str
    is_reasoning: bool = False


Found = Delta | ToolCall | CallPart
"""What a reader gives out; parts of calls only where they are asked for."""


@dataclass(frozen=True)
class CutOff:
    """Comes last where an answer has reached the longest length that it may have."""


@dataclass(frozen=True, kw_only=True)
class Reply:
    """A whole answer."""

    content: str = ""
    """Without white space around it."""
    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = ()


@dataclass(frozen=True, kw_only=True)
class ReplyLayout:
    """How the model of a chat template writes what is not plain text."""

    calls: str | None = None
    """One of the names above; None where the template writes no calls."""
    has_reasoning: bool = False
    """Whether an answer may begin with a block of reasoning."""
    prompt_opens_reasoning: bool = False
    """Whether the prompt has written the tag that opens it."""
    gap: str = "\n"
    """White space between the parts of a call in tags; GLM-4.7 writes none."""
    text_tools: tuple[str, ...] = ()
    """Tools that are called with a text in the place of an object."""

    def opening(self, name: str) -> str:
        """Return what an answer that calls the function `name` begins with."""
        return {
            ROLE_LINE: f"{name}\n",
            JSON_TAGS: f'{OPEN_CALL}{self.gap}{{"name": {json.dumps(name, ensure_ascii=False)}, "arguments": ',
            ARGUMENT_TAGS: f"{OPEN_CALL}{name}{self.gap}",
        }[self.calls or ROLE_LINE]


def reply_layout(renderer: ChatRenderer) -> ReplyLayout:
    """Return how answers of the renderer's model are written, as its template shows."""
    facts = renderer.facts
    calls, gap = None, "\n"
    if facts.writes_role_line:
        calls = ROLE_LINE
    elif facts.shows_tool_calls:
        function = {"name": "probe", "arguments": {"key": "value"}}
        call = {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": function}]}
        text = renderer.render([{"role": "user", "content": "a"}, call])
        if found := re.search(rf"{OPEN_CALL}(?:probe(\s*){OPEN_KEY}|(\s*)\{{)", text):
            calls = JSON_TAGS if found[1] is None else ARGUMENT_TAGS
            gap = found[2] if found[1] is None else found[1]
    return ReplyLayout(
        calls=calls,
        has_reasoning=facts.shows_reasoning or bool(facts.hidden_reasoning),
        prompt_opens_reasoning=bool(facts.hidden_reasoning),
        gap=gap,
        text_tools=facts.text_tools if calls == ROLE_LINE else (),
    )


def called_name(section: str, layout: ReplyLayout) -> str | None:
    """Return the name that a section would call a function by, whatever a name may look like; None where it cannot.

    Of a section that is known to be right, such as a training row's, this is a name to read other answers with.
    """
    if layout.calls == ROLE_LINE:
        name, newline, body = section.partition("\n")
        is_call = body.lstrip().startswith("{") or (name.strip() in layout.text_tools and body.strip())
        return name.strip() or None if newline and is_call else None
    if layout.calls == ARGUMENT_TAGS:
        found = re.search(f"{OPEN_CALL}\\s*([^<\n]+)", section)
        return found[1].strip() if found else None
    return None


def parse_reply(
    sections: str | Sequence[str], layout: ReplyLayout, tools: Sequence[dict[str, Any]] | None = None
) -> Reply:
    """Return what stands in a whole answer.

    Args:
        sections: The texts between `<|assistant|>` tokens; or one text.
        layout: How the model writes.
        tools: Schemas of the functions that were offered; their names need not be identifiers. Empty: none was, so
            that nothing is a call. None: unknown, so that every identifier may be one.
    """
    reader = ReplyReader(layout, tools)
    for number, section in enumerate([sections] if isinstance(sections, str) else sections):
        if number:
            reader.border()
        reader.feed(section)
    reader.finish()
    return reader.reply


@dataclass
class ReplyReader:
    """Takes an answer apart while it is written; what it gives out, put together, is the whole `reply`."""

    layout: ReplyLayout
    tools: Sequence[dict[str, Any]] | None = None
    continued: str | None = None
    """What of the answer stands in the prompt already; None where it begins behind the prompt."""
    streams_calls: bool = False
    """Whether calls of functions that were offered are given out in parts. What then turns out to be broken has begun
    as a call, and cannot become text."""
    _text: str = field(default="", init=False)
    """Written, and not yet certain to be text, reasoning or a call."""
    _state: str = field(default="start", init=False)
    """`start` of a section, `reasoning`, `text`, or `call` (which is collected to its end)."""
    _given: dict[bool, list[str]] = field(default_factory=lambda: {False: [], True: []}, init=False)
    """What has been given out; by whether it is reasoning, as the two below."""
    _blank: dict[bool, str] = field(default_factory=lambda: {False: "", True: ""}, init=False)
    """White space at the end so far, which counts when more follows."""
    _is_fresh: dict[bool, bool] = field(default_factory=lambda: {False: True, True: True}, init=False)
    """Whether nothing of the present section has been given out: white space before it does not count."""
    _has_reasoned: bool = field(default=False, init=False)
    _calls: list[ToolCall] = field(default_factory=list, init=False)
    _num_searched: int = field(default=0, init=False)
    """Characters of a call in which its end is not."""
    _parts: ObjectParts | ArgumentParts | None = field(default=None, init=False)
    """Of the call that is being given out."""
    _start: int = field(default=0, init=False)
    """Where its arguments begin."""
    _num_fed: int = field(default=0, init=False)
    """Characters of the call that they have been given."""

    def __post_init__(self) -> None:
        if self.continued is not None:
            is_open = self.layout.has_reasoning and OPEN_THOUGHT in self.continued.rpartition(CLOSE_THOUGHT)[2]
            self._state = "reasoning" if is_open else "text"
            self._is_fresh[is_open] = False
        elif self.layout.prompt_opens_reasoning:
            self._state = "reasoning"

    @property
    def reply(self) -> Reply:
        """What is certain so far; the whole answer behind `finish`."""
        return Reply(
            content="".join(self._given[False]),
            reasoning="".join(self._given[True]),
            tool_calls=tuple(self._calls),
        )

    def feed(self, text: str) -> list[Found]:
        """Take more text; returns what has become certain."""
        self._text += text
        events: list[Found] = []
        while self._step(events):
            pass
        return events

    def border(self) -> list[Found]:
        """Take the `<|assistant|>` token that ends a section."""
        events = self.finish()
        self._state = "start"
        self._is_fresh[False] = True
        return events

    def finish(self) -> list[Found]:
        """Take the end of the answer; returns what was held back."""
        events = self._keep_call(self._role_line_call() or self._text_call())
        self._num_searched = 0
        if self._parts is not None:
            self._break_off(self._text, events)
            self._text = ""
        elif self._state == "call" and self.layout.calls != ROLE_LINE:
            self._text = OPEN_CALL + self._text
        self._give(self._text, events, is_reasoning=self._state == "reasoning")
        self._text = ""
        return events

    def take_complete_call(self) -> list[Found]:
        """Return a call on the role line whose object is complete, before it is known that nothing follows."""
        return self._keep_call(self._role_line_call())

    def _keep_call(self, call: ToolCall | None) -> list[Found]:
        if call is None:
            return []
        events: list[Found] = []
        self._take(call, events)
        self._text, self._state = "", "text"
        return events

    def _step(self, events: list[Found]) -> bool:
        """Go on from the present state; returns whether the next one may go on at once."""
        if self._state == "start":
            return self._begin()
        if self._state == "reasoning":
            return self._read_to(CLOSE_THOUGHT, "start", events)
        if self._state == "text":
            if self.layout.calls in (None, ROLE_LINE) or self._no_tools:
                self._give(self._text, events)
                self._text = ""
                return False
            return self._read_to(OPEN_CALL, "call", events)
        if self.streams_calls:
            self._stream_call(events)
        return self._read_tagged_call(events)

    def _begin(self) -> bool:
        """Tell from its first characters what a section is; returns whether that is known."""
        stripped = self._text.lstrip()
        if self.layout.has_reasoning and not self._has_reasoned and not self._given[False]:
            if stripped.startswith(OPEN_THOUGHT):
                self._text = stripped.removeprefix(OPEN_THOUGHT)
                self._state = "reasoning"
                return True
            if OPEN_THOUGHT.startswith(stripped):
                return False
        if not self._text:
            return False
        if self.layout.calls != ROLE_LINE or self._no_tools:
            self._state = "text"
            return True
        # Behind a block of reasoning stand empty lines, whatever follows.
        line, newline, body = (stripped if self._has_reasoned else self._text).partition("\n")
        if not newline and self._may_become_name(line):
            return False
        takes_text = line.strip() in self._texts
        if not self._is_name(line.strip()) or (body.strip() and not body.lstrip().startswith("{") and not takes_text):
            self._state = "text"
            return True
        if body.strip():
            self._state = "call"
            return True
        return False

    def _read_to(self, tag: str, following: str, events: list[Found]) -> bool:
        """Give out the text before a tag, but for an end that may become the tag."""
        is_reasoning = self._state == "reasoning"
        before, found, behind = self._text.partition(tag)
        if found:
            self._give(before, events, is_reasoning=is_reasoning)
            self._text, self._state = behind, following
            self._has_reasoned |= is_reasoning
            return True
        held = next(
            (size for size in range(min(len(tag) - 1, len(before)), 0, -1) if tag.startswith(before[-size:])), 0
        )
        self._give(before[: len(before) - held], events, is_reasoning=is_reasoning)
        self._text = before[len(before) - held :]
        return False

    def _read_tagged_call(self, events: list[Found]) -> bool:
        if self.layout.calls == ROLE_LINE:
            return False
        end = self._text.find(CLOSE_CALL, max(0, self._num_searched - len(CLOSE_CALL)))
        if end < 0:
            self._num_searched = len(self._text)
            return False
        body, behind = self._text[:end], self._text[end + len(CLOSE_CALL) :]
        self._num_searched = 0
        call = self._json_call(body) if self.layout.calls == JSON_TAGS else self._argument_call(body)
        if call is not None:
            self._take(call, events)
        elif self._parts is not None:
            self._break_off(body, events)
        else:
            self._give(OPEN_CALL + body + CLOSE_CALL, events)
        self._text, self._state = behind, "text"
        return True

    def _take(self, call: ToolCall, events: list[Found]) -> None:
        """Give out a call that is whole, or what of it is left."""
        self._calls.append(call)
        if self._parts is not None:
            rest = call.arguments[self._parts.num_given :]
            if rest:
                events.append(CallPart(arguments=rest))
            call = replace(call, is_streamed=True)
            self._parts = None
        events.append(call)

    def _break_off(self, body: str, events: list[Found]) -> None:
        """Give out what is left of a call that has begun, but is none: more of the arguments, or a text behind them."""
        assert self._parts is not None, "only a call of which parts were given out is broken off"
        rest = body[self._start + self._parts.num_taken :].strip()
        if self._parts.is_whole and self.layout.calls == JSON_TAGS:
            rest = rest.removeprefix("}").lstrip()  # of the object around the arguments
        if rest and self._parts.is_whole:
            self._give(rest, events)
        elif rest:
            events.append(CallPart(arguments=rest))
        self._parts = None

    def _stream_call(self, events: list[Found]) -> None:
        """Give out what is certain of the call that is being written."""
        if self._parts is None:
            begun = {
                ROLE_LINE: self._begun_object,
                JSON_TAGS: self._begun_json,
                ARGUMENT_TAGS: self._begun_arguments,
            }[self.layout.calls or ROLE_LINE]()
            if begun is None:
                return
            name, self._parts, self._start = begun
            self._num_fed = self._start
            events.append(CallPart(name=name))
        end = -1
        if self.layout.calls != ROLE_LINE:
            end = self._text.find(CLOSE_CALL, max(0, self._num_searched - len(CLOSE_CALL)))
        end = len(self._text) if end < 0 else end
        part = self._parts.feed(self._text[self._num_fed : end])
        self._num_fed = max(self._num_fed, end)
        if part:
            events.append(CallPart(arguments=part))

    def _begun_object(self) -> tuple[str, ObjectParts, int] | None:
        """Return the name of the call on the role line and where its object begins, once that is known."""
        line, _, body = self._text.lstrip().partition("\n")
        name = line.strip()
        if not self._is_offered(name) or name in self._texts or not OBJECT_START.match(body):
            return None
        return name, ObjectParts(), len(self._text) - len(body.lstrip())

    def _begun_json(self) -> tuple[str, ObjectParts, int] | None:
        """Return the name of the call in JSON between tags and where its arguments begin, once that is known."""
        found = JSON_CALL.match(self._text[:MAX_JSON_CALL])
        name = None if found is None else _text_of_json(found["name"])
        if found is None or name is None or not self._is_offered(name):
            return None
        return name, ObjectParts(), found.end()

    def _begun_arguments(self) -> tuple[str, ArgumentParts, int] | None:
        """Return the name of the call between tags and where its arguments begin, once that is known."""
        start = self._text.find(OPEN_KEY, max(0, self._num_searched - len(OPEN_KEY)))
        name = self._text[: max(0, start)].strip()
        if start < 0 or not self._is_offered(name):
            return None
        return name, ArgumentParts(partial(self._value_of, name)), start

    def _give(self, text: str, events: list[Found], *, is_reasoning: bool = False) -> None:
        """Give out text, but no white space at its beginning nor, before more follows, at its end."""
        given = self._given[is_reasoning]
        if self._is_fresh[is_reasoning]:
            text = text.lstrip()
            self._blank[is_reasoning] = "\n" if given else ""
        shown = text.rstrip()
        if not shown:
            self._blank[is_reasoning] += text
            return
        delta = Delta(text=self._blank[is_reasoning] + shown, is_reasoning=is_reasoning)
        self._blank[is_reasoning] = text[len(shown) :]
        self._is_fresh[is_reasoning] = False
        given.append(delta.text)
        events.append(delta)

    @property
    def _no_tools(self) -> bool:
        return self.tools is not None and not self.tools

    def _functions(self) -> list[dict[str, Any]]:
        return [tool.get("function", tool) for tool in self.tools or ()]

    def _is_offered(self, name: str) -> bool:
        return any(name == it.get("name") for it in self._functions())

    def _is_name(self, text: str) -> bool:
        return FUNCTION_NAME.fullmatch(text) is not None or self._is_offered(text)

    def _may_become_name(self, line: str) -> bool:
        text = line.strip()  # as of the whole line, once it is there
        return (
            not text or self._is_name(text) or any(str(it.get("name", "")).startswith(text) for it in self._functions())
        )

    @property
    def _texts(self) -> Sequence[str]:
        """Tools that are called with a text: all that the template has, where it is unknown which were offered."""
        return self.layout.text_tools if self.tools is None else offered_texts(self.tools, self.layout.text_tools)

    def _text_call(self) -> ToolCall | None:
        """Return the call with a text; only the end of the section shows that it is whole."""
        name, _, text = self._text.strip().partition("\n")
        if self._state != "call" or self.layout.calls != ROLE_LINE or name.strip() not in self._texts:
            return None
        return ToolCall(name=name.strip(), arguments=arguments_of(text)) if text.strip() else None

    def _role_line_call(self) -> ToolCall | None:
        if self._state != "call" or self.layout.calls != ROLE_LINE:
            return None
        name, _, body = self._text.strip().partition("\n")
        if self.tools is not None and name.strip() in self._texts:
            return None
        return ToolCall(name=name.strip(), arguments=body.strip()) if _json_object(body) is not None else None

    def _json_call(self, body: str) -> ToolCall | None:
        call = _json_object(body)
        if call is None or not isinstance(call.get("name"), str):
            return None
        arguments = call.get("arguments", call.get("parameters", {}))
        if isinstance(arguments, str):
            return ToolCall(name=call["name"], arguments=arguments) if _json_object(arguments) is not None else None
        if not isinstance(arguments, dict):
            return None
        if (found := JSON_CALL.match(body[:MAX_JSON_CALL])) is not None:  # as they are streamed
            _, end = json.JSONDecoder().raw_decode(body, found.end())
            return ToolCall(name=call["name"], arguments=body[found.end() : end])
        return ToolCall(name=call["name"], arguments=json.dumps(arguments, ensure_ascii=False))

    def _argument_call(self, body: str) -> ToolCall | None:
        name, tag, rest = body.strip().partition(OPEN_KEY)
        name = name.strip()
        if not self._is_name(name):
            return None
        arguments = members(tag + rest, partial(self._value_of, name))
        return None if arguments is None else ToolCall(name=name, arguments="{" + ", ".join(arguments) + "}")

    def _value_of(self, name: str, key: str, text: str) -> Any:
        """Return what the text of an argument of a function stands for."""
        properties = next((_properties(it) for it in self._functions() if it.get("name") == name), {})
        return _argument_value(text, properties.get(key))


def _json_object(text: str) -> dict[str, Any] | None:
    """Return the object that the whole text is; JSON knows no NaN."""
    try:
        value = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _text_of_json(text: str) -> str | None:
    """Return the text that a string of JSON stands for; None where it is none."""
    try:
        return str(json.loads(text))
    except ValueError:
        return None


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _properties(function: dict[str, Any]) -> dict[str, Any]:
    parameters = function.get("parameters")
    properties = parameters.get("properties") if isinstance(parameters, dict) else None
    return properties if isinstance(properties, dict) else {}


def is_text(schema: Any) -> bool:
    """Whether an argument stands between its tags as it is; all else is JSON there."""
    return isinstance(schema, dict) and schema.get("type") == "string"


def _argument_value(text: str, schema: Any) -> Any:
    """Return an argument as its schema wants it: GLM-4.5 writes texts as they are, and all else as JSON."""
    if is_text(schema):
        return text
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        return text
