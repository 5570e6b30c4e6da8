"""The server as OpenAI's own client sees it."""

from __future__ import annotations

import asyncio
import http.client
import json
import time
from pathlib import Path
from typing import Any

import openai
import pytest
from serving_rows import ITEMS, PLAIN, REPLY, THANKS, TOOLS, answer, call, question, result

from glmtune.chatformat.replies import ToolCall
from glmtune.modeling.finding.model_source import find_model
from glmtune.server.engine import End, Engine, Token
from glmtune.server.models import load_models
from glmtune.server.requests import ChatRequest
from glmtune.server.service import Service, Update, answer_seed

ASKED, TOLD = next(iter(PLAIN.items()))
ITEM = next(iter(ITEMS))


@pytest.fixture(scope="module")
def client(url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)


def ask(client: openai.OpenAI, content: str = ASKED, **options: Any) -> Any:
    messages = [{"role": "user", "content": content}]
    return client.chat.completions.create(model="tiny", messages=messages, temperature=0, **options)


def test_models_are_listed(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").id == "tiny"


def test_a_plain_answer(client: openai.OpenAI) -> None:
    done = ask(client)
    assert done.choices[0].message.content == TOLD
    assert done.choices[0].message.role == "assistant"
    assert done.choices[0].finish_reason == "stop"
    assert done.usage.total_tokens == done.usage.prompt_tokens + done.usage.completion_tokens
    assert done.usage.completion_tokens > 3


def test_a_stream_has_one_id_and_the_same_text(client: openai.OpenAI) -> None:
    chunks = list(ask(client, stream=True, stream_options={"include_usage": True}))
    assert len({chunk.id for chunk in chunks}) == 1
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == TOLD
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1]] == [None] * (len(chunks) - 2) + ["stop"]
    assert chunks[-1].choices == []
    assert chunks[-1].usage == ask(client).usage
    assert len(chunks) > 5


def test_text_is_streamed_also_when_tools_are_given(client: openai.OpenAI) -> None:
    chunks = list(ask(client, THANKS, stream=True, tools=TOOLS, tool_choice="auto"))
    pieces = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices[0].delta.content]
    assert len(pieces) > 3
    assert "".join(pieces) == REPLY


def test_a_tool_is_called_and_its_result_answered(client: openai.OpenAI) -> None:
    messages: list[Any] = [question(ITEM)]
    done = client.chat.completions.create(model="tiny", messages=messages, tools=TOOLS, temperature=0)
    message = done.choices[0].message
    assert done.choices[0].finish_reason == "tool_calls"
    assert message.content is None
    assert message.tool_calls[0].function.name == "query_price"
    assert json.loads(message.tool_calls[0].function.arguments) == {"item": ITEM}
    # What came back goes into the next request as it is, as the client's own examples do.
    messages += [message, result(ITEM) | {"tool_call_id": message.tool_calls[0].id}]
    done = client.chat.completions.create(model="tiny", messages=messages, tools=TOOLS, temperature=0)
    assert done.choices[0].message.content == answer(ITEM)["content"]
    assert done.choices[0].finish_reason == "stop"


def test_a_tool_call_is_streamed_as_deltas(client: openai.OpenAI) -> None:
    chunks = list(
        client.chat.completions.create(model="tiny", messages=[question(ITEM)], tools=TOOLS, temperature=0, stream=True)
    )
    deltas = [call for chunk in chunks for call in chunk.choices[0].delta.tool_calls or ()]
    assert deltas[0].function.name == "query_price"
    assert deltas[0].id.startswith("call_")
    assert deltas[0].type == "function"
    assert {delta.index for delta in deltas} == {0}
    assert all(delta.id is None and delta.function.name is None for delta in deltas[1:])
    assert json.loads("".join(delta.function.arguments for delta in deltas)) == {"item": ITEM}
    assert (deltas[0].function.arguments, len(deltas) > 3) == ("", True)
    whole = client.chat.completions.create(model="tiny", messages=[question(ITEM)], tools=TOOLS, temperature=0)
    written = "".join(delta.function.arguments for delta in deltas)
    assert written == whole.choices[0].message.tool_calls[0].function.arguments
    assert not any(chunk.choices[0].delta.content for chunk in chunks)
    assert chunks[-1].choices[0].finish_reason == "tool_calls"


