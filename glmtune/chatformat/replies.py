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
from dataclasses import dataclass, field
from typing import Any

from glmtune.data.parts.text_tools import arguments_of, offered_texts

from .rendering import ChatRenderer

OPEN_THOUGHT, CLOSE_THOUGHT = "<think>", "</think>"
OPEN_CALL, CLOSE_CALL = "<tool_call>", "</tool_call>"
OPEN_KEY, CLOSE_KEY = "<arg_key>", "</arg_key>"
OPEN_ARGUMENT, CLOSE_ARGUMENT = "<arg_value>", "</arg_value>"
TAGS = (
    *(OPEN_THOUGHT, CLOSE_THOUGHT, OPEN_CALL, CLOSE_CALL),
    *(OPEN_KEY, CLOSE_KEY, OPEN_ARGUMENT, CLOSE_ARGUMENT),
)
FUNCTION_NAME = re.compile(r"[A-Za-z_][\w.-]{0,127}", re.ASCII)
ARGUMENT = re.compile(rf"{OPEN_KEY}(.*?){CLOSE_KEY}\s*{OPEN_ARGUMENT}(.*?){CLOSE_ARGUMENT}\s*", re.DOTALL)

ROLE_LINE, JSON_TAGS, ARGUMENT_TAGS = "role line", "JSON in tags", "arguments in tags"
"""How calls are written: by GLM-4, by ChatML models (Qwen, Hermes), by GLM-4.5 and later."""


@dataclass(frozen=True, kw_only=True)
class ToolCall:
    """A call that a model asks for."""

    name: str
    arguments: str
    """JSON text of an object, as the model wrote it where it wrote JSON."""


@dataclass(frozen=True, kw_only=True)
class Delta:
    """A stretch of text that is certain while the rest is still being written."""

    text: str
    is_reasoning: bool = False


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

    def __post_init__(self) -> None:
        if self.layout.prompt_opens_reasoning:
            self._state = "reasoning"

    @property
    def reply(self) -> Reply:
        """What is certain so far; the whole answer behind `finish`."""
        return Reply(
            content="".join(self._given[False]),
            reasoning="".join(self._given[True]),
            tool_calls=tuple(self._calls),
        )

    def feed(self, text: str) -> list[Delta | ToolCall]:
        """Take more text; returns what has become certain."""
        self._text += text
        events: list[Delta | ToolCall] = []
        while self._step(events):
            pass
        return events

    def border(self) -> list[Delta | ToolCall]:
        """Take the `<|assistant|>` token that ends a section."""
        events = self.finish()
        self._state = "start"
        self._is_fresh[False] = True
        return events

    def finish(self) -> list[Delta | ToolCall]:
        """Take the end of the answer; returns what was held back."""
        events: list[Delta | ToolCall] = []
        if self._state == "call" and self.layout.calls != ROLE_LINE:
            self._text = OPEN_CALL + self._text
        events += self._keep_call(self._role_line_call() or self._text_call())
        self._give(self._text, events, is_reasoning=self._state == "reasoning")
        self._text = ""
        return events

    def take_complete_call(self) -> list[ToolCall]:
        """Return a call on the role line whose object is complete, before it is known that nothing follows."""
        return self._keep_call(self._role_line_call())

    def _keep_call(self, call: ToolCall | None) -> list[ToolCall]:
        if call is None:
            return []
        self._calls.append(call)
        self._text, self._state = "", "text"
        return [call]

    def _step(self, events: list[Delta | ToolCall]) -> bool:
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
        return False

    def _read_to(self, tag: str, following: str, events: list[Delta | ToolCall]) -> bool:
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

    def _read_tagged_call(self, events: list[Delta | ToolCall]) -> bool:
        if self.layout.calls == ROLE_LINE:
            return False
        body, found, behind = self._text.partition(CLOSE_CALL)
        if not found:
            return False
        call = self._json_call(body) if self.layout.calls == JSON_TAGS else self._argument_call(body)
        if call is None:
            self._give(OPEN_CALL + body + CLOSE_CALL, events)
        else:
            self._calls.append(call)
            events.append(call)
        self._text, self._state = behind, "text"
        return True

    def _give(self, text: str, events: list[Delta | ToolCall], *, is_reasoning: bool = False) -> None:
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

    def _is_name(self, text: str) -> bool:
        return FUNCTION_NAME.fullmatch(text) is not None or any(text == it.get("name") for it in self._functions())

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
        return ToolCall(name=call["name"], arguments=json.dumps(arguments, ensure_ascii=False))

    def _argument_call(self, body: str) -> ToolCall | None:
        name, _, rest = body.strip().partition("<arg_key>")
        name = name.strip()
        if not self._is_name(name):
            return None
        pairs = ("<arg_key>" + rest) if rest else ""
        if ARGUMENT.sub("", pairs).strip():
            return None
        properties = next((_properties(it) for it in self._functions() if it.get("name") == name), {})
        arguments = {
            key.strip(): _argument_value(value, properties.get(key.strip())) for key, value in ARGUMENT.findall(pairs)
        }
        return ToolCall(name=name, arguments=json.dumps(arguments, ensure_ascii=False))


def _json_object(text: str) -> dict[str, Any] | None:
    """Return the object that the whole text is; JSON knows no NaN."""
    try:
        value = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


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
