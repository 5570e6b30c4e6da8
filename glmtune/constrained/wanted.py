"""From the fields of a request to the grammar of its answers.

| wanted | the answer |
| --- | --- |
| `response_format`, `structured_outputs` | what they say, as the content |
| a call (`tool_choice`: `required` or a name) | one call or more, and nothing else |
| one of them, where functions are offered | either that, or calls |
| `strict` functions, offered | free, but whatever begins a call goes on as one, of a function that was offered |

Reasoning comes before all of it, where the model's chat template has some.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import jinja2
from transformers import PreTrainedTokenizerBase

from glmtune.chatformat.rendering import ChatRenderer
from glmtune.chatformat.replies import CLOSE_THOUGHT, OPEN_THOUGHT, TAGS, ReplyLayout
from glmtune.chatformat.template_facts import QUESTION

from .call_syntax import TAKES_TEXT, functions_of, is_strict, required_calls, text_and_calls
from .grammars import IS_REASONING, MAY_REASON, NO_REASONING, Grammar, GrammarWriter, pattern
from .schemas import GrammarError

RESPONSE_FORMATS = ("text", "json_object", "json_schema")
STRUCTURES = ("json", "regex", "choice", "grammar", "json_object")
"""What `structured_outputs` may hold one of."""
STRUCTURE_OPTIONS = ("disable_any_whitespace", "disable_fallback")
"""What it may hold besides; the second is about the choice of a library."""


def content_grammar(*, response_format: Any, structured_outputs: Any) -> Grammar | None:
    """Return the grammar of a text that goes on, without a chat template; None where it is free."""
    writer = GrammarWriter()
    content = _content(writer, response_format, structured_outputs)
    return None if content is None else writer.answer(content)


def chat_grammar(
    *,
    layout: ReplyLayout,
    border: int | None,
    tags: Mapping[str, int] | None = None,
    reasoning: str = NO_REASONING,
    response_format: Any = None,
    structured_outputs: Any = None,
    tools: Sequence[Any] | None = None,
    tool_choice: str | None = None,
    is_named: bool = False,
    is_parallel: bool = True,
) -> Grammar | None:
    """Return the grammar of an answer to a conversation; None where it is free.

    Args:
        layout: How the model writes calls.
        border: The id between two sections of an answer, where the model has one.
        tags: See `tags_of`.
        reasoning: Where the answer stands at its beginning.
        response_format: OpenAI's field.
        structured_outputs: vLLM's field.
        tools: Those that are offered.
        tool_choice: `none`, `auto`, `required`, or a name.
        is_named: Whether `tool_choice` is the name of a function.
        is_parallel: Whether there may be several calls.
    """
    writer = GrammarWriter(tags)
    content = _content(writer, response_format, structured_outputs)
    if is_named or tool_choice == "required":
        if content is not None:
            field = "response_format" if structured_outputs is None else "structured_outputs"
            with _about("tool_choice"):
                raise GrammarError(f"`tool_choice` demands a call, and `{field}` another answer: leave one of them out")
        with _about("tool_choice"):
            functions = _chosen(layout, tools, tool_choice if is_named else None)
        with _about("tools"):
            body = required_calls(writer, layout, functions, border=border, is_parallel=is_parallel)
        return writer.answer(body, reasoning=reasoning, behind=f"{writer.blanks()} ({body})")
    offered = tools if tools and layout.calls is not None and tool_choice != "none" else []
    if content is not None:
        body = behind = f"{writer.blanks()} ({content})"
        if offered:
            with _about("tools"):
                functions = functions_of(offered, layout)
                calls = required_calls(writer, layout, functions, border=border, is_parallel=is_parallel)
            body, behind = f"{body} | {calls}", f"{behind} | {writer.blanks()} ({calls})"
        return writer.answer(body, reasoning=reasoning, behind=behind)
    with _about("tools"):
        if not any(is_strict(tool) for tool in offered):
            return None
        functions = [
            function if is_strict(function) or function.get("parameters") is TAKES_TEXT else {"name": function["name"]}
            for function in functions_of(offered, layout)
        ]
        body = text_and_calls(writer, layout, functions, border=border, reasoning=reasoning)
    return writer.answer(body, reasoning=reasoning, behind=f"{writer.blanks()} {body}")


def tags_of(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """Return the ids of those tags that are one token each."""
    return {text: number for text, number in tokenizer.added_tokens_encoder.items() if text in TAGS}


def reasoning_at_start(renderer: ChatRenderer, layout: ReplyLayout, variables: Mapping[str, Any] | None = None) -> str:
    """Return where an answer stands at its beginning: by the layout, and what the template writes before an answer.

    Args:
        renderer: Of the model's chat template.
        layout: How its answers are written.
        variables: What the template is told besides the messages, such as `enable_thinking`.
    """
    if not layout.has_reasoning:
        return NO_REASONING
    try:
        prompt = str(renderer.render([QUESTION], add_generation_prompt=True, **(variables or {}))).rstrip()
    except (jinja2.TemplateError, TypeError):  # the conversation itself is told so
        return MAY_REASON
    if prompt.endswith(OPEN_THOUGHT):
        return IS_REASONING
    return NO_REASONING if prompt.endswith(CLOSE_THOUGHT) else MAY_REASON


def _content(writer: GrammarWriter, response_format: Any, structured_outputs: Any) -> str | None:
    """Return rules for what an answer has to say; None where nothing is wanted of it."""
    with _about("response_format"):
        wanted = _of_response_format(writer, response_format)
    if structured_outputs is None:
        return wanted
    with _about("structured_outputs"):
        if wanted is not None:
            raise GrammarError("`structured_outputs` and `response_format` are both given: leave one of them out")
        return _of_structured_outputs(writer, structured_outputs)


def _of_response_format(writer: GrammarWriter, wanted: Any) -> str | None:
    if wanted is None:
        return None
    kind = wanted.get("type") if isinstance(wanted, Mapping) else None
    if kind not in RESPONSE_FORMATS:
        raise GrammarError(f"`type` is not one of: {', '.join(f'`{known}`' for known in RESPONSE_FORMATS)}")
    if kind == "text":
        return None
    if kind == "json_object":
        return writer.schema({"type": "object"})
    held = wanted.get("json_schema")
    if not isinstance(held, Mapping) or "schema" not in held:
        raise GrammarError("`json_schema` holds no `schema`")
    return writer.schema(held["schema"])


def _of_structured_outputs(writer: GrammarWriter, wanted: Any) -> str:
    if not isinstance(wanted, Mapping):
        raise GrammarError("`structured_outputs` is no object")
    given = {key: value for key, value in wanted.items() if value is not None and value is not False}
    if unknown := sorted(given.keys() - {*STRUCTURES, *STRUCTURE_OPTIONS}):
        raise GrammarError(f"`{str(unknown[0])[:100]}` is not supported")
    kinds = [kind for kind in STRUCTURES if kind in given]
    if len(kinds) != 1:
        raise GrammarError(f"expected one of: {', '.join(f'`{known}`' for known in STRUCTURES)}")
    [kind] = kinds
    has_whitespace = not given.get("disable_any_whitespace")
    if kind == "json":
        return writer.schema(given["json"], has_whitespace=has_whitespace)
    if kind == "json_object":
        return writer.schema({"type": "object"}, has_whitespace=has_whitespace)
    if kind == "grammar":
        return writer.grammar(given["grammar"])
    return writer.rule(pattern(given["regex"]) if kind == "regex" else writer.choice(given["choice"]))


def _chosen(layout: ReplyLayout, tools: Sequence[Any] | None, name: str | None) -> list[dict[str, Any]]:
    """Return the functions one of which has to be called."""
    functions = functions_of(tools or (), layout)
    if name is not None:
        functions = [function for function in functions if function["name"] == name]
        if not functions:
            raise GrammarError(f"`tools` has no function `{name[:100]}`")
    if not functions:
        raise GrammarError("`tool_choice` wants a call, but there are no `tools`")
    if layout.calls is None:
        raise GrammarError("this model's chat template does not show calls")
    return functions


@contextmanager
def _about(param: str) -> Iterator[None]:
    """Name the field that an error is about."""
    try:
        yield
    except GrammarError as error:
        error.param = error.param or param
        raise
