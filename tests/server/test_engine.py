"""The engine goes on, whatever happens to one of its answers."""

from __future__ import annotations

import io
import queue
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from glmtune.generation import continuous_batching
from glmtune.generation.completion import Completion
from glmtune.generation.prefix_store import PrefixStore
from glmtune.generation.sampling import Sampler, Sampling
from glmtune.server.engine import Busy, End, Ended, Engine, Event, Job, JobFailure, Lane, Token


class Model:
    """A model whose next forward pass can be made to fail, or to wait."""

    def __init__(self, folder: str) -> None:
        self.model: Any = AutoModelForCausalLM.from_pretrained(folder)
        self.config, self.device = self.model.config, self.model.device
        self.prepare_inputs_for_generation = self.model.prepare_inputs_for_generation
        self.error: BaseException | None = None
        self.seconds = 0.0
        self.num_read = 0
        """Rows of prompts."""

    def __call__(self, **inputs: Any) -> Any:
        time.sleep(self.seconds)
        num_rows, num_tokens = inputs["input_ids"].shape
        self.num_read += num_rows if num_tokens > 1 else 0
        if self.error is not None:
            error, self.error = self.error, None
            raise error
        return self.model(**inputs)


@pytest.fixture(scope="module")
def model(demo_model: str) -> Model:
    return Model(demo_model)


@pytest.fixture(scope="module")
def other_model(demo_model: str) -> Model:
    return Model(demo_model)


@pytest.fixture
def engine(model: Model, other_model: Model):
    lanes = {"a": model, "b": other_model}
    made = Engine(
        {name: Lane(model=one, activate=lambda: None) for name, one in lanes.items()},
        stops=[],
        max_rows=4,
        max_batch_tokens=1000,
        max_waiting=3,
        keeps_last_logits=True,
    )
    made.start()
    yield made
    model.seconds = 0.0
    model.error = other_model.error = None
    made.stop()


def job(number: int = 3, lane: str = "a", **options: Any) -> tuple[Job, queue.Queue[Event]]:
    events: queue.Queue[Event] = queue.Queue()
    return Job(lane, [5, 6, 7], number, Sampling(), events.put, **options), events


def last(events: queue.Queue[Event]) -> Event:
    while isinstance(event := events.get(timeout=20), Token):
        pass
    return event


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
@pytest.mark.parametrize("is_running", [False, True])
def test_a_failure_is_told_and_the_next_request_is_answered(
    error: Exception, reason: str, is_running: bool, engine: Engine, model: Model, capsys
) -> None:
    first, events = job(100)
    if is_running:
        engine.submit([first])
        assert isinstance(events.get(timeout=20), Token)
    model.error = error
    if not is_running:
        engine.submit([first])
    while isinstance(event := events.get(timeout=20), Token):
        pass
    assert event == JobFailure(reason=reason)
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
    running = [job(50) for _ in range(4)]
    engine.submit([made for made, _ in running])
    assert isinstance(running[0][1].get(timeout=20), Token)
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
    assert event == JobFailure(reason="the server is shutting down", is_shutdown=True)
    assert not engine.is_alive


def test_a_cancelled_answer_is_dropped_from_queue_and_flight(engine: Engine, model: Model) -> None:
    model.seconds = 0.05
    running = [job(200) for _ in range(5)]
    engine.submit([made for made, _ in running])
    assert isinstance(running[0][1].get(timeout=20), Token)
    for made, _ in running:
        made.is_cancelled = True
    model.seconds = 0.0
    again, events = job()
    engine.submit([again])
    assert len(answer(events)) == 3
    assert engine.num_waiting == 0


@pytest.mark.parametrize("is_running", [False, True])
def test_a_failure_of_one_model_leaves_the_other_alone(
    engine: Engine, model: Model, other_model: Model, is_running: bool
) -> None:
    model.seconds = 0.01
    (first, told), (second, failed) = job(60), job(60, lane="b")
    engine.submit([first])
    assert isinstance(told.get(timeout=20), Token)
    if is_running:
        engine.submit([second])
        assert isinstance(failed.get(timeout=20), Token)
    other_model.error = RuntimeError("broken")
    if not is_running:
        engine.submit([second])
    assert last(failed) == JobFailure(reason="the model failed")
    assert len(answer(told)) == 59


