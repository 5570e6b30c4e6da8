"""`glmtune serve` as a program: how it starts, and how it ends in the middle of its work."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from glmtune.errors import GlmtuneError
from glmtune.server.run import Limits, _listen, serve


@contextmanager
def program(*options: str, **environment: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """Start the server; yields its process and port once it listens."""
    command = [sys.executable, "-m", "glmtune", "serve", "demo", "--port", "0", *options]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ | environment) as process:
        try:
            assert process.stderr is not None
            for line in process.stderr:
                found = re.fullmatch(r"listening at http://127\.0\.0\.1:(\d+)/v1 \(Ctrl-C ends it\)\n", line)
                if found:
                    yield process, int(found[1])
                    break
        finally:
            process.kill()


def begin(port: int, **options: Any) -> http.client.HTTPConnection:
    """Send a request for a long answer."""
    connection = http.client.HTTPConnection(f"127.0.0.1:{port}", timeout=60)
    messages = [{"role": "user", "content": "a"}]
    body = {"model": "demo", "messages": messages, "temperature": 2, **options}
    connection.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
    return connection


def never_ending(demo_tokenizer: Any) -> dict[str, int]:
    stops = demo_tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|user|>", "<|observation|>"])
    return {str(token): -100 for token in stops}


@pytest.mark.slow
def test_at_sigterm_answers_are_finished_first(demo_tokenizer: Any) -> None:
    with program("--no-request-log") as (process, port):
        asked = begin(port, max_tokens=150, logit_bias=never_ending(demo_tokenizer))
        time.sleep(0.3)
        process.send_signal(signal.SIGTERM)
        answer = json.loads(asked.getresponse().read())
        assert answer["usage"]["completion_tokens"] == 150
        assert process.wait(20) == 0
        assert process.stderr is not None
        assert process.stderr.read() == "the server has ended\n"


@pytest.mark.slow
def test_what_is_not_finished_in_time_is_told_so(demo_tokenizer: Any) -> None:
    with program("--shutdown-seconds", "1") as (process, port):
        long = {"max_tokens": 8000, "logit_bias": never_ending(demo_tokenizer)}
        whole, streamed = begin(port, **long), begin(port, **long, stream=True)
        stream = streamed.getresponse()
        assert stream.readline().startswith(b"data: ")
        process.send_signal(signal.SIGINT)
        response = whole.getresponse()
        error = {"message": "the server is shutting down", "type": "server_error", "param": None, "code": None}
        assert (response.status, json.loads(response.read())) == (503, {"error": error})
        events = stream.read().decode().split("\n\n")
        assert json.loads(events[-2].removeprefix("data: ")) == {"error": error}
        assert process.wait(20) == 130


@pytest.mark.slow
def test_the_process_ends_within_its_time_while_answers_are_written(demo_tokenizer: Any) -> None:
    with program("--shutdown-seconds", "4") as (process, port):
        stream = begin(port, max_tokens=8000, logit_bias=never_ending(demo_tokenizer), stream=True).getresponse()
        assert stream.readline().startswith(b"data: ")
        process.send_signal(signal.SIGTERM)
        started = time.monotonic()
        assert process.wait(20) == 0
        # The answer is broken off after 2 s. Python's own end comes on top of the 4: a second and more on busy cores.
        assert 1 < time.monotonic() - started < 8


@pytest.mark.slow
def test_it_asks_for_its_name_and_its_key_lets_a_page_in_and_keeps_a_log() -> None:
    page = {"Origin": "http://localhost:3000", "Access-Control-Request-Method": "POST"}
    options = ("--cors-origin", page["Origin"], "--allowed-host", "gpu1")
    with program(*options, GLMTUNE_API_KEY="secret") as (process, port):
        for method, headers, status in (
            ("GET", {}, 401),  # the key comes from the environment
            ("GET", {"Authorization": "Bearer secret"}, 200),
            ("GET", {"Host": "gpu1", "Authorization": "Bearer secret"}, 200),
            ("GET", {"Host": "evil.example", "Authorization": "Bearer secret"}, 421),
            ("OPTIONS", page, 200),
        ):
            connection = http.client.HTTPConnection(f"127.0.0.1:{port}", timeout=60)
            connection.request(method, "/v1/models?key=secret", headers=headers)
            assert connection.getresponse().status == status
            assert process.stderr is not None
            line = process.stderr.readline()
            assert re.fullmatch(rf"{method} /v1/models {status} \d+\.\d\d s\n", line), line


IN_A_THREAD = """
import os, threading
from glmtune import serve
threading.Thread(target=serve, args=("demo",), kwargs={"port": 0}, daemon=True).start()
input()  # the main thread goes on with something else
"""
IN_A_LOOP = """
import asyncio
from glmtune import serve
async def cell():
    serve("demo", port=0, log_requests=False)
    await asyncio.sleep(0)
