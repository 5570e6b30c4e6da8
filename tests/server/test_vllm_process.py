"""vLLM itself, started by `glmtune serve`: what it answers is what our own server answers."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
import torch
from peft import LoraConfig, get_peft_model
from serving_rows import ITEMS, PLAIN, THANKS, TOOLS, call, question, result
from transformers import AutoModelForCausalLM, AutoTokenizer

pytest.importorskip("vllm", reason="needs vLLM, which is installed beside glmtune where it is wanted")
pytestmark = pytest.mark.long

SECONDS_TO_START = 400
KEY = "secret"
NAMED = {"type": "function", "function": {"name": "query_price"}}
ITEM = next(iter(ITEMS))
SYSTEM = {"role": "system", "content": "你是店员。"}
ASKED = next(iter(PLAIN))
REQUESTS: dict[str, dict[str, Any]] = {
    "plain": {"messages": [{"role": "user", "content": ASKED}]},
    "a system message": {"messages": [SYSTEM, {"role": "user", "content": ASKED}]},
    "an adapter": {"messages": [{"role": "user", "content": ASKED}], "model": "odd", "max_tokens": 12},
    "a call": {"messages": [question(ITEM)], "tools": TOOLS},
    "a call after a system message": {"messages": [SYSTEM, question(ITEM)], "tools": TOOLS},
    "no call": {"messages": [{"role": "user", "content": THANKS}], "tools": TOOLS},
    "a result": {"messages": [question(ITEM), call(ITEM), result(ITEM)], "tools": TOOLS},
    "no tools wanted": {"messages": [question(ITEM)], "tools": TOOLS, "tool_choice": "none"},
    "a call required": {"messages": [question(ITEM)], "tools": TOOLS, "tool_choice": "required"},
    "a function named": {"messages": [question(ITEM)], "tools": TOOLS, "tool_choice": NAMED},
    "a call required in the place of a text": {
        "messages": [{"role": "user", "content": THANKS}], "tools": TOOLS, "tool_choice": "required", "max_tokens": 40,
    },
    "cut off": {"messages": [{"role": "user", "content": ASKED}], "max_tokens": 6},
}  # fmt: skip


@pytest.fixture(scope="module")
def adapter(tool_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(tool_model)
    config = LoraConfig(r=16, target_modules=["o_proj"], lora_alpha=64, init_lora_weights=False, task_type="CAUSAL_LM")
    folder = tmp_path_factory.mktemp("adapter")
    get_peft_model(model, config).save_pretrained(str(folder))
    AutoTokenizer.from_pretrained(tool_model).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def own(tool_model: Path, adapter: Path, serve_in_thread) -> Iterator[openai.OpenAI]:
    with serve_in_thread(tool_model, adapters=[f"odd={adapter}"]) as url:
        yield openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)


@pytest.fixture(scope="module")
def server(tool_model: Path, adapter: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[openai.OpenAI]:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "glmtune", "serve", str(tool_model), "--name", "tiny", "--port", str(port)]
    # Half precision is vLLM's choice for weights of single precision; answers are compared with those of the latter.
    command += ["--adapter", f"odd={adapter}", "--max-length", "512", "--backend", "vllm"]
    command += ["--vllm-args", "--dtype float32"]
    log = tmp_path_factory.mktemp("vllm") / "log"
    with log.open("w") as file:
        environment = os.environ | {"GLMTUNE_API_KEY": KEY, "VLLM_CPU_KVCACHE_SPACE": "1"}
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=environment)
    try:
        deadline = time.monotonic() + SECONDS_TO_START
        while not _is_healthy(port):
            if process.poll() is not None or time.monotonic() > deadline:
                pytest.fail(log.read_text(errors="replace")[-5000:])
            time.sleep(1)
        yield openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key=KEY, max_retries=0)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def _is_healthy(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as answer:
            return answer.status == 200
    except OSError:
        return False


def asked(client: openai.OpenAI, request: dict[str, Any]) -> dict[str, Any]:
    done = client.chat.completions.create(**{"model": "tiny", "temperature": 0, **request})
    choice = done.choices[0]
    calls = [(call.function.name, call.function.arguments) for call in choice.message.tool_calls or ()]
    return facts(request, choice.message.content or "", calls, choice.finish_reason, done.usage.prompt_tokens)


def facts(
    request: dict[str, Any], text: str, calls: list[tuple[str, str]], finish_reason: str | None, num_prompt: int
) -> dict[str, Any]:
    """Return what has to be the same."""
    return {
        # vLLM keeps the line break that GLM-4 begins a text with.
        "text": text.removeprefix("\n"),
        "calls": calls,
        # Where a call was demanded, vLLM says `stop` of one that came and `tool_calls` of one that is broken.
        "finish_reason": None if request.get("tool_choice") in ("required", NAMED) else finish_reason,
        "prompt_tokens": num_prompt,
    }


def streamed(client: openai.OpenAI, request: dict[str, Any]) -> dict[str, Any]:
    options = {"model": "tiny", "temperature": 0, "stream": True, "stream_options": {"include_usage": True}, **request}
    text, calls, finish_reason, num_prompt = "", {}, None, 0
    for chunk in client.chat.completions.create(**options):
        num_prompt = chunk.usage.prompt_tokens if chunk.usage else num_prompt
        for choice in chunk.choices:
            finish_reason = choice.finish_reason or finish_reason
            text += choice.delta.content or ""
            for delta in choice.delta.tool_calls or ():
                name, arguments = calls.get(delta.index, ("", ""))
                calls[delta.index] = (
                    name + (delta.function.name or ""),
                    arguments + (delta.function.arguments or ""),
                )
    return facts(request, text, list(calls.values()), finish_reason, num_prompt)


@pytest.mark.parametrize("name", REQUESTS)
def test_whole_answers_are_those_of_our_own_server(name: str, own: openai.OpenAI, server: openai.OpenAI) -> None:
    assert asked(server, REQUESTS[name]) == asked(own, REQUESTS[name])


@pytest.mark.parametrize("name", REQUESTS)
def test_streamed_answers_are_those_of_our_own_server(name: str, own: openai.OpenAI, server: openai.OpenAI) -> None:
    assert streamed(server, REQUESTS[name]) == streamed(own, REQUESTS[name])


def test_the_requests_are_not_all_alike(own: openai.OpenAI) -> None:
    answers = {name: asked(own, request) for name, request in REQUESTS.items()}
    assert [name for name, found in answers.items() if found["calls"]] == [
        "a call", "a call required", "a function named",
    ]  # fmt: skip
    assert answers["a call required in the place of a text"]["text"].startswith("query_price\n")
    assert answers["an adapter"]["text"] != answers["plain"]["text"]


def test_a_function_that_is_not_offered_is_an_error(server: openai.OpenAI) -> None:
    choice = {"type": "function", "function": {"name": "other"}}
    with pytest.raises(openai.BadRequestError):
        asked(server, {"messages": [question(ITEM)], "tools": TOOLS, "tool_choice": choice})


def test_the_key_is_asked_for(server: openai.OpenAI) -> None:
    with pytest.raises(openai.AuthenticationError):
        asked(openai.OpenAI(base_url=server.base_url, api_key="other", max_retries=0), REQUESTS["plain"])