def begun(engine: Engine, model: Model, number: int) -> list[tuple[Job, queue.Queue[Event]]]:
    """Return answers that are being written, slowly."""
    model.seconds = 0.02
    running = [job(40) for _ in range(number)]
    engine.submit([made for made, _ in running])
    for _, told in running:
        assert isinstance(told.get(timeout=20), Token)
    return running


def test_a_pass_that_fails_once_costs_nobody_an_answer(engine: Engine, model: Model) -> None:
    expected, told = job(40)
    engine.submit([expected])
    whole = answer(told)
    running = begun(engine, model, 4)
    model.error = RuntimeError("broken")
    assert [answer(told) for _, told in running] == [whole[1:]] * 4


def test_answers_whose_passes_go_on_failing_leave_what_waits_to_be_tried(
    engine: Engine, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = begun(engine, model, 4)
    waiting = [job() for _ in range(2)]
    engine.submit([made for made, _ in waiting])
    for _ in range(3):  # the engine has seen them by then
        assert isinstance(running[0][1].get(timeout=20), Token)
    call = Model.__call__

    def refuses(self: Model, **inputs: Any) -> Any:
        if inputs["input_ids"].shape == (4, 1):
            raise RuntimeError("broken")
        return call(self, **inputs)

    monkeypatch.setattr(Model, "__call__", refuses)
    assert [last(told) for _, told in running] == [JobFailure(reason="the model failed")] * 4
    assert [len(answer(told)) for _, told in waiting] == [3, 3]


def test_an_answer_for_which_passes_fail_ends_alone(
    engine: Engine, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = Model.__call__

    def refuses(self: Model, **inputs: Any) -> Any:
        if (inputs["input_ids"] == 9).any():
            raise RuntimeError("broken")
        return call(self, **inputs)

    monkeypatch.setattr(Model, "__call__", refuses)
    running = begun(engine, model, 2)
    bad: queue.Queue[Event] = queue.Queue()
    engine.submit([Job("a", [5, 6, 7], 5, Sampling(logit_bias={9: 100.0}), bad.put)])
    assert last(bad) == JobFailure(reason="the model failed")
    assert [len(answer(told)) for _, told in running] == [39, 39]


def breaks(at: type[Event]) -> Callable[[Event], None]:
    def listen(event: Event) -> None:
        if isinstance(event, at):
            raise RuntimeError("nobody listens")

    return listen


@pytest.mark.parametrize("waits_for_end", [False, True])
@pytest.mark.parametrize("at", [Token, End])
def test_a_reader_that_fails_takes_no_other_with_it(
    engine: Engine, at: type[Event], waits_for_end: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    first = Job("a", [5, 6], 4, Sampling(), breaks(at), waits_for_end=waits_for_end)
    second, events = job(12)
    engine.submit([first, second])
    assert len(answer(events)) == 12
    third, events = job()
    engine.submit([third])
    assert len(answer(events)) == 3
    assert first.is_cancelled
    assert "error: an answer has lost its reader: RuntimeError: nobody listens" in capsys.readouterr().err


def test_a_reader_that_cannot_take_the_failure_leaves_it_to_the_others(engine: Engine, model: Model) -> None:
    model.seconds = 0.02
    first = Job("a", [5, 6], 100, Sampling(), breaks(JobFailure))
    second, events = job(100)
    first.is_retried = second.is_retried = True
    engine.submit([first, second])
    assert isinstance(events.get(timeout=20), Token)
    model.error = RuntimeError("broken")
    assert last(events) == JobFailure(reason="the model failed")
    third, events = job()
    engine.submit([third])
    assert len(answer(events)) == 3


class FullStream(io.StringIO):
    def write(self, text: str) -> int:
        raise OSError(28, "No space left on device")


@pytest.mark.parametrize("is_closed", [False, True], ids=["full", "closed"])
def test_a_stderr_that_takes_nothing_ends_nothing(
    engine: Engine, model: Model, monkeypatch: pytest.MonkeyPatch, is_closed: bool
) -> None:
    stream = FullStream()
    if is_closed:
        stream.close()
    monkeypatch.setattr(sys, "stderr", stream)
    model.error = RuntimeError("broken")
    first, events = job()
    engine.submit([first])
    assert last(events) == JobFailure(reason="the model failed")
    again, events = job()
    engine.submit([again])
    assert len(answer(events)) == 3


def test_an_adapter_that_cannot_be_switched_on_is_told(model: Model) -> None:
    errors = [RuntimeError("no such adapter")]

    def activate() -> None:
        if errors:
            raise errors.pop()

    engine = Engine(
        {"a": Lane(model=model, activate=activate)},
        stops=[],
        max_rows=4,
        max_batch_tokens=1000,
        max_waiting=3,
        keeps_last_logits=True,
    )
    (first, told), (second, events) = job(), job()
    engine.submit([first])
    engine.start()
    assert last(told) == JobFailure(reason="the model failed")
    engine.submit([second])
    assert len(answer(events)) == 3
    engine.stop()


def test_a_model_that_is_not_there_is_told_to_who_asks(engine: Engine) -> None:
    with pytest.raises(KeyError):
        engine.submit([job()[0], job(lane="none")[0]])
    again, events = job()
    engine.submit([again])
    assert len(answer(events)) == 3
    assert engine.num_waiting == 0


def test_who_has_just_asked_is_told_of_the_end_and_later_ones_are_refused(engine: Engine, model: Model) -> None:
    model.seconds = 0.3
    (first, told), (second, events) = job(1000), job()
    engine.submit([first])
    assert isinstance(told.get(timeout=20), Token)
    engine.submit([second])  # the engine computes, and does not look before the next token
    engine.stop()
    shutdown = JobFailure(reason="the server is shutting down", is_shutdown=True)
    assert last(told) == shutdown
    assert last(events) == shutdown
    assert events.empty()
    with pytest.raises(Ended):
        engine.submit([job()[0]])


class Panic(BaseException):
    """As what is written in Rust throws, and `SystemExit`: no `Exception`."""


@pytest.mark.parametrize("error", [Panic("panic"), SystemExit(3), KeyboardInterrupt(), GeneratorExit()], ids=repr)
def test_the_thread_survives_whatever_a_model_throws(
    engine: Engine, model: Model, error: BaseException, capsys: pytest.CaptureFixture[str]
) -> None:
    model.seconds = 0.01
    (first, told), (second, events) = job(1000), job(30, lane="b")
    engine.submit([first, second])
    assert isinstance(told.get(timeout=20), Token)
    model.error = error
    assert last(told) == JobFailure(reason="the model failed")
    assert len(answer(events)) == 30
    again, events = job()
    engine.submit([again])
    assert len(answer(events)) == 3
    assert f"error: 1 answers failed: {type(error).__name__}: {error}\n" in capsys.readouterr().err


@pytest.mark.parametrize("error", [RuntimeError("broken"), Panic("panic")], ids=repr)
def test_the_thread_survives_a_failure_that_belongs_to_no_lane(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, error: BaseException, capsys: pytest.CaptureFixture[str]
) -> None:
    take, errors = engine._take_jobs, [error]

    def broken() -> bool:
        goes_on = take()
        if errors:
            raise errors.pop()
        return goes_on

    monkeypatch.setattr(engine, "_take_jobs", broken)
    (first, told), (second, events) = job(), job(lane="b")
    engine.submit([first, second])
    engine.submit([job()[0]])
    assert last(told) == last(events) == JobFailure(reason="the model failed")
    again, events = job()
    engine.submit([again])
    assert len(answer(events)) == 3
    assert f" answers failed: {type(error).__name__}: {error}\n" in capsys.readouterr().err


def test_a_prompt_that_cannot_be_read_fails_alone(engine: Engine, model: Model, monkeypatch) -> None:
    """Also where others come in together with it, and while others are being written."""
    call = Model.__call__

    def refuses(self: Model, **inputs: Any) -> Any:
        if (inputs["input_ids"] == 9).any():
            raise torch.OutOfMemoryError("too much")
        return call(self, **inputs)

    monkeypatch.setattr(Model, "__call__", refuses)
    model.seconds = 0.02
    running, told = job(40)
    engine.submit([running])
    assert isinstance(told.get(timeout=20), Token)
    alone, expected = job(5)
    bad: queue.Queue[Event] = queue.Queue()
    (one, events), killer = job(5), Job("a", [9, 9, 9, 9], 5, Sampling(), bad.put)
    engine.submit([one, killer, alone])
    assert last(bad) == JobFailure(reason="the model ran out of memory")
    assert answer(events) == answer(expected)
    assert len(answer(told)) == 39


def test_a_long_prompt_does_not_hold_up_who_is_being_answered(engine: Engine, model: Model) -> None:
    streaming, told = job(400)
    engine.submit([streaming])
    for _ in range(20):
        assert isinstance(told.get(timeout=20), Token)
    events: queue.Queue[Event] = queue.Queue()
    long = Job("a", [9] * 500, 2, Sampling(), events.put)
    before = streaming.num_reported
    engine.submit([long])
    assert isinstance(events.get(timeout=20), Token)
    assert streaming.num_reported >= before + 2
    streaming.is_cancelled = True
    assert isinstance(last(events), End)


def test_what_is_kept_makes_room_for_a_prompt_that_memory_was_too_little_for(
    model: Model, capsys: pytest.CaptureFixture[str]
) -> None:
    store = PrefixStore(1000)
    lanes = {"a": Lane(model=model, activate=lambda: None)}
    limits = {"max_rows": 4, "max_batch_tokens": 1000, "max_waiting": 3, "keeps_last_logits": True}
    engine = Engine(lanes, [], prefixes=store, **limits)
    engine.start()
    try:

        def ask() -> tuple[list[int], int]:
            events: queue.Queue[Event] = queue.Queue()
            made = Job("a", list(range(9, 159)), 3, Sampling(), events.put)
            engine.submit([made])
            return answer(events), made.num_cached_tokens

        first, again = ask(), ask()
        assert (first[1], again) == (0, (first[0], 128))
        model.error = torch.OutOfMemoryError("too much")
        assert ask() == first
        model.error = RuntimeError("broken")
        events: queue.Queue[Event] = queue.Queue()
        engine.submit([Job("a", [5, 6, 7], 3, Sampling(), events.put)])
        assert last(events) == JobFailure(reason="the model failed")
        assert ask() == again
    finally:
        model.error = None
        engine.stop()


class Broken(Sampler):
    """A sampler that throws at its third token."""

    place = "adjust"
    error: BaseException = RuntimeError("broken")
    is_plain = False

    def adjust(self, logits: torch.Tensor) -> None:
        super().adjust(logits)
        self._throw("adjust")

    def note(self, token: int) -> None:
        super().note(token)
        self._throw("note")

    def _throw(self, place: str) -> None:
        if place == self.place and self.num_chosen >= 2:
            raise self.error


def numbers(**wrong: Any) -> Callable[[Job], None]:
    def change(job: Job) -> None:
        job.sampler = Sampler(Sampling(**{"temperature": 1.0, **wrong}), job.prompt)

    return change


def breaking(place: str, error: BaseException) -> Callable[[Job], None]:
    def change(job: Job) -> None:
        job.sampler = Broken(Sampling(temperature=1.0, seed=3), job.prompt)
        job.sampler.place, job.sampler.error = place, error

    return change


WRONG = {
    "top_k": numbers(top_k="many"),
    "min_p": numbers(min_p=-1.0),
    "repetition penalty": numbers(repetition_penalty=1e-300),
    "NaN": numbers(logit_bias={5: float("nan")}),
    "infinity": numbers(logit_bias={5: float("inf")}),
    "no token is left": numbers(logit_bias=dict.fromkeys(range(2000), -float("inf"))),
    "an id beyond the vocabulary": numbers(logit_bias={10**9: 1.0}),
    "an exception": breaking("adjust", RuntimeError("broken")),
    "a panic": breaking("adjust", Panic("panic")),
    "an exception behind it": breaking("note", RuntimeError("broken")),
}


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("is_running", [False, True])
def test_an_answer_whose_token_cannot_be_chosen_fails_alone(
    engine: Engine, model: Model, wrong: str, is_running: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    def innocent() -> tuple[Job, queue.Queue[Event]]:
        events: queue.Queue[Event] = queue.Queue()
        return Job("a", [5, 6, 7], 12, Sampling(temperature=1.0, seed=5), events.put), events

    alone, expected = innocent()
    engine.submit([alone])
    right = answer(expected)
    (one, events), (bad, told) = innocent(), job(12)
    WRONG[wrong](bad)
    jobs = [bad, one]
    model.seconds = 0.005
    if is_running:
        engine.submit([one])
        first = events.get(timeout=20)
        assert first == Token(id=right[0])
        right = right[1:]
        jobs = [bad]
    engine.submit(jobs)
    assert isinstance(last(told), JobFailure)
    assert answer(events) == right
    assert engine.is_alive
    assert "error: 1 answers failed: " in capsys.readouterr().err


def test_dropping_takes_the_same_time_however_many_wait(engine: Engine, model: Model) -> None:
    batch = engine._batches["a"]
    batch.waiting.extend(rows := [Completion(number, [5], 1) for number in range(100_000)])
    started = time.monotonic()
    for row in reversed(rows):
        batch.drop(row)
    assert batch.is_idle()
    assert time.monotonic() - started < 10  # minutes, if each had to be looked for
    assert not batch.waiting


def test_a_stop_of_the_requests_own_ends_its_answer_alone(engine: Engine) -> None:
    free, told = job(6)
    engine.submit([free])
    written = answer(told)
    stopped, events = job(6, stops=frozenset({written[2]}))
    free, told = job(6)
    engine.submit([stopped, free])
    assert answer(events) == written[: written.index(written[2])]
    assert answer(told) == written


def test_an_answer_of_no_tokens_ends_at_once(engine: Engine) -> None:
    made, told = job(0)
    engine.submit([made])
    assert told.get(timeout=20) == End(is_cut=True)


def test_a_cancelled_answer_that_waits_gives_up_its_place_at_once(engine: Engine, model: Model) -> None:
    model.seconds = 0.4
    running = [job(50) for _ in range(4)]
    engine.submit([made for made, _ in running])
    assert isinstance(running[0][1].get(timeout=20), Token)
    waiting = [job()[0] for _ in range(3)]
    engine.submit(waiting)
    with pytest.raises(Busy):
        engine.submit([job()[0]])
    waiting[1].is_cancelled = True
    assert engine.num_waiting == 2
    engine.submit([job()[0]])
    with pytest.raises(Busy):
        engine.submit([job()[0]])


def test_a_cancelled_answer_that_waits_is_never_begun(engine: Engine, model: Model) -> None:
    model.seconds, model.num_read = 0.05, 0
    running = [job(6) for _ in range(4)]
    engine.submit([made for made, _ in running])
    assert isinstance(running[0][1].get(timeout=20), Token)
    (cancelled, told), (behind, events) = job(), job()
    engine.submit([cancelled, behind])
    cancelled.is_cancelled = True
    assert len(answer(events)) == 3
    assert told.empty()
    assert model.num_read == 5


def test_an_end_says_whether_there_was_no_room_left(engine: Engine) -> None:
    cut, told = job(3)
    engine.submit([cut])
    written = [told.get(timeout=20) for _ in range(4)]
    assert written[3] == End(is_cut=True)
    engine._batches["a"].stops = {written[0].id}
    free, told = job(3)
    engine.submit([free])
    assert told.get(timeout=20) == End(is_cut=False)


def test_who_has_cancelled_is_told_nothing_any_more(engine: Engine, model: Model) -> None:
    model.seconds = 0.3
    made, told = job(50)
    engine.submit([made])
    assert isinstance(told.get(timeout=20), Token)
    made.is_cancelled = True
    engine.stop()
    assert told.empty()


def test_the_lengths_that_are_remembered_stay_few(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(continuous_batching, "MAX_LENGTHS", 6)
    for number in range(20):
        made, events = job(1 + number % 5)
        engine.submit([made])
        answer(events)
    lengths = engine._batches["a"].finished_lengths
    assert 3 <= len(lengths) <= 6
    assert lengths == sorted(lengths)