try:
    asyncio.run(cell())
except KeyboardInterrupt:
    print("interrupted")
"""


@contextmanager
def script(text: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """Run Python that serves; yields its process and the port once it listens."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", text], text=True, **pipes) as process:
        try:
            assert process.stderr is not None
            told = []
            for line in process.stderr:
                told.append(line)
                if found := re.match(r"listening at http://127\.0\.0\.1:(\d+)/", line):
                    yield process, int(found[1])
                    break
            else:
                pytest.fail("".join(told))
        finally:
            process.kill()


@pytest.mark.slow
@pytest.mark.parametrize("is_writing", [False, True])
def test_a_server_in_a_thread_ends_with_the_program(demo_tokenizer: Any, is_writing: bool) -> None:
    with script(IN_A_THREAD) as (process, port):
        streamed = begin(port, max_tokens=8000, logit_bias=never_ending(demo_tokenizer), stream=True)
        stream = streamed.getresponse()
        assert stream.readline().startswith(b"data: ")
        if not is_writing:
            streamed.close()
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.wait(30) == 0


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_server_in_a_running_event_loop_answers_and_ends_at_a_signal(demo_tokenizer: Any, number: int) -> None:
    with script(IN_A_LOOP) as (process, port):
        asked = begin(port, max_tokens=100, logit_bias=never_ending(demo_tokenizer))
        time.sleep(0.3)
        process.send_signal(number)
        answer = json.loads(asked.getresponse().read())
        assert answer["usage"]["completion_tokens"] == 100
        assert process.wait(30) == 0
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.read() == ("interrupted\n" if number == signal.SIGINT else "")
        assert process.stderr.read() == "the server has ended\n"


def test_a_port_that_is_taken_is_told_before_the_model_is_loaded() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(GlmtuneError) as caught:
            serve("demo", port=port)
    assert str(caught.value) == (
        f"cannot listen at 127.0.0.1:{port}: Address already in use\n"
        "hint: choose another `--port`, or end what listens there"
    )


def test_what_is_accepted_sends_at_once() -> None:
    with _listen("127.0.0.1", 0) as listener, socket.create_connection(listener.getsockname()):
        accepted, _ = listener.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_a_name_that_leads_nowhere_is_told_in_the_words_of_the_system() -> None:
    with pytest.raises(GlmtuneError) as caught:
        serve("demo", host="no name\x1b[2J", port=1)
    assert re.match(r"cannot listen at no name\\x1b\[2J:1: (?!Unknown error)\w", str(caught.value))


def test_a_limit_beyond_the_model_is_told() -> None:
    with pytest.raises(GlmtuneError) as caught:
        serve("demo", port=0, limits=Limits(max_length=10_000))
    assert str(caught.value) == "`--max-length` is 10000; the model was made for 8192 tokens"


def test_a_model_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(GlmtuneError, match="does not exist"):
        serve(tmp_path / "none", port=0)
