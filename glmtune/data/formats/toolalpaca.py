"""ToolAlpaca as published (https://github.com/tangqiaoyu/ToolAlpaca): a row is an API with many conversations."""

from __future__ import annotations

import re
from typing import Any

from glmtune.data import json_text
from glmtune.data.conversation import Conversation, Message, RowError
from glmtune.data.parts.fields import from_json, kind, required_text, to_json
from glmtune.data.parts.tools import call_message

from .messages import conversation_of, items_of, system_of, text_message, with_system

OTHER_FORMS = (
    "Category",
    "Functions",
    "Documentation",
    "NLDocumentation",
    "Function_Projection",
    "Instructions",
)
"""Keys of the published rows that say in other forms what `Function_Description` and `Instances` say."""

INSTANCE_KEYS = frozenset(("input", "output", "Final Thought", "intermediate_steps"))

_PARAMETERS = re.compile(r"\n?Parameters: (\{.*?\})(?=\nOutput:|\Z)", re.DOTALL)
_TYPE = re.compile(r"(?:Required\. )?(string|integer|number|boolean|array|object)\b", re.IGNORECASE)
_ACTION = re.compile(r"(?:ASSISTANT )?Action\s*\d*\s*:")


def from_toolalpaca(row: dict[str, Any]) -> list[Conversation]:
    """Return one conversation for every one of the `Instances`.

    Raises:
        RowError: An instance is not usable, such as a run of the agent that broke off; the error names each one, and
            its `rest` holds the conversations of the others.
    """
    tools, system = _tools(row["Function_Description"]), system_of(row)
    conversations: list[Conversation] = []
    problems: list[str] = []
    for index, instance in enumerate(items_of(row["Instances"], "Instances", "instances")):
        try:
            messages = with_system(_read_instance(instance), system)
            conversations.append(conversation_of(messages, tools))
        except RowError as error:
            problems.append(f"instance {index}: {error}")
    if problems:
        raise RowError("; ".join(problems), rest=conversations)
    return conversations


def _tools(descriptions: Any) -> list[dict[str, Any]]:
    """Return the schemas of the functions; types that several share are described behind the last one."""
    if not isinstance(descriptions, dict):
        raise RowError(f"`Function_Description` is {kind(descriptions)}; expected an object of names and descriptions")
    texts = {name: required_text(descriptions, name) for name in descriptions if name != "components"}
    if not texts:
        raise RowError("`Function_Description` is empty; expected names and descriptions")
    shared = descriptions.get("components")
    if isinstance(shared, str) and shared.strip():
        texts[list(texts)[-1]] += f"\n{shared.strip()}"
    return [_schema(name, text) for name, text in texts.items()]


def _schema(name: str, description: str) -> dict[str, Any]:
    """Return the function's schema; its parameters stay text in the description where they cannot be read."""
    found = _PARAMETERS.search(description)
    try:
        parameters = json_text.parse(found[1]) if found else None
    except RowError:
        parameters = None
    if not found or not isinstance(parameters, dict) or not all(isinstance(text, str) for text in parameters.values()):
        return {"name": name, "description": description}
    properties = {}
    for key, text in parameters.items():
        type_name = _TYPE.match(text)
        properties[key] = ({"type": type_name[1].lower()} if type_name else {}) | {"description": text}
    return {
        "name": name,
        "description": description[: found.start()] + description[found.end() :],
        "parameters": {
            "type": "object",
            "properties": properties,
            "required": [key for key, text in parameters.items() if text.startswith("Required.")],
        },
    }


def _read_instance(instance: Any) -> list[Message]:
    """Return the messages of one run of the agent: what it thought, called, saw and answered."""
    if not isinstance(instance, dict):
        raise RowError(f"it is {kind(instance)}; expected an object with `input`, `intermediate_steps` and `output`")
    messages = [Message(role="user", content=required_text(instance, "input"), number=0)]
    steps = items_of(instance.get("intermediate_steps"), "intermediate_steps", "steps")
    for index, step in enumerate(steps):
        messages += _read_step(step, index, 2 * index + 1)
    output, thought = required_text(instance, "output"), instance.get("Final Thought")
    # One text, as in ChatGLM3's own conversion of the data set.
    answer = f"{thought.strip()}\n{output}" if isinstance(thought, str) and thought.strip() else output
    return [*messages, Message(role="assistant", content=answer, number=2 * len(steps) + 1)]


def _read_step(step: Any, index: int, number: int) -> list[Message]:
    """Return thought, call and observation of a step, `[[function, input, what the agent wrote], observation]`."""
    match step:
        case [[str(function), str(arguments), str(log)], observation]:
            pass
        case _:
            raise RowError(f"step {index} is not of the form [[function, input, log], observation]")
    if arguments.strip() and not isinstance(from_json(arguments, f"input of step {index}"), dict):
        raise RowError(f"input of step {index} is no object")
    if observation is not None and not isinstance(observation, str):
        observation = to_json(observation, f"observation of step {index}")
    thought = _ACTION.split(log, maxsplit=1)[0].strip()
    return [
        *([Message(role="assistant", content=thought, number=number)] if thought else []),
        call_message(function.strip(), arguments if arguments.strip() else None, number),
        text_message("observation", observation or "", number + 1),
    ]
