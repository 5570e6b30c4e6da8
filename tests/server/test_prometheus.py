"""What Prometheus reads."""

from __future__ import annotations

import http.client
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest
from serving_rows import PLAIN

prometheus = pytest.importorskip("prometheus_client.parser", reason="needs the `serve` extra")
ASKED = next(iter(PLAIN))


def read(url: str) -> dict[str, float]:
    """Return every figure by its name and labels, as they are written."""
    response = httpx2.get(f"{url}/metrics")
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/plain; version=")
    families = prometheus.text_string_to_metric_families(response.text)
    return {
        sample.name + "".join(f"|{label}={value}" for label, value in sorted(sample.labels.items())): sample.value
        for family in families
        for sample in family.samples
    }


def ask(url: str, **fields: Any) -> Any:
    body = {"model": "tiny", "messages": [{"role": "user", "content": ASKED}], "temperature": 0, **fields}
    return httpx2.post(f"{url}/v1/chat/completions", json=body, timeout=30)


def changes(url: str, act: Callable[[], Any]) -> dict[str, float]:
    before = read(url)
    act()
    return {name: value - before.get(name, 0) for name, value in read(url).items() if value != before.get(name, 0)}


def test_answers_and_their_tokens_and_times_are_counted(url: str) -> None:
    usage: dict[str, Any] = {}

    def act() -> None:
        for fields in ({}, {"max_tokens": 3}, {"stop": ["为"], "stream": False}):
            for key, value in ask(url, **fields).json()["usage"].items():
                usage[key] = usage.get(key, 0) + value if isinstance(value, int) else value
        ask(url, temperature="hot")
        httpx2.get(f"{url}/nowhere/{time.time()}")
        httpx2.get(f"{url}/v1/models/tiny")
        deadline = time.monotonic() + 20  # an answer that a stop string ended leaves the batch a moment later
        while read(url).get("glmtune:request_success_total|finished_reason=stop|model_name=tiny", 0) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.05)

    told = changes(url, act)
    assert told["glmtune:http_requests_total|path=/v1/chat/completions|status=200"] == 3
    assert told["glmtune:http_requests_total|path=/v1/chat/completions|status=400"] == 1
    assert told["glmtune:http_requests_total|path=other|status=404"] == 1
    assert told["glmtune:http_requests_total|path=/v1/models/{name}|status=200"] == 1
    assert told["glmtune:request_success_total|finished_reason=stop|model_name=tiny"] == 2
    assert told["glmtune:request_success_total|finished_reason=length|model_name=tiny"] == 1
    assert told["glmtune:prompt_tokens_total|model_name=tiny"] == usage["prompt_tokens"]
    # The stop string was known a token or two later.
    assert told["glmtune:generation_tokens_total|model_name=tiny"] >= usage["completion_tokens"]
    assert told["glmtune:time_to_first_token_seconds_count|model_name=tiny"] == 3
    assert told["glmtune:e2e_request_latency_seconds_count|model_name=tiny"] == 3
    assert (
        told["glmtune:inter_token_latency_seconds_count|model_name=tiny"]
        == told["glmtune:generation_tokens_total|model_name=tiny"] - 3
    )
    first, whole = (told[f"glmtune:{name}_sum|model_name=tiny"] for name in (
        "time_to_first_token_seconds", "e2e_request_latency_seconds"
    ))  # fmt: skip
    assert 0 < first < whole
    assert usage["prompt_tokens_details"] == {"cached_tokens": 0}


def test_what_is_written_and_what_waits_is_told_and_what_is_given_up(tool_model: Path, serve_in_thread) -> None:
    with serve_in_thread(tool_model, max_rows=1, max_length=8000, max_batch_tokens=8000, api_key="secret") as url:
        figures = read(url)  # without the key, as vLLM's
        assert figures["glmtune:num_requests_running|model_name=tiny"] == 0
        assert figures["process_start_time_seconds"] == pytest.approx(psutil.Process().create_time(), abs=2)
        connections = []
        for _ in range(3):
            connection = http.client.HTTPConnection(url.removeprefix("http://"))
            body = f'{{"model": "tiny", "prompt": "{ASKED}", "max_tokens": 7000, "ignore_eos": true, "stream": true}}'
            headers = {"Content-Type": "application/json", "Authorization": "Bearer secret"}
            connection.request("POST", "/v1/completions", body.encode(), headers)
            connections.append(connection)
        deadline = time.monotonic() + 30
        while (figures := read(url))["glmtune:num_requests_waiting|model_name=tiny"] != 2:
            assert time.monotonic() < deadline, figures
            time.sleep(0.05)
        assert figures["glmtune:num_requests_running|model_name=tiny"] == 1
        for connection in connections:
            connection.close()
        while read(url).get("glmtune:request_success_total|finished_reason=abort|model_name=tiny") != 3:
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_each_application_counts_for_itself(tool_model: Path, serve_in_thread) -> None:
    with serve_in_thread(tool_model) as one, serve_in_thread(tool_model) as other:
        ask(one, max_tokens=1)
        assert any(name.startswith("glmtune:request_success_total") for name in read(one))
        assert not any(name.startswith("glmtune:request_success_total") for name in read(other))


def test_the_documentation_tells_every_figure(url: str) -> None:
    ask(url, max_tokens=1)
    names = set(re.findall(r"^# TYPE (\S+)", httpx2.get(f"{url}/metrics").text, re.MULTILINE))
    for language in ("en", "zh"):
        page = (Path(__file__).parents[2] / "docs" / language / "guides" / "serve.md").read_text(encoding="utf-8")
        assert {name for name in names if not name.endswith("_created")} == set(
            re.findall(r"`((?:glmtune:|process_)\w+)`", page)
        )
