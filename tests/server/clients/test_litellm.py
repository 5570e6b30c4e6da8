"""litellm, and what stands on it (aider, DSPy, smolagents): answers, streams, calls, and errors that it knows."""

from __future__ import annotations

import asyncio
import json
import os
from typing import Any

import pytest
from serving_rows import ITEMS, PLAIN, TOOLS, answer, question, result

os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # else it asks the network for prices
litellm = pytest.importorskip("litellm", reason="needs litellm (`pip install 'glmtune[clients]'`)")

pytestmark = pytest.mark.slow

ASKED, TOLD = next(iter(PLAIN.items()))
ITEM = next(iter(ITEMS))


def options(url: str, **more: Any) -> dict[str, Any]:
    own = {"model": "openai/tiny", "api_base": f"{url}/v1", "api_key": "none", "num_retries": 0, "temperature": 0}
    return {**own, "messages": [{"role": "user", "content": ASKED}], **more}


def test_a_question_is_answered_at_once_streamed_and_asynchronously(url: str) -> None:
    told = litellm.completion(**options(url))
    assert (told.choices[0].message.content, told.choices[0].finish_reason) == (TOLD, "stop")
    assert told.usage.total_tokens == told.usage.prompt_tokens + told.usage.completion_tokens
    chunks = litellm.completion(**options(url, stream=True, stream_options={"include_usage": True}))
    rebuilt = litellm.stream_chunk_builder(list(chunks))
    assert rebuilt.choices[0].message.content == TOLD
    assert rebuilt.usage.completion_tokens == told.usage.completion_tokens
    assert asyncio.run(litellm.acompletion(**options(url))).choices[0].message.content == TOLD


def test_a_function_is_called_and_its_result_answered(url: str) -> None:
    asked: list[Any] = [question(ITEM)]
    for choice in (None, "required", {"type": "function", "function": {"name": "query_price"}}):
        more = {} if choice is None else {"tool_choice": choice}
        called = litellm.completion(**options(url, messages=asked, tools=TOOLS, **more)).choices[0]
        assert json.loads(called.message.tool_calls[0].function.arguments) == {"item": ITEM}
        assert called.finish_reason == "tool_calls"
    asked += [called.message.model_dump(), result(ITEM) | {"tool_call_id": called.message.tool_calls[0].id}]
    told = litellm.completion(**options(url, messages=asked, tools=TOOLS))
    assert told.choices[0].message.content == answer(ITEM)["content"]


def test_structured_outputs_are_validated(url: str) -> None:
    from pydantic import BaseModel

    class Price(BaseModel):
        price: int

    told = litellm.completion(**options(url, response_format=Price, max_tokens=60)).choices[0].message.content
    assert Price.model_validate_json(told)


def test_texts_go_on_with_their_likelihoods(url: str) -> None:
    asked = options(url, prompt=f"<|user|>\n{ASKED}<|assistant|>", max_tokens=40, logprobs=1)
    del asked["messages"]
    told = litellm.text_completion(**asked | {"model": "text-completion-openai/tiny"})
    assert told.choices[0].text == "\n" + TOLD
    assert max(told.choices[0].logprobs.token_logprobs) <= 0


def test_errors_are_those_that_it_knows(url: str) -> None:
    with pytest.raises(litellm.ContextWindowExceededError, match="maximum context length is 512 tokens"):
        litellm.completion(**options(url, messages=[{"role": "user", "content": "裙" * 20000}]))
    with pytest.raises(litellm.NotFoundError, match="does not exist"):
        litellm.completion(**options(url, model="openai/other"))
    with pytest.raises(litellm.BadRequestError, match="has role `wizard`"):
        litellm.completion(**options(url, messages=[{"role": "wizard", "content": "a"}]))
