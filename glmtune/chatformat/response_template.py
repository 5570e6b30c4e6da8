r"""How a model's answers are taken apart, in the language of transformers' `tokenizer.response_template`.

Tools that know nothing of glmtune read it from `tokenizer_config.json`: `transformers serve`, `parse_response`. The
patterns accept what `glmtune.chatformat.replies` accepts: a call whose JSON is broken matches none, and stays text.
What the language cannot say is which functions were offered, so that a name has to be an identifier, or that none was.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from glmtune.family import ASSISTANT, Family

from .rendering import ChatRenderer
from .replies import (
    ARGUMENT_TAGS,
    CLOSE_CALL,
    CLOSE_THOUGHT,
    JSON_TAGS,
    OPEN_CALL,
    OPEN_THOUGHT,
    ROLE_LINE,
    ReplyLayout,
    reply_layout,
)

NAME = r"(?P<name>[A-Za-z_][A-Za-z0-9_.-]{0,127})"
GAP = r"[ \t\r\n]*+"

# The grammar of JSON (RFC 8259), which the `regex` module can follow to any depth.
JSON_GRAMMAR = (
    r"(?(DEFINE)"
    r'(?P<json_string>"(?:[^"\\\x00-\x1f]|\\(?:["\\/bfnrt]|u[0-9A-Fa-f]{4}))*+")'
    r"(?P<json_number>-?(?:0|[1-9][0-9]*+)(?:\.[0-9]++)?(?:[eE][+-]?[0-9]++)?)"
    rf"(?P<json_pair>(?&json_string){GAP}:{GAP}(?&json_value){GAP})"
    rf"(?P<json_object>\{{{GAP}(?:(?&json_pair)(?:,{GAP}(?&json_pair))*+)?\}})"
    rf"(?P<json_array>\[{GAP}(?:(?&json_value){GAP}(?:,{GAP}(?&json_value){GAP})*+)?\])"
    r"(?P<json_value>(?&json_object)|(?&json_array)|(?&json_string)|(?&json_number)|true|false|null)"
    r")"
)


def give_response_template(tokenizer: PreTrainedTokenizerBase, family: Family, stop_ids: Sequence[int]) -> None:
    """Set the tokenizer's `response_template`, to be saved with it; one that it has already stays."""
    if tokenizer.response_template is not None:
        return
    renderer = ChatRenderer(tokenizer, family)
    stops = [str(tokenizer.convert_ids_to_tokens(token)) for token in stop_ids]
    tokenizer.response_template = response_template(
        reply_layout(renderer), prompts=renderer.facts.generation_prompts, stops=stops
    )


def response_template(layout: ReplyLayout, *, prompts: Sequence[str], stops: Sequence[str]) -> dict[str, Any] | None:
    """Return the template for a layout; None where answers are plain text alone.

    Args:
        layout: How the model writes.
        prompts: What its chat template writes to ask for an answer, in all its forms.
        stops: The tokens that end an answer.
    """
    if layout.calls is None and not layout.has_reasoning:
        return None
    borders = [*stops, ASSISTANT] if layout.calls == ROLE_LINE else stops
    end = "|".join(re.escape(token) for token in borders)
    fields: dict[str, Any] = {}
    if layout.has_reasoning:
        # A prompt without thinking may have written the closing tag alone.
        fields["reasoning_content"] = {
            "open_pattern": rf"\A\s*(?:{OPEN_THOUGHT}|(?={CLOSE_THOUGHT}))",
            "close_pattern": rf"{CLOSE_THOUGHT}|(?={end})",
        }
    if layout.calls is not None:
        calls = {ROLE_LINE: _role_line_calls, JSON_TAGS: _json_calls, ARGUMENT_TAGS: _argument_calls}[layout.calls]
        fields["tool_calls"] = {"repeats": True} | calls(layout, end)
    # White space before a border belongs to no text: a region of it alone would add an empty line.
    fields["content"] = {"close_pattern": rf"\s*(?:{end})|\s+\Z", "repeats": True, "join": "\n"}
    anchor = min((re.split(rf"{OPEN_THOUGHT}|{CLOSE_THOUGHT}", prompt)[0] for prompt in prompts), key=len)
    return {"defaults": {"role": "assistant"}, "start_anchor": anchor, "fields": fields}


def _role_line_calls(layout: ReplyLayout, end: str) -> dict[str, Any]:
    """Name on the role line, JSON below; the arguments stay the text that the model wrote."""
    begin = r"\A[ \t]*|\s*<\|assistant\|>[ \t]*"
    if layout.has_reasoning:
        begin += rf"|(?<={CLOSE_THOUGHT})\s*"
    return {
        "open_pattern": rf"{JSON_GRAMMAR}(?:{begin}){NAME}[ \t\r]*\n\s*(?P<arguments>(?&json_object))\s*(?={end}|\Z)",
        "close_pattern": rf"(?={end})",
        "transform": {"type": "function", "function": {"name": "{name}", "arguments": "{arguments}"}},
    }


def _json_calls(layout: ReplyLayout, end: str) -> dict[str, Any]:
    """An object of `name` and `arguments` between tags."""
    name = rf'"name"{GAP}:{GAP}(?&json_string){GAP}'
    arguments = rf'"arguments"{GAP}:{GAP}(?&json_object){GAP}'
    call = rf"\{{{GAP}(?:{name},{GAP}{arguments}|{arguments},{GAP}{name})\}}"
    return {
        "open_pattern": rf"{JSON_GRAMMAR}\s*{OPEN_CALL}(?=\s*{call}\s*{CLOSE_CALL})",
        "close": CLOSE_CALL,
        "content": "json",
        "transform": {"type": "function", "function": "{content}"},
    }


def _argument_calls(layout: ReplyLayout, end: str) -> dict[str, Any]:
    """Name and pairs of tags between tags; the values are texts, which the tools' schemas make numbers of."""

    def between(tag: str) -> str:
        return rf"<{tag}>(?:(?!</{tag}>|{CLOSE_CALL}).)*+</{tag}>\s*"

    pairs = rf"(?:{between('arg_key')}{between('arg_value')})*+"
    return {
        "open_pattern": rf"\s*{OPEN_CALL}\s*{NAME}\s*(?={pairs}{CLOSE_CALL})",
        "close": CLOSE_CALL,
        "content": "xml-inline",
        "content_args": {
            "tag_pattern": r"<arg_key>\s*(?P<key>.*?)\s*</arg_key>\s*<arg_value>(?P<value>.*?)</arg_value>"
        },
        "transform": {"type": "function", "function": {"name": "{name}", "arguments": "{content}"}},
    }
