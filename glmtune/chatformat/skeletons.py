r"""The quick way to render: one rendering a shape of conversation instead of one a row.

Rows of one shape (roles, tools, weights) differ in their messages' text alone. The template renders a shape once,
with a mark in the place of each text:

[gMASK]<sop><|user|>\n①<|assistant|>\n②<|user|>

and each row puts its texts where the marks are. That is right as long as the template writes a text as it stands,
whatever the text says. `TextRules` finds out which texts a template may look into, and the others go the slow way.
The encoder compares both ways on a sample of the rows it reads.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import jinja2
import jinja2.nodes

from glmtune.data.conversation import Conversation, Message, RowError

from .pieces import Piece
from .tool_lists import FIRST, SECOND, ToolLists

# A noncharacter on both sides of a number; such characters never stand in real text.
MARK = "\ufdef"
_MARKED = re.compile(f"{MARK}(\\d+){MARK}")

MAX_SHAPES = 4096
"""Shapes and tools remembered."""

QUESTION = Message(role="user", content="a")
SOME_TOOLS, OTHER_TOOLS = (json.dumps(tools) for tools in ([FIRST], [SECOND, FIRST]))

PROBES = (
    *(
        "a",
        "a b",
        "Ab cD",
        "中文 text",
        "7",
        "'\"<&>",
        "{{ a }} {% b %}",
        "100% %s {0}",
        '{"a": [1, null]}',
        "x" * 3000,
    ),
    *("a\nb\n\nc", "a\rb", "a\u2028b\x0bc", "a\tb  c", "https://a.b/c?d=e a@b.c"),
)
EDGE_PROBES = (" a", "a ", "\na", "a\n", "\n\n a \n\n", " ", "\n")


class Slot(NamedTuple):
    """A place for text in a skeleton."""

    parts: tuple[str | int, ...]
    """Literal text, and numbers of the row's texts, in turn."""
    weight: float


Skeleton = list[Piece | Slot]

SlowPieces = Callable[[Conversation, Sequence[float]], list[Piece]]
"""Renders a row with the template itself."""