def test_the_official_client_puts_a_streamed_call_together(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(model="tiny", messages=[question(ITEM)], tools=TOOLS, temperature=0) as stream:
        kinds = [event.type for event in stream]
        message = stream.get_final_completion().choices[0].message
    assert kinds.count("tool_calls.function.arguments.delta") > 2
    assert json.loads(message.tool_calls[0].function.arguments) == {"item": ITEM}


def test_a_streamed_call_that_is_cut_off_has_the_arguments_so_far(client: openai.OpenAI) -> None:
    chunks = list(
        client.chat.completions.create(
            model="tiny", messages=[question(ITEM)], tools=TOOLS, temperature=0, stream=True, max_tokens=8
        )
    )
    deltas = [call for chunk in chunks for call in chunk.choices[0].delta.tool_calls or ()]
    whole = f'{{"item": "{ITEM}"}}'
    written = "".join(delta.function.arguments for delta in deltas)
    assert written
    assert whole.startswith(written)
    assert written != whole
    assert chunks[-1].choices[0].finish_reason == "length"


def test_tool_choice_none_calls_nothing(client: openai.OpenAI) -> None:
    done = client.chat.completions.create(
        model="tiny", messages=[question(ITEM)], tools=TOOLS, tool_choice="none", temperature=0
    )
    assert done.choices[0].message.tool_calls is None


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "query_price"}}])
def test_a_call_can_be_required(choice: Any, client: openai.OpenAI) -> None:
    begin = client.chat.completions.create(
        model="tiny", messages=[{"role": "user", "content": ASKED}], tools=TOOLS, tool_choice=choice, temperature=0,
        logprobs=True, max_tokens=200,
    )  # fmt: skip
    written = "".join(token.token for token in begin.choices[0].logprobs.content)
    assert written.startswith("query_price\n")


@pytest.mark.parametrize("is_parallel", [True, False])
def test_an_answer_ends_with_its_first_call_where_only_one_is_taken(tool_model: Path, is_parallel: bool) -> None:
    models = load_models(find_model(tool_model), "tiny", {})
    limits = {"max_rows": 1, "max_batch_tokens": 512, "max_waiting": 1, "keeps_last_logits": True}
    engine = Engine(models.lanes, [], **limits)  # which is never started
    service = Service(models, engine, max_length=512)
    request = ChatRequest(model="tiny", messages=[question("a")], tools=TOOLS, parallel_tool_calls=is_parallel)
    written = 'query_price\n{"item": "a"}<|assistant|>query_price\n{"item": "b"}<|assistant|>\nc'

    async def followed() -> list[Update]:
        choices = await service.start_chat(request)
        for token in models.tokenizer(written, add_special_tokens=False)["input_ids"]:
            choices.jobs[0].on_event(Token(id=token))
        choices.jobs[0].on_event(End(is_cut=False))
        updates = [update async for update in service.follow(choices)]
        assert choices.jobs[0].is_cancelled
        return updates

    updates = asyncio.run(followed())
    calls = [
        json.loads(event.arguments) for update in updates for event in update.events if isinstance(event, ToolCall)
    ]
    assert calls == ([{"item": "a"}, {"item": "b"}] if is_parallel else [{"item": "a"}])
    assert [update.finish_reason for update in updates if update.finish_reason] == ["tool_calls"]


def test_the_first_of_the_stop_strings_ends_the_answer(client: openai.OpenAI) -> None:
    cut = TOLD.index("为墨")
    for stream in (False, True):
        done = ask(client, stop=["不在", "为墨"], stream=stream)
        if stream:
            chunks = list(done)
            text, reason = (
                "".join(c.choices[0].delta.content or "" for c in chunks),
                chunks[-1].choices[0].finish_reason,
            )
        else:
            text, reason = done.choices[0].message.content, done.choices[0].finish_reason
        assert (text, reason) == (TOLD[:cut], "stop")


def test_max_tokens_ends_the_answer_with_length(client: openai.OpenAI) -> None:
    done = ask(client, max_tokens=3)
    assert done.choices[0].finish_reason == "length"
    assert done.usage.completion_tokens == 3
    assert TOLD.startswith(done.choices[0].message.content)
    assert ask(client, max_completion_tokens=3).choices[0].message == done.choices[0].message


