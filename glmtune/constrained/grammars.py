r"""Grammars in llguidance's language (a Lark that knows JSON Schemas and tokens), written piece by piece.

    start: rule1 (rule0 @part0)              the answer: reasoning, and what is wanted behind it
    rule0: /[ \r\n]{0,4}/                    blanks
    rule1[suffix="</think>"]: /(?s:.*)/      any text up to the tag, which belongs to it; or `<[309]>`, its token
    part0                                    a schema, or a grammar of the client's, with rules of its own

A grammar is text alone: nothing here needs the library.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from glmtune.chatformat.replies import CLOSE_THOUGHT, OPEN_THOUGHT

from .schemas import GrammarError, as_grammar, check_size, checked_schema

ANY_TEXT = "/(?s:.*)/"
BLANKS = r"/[ \r\n]{0,4}/"
CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
DELIMITERS = re.compile(r"\\.|[/\n\r]", re.DOTALL)
"""What a regular expression between slashes has escaped, or must."""

NO_REASONING, MAY_REASON, IS_REASONING = "none", "may reason", "is reasoning"
"""Where an answer stands at its beginning: behind or without reasoning, before some perhaps, in the middle of it."""


@dataclass(frozen=True)
class Grammar:
    """What an answer has to follow; two of the same text are the same."""

    text: str
    """JSON of llguidance's `TopLevelGrammar`."""


class GrammarWriter:
    """Collects the rules and parts of one grammar; what its methods return stands in other rules."""

    def __init__(self, tags: Mapping[str, int] | None = None) -> None:
        """Begin a grammar; `tags` are ids of those that are one token, which no text matches, spelled as it may be."""
        self._tags = tags or {}
        self._rules: list[str] = []
        self._parts: list[dict[str, Any]] = []

    def rule(self, body: str, *, options: str = "") -> str:
        """Add a rule; returns its name."""
        name = f"rule{len(self._rules)}"
        self._rules.append(f"{name}{f'[{options}]' if options else ''}: {body}")
        return name

    def terminal(self, body: str) -> str:
        """Add what is matched as a whole, such as one pattern without another; returns its name."""
        name = f"TERMINAL{len(self._rules)}"
        self._rules.append(f"{name}: {body}")
        return name

    def schema(self, schema: Any, *, has_whitespace: bool = True) -> str:
        """Add a JSON Schema; returns what refers to it."""
        return self._part(as_grammar(checked_schema(schema), has_whitespace=has_whitespace))

    def grammar(self, text: Any) -> str:
        """Add a grammar of the client's, in Lark's or GBNF's form; returns what refers to it."""
        if not isinstance(text, str) or not text.strip():
            raise GrammarError("the grammar is no text")
        check_size(text, "the grammar")
        return self._part({"lark_grammar": _as_lark(text)})

    def _part(self, part: dict[str, Any]) -> str:
        name = f"part{len(self._parts)}"
        self._parts.append({"name": name, **part})
        return f"@{name}"

    def text_before(self, tag: str, kept: str = "") -> str:
        """Return a rule for any text up to a tag, which belongs to it; `kept` is a terminal that the text follows."""
        if tag not in self._tags:
            return self.rule(kept or ANY_TEXT, options=f"suffix={_quoted(tag)}")
        # Spelled in letters it is read as the tag, too.
        text = self.terminal(f"{kept or ANY_TEXT} & ~{pattern(f'(?s:.*){tag}(?s:.*)')}")
        return self.rule(f"{text} {self.literal(tag)}")

    def literal(self, text: str) -> str:
        """Return exactly this text, as it stands in a rule."""
        if not self._tags:
            return _quoted(text)
        parts = re.split(f"({'|'.join(map(re.escape, self._tags))})", text)
        return " ".join(f"<[{self._tags[part]}]>" if part in self._tags else _quoted(part) for part in parts if part)

    def choice(self, texts: Any) -> str:
        """Return one of some texts, as it stands in a rule."""
        if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
            raise GrammarError("the choice is no list of texts")
        check_size("".join(texts), "the choice")
        return " | ".join(self.literal(text) or _quoted("") for text in texts)

    def _opened_thought(self) -> str:
        if OPEN_THOUGHT in self._tags:
            return f"{self.rule(BLANKS)} {self.literal(OPEN_THOUGHT)}"
        # In one piece: of two ways to go on the library takes that of the longest piece, here perhaps a free text.
        return self.terminal(pattern(f"{BLANKS[1:-1]}{OPEN_THOUGHT}"))

    def _thought(self) -> str:
        """Return a rule for reasoning up to its end, in which the other tags may be spoken of."""
        others = ",".join(str(number) for tag, number in self._tags.items() if tag != CLOSE_THOUGHT)
        end = self.text_before(CLOSE_THOUGHT)
        if CLOSE_THOUGHT not in self._tags or not others:
            return end
        text = self.terminal(f"{ANY_TEXT} & ~{pattern(f'(?s:.*){CLOSE_THOUGHT}(?s:.*)')}")
        return f"({text} <[{others}]>)* {end}"

    def blanks(self) -> str:
        """Return a rule for the few blanks that chat templates write before what counts."""
        return self.rule(BLANKS)

    def answer(self, body: str, *, reasoning: str = NO_REASONING, behind: str | None = None) -> Grammar:
        """Return the grammar of a whole answer.

        Args:
            body: Rules and parts that what is wanted consists of.
            reasoning: Where the answer stands at its beginning.
            behind: What stands in the place of the body behind reasoning; the same by default.
        """
        start = f"({body})"
        if reasoning != NO_REASONING:
            start = f"{self._thought()} ({body if behind is None else behind})"
        if reasoning == MAY_REASON:
            start = f"{self._opened_thought()} {start} | ({body})"
        rules = "\n".join([f"start: {start}", *self._rules])
        return Grammar(json.dumps({"grammars": [{"lark_grammar": rules}, *self._parts]}))


def _quoted(text: str) -> str:
    if CONTROL.search(text):
        raise GrammarError("a text to be written holds control characters")
    return json.dumps(text, ensure_ascii=False)


def pattern(regex: Any) -> str:
    """Return a regular expression, as it stands in a rule; it holds for the whole text."""
    if not isinstance(regex, str) or not regex:
        raise GrammarError("the regular expression is no text")
    check_size(regex, "the regular expression")
    kept = {"/": r"\/", "\n": r"\n", "\r": r"\r", "\\\n": r"\n", "\\\r": r"\r"}
    return f"/{DELIMITERS.sub(lambda found: kept.get(found[0], found[0]), regex)}/"


def _as_lark(text: str) -> str:
    if "::=" not in text:
        return text
    from llguidance.gbnf_to_lark import gbnf_to_lark

    try:
        return str(gbnf_to_lark(text))
    except Exception as error:  # whatever a parser of others throws at what a client has sent
        raise GrammarError(f"the grammar is not GBNF: {error}") from None