class Skeletons:
    """Fills rows into the skeletons of their shapes, where that is sure to equal the template's own rendering."""

    def __init__(self, chat_template: Any, slow_pieces: SlowPieces, control_tokens: Sequence[str]) -> None:
        """Find out what the template does to texts, by probing it.

        Args:
            chat_template: The tokenizer's.
            slow_pieces: Renders a row with the template itself; raises `RowError`.
            control_tokens: Names of the tokens that only the template may write.
        """
        self._slow_pieces = slow_pieces
        self._known: dict[tuple[Any, ...], Skeleton | None] = {}
        self._tool_lists: dict[tuple[Any, ...], ToolLists | None] = {}
        # A token's first two characters: quicker to look for than all of the tokens.
        self._warnings = sorted({token[:2] for token in control_tokens})
        self._first_letters = sorted({token[:1] for token in control_tokens})
        self._rules = TextRules.of_template(chat_template)
        self._keeps_edges = True
        self.works = self._rules is not None
        self.works = self.works and self._are_written_as_they_stand(PROBES)
        # Some templates take white space off the ends of a text.
        self._keeps_edges = self.works and self._are_written_as_they_stand(EDGE_PROBES)

    def pieces(self, conversation: Conversation, weights: Sequence[float]) -> list[Piece] | None:
        """Return the row's pieces, or None where only the template itself can tell."""
        if not self.works:
            return None
        texts: list[str] = []
        shape: list[tuple[Any, ...]] = []
        for message, weight in zip(conversation.messages, weights):
            shape.append((message.role, bool(message.content), bool(message.metadata), message.tools, weight))
            if message.reasoning or not self._is_plain(message):
                return None
            if message.metadata:
                texts.append(message.metadata)
            if message.content:
                texts.append(message.content)
        if conversation.messages[-1].is_tool_call and not conversation.messages[-1].metadata:
            return None  # which stop token ends the row depends on what its text says
        skeleton = (
            self._with_tools(conversation, weights, shape, len(texts)) if conversation.messages[0].tools else None
        )
        if skeleton is None:
            skeleton = self._known_or(tuple(shape), lambda: self._skeleton(conversation, weights, len(texts)))
        if skeleton is None:
            return None
        return [
            part if isinstance(part, Piece) else Piece((), _fill(part.parts, texts), part.weight) for part in skeleton
        ]

    def _known_or(self, key: tuple[Any, ...], make: Callable[[], Skeleton | None]) -> Skeleton | None:
        """Return what is remembered under a key; what has to be made is remembered, too."""
        if key not in self._known:
            if len(self._known) >= MAX_SHAPES:
                self._known.clear()
            self._known[key] = make()
        return self._known[key]

    def _with_tools(
        self, conversation: Conversation, weights: Sequence[float], shape: list[tuple[Any, ...]], num_texts: int
    ) -> Skeleton | None:
        """Return the skeleton of a row whose first message offers tools, put together of that message and the rest.

        Tools differ from row to row, and what stands behind them does not: each is rendered once. None where what
        the template writes behind the first message depends on the tools.
        """
        first = conversation.messages[0]
        rest_shape = ("behind tools", *shape[0][:3], *shape[1:])
        rest = self._known_or(rest_shape, lambda: self._behind_tools(conversation, weights, num_texts))
        if rest is None:
            return None
        beginning = self._known_or(("tools", *shape[0]), lambda: self._beginning(first, shape[0][:3]))
        return None if beginning is None else beginning + rest

    def _behind_tools(self, conversation: Conversation, weights: Sequence[float], num_texts: int) -> Skeleton | None:
        """Return what stands behind the first message of a row, whatever tools it offers."""
        rests: list[Skeleton] = []
        for tools in (SOME_TOOLS, OTHER_TOOLS):
            first = replace(conversation.messages[0], tools=tools)
            whole = self._skeleton(Conversation(messages=(first, *conversation.messages[1:])), weights, num_texts)
            beginning = _with_slots(self._first_message(first), _num_texts(first))
            if whole is None or beginning is None or whole[: len(beginning)] != beginning:
                return None
            rests.append(whole[len(beginning) :])
        return rests[0] if rests[0] == rests[1] else None

    def _beginning(self, first: Message, shape: tuple[Any, ...]) -> Skeleton | None:
        """Return what the template writes for the first message; without it, where it writes one tool as the other."""
        if shape not in self._tool_lists:
            self._tool_lists[shape] = ToolLists.learn(lambda tools: self._first_message(replace(first, tools=tools)))
        lists, tools = self._tool_lists[shape], first.tools or ""
        assert self._rules is not None, "asked only where skeletons work"
        pieces = None
        if lists is not None and not any(part in tools.lower() for part in self._rules.parts):
            pieces = lists.pieces(tools, self._is_plain_text)
        return _with_slots(self._first_message(first) if pieces is None else pieces, _num_texts(first))

    def _first_message(self, first: Message) -> list[Piece] | None:
        """Return what the template writes of the first message, up to the control token of the question behind it."""
        pieces = self._marked_pieces(Conversation(messages=(first, QUESTION)), [0.0, 0.0])
        mark = f"{MARK}{_num_texts(first)}{MARK}"
        question = next((index for index, piece in enumerate(pieces or ()) if mark in piece.text), 0)
        # Text that went on there would be cut into tokens otherwise.
        borders = [index for index, piece in enumerate((pieces or [])[:question]) if piece.ids]
        return pieces[: borders[-1]] if pieces and borders else None

    def _is_plain(self, message: Message) -> bool:
        """Whether the template writes the message's text as it stands."""
        if message.metadata and ("\\" in message.content or not self._is_plain_text(message.metadata)):
            return False  # JSON escapes may hide a control token; the slow way looks behind them
        if message.content and not self._is_plain_text(message.content):
            return False
        tools = message.tools or ""
        return MARK not in tools and "\\" not in tools and not self._may_hold_a_token(tools)

    def _is_plain_text(self, text: str) -> bool:
        assert self._rules is not None, "asked only where skeletons work"
        if MARK in text or text in self._rules.whole_texts or self._may_hold_a_token(text):
            return False
        if not self._keeps_edges and text.strip() != text:
            return False
        small = text.lower() if self._rules.parts else ""
        return not any(part in small for part in self._rules.parts)

    def _may_hold_a_token(self, text: str) -> bool:
        for letter in self._first_letters:
            if letter in text:
                return any(start in text for start in self._warnings)
        return False

    def _skeleton(self, conversation: Conversation, weights: Sequence[float], num_texts: int) -> Skeleton | None:
        """Return the skeleton of the row's shape; None where the marks do not come out once each and in order."""
        return _with_slots(self._marked_pieces(conversation, weights), num_texts)

    def _marked_pieces(self, conversation: Conversation, weights: Sequence[float]) -> list[Piece] | None:
        """Return what the template writes with a mark in the place of each text."""
        number = itertools.count()
        marked = tuple(
            replace(
                message,
                metadata=f"{MARK}{next(number)}{MARK}" if message.metadata else "",
                content=f"{MARK}{next(number)}{MARK}" if message.content else "",
            )
            for message in conversation.messages
        )
        try:
            return self._slow_pieces(Conversation(messages=marked), weights)
        except RowError:
            return None

    def _are_written_as_they_stand(self, texts: Sequence[str]) -> bool:
        """Whether both ways agree on conversations that hold every text in every role that the template shows."""
        texts = [text for text in texts if self._is_plain_text(text)]  # the others go the slow way anyhow
        questions = [Message(role="user", content=text) for text in texts]
        answers = [Message(role="assistant", content=text) for text in texts]
        calls = [replace(answer, metadata="f") for answer in answers]
        results = [Message(role="observation", content=text) for text in texts]
        systems = [Message(role="system", content=text) for text in texts]
        a, b = Message(role="user", content="a"), Message(role="assistant", content="b")
        rows = [
            [a, *(message for pair in zip(answers, questions) for message in pair), b],
            [a, b, *(message for pair in zip(questions, reversed(answers)) for message in pair)],
            [a, *(message for pair in zip(calls, results) for message in pair), b],
            *([system, a, b] for system in systems),
        ]
        return all(self._agrees(Conversation(messages=tuple(row))) for row in rows)

    def _agrees(self, conversation: Conversation) -> bool:
        weights = [float(message.role == "assistant") for message in conversation.messages]
        quick = self.pieces(conversation, weights)
        if quick is None:
            return True
        try:
            return quick == self._slow_pieces(conversation, weights)
        except RowError:
            return False


