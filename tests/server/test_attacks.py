"""What one client sends harms no other: streams go on with the right text, and the server says that it is well."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from serving_rows import PLAIN

NUM_INNOCENT = 8
HEALTH_SECONDS = 0.25
NUM_TRIES = 4
CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
HEADERS = {"Content-Type": "application/json"}
MESSAGES = [{"role": "user", "content": "a"}]


@pytest.fixture(scope="module")
def attacked(tool_model: Path, serve_in_thread) -> Iterator[str]:
    with serve_in_thread(tool_model, max_request_bytes=4 * 1024 * 1024) as url:
        yield url


Attack = Callable[[str], list[int]]
"""Takes the server's address; returns the statuses of its answers."""


def posted(*bodies: bytes, path: str = CHAT) -> Attack:
    def attack(url: str) -> list[int]:
        with httpx.Client(base_url=url, timeout=30) as client:
            return [client.post(path, content=each, headers=HEADERS).status_code for each in bodies]

    return attack


def chat(**fields: Any) -> Attack:
    return posted(json.dumps({"model": "tiny", "messages": MESSAGES, "max_tokens": 4, **fields}).encode())


def text(**fields: Any) -> Attack:
    return posted(json.dumps({"model": "tiny", "max_tokens": 4, **fields}).encode(), path=TEXT)


def json_schema(schema: Any) -> Any:
    return {"type": "json_schema", "json_schema": {"schema": schema}}


