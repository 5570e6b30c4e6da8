"""OpenAI's own Python client: each part of it that people call, with what it makes of the answers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import BaseModel, Field
from serving_rows import ITEMS, PLAIN, TOOLS, answer, question, result

openai = pytest.importorskip("openai", reason="needs the `serve` extra")

ASKED, TOLD = next(iter(PLAIN.items()))
ITEM = next(iter(ITEMS))
MESSAGES: list[Any] = [{"role": "user", "content": ASKED}]
OPTIONS: dict[str, Any] = {"model": "tiny", "temperature": 0, "max_tokens": 60}


class Garment(BaseModel):
    """A piece of clothing; bounded, since the model has no end of its own for it."""

    name: str = Field(max_length=4)
    is_new: bool


class QueryPrice(BaseModel):
    """查询价格"""  # noqa: D415

    item: str = Field(max_length=12)


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[Any]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_a_chat_is_answered(client: Any) -> None:
    told = client.chat.completions.create(messages=MESSAGES, **OPTIONS)
    [choice] = told.choices
    assert (choice.message.role, choice.message.content, choice.finish_reason) == ("assistant", TOLD, "stop")
    assert (told.object, told.model, choice.logprobs) == ("chat.completion", "tiny", None)
    assert told.usage.total_tokens == told.usage.prompt_tokens + told.usage.completion_tokens
    raw = client.chat.completions.with_raw_response.create(messages=MESSAGES, **OPTIONS)
    assert raw.headers["x-request-id"]
    assert raw.parse().choices[0].message.content == TOLD


def test_a_stream_is_put_together(client: Any) -> None:
    chunks = list(
        client.chat.completions.create(
            messages=MESSAGES, stream=True, stream_options={"include_usage": True}, **OPTIONS
        )
    )
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == TOLD
    assert (chunks[-1].choices, chunks[-1].usage.completion_tokens > 3) == ([], True)
    with client.chat.completions.stream(messages=MESSAGES, **OPTIONS) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_completion()
    assert {"chunk", "content.delta", "content.done"} <= kinds
    assert final.choices[0].message.content == TOLD


def test_likelihoods_come_with_their_tokens(client: Any) -> None:
    told = client.chat.completions.create(messages=MESSAGES, logprobs=True, top_logprobs=2, **OPTIONS)
    tokens = told.choices[0].logprobs.content
    assert bytes(byte for token in tokens for byte in token.bytes).decode().strip() == TOLD
    assert all(len(token.top_logprobs) == 2 and token.logprob <= 0 for token in tokens)


def test_objects_of_a_class_are_parsed(client: Any) -> None:
    parsed = client.chat.completions.parse(messages=MESSAGES, response_format=Garment, **OPTIONS)
    assert isinstance(parsed.choices[0].message.parsed, Garment)
    with client.chat.completions.stream(messages=MESSAGES, response_format=Garment, **OPTIONS) as stream:
        assert isinstance(stream.get_final_completion().choices[0].message.parsed, Garment)
    tool = openai.pydantic_function_tool(QueryPrice, name="query_price")
    called = client.chat.completions.parse(
        messages=[question(ITEM)], tools=[tool], tool_choice="required", parallel_tool_calls=False, **OPTIONS
    )
    [made] = called.choices[0].message.tool_calls
    assert isinstance(made.function.parsed_arguments, QueryPrice)


def test_a_function_is_called_whole_and_streamed(client: Any) -> None:
    called = client.chat.completions.create(messages=[question(ITEM)], tools=TOOLS, **OPTIONS).choices[0]
    [made] = called.message.tool_calls
    assert (made.function.name, json.loads(made.function.arguments)) == ("query_price", {"item": ITEM})
    assert (called.finish_reason, called.message.content) == ("tool_calls", None)
    with client.chat.completions.stream(messages=[question(ITEM)], tools=TOOLS, **OPTIONS) as stream:
        events = [event.type for event in stream]
        [streamed] = stream.get_final_completion().choices[0].message.tool_calls
    assert events.count("tool_calls.function.arguments.delta") > 1
    assert events.count("tool_calls.function.arguments.done") == 1
    assert json.loads(streamed.function.arguments) == {"item": ITEM}
    history = [question(ITEM), called.message, result(ITEM) | {"tool_call_id": made.id}]
    told = client.chat.completions.create(messages=history, tools=TOOLS, **OPTIONS)
    assert told.choices[0].message.content == answer(ITEM)["content"]


def test_texts_go_on(client: Any) -> None:
    prompt = f"<|user|>\n{ASKED}<|assistant|>"
    told = client.completions.create(prompt=prompt, logprobs=1, **OPTIONS)
    assert told.choices[0].text == "\n" + TOLD
    assert len(told.choices[0].logprobs.token_logprobs) == told.usage.completion_tokens
    chunks = client.completions.create(prompt=prompt, stream=True, **OPTIONS)
    assert "".join(chunk.choices[0].text for chunk in chunks) == "\n" + TOLD
    both = client.completions.create(prompt=[prompt, prompt], n=2, echo=True, **OPTIONS)
    assert [choice.index for choice in both.choices] == [0, 1, 2, 3]


def test_models_are_listed_and_told_one_by_one(client: Any) -> None:
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").max_model_len == 512


def test_responses_are_made_streamed_and_parsed(client: Any) -> None:
    options = {"model": "tiny", "temperature": 0, "max_output_tokens": 60}
    told = client.responses.create(input=ASKED, **options)
    assert (told.output_text, told.status) == (TOLD, "completed")
    with client.responses.stream(input=ASKED, **options) as stream:
        kinds = {event.type for event in stream}
        assert stream.get_final_response().output_text == TOLD
    assert {"response.created", "response.output_text.delta", "response.completed"} <= kinds
    assert isinstance(client.responses.parse(input=ASKED, text_format=Garment, **options).output_parsed, Garment)
    tools = [{"type": "function", "strict": False, **TOOLS[0]["function"]}]
    [made] = client.responses.create(input=[question(ITEM)], tools=tools, **options).output
    assert (made.type, json.loads(made.arguments)) == ("function_call", {"item": ITEM})


def test_64_clients_at_once_are_answered(url: str) -> None:
    async def all_at_once() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:

            async def one(number: int) -> str:
                if number % 2:
                    told = await client.chat.completions.create(messages=MESSAGES, **OPTIONS)
                    return str(told.choices[0].message.content)
                stream = await client.chat.completions.create(messages=MESSAGES, stream=True, **OPTIONS)
                return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

            return await asyncio.gather(*map(one, range(64)))

    assert asyncio.run(all_at_once()) == [TOLD] * 64


def test_errors_are_of_the_clients_kinds(client: Any, tool_model: Any, serve_in_thread: Any) -> None:
    with pytest.raises(openai.NotFoundError, match="does not exist"):
        client.chat.completions.create(messages=MESSAGES, **OPTIONS | {"model": "other"})
    with pytest.raises(openai.BadRequestError, match="maximum context length is 512 tokens") as caught:
        client.chat.completions.create(messages=[{"role": "user", "content": "裙" * 9000}], **OPTIONS)
    assert (caught.value.code, caught.value.type) == ("context_length_exceeded", "invalid_request_error")
    with pytest.raises(openai.LengthFinishReasonError):
        client.chat.completions.parse(messages=MESSAGES, response_format=Garment, **OPTIONS | {"max_tokens": 2})
    with serve_in_thread(tool_model, api_key="secret") as guarded:
        other = openai.OpenAI(base_url=f"{guarded}/v1", api_key="wrong", max_retries=0)
        with pytest.raises(openai.AuthenticationError, match="incorrect API key"):
            other.models.list()