class TextRules(NamedTuple):
    """Texts that a template may treat in a way of its own."""

    whole_texts: frozenset[str]
    """Texts that it may compare a message with."""
    parts: tuple[str, ...]
    """Texts that it may look for inside a message, such as `</think>`; in small letters, since it may turn the message
    into these before it looks."""

    @classmethod
    def of_template(cls, chat_template: Any) -> TextRules | None:
        """Read the texts off the template; None where it cannot be read."""
        if not isinstance(chat_template, str):
            return None
        try:
            tree = jinja2.Environment(extensions=["jinja2.ext.loopcontrols"]).parse(chat_template)
        except jinja2.TemplateSyntaxError:
            return None
        looked_for: set[str] = set()
        nodes: Any = tree.find_all((jinja2.nodes.Compare, jinja2.nodes.Call, jinja2.nodes.Filter, jinja2.nodes.Test))
        for node in nodes:
            if not isinstance(node, jinja2.nodes.Compare):
                arguments = [*node.args, *(keyword.value for keyword in node.kwargs)]
                looked_for.update(text for argument in arguments for text in _texts(argument))
            elif any(operand.op in ("in", "notin") for operand in node.ops):
                looked_for.update(_texts(node.expr))
            elif any(map(_is_part, [node.expr, *(operand.expr for operand in node.ops)])):
                looked_for.update(_texts(node))
        for assignment in tree.find_all(jinja2.nodes.Assign):
            if isinstance(assignment.node, jinja2.nodes.Const):  # a name for what is looked for elsewhere
                looked_for.update(_texts(assignment.node))
        everywhere = {node.value for node in tree.find_all(jinja2.nodes.Const) if isinstance(node.value, str)}
        return cls(whole_texts=frozenset(everywhere), parts=tuple(sorted({text.lower() for text in looked_for} - {""})))


def _is_part(node: jinja2.nodes.Node) -> bool:
    """Whether the expression may be a part of a text: `content[0]`, `content[:5]`, `content | first`."""
    if isinstance(node, jinja2.nodes.Getitem):
        return not (isinstance(node.arg, jinja2.nodes.Const) and isinstance(node.arg.value, str))
    return isinstance(node, (jinja2.nodes.Filter, jinja2.nodes.Call))


def _texts(node: jinja2.nodes.Node) -> set[str]:
    own = [node] if isinstance(node, jinja2.nodes.Const) else []
    return {const.value for const in [*own, *node.find_all(jinja2.nodes.Const)] if isinstance(const.value, str)}


def _num_texts(message: Message) -> int:
    return int(bool(message.content)) + bool(message.metadata)


def _with_slots(pieces: list[Piece] | None, num_texts: int) -> Skeleton | None:
    """Return the skeleton with slots for marks; None where these do not come out once each and in order."""
    skeleton: Skeleton = []
    seen: list[int] = []
    for piece in pieces or ():
        split = _MARKED.split(piece.text)
        parts = [int(part) if index % 2 else part for index, part in enumerate(split)]
        numbers = [part for part in parts if isinstance(part, int)]
        seen += numbers
        skeleton.append(Slot(tuple(part for part in parts if part != ""), piece.weight) if numbers else piece)
    return skeleton if pieces is not None and seen == list(range(num_texts)) else None


def _fill(parts: tuple[str | int, ...], texts: Sequence[str]) -> str:
    return "".join([part if isinstance(part, str) else texts[part] for part in parts])
