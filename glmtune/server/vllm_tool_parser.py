"""GLM-4's tool calls for vLLM, which loads this file itself (`--tool-parser-plugin`).

A call is the function's name on the role line and a JSON object below; what reads it is `chatformat/replies.py`,
as everywhere. vLLM does not say when a stream ends: there, a call is given out as soon as its object is complete, and
one that is cut off before that is lost, where the whole answer would hold it as text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from vllm.sampling_params import StructuredOutputsParams

# The classes of vLLM's protocol have moved several times; in this module they have had the same names throughout.
from vllm.tool_parsers import hermes_tool_parser as protocol
from vllm.tool_parsers.abstract_tool_parser import ToolParser, ToolParserManager

from glmtune.chatformat.replies import ROLE_LINE, Delta, Found, ReplyLayout, ReplyReader, ToolCall, parse_reply
from glmtune.family import ASSISTANT, GLM_STOPS

STOPS = re.compile("|".join(map(re.escape, GLM_STOPS)))
LAYOUT = ReplyLayout(calls=ROLE_LINE)


@ToolParserManager.register_module("glm4_role_line")
class Glm4RoleLineParser(ToolParser):  # type: ignore[misc, unused-ignore]  # of no type where vLLM is absent
    """Reads the calls of one answer."""

    supports_required_and_named = False
    """vLLM would have the answer written as a JSON list, which GLM-4 does not know; see `adjust_request`."""

    def __init__(self, tokenizer: Any, *others: Any) -> None:
        super().__init__(tokenizer, *others)
        self.reader: ReplyReader | None = None

    def adjust_request(self, request: Any) -> Any:
        """Keep control tokens in the text, where `<|assistant|>` stands before a call; begin with a call if asked."""
        if not request.tools or request.tool_choice == "none":
            return request
        request.skip_special_tokens = False
        if request.tool_choice not in (None, "auto"):
            # vLLM answers a `ValueError` with status 400.
            if getattr(request.response_format, "type", "text") != "text" or request.structured_outputs is not None:
                raise ValueError(
                    "`tool_choice` demands a call, and `response_format` or `structured_outputs` another answer: "
                    "leave one of them out"
                )
            request.structured_outputs = StructuredOutputsParams(structural_tag=json.dumps(_one_call(request)))
            request.response_format = None
        return request

    def extract_tool_calls(self, model_output: str, request: Any) -> Any:
        """Return what a whole answer holds."""
        text = STOPS.split(model_output)[0]
        reply = parse_reply(text.split(ASSISTANT), LAYOUT, _tools(request))
        calls = [
            protocol.ToolCall(type="function", function=protocol.FunctionCall(name=call.name, arguments=call.arguments))
            for call in reply.tool_calls
        ]
        return protocol.ExtractedToolCallInformation(
            tools_called=bool(calls), tool_calls=calls, content=reply.content or None
        )

    def extract_tool_calls_streaming(
        self,
        previous_text: str,
        current_text: str,
        delta_text: str,
        previous_token_ids: Sequence[int],
        current_token_ids: Sequence[int],
        delta_token_ids: Sequence[int],
        request: Any,
    ) -> Any:
        """Return what has become certain, or None."""
        if self.reader is None:
            self.reader = ReplyReader(LAYOUT, _tools(request))
        events: list[Found] = []
        for number, section in enumerate(STOPS.split(delta_text)[0].split(ASSISTANT)):
            events += self.reader.border() if number else []
            events += self.reader.feed(section)
        events += self.reader.take_complete_call()
        text = "".join(event.text for event in events if isinstance(event, Delta))
        deltas = [self._delta(event) for event in events if isinstance(event, ToolCall)]
        return protocol.DeltaMessage(content=text or None, tool_calls=deltas) if text or deltas else None

    def _delta(self, call: ToolCall) -> Any:
        # vLLM compares what was streamed with these lists at the end.
        self.current_tool_id += 1
        self.prev_tool_call_arr.append({"name": call.name, "arguments": call.arguments})
        self.streamed_args_for_tool.append(call.arguments)
        function = protocol.DeltaFunctionCall(name=call.name, arguments=call.arguments)
        return protocol.DeltaToolCall(
            index=self.current_tool_id,
            type="function",
            id=protocol.make_tool_call_id(),
            function=function.model_dump(exclude_none=True),
        )


def _one_call(request: Any) -> dict[str, Any]:
    """Return what the answer has to be, as vLLM's libraries know it: one call, whose arguments follow their schema."""
    calls = [
        {
            "type": "sequence",
            "elements": [
                {"type": "const_string", "value": LAYOUT.opening(function["name"])},
                {"type": "json_schema", "json_schema": function.get("parameters") or {"type": "object"}},
            ],
        }
        for function in _wanted(request)
    ]
    return {"type": "structural_tag", "format": calls[0] if len(calls) == 1 else {"type": "or", "elements": calls}}


def _wanted(request: Any) -> list[dict[str, Any]]:
    """Return the functions that `tool_choice` leaves: the one it names, or all."""
    functions = [tool.get("function", tool) for tool in _tools(request)]
    if request.tool_choice == "required":
        return functions
    name = getattr(request.tool_choice, "function", request.tool_choice).name
    found = [function for function in functions if function.get("name") == name]
    if not found:
        raise ValueError(f"`tools` has no function `{name[:100]}`")
    return found


def _tools(request: Any) -> list[dict[str, Any]]:
    return [tool.model_dump() for tool in request.tools or ()]
