"""The engine goes on, whatever happens to one of its answers."""

from __future__ import annotations

import queue
import time
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from glmtune.serving.engine import Busy, End, Engine, Event, Failure, Job, Lane, Token
from glmtune.serving.sampling import Sampling


class Model:
    """A model whose next forward pass can be made to fail, or to wait."""

    def __init__(self, folder: str) -> None:
        self.model: Any = AutoModelForCausalLM.from_pretrained(folder)
        self.config, self.device = self.model.config, self.model.device
        self.prepare_inputs_for_generation = self.model.prepare_inputs_for_generation
        self.error: Exception | None = None
        self.seconds = 0.0

    def __call__(self, **inputs: Any) -> Any:
        time.sleep(self.seconds)
        if self.error is not None:
            error, self.error = self.error, None
            raise error
        return self.model(**inputs)


@pytest.fixture(scope="module")
def model(demo_model: str) -> Model:
    return Model(demo_model)


@pytest.fixture
def engine(model: Model):
    made = Engine(
        {"a": Lane(model=model, activate=lambda: None)},
        stops=[],
        max_rows=4,
        max_batch_tokens=1000,
        max_waiting=3,
        keeps_last_logits=True,
    )
    made.start()
    yield made
    model.seconds = 0.0
    made.stop()


def job(number: int = 3, **options: Any) -> tuple[Job, queue.Queue[Event]]:
    events: queue.Queue[Event] = queue.Queue()
    return Job("a", [5, 6, 7], number, Sampling(), events.put, **options), events


def answer(events: queue.Queue[Event]) -> list[int]:
    ids = []
    while not isinstance(event := events.get(timeout=20), End):
        assert isinstance(event, Token)
        ids.append(event.id)
    return ids


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (RuntimeError("broken"), "the model failed"),
        (torch.OutOfMemoryError("too much"), "the model ran out of memory"),
    ],
)
@pytest.mark.parametrize("is_in_flight", [False, True])
def test_a_failure_is_told_and_the_next_request_is_answered(
    error: Exception, reason: str, is_in_flight: bool, engine: Engine, model: Model, capsys
) -> None:
    first, events = job(100)
    if is_in_flight:
        engine.submit([first])
        assert isinstance(events.get(timeout=20), Token)
    model.error = error
    if not is_in_flight:
        engine.submit([first])
    while isinstance(event := events.get(timeout=20), Token):
        pass
    assert event == Failure(reason=reason)
    assert f"error: 1 answers failed: {type(error).__name__}: {error}" in capsys.readouterr().err
    again, told = job()
    engine.submit([again])
    assert len(answer(told)) == 3
    assert engine.is_alive


def test_a_whole_answer_is_the_same_as_one_in_pieces(engine: Engine) -> None:
    (one, pieces), (two, whole) = job(), job(waits_for_end=True)
    engine.submit([one, two])
    assert answer(pieces) == answer(whole)


def test_more_than_may_wait_is_refused_whole(engine: Engine, model: Model) -> None:
    model.seconds = 0.2
    flying = [job(50) for _ in range(4)]
    engine.submit([made for made, _ in flying])
    assert isinstance(flying[0][1].get(timeout=20), Token)
    engine.submit([job()[0], job()[0]])
    with pytest.raises(Busy):
        engine.submit([job()[0], job()[0]])
    assert engine.num_waiting == 2
    engine.submit([job()[0]])
    assert engine.num_waiting == 3


def test_who_waits_at_the_end_is_told(engine: Engine, model: Model) -> None:
    model.seconds = 0.05
    made, events = job(1000)
    engine.submit([made])
    assert isinstance(events.get(timeout=20), Token)
    engine.stop()
    while isinstance(event := events.get(timeout=20), Token):
        pass
    assert event == Failure(reason="the server is shutting down", is_shutdown=True)
    assert not engine.is_alive


def test_a_cancelled_answer_is_dropped_from_queue_and_flight(engine: Engine, model: Model) -> None:
    model.seconds = 0.05
    flying = [job(200) for _ in range(5)]
    engine.submit([made for made, _ in flying])
    assert isinstance(flying[0][1].get(timeout=20), Token)
    for made, _ in flying:
        made.is_cancelled = True
    model.seconds = 0.0
    last, events = job()
    engine.submit([last])
    assert len(answer(events)) == 3
    assert engine.num_waiting == 0
