"""Figures for Prometheus: requests, answers in work and waiting, tokens, times; by names close to vLLM's."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import psutil
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from glmtune.generation.completion import Completion

from .engine import Engine, Job

PREFIX = "glmtune:"
FIRST_TOKEN_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
NEXT_TOKEN_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1, 2.5, 5, 10)
WHOLE_SECONDS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800)
OTHER = "other"
"""The path of requests that lead nowhere: each new name would be a series of its own."""


@dataclass
class _Progress:
    """How far an answer has been counted."""

    num_tokens: int
    at_seconds: float


class Metrics:
    """Counts what the engine writes and the application answers; its registry is its own."""

    def __init__(self, engine: Engine, paths: Collection[str]) -> None:
        """Begin to count.

        Args:
            engine: Which tells of its answers from now on.
            paths: That are told by name.
        """
        self.paths = set(paths)
        self.registry = CollectorRegistry()
        self._progress: dict[Job, _Progress] = {}
        self.requests = self._counter("http_requests", "Requests by path and status.", "path", "status")
        self.prompt_tokens = self._counter("prompt_tokens", "Tokens of prompts that were read.", "model_name")
        self.generation_tokens = self._counter("generation_tokens", "Tokens that were written.", "model_name")
        self.ended_answers = self._counter(
            "request_success",
            "Answers by how they ended: stop, length, abort (nobody waits any more), error.",
            "model_name",
            "finished_reason",
        )
        self.first_token = self._histogram(
            "time_to_first_token_seconds", "From the request to the first token of an answer.", FIRST_TOKEN_SECONDS
        )
        self.next_token = self._histogram(
            "inter_token_latency_seconds", "From one token of an answer to the next.", NEXT_TOKEN_SECONDS
        )
        self.whole_answer = self._histogram(
            "e2e_request_latency_seconds", "From the request to the end of an answer.", WHOLE_SECONDS
        )
        started = Gauge("process_start_time_seconds", "When the process began, since 1970.", registry=self.registry)
        started.set(psutil.Process().create_time())
        self.registry.register(_Queues(engine))
        engine.watch = self

    def _counter(self, name: str, help: str, *labels: str) -> Counter:
        return Counter(PREFIX + name, help, labels, registry=self.registry)

    def _histogram(self, name: str, help: str, bounds: Sequence[float]) -> Histogram:
        return Histogram(PREFIX + name, help, ["model_name"], registry=self.registry, buckets=bounds)

    def text(self) -> bytes:
        """Return all figures in Prometheus' text format."""
        return generate_latest(self.registry)

    def answered(self, path: str, status: int) -> None:
        """Count a request."""
        if path.startswith("/v1/models/"):
            path = "/v1/models/{name}"
        elif path not in self.paths:
            path = OTHER
        self.requests.labels(path, str(status)).inc()

    def wrote(self, job: Job, row: Completion) -> None:
        """Count what a pass wrote of an answer."""
        progress = self._progress.get(job)
        num_tokens = len(row.written)
        now = time.monotonic()
        if progress is None:
            self._progress[job] = progress = _Progress(0, now)
            self.prompt_tokens.labels(job.lane).inc(len(row.prompt))
            self.first_token.labels(job.lane).observe(now - job.submitted_at_seconds)
        elif num_tokens > progress.num_tokens:
            self.next_token.labels(job.lane).observe(now - progress.at_seconds)
        if num_tokens > progress.num_tokens:
            self.generation_tokens.labels(job.lane).inc(num_tokens - progress.num_tokens)
            progress.num_tokens, progress.at_seconds = num_tokens, now

    def ended(self, job: Job, reason: str) -> None:
        """Count an answer."""
        self._progress.pop(job, None)
        self.ended_answers.labels(job.lane, reason).inc()
        self.whole_answer.labels(job.lane).observe(time.monotonic() - job.submitted_at_seconds)


class _Queues(Collector):
    """Answers that are being written and that wait, as they are when they are asked for."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Yield both figures of every model."""
        running = GaugeMetricFamily(
            f"{PREFIX}num_requests_running", "Answers that are being written.", labels=["model_name"]
        )
        waiting = GaugeMetricFamily(
            f"{PREFIX}num_requests_waiting", "Answers that wait for their turn.", labels=["model_name"]
        )
        for name, (num_running, num_waiting) in self.engine.numbers().items():
            running.add_metric([name], num_running)
            waiting.add_metric([name], num_waiting)
        yield running
        yield waiting
