"""What a chat template does, asked of the template with short conversations instead of read from its source."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jinja2

from glmtune.errors import GlmtuneError
from glmtune.family import OBSERVATION, TEXT_TOOLS, Family

Render = Callable[..., str]
"""Messages and the template's variables to text; raises `jinja2.TemplateError`."""

NAME = "glmtune_probe"
THINK = "<think>"
QUESTION = {"role": "user", "content": "a"}
ANSWER = {"role": "assistant", "content": NAME}
TOOL = {
    "type": "function",
    "function": {"name": NAME, "description": "", "parameters": {"type": "object", "properties": {}}},
}


@dataclass(frozen=True, kw_only=True)
class TemplateFacts:
    """What a template writes, and which parts of a row it would leave out without a word."""

    generation_prompts: tuple[str, ...]
    """What stands before an answer: by default, and where thinking is switched off."""
    hidden_reasoning: str
    """What the prompt ends with and rendered answers lack, as GLM-Z1's `<think>`; empty elsewhere."""
    end_token: str | None
    """What the template writes behind an answer; None where the next role token is the stop."""
    prefix: str | None
    """What stands before all messages; None where a message is rendered differently behind another."""
    observation_role: str
    """The template's role name of a tool's result."""
    takes_tools_argument: bool
    """Whether tools travel beside the messages."""
    takes_message_tools: bool
    """Whether tools travel inside a system message, as GLM-4's do."""
    writes_role_line: bool
    """Whether the name of a called function stands on the role line, as GLM-4 writes it."""
    shows_system: bool
    """Whether the template writes system messages."""
    shows_observations: bool
    """Whether the template writes the results of tools."""
    shows_tool_calls: bool
    """Whether the template writes OpenAI's `tool_calls`."""
    shows_reasoning: bool
    """Whether the template writes `reasoning_content`."""
    text_tools: tuple[str, ...]
    """Tools that it describes by their type, and that are called with a text."""


def find_facts(render: Render, control_tokens: Sequence[str], family: Family, name: str) -> TemplateFacts:
    """Return what the template does, or raise where it cannot be trained on; `name` is the tokenizer's."""
    try:
        question = render([QUESTION])
        prompts = _generation_prompts(render, question, control_tokens)
        answer = render([QUESTION, ANSWER])
        if not any(answer.startswith(question + prompt) for prompt in prompts):
            # Some templates open a block of reasoning in every prompt; an answer that has one may follow it.
            reasoned = render([QUESTION, {**ANSWER, "reasoning_content": "b"}])
            answer = reasoned if reasoned.startswith(question + prompts[0]) else answer
    except jinja2.TemplateError as error:
        raise GlmtuneError(
            f"the chat template fails on a question and its answer: {error}",
            where=name,
            fix="mend `chat_template.jinja` in the model folder, or use another model",
        ) from None
    hidden = ""
    if not any(prompt and answer.startswith(question + prompt) for prompt in prompts):
        shown = prompts[0].removesuffix(THINK)
        if not shown or shown == prompts[0] or not answer.startswith(question + shown):
            raise GlmtuneError(
                "the chat template renders an answer differently from the prompt that asks for it",
                where=name,
                fix=f"rendered prompt: {question + prompts[0]!r}; rendered answer: {answer!r}",
            )
        hidden = THINK
    tail = answer[len(question) :].partition(NAME)[2]
    # A template that writes any role by its name shows both.
    names = ("observation", "tool") if OBSERVATION in control_tokens else ("tool", "observation")
    roles = [role for role in names if _shows_result(render, role)]
    return TemplateFacts(
        generation_prompts=prompts,
        hidden_reasoning=hidden,
        end_token=_end_token(tail, control_tokens, family, name),
        prefix=_prefix(render, question),
        observation_role=(roles or names)[0],
        takes_tools_argument=_shows_name(render, [QUESTION], tools=[TOOL]),
        takes_message_tools=_shows_name(render, [{"role": "system", "content": "", "tools": [TOOL]}, QUESTION]),
        writes_role_line=_shows_name(render, [QUESTION, {"role": "assistant", "content": "b", "metadata": NAME}]),
        shows_system=_shows_name(render, [{"role": "system", "content": NAME}, QUESTION]),
        shows_observations=bool(roles),
        shows_tool_calls=_shows_name(render, [QUESTION, _call(NAME)]),
        shows_reasoning=_shows_name(render, [QUESTION, {**ANSWER, "content": "b", "reasoning_content": NAME}]),
        text_tools=_text_tools(render),
    )