def test_a_call_that_is_cut_off_comes_back_as_text(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(model="tiny", messages=[question(ITEM)], tools=TOOLS, temperature=0)
    done = client.chat.completions.create(
        model="tiny",
        messages=[question(ITEM)],
        tools=TOOLS,
        temperature=0,
        max_tokens=whole.usage.completion_tokens - 1,
    )
    assert done.choices[0].message.tool_calls is None
    assert done.choices[0].message.content.startswith('query_price\n{"item"')
    assert done.choices[0].finish_reason == "length"


def test_characters_of_several_tokens_come_out_whole(client: openai.OpenAI) -> None:
    chunks = list(
        client.chat.completions.create(
            model="tiny",
            messages=[{"role": "user", "content": "a"}],
            stream=True,
            temperature=2,
            seed=1,
            max_tokens=200,
        )
    )
    streamed = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    whole = client.chat.completions.create(
        model="tiny", messages=[{"role": "user", "content": "a"}], temperature=2, seed=1, max_tokens=200
    )
    assert streamed == whole.choices[0].message.content


def test_logprobs_are_those_of_the_model(client: openai.OpenAI, tool_model: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    done = ask(client, logprobs=True, top_logprobs=3)
    tokens = done.choices[0].logprobs.content
    assert bytes(byte for token in tokens for byte in token.bytes).decode().strip() == TOLD
    model = AutoModelForCausalLM.from_pretrained(tool_model)
    tokenizer = AutoTokenizer.from_pretrained(tool_model)
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": ASKED}], add_generation_prompt=True, return_tensors="pt", return_dict=False
    )
    with torch.no_grad():
        expected = model(prompt).logits[0, -1].log_softmax(-1).topk(3)
    assert [top.logprob for top in tokens[0].top_logprobs] == pytest.approx(expected.values.tolist(), abs=1e-4)
    assert tokens[0].logprob == tokens[0].top_logprobs[0].logprob
    streamed = [
        token
        for chunk in ask(client, logprobs=True, top_logprobs=3, stream=True)
        if chunk.choices[0].logprobs
        for token in chunk.choices[0].logprobs.content
    ]
    assert [token.bytes for token in streamed] == [token.bytes for token in tokens]


@pytest.mark.parametrize(
    ("seed", "number", "expected"),
    [
        (1, 0, 1789866162891828655),
        (1, 1, 2683464844940401643),
        (-1, 0, 13520101137374777751),
        (2**63 - 1, 0, 15453981082641790541),
    ],
)
def test_the_seed_of_an_answer_is_the_same_with_any_python(seed: int, number: int, expected: int) -> None:
    assert answer_seed(seed, number) == expected


def test_a_seed_makes_sampling_repeatable_and_choices_differ(client: openai.OpenAI) -> None:
    def sample(seed: int) -> list[str]:
        done = client.chat.completions.create(
            model="tiny", messages=[{"role": "user", "content": "a"}], temperature=1.5, seed=seed, n=3, max_tokens=20
        )
        return [choice.message.content for choice in done.choices]

    assert sample(1) == sample(1) != sample(2)
    assert len(set(sample(1))) == 3


def test_completions_go_on_with_a_text(client: openai.OpenAI) -> None:
    prompt = f"<|user|>\n{ASKED}<|assistant|>"
    done = client.completions.create(model="tiny", prompt=[prompt, prompt], max_tokens=40, temperature=0, logprobs=1)
    assert [choice.text for choice in done.choices] == ["\n" + TOLD] * 2
    assert done.choices[0].finish_reason == "stop"
    assert len(done.choices[0].logprobs.tokens) * 2 == done.usage.completion_tokens
    streamed = client.completions.create(model="tiny", prompt=prompt, max_tokens=40, temperature=0, stream=True)
    assert "".join(chunk.choices[0].text for chunk in streamed) == "\n" + TOLD


def test_32_clients_at_once_get_the_answers_they_would_get_alone(url: str) -> None:
    requests: list[dict[str, Any]] = []
    for number in range(32):
        if number % 3:
            asked = list(PLAIN)[number % len(PLAIN)]
            requests.append({"messages": [{"role": "user", "content": asked + "*" * (number // 6)}]})
        else:
            requests.append({"messages": [question(list(ITEMS)[number % len(ITEMS)])], "tools": TOOLS})

    async def all_at_once(limit: int) -> list[Any]:
        gate = asyncio.Semaphore(limit)
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:

            async def one(request: dict[str, Any]) -> Any:
                async with gate:
                    done = await client.chat.completions.create(model="tiny", temperature=0, max_tokens=60, **request)
                message = done.choices[0].message
                calls = [(made.function.name, made.function.arguments) for made in message.tool_calls or ()]
                return message.content, calls, done.choices[0].finish_reason, done.usage

            return await asyncio.gather(*map(one, requests))

    alone, together = asyncio.run(all_at_once(1)), asyncio.run(all_at_once(32))
    assert together == alone
    assert any(calls for _, calls, _, _ in alone)


def test_langchain_streams_and_calls_tools(url: str) -> None:
    langchain = pytest.importorskip("langchain_openai", reason="needs langchain-openai")
    chat = langchain.ChatOpenAI(model="tiny", base_url=f"{url}/v1", api_key="none", temperature=0)
    assert chat.invoke(ASKED).content == TOLD
    assert "".join(str(chunk.content) for chunk in chat.stream(ASKED)) == TOLD
    bound = chat.bind_tools(TOOLS)
    called = bound.invoke(question(ITEM)["content"])
    assert [(made["name"], made["args"]) for made in called.tool_calls] == [("query_price", {"item": ITEM})]
    told = bound.invoke([question(ITEM), called, result(ITEM) | {"tool_call_id": called.tool_calls[0]["id"]}])
    assert told.content == answer(ITEM)["content"]


def raw(url: str, body: bytes | str, path: str = "/v1/chat/completions", **headers: str) -> tuple[int, Any]:
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=30)
    data = body.encode() if isinstance(body, str) else body
    connection.request("POST", path, data, {"Content-Type": "application/json", **headers})
    response = connection.getresponse()
    text = response.read().decode()
    connection.close()
    return response.status, json.loads(text)


def body(**changes: Any) -> str:
    return json.dumps({"model": "tiny", "messages": [{"role": "user", "content": "a"}], **changes})


SENT_BY_CLIENTS = {
    "one call at most": {"parallel_tool_calls": False, "tools": TOOLS},
    "vLLM's value for all": {"top_k": -1},
    "reasoning sent back": {
        "messages": [question("a"), {"role": "assistant", "content": "b", "reasoning_content": "c"}, question("d")]
    },
    "a function that returns nothing": {
        "messages": [question("a"), call(ITEM), {"role": "tool", "tool_call_id": "call_1", "content": ""}],
        "tools": TOOLS,
    },
    "a function that returns null": {
        "messages": [question("a"), call(ITEM), {"role": "tool", "tool_call_id": "call_1", "content": None}],
        "tools": TOOLS,
    },
}


@pytest.mark.parametrize("kind", SENT_BY_CLIENTS)
def test_what_common_clients_send_is_answered(kind: str, url: str) -> None:
    status, answered = raw(url, body(max_tokens=2, **SENT_BY_CLIENTS[kind]))
    assert status == 200, answered


def test_no_limit_of_tokens_is_no_wish_to_sample(client: openai.OpenAI) -> None:
    def told(**options: Any) -> str | None:
        messages: list[Any] = [{"role": "user", "content": "a"}]
        done = client.chat.completions.create(model="tiny", messages=messages, max_tokens=20, **options)
        return done.choices[0].message.content

    assert told(extra_body={"top_k": -1}) == told(extra_body={"top_k": 0}) == told(temperature=0)


REFUSED = {
    "malformed JSON": ("{", 400, None, "the request is not JSON: Expecting property name"),
    "deep JSON": ("[" * 100_000, 400, None, "the request is not JSON: "),
    "a list": ("[1]", 400, None, "input should be"),
    "a field that is not answered": (
        body(length_penalty=2), 400, "length_penalty",
        "`length_penalty` is not answered here: leave it out, or send 1.0",
    ),
    "no messages": (json.dumps({"model": "tiny"}), 400, "messages", "Missing required parameter: `messages`"),
    "an unknown model": (body(model="other"), 404, "model", "the model `other` does not exist; this server has `tiny`"),
    "a wrong type": (body(temperature="hot"), 400, "temperature", "`temperature`: input should be a valid number"),
    "too warm": (
        body(temperature=101), 400, "temperature", "`temperature`: input should be less than or equal to 100",
    ),
    "an unknown role": (
        body(messages=[{"role": "wizard", "content": "a"}]), 400, "messages", "message 0 has role `wizard`",
    ),
    "the assistant's turn": (
        body(messages=[{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]), 400, "messages",
        "the last message is the assistant's; expected one to answer",
    ),
    "an oversized prompt": (
        body(messages=[{"role": "user", "content": "@" * 600}]), 400, "messages",
        "This model's maximum context length is 512 tokens. However, your messages resulted in ",
    ),
    "an oversized answer": (
        body(max_tokens=600), 400, "max_tokens",
        "This model's maximum context length is 512 tokens. However, you requested 606 tokens (6 in the messages, 600 "
        "in the completion). Please reduce the length of the messages or completion.",
    ),
    "a choice without tools": (
        body(tool_choice="required"), 400, "tool_choice", "`tool_choice` wants a call, but there are no `tools`",
    ),
    "half a character": (body(messages=[{"role": "user", "content": "\ud83d"}]), 400, "messages", "message 0 holds"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", REFUSED)
def test_a_request_that_is_wrong_gets_an_error_object(mistake: str, url: str) -> None:
    sent, status, param, message = REFUSED[mistake]
    code, answered = raw(url, sent)
    error = answered["error"]
    assert (code, error["param"]) == (status, param), error
    assert error["message"].startswith(message)
    assert error["type"] in ("invalid_request_error", "not_found_error")
    assert raw(url, body(max_tokens=1))[0] == 200, "the server lives on"


def test_other_content_than_json_is_refused(url: str) -> None:
    status, answered = raw(url, body(), **{"Content-Type": "text/plain"})
    assert (status, answered["error"]["message"]) == (415, "expected `Content-Type: application/json`")


def test_an_unknown_path_gets_an_error_object(url: str) -> None:
    status, answered = raw(url, "{}", path="/v1/embeddings")
    assert (status, answered["error"]["message"]) == (404, "POST /v1/embeddings: Not Found")


def test_a_request_that_is_too_long_is_refused_before_it_is_read(url: str) -> None:
    status, answered = raw(url, b"x" * 1_000_001)
    assert (status, answered["error"]["message"]) == (413, "the request is longer than 1000000 bytes")


def test_the_key_is_asked_for_everywhere_but_for_health(tool_model: Path, serve_in_thread) -> None:
    with serve_in_thread(tool_model, api_key="secret") as url:
        for key in ("wrong", "secre", "secret2"):
            wrong = openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0)
            with pytest.raises(openai.AuthenticationError) as refused:
                wrong.models.list()
            assert refused.value.body == {
                "message": "incorrect API key",
                "type": "authentication_error",
                "param": None,
                "code": "invalid_api_key",
            }
        assert raw(url, body())[0] == 401
        assert ask(openai.OpenAI(base_url=f"{url}/v1", api_key="secret")).choices[0].message.content == TOLD
        connection = http.client.HTTPConnection(url.removeprefix("http://"))
        connection.request("GET", "/health")
        assert json.loads(connection.getresponse().read()) == {"status": "ok"}


def test_beyond_the_queue_requests_are_turned_away(tool_model: Path, serve_in_thread) -> None:
    async def many(url: str) -> list[Any]:
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
            asked = [
                client.chat.completions.create(
                    model="tiny", messages=[{"role": "user", "content": ASKED}], temperature=0
                )
                for _ in range(12)
            ]
            return await asyncio.gather(*asked, return_exceptions=True)

    with serve_in_thread(tool_model, max_rows=1, max_waiting=2) as url:
        answers = asyncio.run(many(url))
        refused = [error for error in answers if isinstance(error, openai.RateLimitError)]
        told = [done for done in answers if not isinstance(done, Exception)]
        assert refused
        assert len(refused) + len(told) == 12
        assert all(done.choices[0].message.content == TOLD for done in told)
        assert refused[0].response.headers["retry-after"] == "1"
        assert refused[0].body["code"] == "rate_limit_exceeded"


def test_a_client_that_hangs_up_leaves_room_for_others(tool_model: Path, serve_in_thread) -> None:
    from transformers import GenerationConfig

    never = dict.fromkeys(map(str, GenerationConfig.from_pretrained(tool_model).eos_token_id), -100)
    with serve_in_thread(tool_model, max_rows=1, max_waiting=1, max_length=8000, max_batch_tokens=8000) as url:
        for stream in (True, False):
            connection = http.client.HTTPConnection(url.removeprefix("http://"))
            endless = body(stream=stream, temperature=2, max_tokens=7000, logit_bias=never)
            connection.request("POST", "/v1/chat/completions", endless, {"Content-Type": "application/json"})
            if stream:
                connection.getresponse().read(10)
            else:
                time.sleep(0.2)
            connection.close()
        started = time.monotonic()
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=5)
        assert ask(client).choices[0].message.content == TOLD
        assert time.monotonic() - started < 20