def deep(number: int) -> Any:
    schema: Any = {}
    for _ in range(number // 2):
        schema = {"items": schema}
    return schema


def several_schemas(schemas: list[Any]) -> Attack:
    fields = {"model": "tiny", "messages": MESSAGES, "max_tokens": 4}
    return posted(*(json.dumps({**fields, "response_format": json_schema(each)}).encode() for each in schemas))


def raw(data: bytes, *, num_connections: int = 1) -> Attack:
    """Send bytes that are no whole request, and leave."""

    def attack(url: str) -> list[int]:
        host, port = url.removeprefix("http://").split(":")
        with contextlib.ExitStack() as stack:
            for _ in range(num_connections):
                stack.enter_context(socket.create_connection((host, int(port)), timeout=20)).sendall(data)
            time.sleep(0.1)
        return []

    return attack


UPLOAD = (
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    b"Content-Length: 9000\r\n\r\n{"
)
LONG = "裙子颜色 and words, " * 95_000

ATTACKS: dict[str, tuple[Attack, set[int]]] = {
    "top_k beyond 64 bits": (chat(top_k=2**63, temperature=1), {400}),
    "top_k beyond the vocabulary": (chat(top_k=2**31 - 1, temperature=1), {200}),
    "a tiny repetition penalty": (chat(repetition_penalty=1e-300, temperature=1), {400}),
    "a huge repetition penalty": (chat(repetition_penalty=1e300, temperature=1), {400}),
    "the smallest penalties": (chat(repetition_penalty=0.01, frequency_penalty=-2, temperature=1), {200}),
    "a tiny temperature": (chat(temperature=1e-300), {200}),
    "NaN": (chat(temperature=float("nan")), {400}),
    "infinity": (posted(b'{"model": "tiny", "messages": [{"role": "user", "content": "a"}], "top_p": 1e999}'), {400}),
    "a huge seed": (chat(seed=10**400, temperature=1), {400}),
    "a huge number of tokens": (chat(max_tokens=10**30), {400}),
    "a number of 100,000 digits": (posted(b'{"seed": ' + b"9" * 100_000 + b"}"), {400}),
    "every token has a bias": (chat(logit_bias=dict.fromkeys(map(str, range(200_000)), 100)), {400}),
    "a bias that forbids all": (chat(logit_bias=dict.fromkeys(map(str, range(1000)), -100)), {200}),
    "ids that are none": (text(prompt=[[2**70]]), {400}),
    "negative ids": (text(prompt=[-1]), {400}),
    "3,000 prompts 128 times": (text(prompt=["a"] * 3000, n=128, temperature=1), {400}),
    "128 answers": (chat(n=128, temperature=1), {200}),
    "3.9 MB of text": (chat(messages=[{"role": "user", "content": LONG}]), {400}),
    "3.9 MB of one word": (text(prompt="a" * 3_900_000), {400}),
    "60,000 messages": (chat(messages=MESSAGES * 60_000), {400}),
    "1.3 million empty lists": (posted(b'{"prompt": [' + b"[]," * 1_300_000 + b"[]]}", path=TEXT), {413}),
    "200,000 wrong entries": (text(prompt=[None] * 190_000), {400}),
    "200,000 fields": (chat(**dict.fromkeys(map(str, range(100_000)), 1)), {200}),
    "deep JSON": (posted(b"[" * 4_000_000), {413}),
    "a long stop string": (chat(stop=["a" * 1_000_000]), {400}),
    "half a character": (
        posted(
            *(
                json.dumps({"model": "tiny", "messages": MESSAGES, "max_tokens": 2, **fields}).encode()
                for fields in (
                    {"model": "\ud83d"},
                    {"messages": [{"role": "user", "content": "\ud83d"}]},
                    {"stop": "\udc00"},
                    {"user": "\ud83d"},
                    {"\ud83d": 1},
                    {"tools": [{"type": "function", "function": {"name": "\ud83d"}}]},
                    {"chat_template_kwargs": {"\ud83d": "\ud83d"}},
                )
            ),
            b'{"model": "\xed\xa0\xbd"}',
        ),
        {400},
    ),
    "tools that are none": (chat(tools=[{"function": 3}, {"type": None}], tool_choice="required"), {400}),
    "a schema that is deep": (chat(response_format=json_schema({"items": deep(400)})), {400}),
    "a schema of many fields": (
        chat(response_format=json_schema({"properties": {f"field{n}": {"type": "string"} for n in range(2000)}})),
        {200},
    ),
    "choices that multiply": (
        chat(response_format=json_schema({"allOf": [{"anyOf": [{"required": [f"a{n}"]}, {}]} for n in range(40)]})),
        {200},
    ),
    "a multiple of much": (chat(response_format=json_schema({"type": "integer", "multipleOf": 99_991})), {200}),
    "ever new multiples": (several_schemas([{"type": "integer", "multipleOf": 70_001 + n} for n in range(8)]), {200}),
    "repeated repetitions": (
        chat(structured_outputs={"regex": "((a{1,100}b?){1,100}c?){1,100}"}, n=16, max_tokens=100, seed=1),
        {200},
    ),
    "an ambiguous grammar": (
        chat(structured_outputs={"grammar": 'start: e\ne: e e | e e e | "a" | "" | /[a-z]+/'}, n=16, max_tokens=64),
        {200},
    ),
    "schemas for 128 answers": (
        chat(response_format=json_schema({"type": "object"}), n=128, temperature=1, max_tokens=8),
        {200},
    ),
    "a template of one's own": (chat(chat_template_kwargs={"chat_template": "{{ 7 * 7 }}"}), {400}),
    "a client that leaves while it sends": (raw(UPLOAD, num_connections=20), set()),
    "half-open connections": (raw(b"POST /v1/chat", num_connections=50), set()),
    "no HTTP": (raw(b"\x16\x03\x01\x00\r\n\r\n" * 10), set()),
}


def followed(url: str, number: int) -> str:
    """Return the streamed answer to one of the rows that the model has learnt."""
    body = {"model": "tiny", "temperature": 0, "stream": True}
    body["messages"] = [{"role": "user", "content": list(PLAIN)[number % len(PLAIN)]}]
    told = ""
    with httpx.stream("POST", url + CHAT, json=body, timeout=30) as response:
        for line in response.iter_lines():
            if line.startswith("data: {"):
                told += json.loads(line[6:])["choices"][0]["delta"].get("content") or ""
    return told


def slowest_health(url: str, is_over: threading.Event) -> float:
    """Return the longest time in seconds that `/health` took until it is over."""
    slowest = 0.0
    with httpx.Client(base_url=url, timeout=30) as client:
        client.get("/version")
        while not is_over.is_set():
            started = time.monotonic()
            assert client.get("/health").json() == {"status": "ok"}
            slowest = max(slowest, time.monotonic() - started)
            time.sleep(0.01)
    return slowest


@pytest.mark.parametrize("name", ATTACKS)
def test_eight_streams_and_health_go_on_under_an_attack(
    name: str, attacked: str, capfd: pytest.CaptureFixture[str]
) -> None:
    # What holds up `/health` does so each time; another program that wants the processor does not.
    for _ in range(NUM_TRIES):
        if slowest_health_under(name, attacked) < HEALTH_SECONDS:
            break
    else:
        pytest.fail(f"`/health` took {HEALTH_SECONDS} s or more in each of {NUM_TRIES} tries")
    assert "Traceback" not in capfd.readouterr().err


def slowest_health_under(name: str, attacked: str) -> float:
    """Return the longest time in seconds that `/health` took; raises where an innocent stream was harmed."""
    attack, statuses = ATTACKS[name]
    is_over = threading.Event()
    with ThreadPoolExecutor(NUM_INNOCENT + 2) as threads:
        health = threads.submit(slowest_health, attacked, is_over)
        harm = threads.submit(attack, attacked)
        innocent = [threads.submit(followed, attacked, number) for number in range(NUM_INNOCENT)]
        told = [each.result(60) for each in innocent]
        answered = harm.result(60)
        is_over.set()
        slowest = health.result(30)
    assert told == list(PLAIN.values()) * (NUM_INNOCENT // len(PLAIN))
    assert set(answered) == statuses
    return slowest