def _generation_prompts(render: Render, question: str, control_tokens: Sequence[str]) -> tuple[str, ...]:
    """Return what the template writes to ask for an answer, by default and where thinking is switched off."""
    usual = render([QUESTION], add_generation_prompt=True).removeprefix(question)
    silent = render([QUESTION], add_generation_prompt=True, enable_thinking=False).removeprefix(question)
    # GLM-4.5 writes `/nothink` behind the question: that is part of the question then, not of the prompt.
    is_prompt = silent != usual and any(
        usual.startswith(token) and silent.startswith(token) for token in control_tokens
    )
    return (usual, silent) if is_prompt else (usual,)


def _end_token(tail: str, control_tokens: Sequence[str], family: Family, name: str) -> str | None:
    """Return the control token that the template writes behind an answer; None where the family knows the stop."""
    ends = [token for token in control_tokens if token in tail]
    if ends:
        return min(ends, key=tail.index)
    if family.stop_after_answer is None:
        raise GlmtuneError(
            "the chat template writes no end-of-turn token after an answer, so the model could not learn to stop",
            where=name,
            fix="use a tokenizer whose template ends assistant messages with a special token",
        )
    missing = [stop for stop in (family.stop_after_answer, family.stop_after_tool_call) if stop not in control_tokens]
    if missing:
        raise GlmtuneError(
            f"the tokenizer has no special token `{missing[0]}`, with which this model family stops",
            where=name,
            fix="use the tokenizer that belongs to the model",
        )
    return None


def _prefix(render: Render, question: str) -> str | None:
    """Return what is left of a message rendered alone when its own text is taken away."""
    try:
        # A message rendered once is prefix + message, rendered twice it is prefix + message + message.
        length = 2 * len(question) - len(render([QUESTION, QUESTION]))
    except jinja2.TemplateError:
        return None
    return question[:length] if length >= 0 else None


def _shows_name(render: Render, messages: list[dict[str, Any]], **options: Any) -> bool:
    """Whether the template writes the probe's name, which stands somewhere in what it is given."""
    try:
        return NAME in render(messages, **options)
    except jinja2.TemplateError:
        return False


def _shows_result(render: Render, role: str) -> bool:
    """Whether the template writes messages of the role, be it behind a call only."""
    result = {"role": role, "content": NAME, "tool_call_id": "probe0001"}
    return any(_shows_name(render, [QUESTION, before, result]) for before in (_call("f"), {**ANSWER, "content": "b"}))


def shows_tool(render: Render, tool: dict[str, Any]) -> bool:
    """Whether the template writes a tool that is no function, or leaves it out as it does with a type it knows not."""
    unknown = {**tool, "type": NAME}
    return any(
        _rendered(render, offer(tool)) not in (None, _rendered(render, offer(unknown)))
        for offer in (_beside_messages, _in_message)
    )


def _beside_messages(tool: dict[str, Any]) -> dict[str, Any]:
    return {"messages": [QUESTION], "tools": [tool]}


def _in_message(tool: dict[str, Any]) -> dict[str, Any]:
    return {"messages": [{"role": "system", "content": "", "tools": [tool]}, QUESTION]}


def _rendered(render: Render, conversation: dict[str, Any]) -> str | None:
    try:
        return render(**conversation)
    except jinja2.TemplateError:
        return None


def _text_tools(render: Render) -> tuple[str, ...]:
    """Return the tools that the template describes in its own words: one that writes any tool's JSON knows none."""
    found = []
    for name in TEXT_TOOLS:
        tool = {"type": name}
        text = _rendered(render, _in_message(tool))
        if text is not None and f'"{name}"' not in text and shows_tool(render, tool):
            found.append(name)
    return tuple(found)


def _call(name: str) -> dict[str, Any]:
    """Return an assistant message that calls a function, in OpenAI's form."""
    call = {"id": "probe0001", "type": "function", "function": {"name": name, "arguments": {}}}
    return {"role": "assistant", "content": "", "tool_calls": [call]}
