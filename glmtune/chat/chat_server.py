"""Answers of any server that speaks OpenAI's protocol."""

from __future__ import annotations

import json
import os
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from urllib.parse import urljoin, urlsplit

from glmtune.chatformat.replies import CutOff, Delta, ToolCall
from glmtune.errors import GlmtuneError, RunFailure, require
from glmtune.family import TEXT_TOOLS

from .chat_session import BEGIN_ANEW, Event, Message, ModelAnswers

LONGEST_REASON = 1000
"""Characters of an error: some servers send pages."""
ELSEWHERE = "x-glmtune-elsewhere"
"""Header under which the address of another server is kept, where nobody follows it."""
DEFAULT_KEY = "OPENAI_API_KEY"


def server_answers(
    url: str,
    *,
    model: str | None = None,
    api_key_env: str | None = None,
    seed: int | None = None,
    thinking: bool | None = None,
    schema: Any = None,
    **options: Any,
) -> ModelAnswers:
    """Connect to a server; returns what answers with its model.

    Args:
        url: Of the API, up to `/v1`.
        model: Its name there; the first that the server lists by default.
        api_key_env: Environment variable that holds the key; `OPENAI_API_KEY` by default, if it is set.
        seed: Makes sampling repeatable; every request gets the next one.
        thinking: Switches reasoning on or off, where the server passes it on to the chat template.
        schema: A JSON Schema, which the server is to have every answer follow.
        options: As `local_answers` takes them; what OpenAI's protocol lacks goes under the names that vLLM has.
    """
    openai = require("openai", extra="serve")
    key = os.environ.get(api_key_env or DEFAULT_KEY)
    if not key and api_key_env is not None:
        raise GlmtuneError(f"the environment variable `{api_key_env}` of `--api-key-env` is not set")
    transport = openai.DefaultHttpxClient(event_hooks={"response": [_stay]})
    with _errors_explained(openai, url):
        client = openai.OpenAI(base_url=url, api_key=key or "none", http_client=transport)
        name, text_tools = _chosen_model(client, url, model)
    request = _request_options(options, thinking)
    if schema is not None:
        held = {"name": "answer", "strict": True, "schema": schema}
        request["response_format"] = {"type": "json_schema", "json_schema": held}
    num_requests = 0

    def answer(messages: Sequence[Message], tools: Sequence[dict[str, Any]]) -> Generator[Event]:
        nonlocal num_requests
        settings = dict(request)
        if tools:
            settings["tools"] = list(tools)
        if seed is not None:
            settings["seed"] = seed + num_requests
        num_requests += 1
        with (
            _errors_explained(openai, url),
            client.chat.completions.create(
                model=name, messages=_for_server(messages), stream=True, **settings
            ) as chunks,
        ):
            yield from _events(chunks)

    return ModelAnswers(answer, text_tools)


def _stay(response: Any) -> None:
    """Keep a redirect to another server, which would get key and conversation, from being followed."""
    target = response.headers.get("location")
    if response.has_redirect_location and not _is_same_server(str(response.url), target):
        response.headers[ELSEWHERE] = response.headers.pop("location")


def _is_same_server(url: str, target: str) -> bool:
    try:
        here, there = (urlsplit(each) for each in (url, urljoin(url, target)))
        return (here.scheme, here.hostname, here.port) == (there.scheme, there.hostname, there.port)
    except ValueError:
        return False


def _chosen_model(client: Any, url: str, wanted: str | None) -> tuple[str, tuple[str, ...]]:
    """Return the name of a model, the first that the server lists by default, and the tools that it knows by type."""
    try:
        found = {each.id: each for each in client.models.list() if isinstance(each.id, str)}
    except (AttributeError, TypeError):  # of the text that openai takes a page for
        found = None
    if wanted is not None:
        return wanted, _text_tools((found or {}).get(wanted))
    if found is None:
        raise GlmtuneError(
            f"the server at `{url}` does not speak OpenAI's protocol",
            fix="give the URL up to `/v1`, such as `http://localhost:8000/v1`",
        )
    if not found:
        raise GlmtuneError(f"the server at `{url}` lists no model", fix="name one with `--model`")
    first = next(iter(found))
    return first, _text_tools(found[first])


def _text_tools(model: Any) -> tuple[str, ...]:
    """Return what `glmtune serve` says of a model beside its name; other servers say no such thing."""
    listed = (getattr(model, "model_extra", None) or {}).get("text_tools")
    return tuple(name for name in TEXT_TOOLS if name in listed) if isinstance(listed, list) else ()


def _request_options(options: dict[str, Any], thinking: bool | None) -> dict[str, Any]:
    """Return what a request says of sampling; `extra_body` holds what OpenAI's own protocol does not know."""
    options = dict(options)
    request: dict[str, Any] = {}
    extra: dict[str, Any] = {}
    if options.pop("do_sample", None) is False:
        request["temperature"] = 0
    for name, value in options.items():
        if name == "max_new_tokens":
            request["max_tokens"] = value
        elif name in ("temperature", "top_p"):
            request[name] = value
        else:
            extra[name] = value
    if thinking is not None:
        extra["chat_template_kwargs"] = {"enable_thinking": thinking}
    return request | ({"extra_body": extra} if extra else {})


