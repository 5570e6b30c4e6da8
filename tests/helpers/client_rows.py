"""What the tiny model has learnt by heart of the questions that tests with other clients ask.

The tools are written as each client writes them, since the prompt holds them: `query_price` as pydantic-ai and OpenAI's
Agents SDK, the others as LangChain's own tests.
"""

from __future__ import annotations

import json
from typing import Any

from pydantic import BaseModel, Field
from serving_rows import rows_by_heart

TEXT, INTEGER = {"type": "string"}, {"type": "integer"}


def tool(name: str, description: str, properties: dict[str, Any], **more: Any) -> dict[str, Any]:
    """Return a tool all of whose parameters are required, keys in the order of pydantic's schemas."""
    parameters = {"properties": properties, "required": list(properties), "type": "object", **more}
    return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}


def _price_tool(*, is_titled: bool, is_strict: bool | None) -> dict[str, Any]:
    item, title = ({"title": "Item", **TEXT}, {"title": "query_price_args"}) if is_titled else (TEXT, {})
    closed = {"additionalProperties": False} if is_strict else {}
    made = tool("query_price", "查询价格", {"item": item})
    parameters = {"properties": {"item": item}, "required": ["item"], **title, "type": "object", **closed}
    if not is_titled:
        parameters = {**closed, "properties": {"item": item}, "required": ["item"], "type": "object"}
    made["function"] |= {"parameters": parameters} | ({} if is_strict is None else {"strict": is_strict})
    return made


PRICE_TOOLS = [
    _price_tool(is_titled=True, is_strict=True),
    _price_tool(is_titled=True, is_strict=False),
    _price_tool(is_titled=True, is_strict=None),
    _price_tool(is_titled=False, is_strict=True),
]

MAGIC = tool(
    "magic_function",
    "Apply a magic function to an input.",
    {"input": {"exclusiveMaximum": 1000, "exclusiveMinimum": -1000, **INTEGER}},
)
NO_ARGUMENTS = tool("magic_function_no_args", "Calculate a magic function.", {})
del NO_ARGUMENTS["function"]["parameters"]["required"]
GREETING = tool("greeting_generator", "Generate a greeting in a particular style of speaking.", {"answer_style": TEXT})
WEATHER_AT = tool("get_weather", "Get weather at a location.", {"location": TEXT})
WEATHER = tool("get_weather", "Get the weather at a location.", {"location": TEXT})
CUSTOMER = tool(
    "unicode_customer",
    "Tool for creating a customer with Unicode name.\n\n    Args:\n        customer_name: The customer's name in their "
    "native language.\n        description: Description of the customer.\n\n    Returns:\n        A confirmation "
    "message about the customer creation.",
    {"customer_name": TEXT, "description": TEXT},
)
JOKE = tool("Joke", "Joke to tell user.", {})
JOKE["function"]["parameters"] = {
    "type": "object",
    "properties": {
        "setup": {"description": "question to set up a joke", **TEXT},
        "punchline": {"description": "answer to resolve the joke", **TEXT},
    },
    "required": ["setup", "punchline"],
}
TOLD_JOKE = {"setup": "a?", "punchline": "b"}

CALLS: list[tuple[str, list[dict[str, Any]], str, dict[str, Any]]] = [
    ("What is the value of magic_function(3)? Use the tool.", [MAGIC], "magic_function", {"input": 3}),
    (
        "What is the value of magic_function_no_args()? Use the tool.", [NO_ARGUMENTS], "magic_function_no_args", {},
    ),
    ("Using the tool, generate a Pirate greeting.", [GREETING], "greeting_generator", {"answer_style": "Pirate"}),
    ("Hello!", [MAGIC, WEATHER_AT], "magic_function", {"input": 3}),
    ("What is the weather in San Francisco, CA?", [WEATHER], "get_weather", {"location": "San Francisco, CA"}),
    (
        "Create a customer named '你好啊集团' (Hello Group) - a Chinese technology company",
        [CUSTOMER], "unicode_customer", {"customer_name": "你好啊集团", "description": "a"},
    ),
    (
        "Create a customer named 'こんにちは株式会社' (Hello Corporation) - a Japanese company",
        [CUSTOMER], "unicode_customer", {"customer_name": "こんにちは株式会社", "description": "a"},
    ),
    ("Tell me a joke about cats.", [JOKE], "Joke", TOLD_JOKE),
]  # fmt: skip
"""A question, the tools that are offered with it, the function that is called, and its arguments."""

TEXTS = {
    "Hello": "Hi.",
    "Hey": "Hi.",
    "hi": "Hi.",
    "Write me 2 haikus. Only include the haikus.": "One. Two.",
    "Tell me a joke about cats.": json.dumps(TOLD_JOKE),
    "Give me the setup to a joke about cats, no punchline.": json.dumps(TOLD_JOKE),
    "Give me a joke about cats, include the punchline.": json.dumps(TOLD_JOKE),
    "Tell me a joke about cats. Return the result as a JSON with 'setup' and 'punchline' keys. Return nothing other "
    "than JSON.": json.dumps(TOLD_JOKE),
    "A dress": json.dumps({"name": "裙", "size": 4}),
}
GARMENT = "A dress"
"""Asked for an object of the class below."""


class Garment(BaseModel):
    """A piece of clothing."""

    name: str = Field(max_length=20)
    size: int


GARMENT_PARAMETERS = {
    "properties": {"name": {"maxLength": 20, **TEXT}, "size": INTEGER},
    "required": ["name", "size"],
    "type": "object",
}


def _garment_tool(name: str, **more: Any) -> dict[str, Any]:
    function = {"name": name, "description": "A piece of clothing.", "parameters": GARMENT_PARAMETERS}
    function["parameters"] = {**GARMENT_PARAMETERS, **more}
    return {"type": "function", "function": function | ({"strict": True} if more else {})}


def _called(asked: str, tools: list[dict[str, Any]], name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    function = {"name": name, "arguments": json.dumps(arguments, ensure_ascii=False)}
    call = {"type": "function", "id": "call_1", "function": function}
    answer = {"role": "assistant", "content": "", "tool_calls": [call]}
    return {"messages": [{"role": "user", "content": asked}, answer], "tools": tools}


def rows_of_clients() -> list[dict[str, Any]]:
    """Return rows of training: those of the other tests of the server, and those above."""
    rows = rows_by_heart()
    for offered in PRICE_TOOLS:
        rows += [row for row in rows_by_heart([offered]) if "tools" in row][:2]
    rows += [_called(*each) for each in CALLS]
    garment = {"name": "裙", "size": 4}
    final = _garment_tool("final_result", additionalProperties=False)
    rows.append(_called(GARMENT, [final], "final_result", garment))
    rows.append(_called(GARMENT, [_garment_tool("Garment")], "Garment", garment))
    rows += [
        {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": told}]}
        for asked, told in TEXTS.items()
    ]
    return rows