def _for_server(messages: Sequence[Message]) -> list[Message]:
    """Return the messages without what is ours alone, and reasoning only of the turn that goes on: servers differ."""
    asked = max((place for place, message in enumerate(messages) if message["role"] == "user"), default=0)
    return [
        {
            key: value
            for key, value in message.items()
            if key != "loss" and (key != "reasoning_content" or place > asked)
        }
        for place, message in enumerate(messages)
    ]


def _events(chunks: Iterator[Any]) -> Generator[Event]:
    """Yield text while it comes, and tool calls, which come in parts, at the end."""
    calls: dict[int, list[str]] = {}
    reason = None
    has_text = False
    for chunk in chunks:
        for choice in (chunk.choices or ())[:1]:
            delta = choice.delta
            more = delta.model_extra or {}
            reasoning = more.get("reasoning_content") or more.get("reasoning")
            if isinstance(reasoning, str) and reasoning:
                yield Delta(text=_whole(reasoning), is_reasoning=True)
            # Of GLM-4 servers hand on the newline that begins every plain answer.
            text = (delta.content or "") if has_text else (delta.content or "").lstrip()
            if text:
                has_text = True
                yield Delta(text=_whole(text))
            for part in delta.tool_calls or ():
                place = part.index if part.index is not None else len(calls)
                call = calls.setdefault(place, ["", ""])
                if part.function is not None:
                    call[0] += part.function.name or ""
                    call[1] += part.function.arguments or ""
            reason = choice.finish_reason or reason
    if reason is None:
        raise ValueError("the answer has no end")
    for name, arguments in (calls[place] for place in sorted(calls)):
        yield _call(_whole(name), _whole(arguments).strip() or "{}")
    if reason == "length":
        yield CutOff()


def _call(name: str, arguments: str) -> ToolCall | Delta:
    """Return a call; what is no call, because its arguments are broken, is text here as everywhere."""
    try:
        is_object = isinstance(json.loads(arguments), dict)
    except (ValueError, RecursionError):
        is_object = False
    return ToolCall(name=name, arguments=arguments) if is_object else Delta(text=f"{name}\n{arguments}")


def _whole(text: str) -> str:
    """Return the text without halves of characters, which JSON may hold and no terminal can show."""
    return text.encode(errors="replace").decode()


@contextmanager
def _errors_explained(openai: Any, url: str) -> Iterator[None]:
    """Turn what a server or the way to it says into an error of ours."""
    import httpx2  # openai stands on it, and its older versions let it through where an answer breaks off

    try:
        yield
    except httpx2.InvalidURL as error:
        raise GlmtuneError(
            f"`--url` is `{url}`, which is no address: {error}", fix="such as `--url http://localhost:8000/v1`"
        ) from None
    except (openai.APIConnectionError, httpx2.HTTPError) as error:
        reason = str(error.__cause__ or error)
        raise RunFailure(
            f"the connection to the server at `{url}` failed: {reason}",
            fix="see that it runs, or mend `--url`; `/retry` asks again",
        ) from None
    except openai.APIStatusError as error:
        fix = {
            401: "set the key in the environment variable that `--api-key-env` names",
            404: "mend `--url`, which ends with `/v1`, or `--model`",
        }
        elsewhere = error.response.headers.get(ELSEWHERE)
        if elsewhere is not None:
            raise RunFailure(
                f"the server at `{url}` sends us to another one, `{_cut(elsewhere)}`, which is not asked",
                fix="where you trust that one, give its address up to `/v1` as `--url`",
            ) from None
        reason = _reason(error)
        is_too_long = error.code == "context_length_exceeded" or "context length" in reason or error.status_code == 413
        raise RunFailure(
            f"the server at `{url}` refuses ({error.status_code}): {reason}",
            fix=BEGIN_ANEW if is_too_long else fix.get(error.status_code),
        ) from None
    except (openai.OpenAIError, ValueError) as error:
        raise RunFailure(f"the server at `{url}` broke off: {_cut(str(error))}", fix="`/retry` asks again") from None
    except (AttributeError, TypeError, RecursionError) as error:  # openai checks no types of what it is sent
        raise RunFailure(
            f"what the server at `{url}` sends is not OpenAI's protocol: {_cut(str(error))}", fix="`/retry` asks again"
        ) from None


def _reason(error: Any) -> str:
    """Return the message of OpenAI's error object, or what the server has sent in its place."""
    body = error.body if isinstance(error.body, dict) else {}
    return _cut(str(body.get("message") or error.message))


def _cut(text: str) -> str:
    """Return a server's text at a length that leaves something else on the screen."""
    return text if len(text) <= LONGEST_REASON else f"{text[:LONGEST_REASON]}... ({len(text):,} characters)"
