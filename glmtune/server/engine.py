"""Answers to requests as they come: one thread computes, and whoever waits gets each token as it is written.

The rows of all requests for one adapter are written together, in one batch that new rows join and finished ones
leave between two tokens (`generation/continuous_batching.py`). Adapters take turns, token by token.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import torch

from glmtune.console import say
from glmtune.constrained.matching import GrammarFailure
from glmtune.generation.completion import Completion
from glmtune.generation.continuous_batching import ContinuousBatch
from glmtune.generation.pace import Pace
from glmtune.generation.prefix_store import PrefixStore
from glmtune.generation.prompt_logprobs import PromptLogprobs
from glmtune.generation.sampling import Logprobs, NoNumbers, Sampler, Sampling, choose_tokens


@dataclass(frozen=True, kw_only=True)
class Token:
    """A token that was written."""

    id: int
    logprobs: Logprobs | None = None


@dataclass(frozen=True, kw_only=True)
class End:
    """The end of an answer."""

    is_cut: bool
    """Whether the limit of tokens ended it, and not a stop token."""
    stop_token: Token | None = None
    """Which one, where likelihoods are wanted."""


@dataclass(frozen=True, kw_only=True)
class PromptRead:
    """What is known of the prompt; comes before the first token, where it is wanted."""

    logprobs: PromptLogprobs


@dataclass(frozen=True, kw_only=True)
class JobFailure:
    """The end of an answer that will not be finished."""

    reason: str
    is_shutdown: bool = False


Event = PromptRead | Token | End | JobFailure


class Busy(Exception):
    """As many requests wait as may."""


class Ended(Exception):
    """Nothing is answered any more."""


@dataclass(frozen=True, kw_only=True)
class Lane:
    """A model that answers: the base model, or one of the adapters on it."""

    model: Any
    activate: Callable[[], None]
    """Switches the adapter on, and others off, before a forward pass."""
    num_virtual_tokens: int = 0
    """Tokens of a trained prefix: they stand before every prompt, and take their part of the context."""
    remove: Callable[[], None] = lambda: None
    """Lets go of the adapter's weights."""


@dataclass(eq=False)
class Job:
    """One answer that is wanted, and where its tokens go."""

    lane: str
    prompt: Sequence[int]
    max_new_tokens: int
    sampling: Sampling
    on_event: Callable[[Event], None]
    """Called in the engine's thread."""
    waits_for_end: bool = False
    """Whether the tokens are told all at once at the end: each time wakes the thread that talks to clients."""
    stops: Collection[int] | None = None
    """Ids that end the answer; None for the model's own."""
    num_prompt_logprobs: int | None = None
    """Most likely tokens to tell beside each of the prompt's; None tells nothing of it."""
    is_cancelled: bool = field(default=False, init=False)
    """Set by whoever no longer wants the answer; nothing more is reported then."""
    is_complete: bool = field(default=False, init=False)
    """Set where nothing more is wanted since the answer is there: it ended with a text that the request named."""
    submitted_at_seconds: float = field(default_factory=time.monotonic, init=False)
    num_cached_tokens: int = field(default=0, init=False)
    """Tokens of the prompt that were not read, since their keys and values were kept."""
    is_prompt_reported: bool = field(default=False, init=False)
    num_reported: int = field(default=0, init=False)
    is_retried: bool = field(default=False, init=False)
    """Whether a pass over several answers has failed once while this was among them."""
    sampler: Sampler = field(init=False)

    def __post_init__(self) -> None:
        self.sampler = Sampler(self.sampling, self.prompt)


class Watch(Protocol):
    """Is told of answers, in the engine's thread."""

    def wrote(self, job: Job, row: Completion) -> None:
        """A pass has written of this answer, perhaps its stop token."""

    def ended(self, job: Job, reason: str) -> None:
        """An answer has ended: `stop`, `length`, `abort` or `error`."""


class Engine:
    """Owns the models; `submit` may be called from any thread."""

    def __init__(
        self,
        lanes: dict[str, Lane],
        stops: Sequence[int],
        *,
        max_rows: int,
        max_batch_tokens: int,
        max_waiting: int,
        keeps_last_logits: bool,
        prefixes: PrefixStore | None = None,
    ) -> None:
        """Prepare for requests; `start` begins to answer them.

        Args:
            lanes: By the name that a request asks for.
            stops: Ids that end an answer.
            max_rows: Answers of one lane that are written together.
            max_batch_tokens: Rows times tokens that the keys and values of one lane may take.
            keeps_last_logits: Whether the models take `logits_to_keep`.
            max_waiting: Answers that may wait for their turn; beyond it `submit` raises `Busy`.
            prefixes: Keeps keys and values for conversations that go on, of all lanes; by default none are kept.
        """
        self.lanes: dict[str, Lane] = {}
        self.max_waiting = max_waiting
        self._batches: dict[str, ContinuousBatch] = {}
        self._prefixes = prefixes or PrefixStore(0)
        self._pace = Pace()
        self._new_batch = partial(
            ContinuousBatch,
            answers=[],
            choose=self._choose,
            stops=stops,
            max_tokens=max_batch_tokens,
            max_rows=max_rows,
            keeps_last_logits=keeps_last_logits,
            prefixes=self._prefixes,
        )
        for name, lane in lanes.items():
            self.add_lane(name, lane)
        self._leaving: dict[str, Callable[[], None]] = {}
        self._acts: list[tuple[Callable[[], None], Future[None]]] = []
        self._jobs: dict[int, Job] = {}
        self._last_index = 0
        self._inbox: list[Job] = []
        self._wake = threading.Condition()
        self._is_ending = False
        self.watch: Watch | None = None
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def between_passes(self, act: Callable[[], None]) -> Future[None]:
        """Have the engine's thread do something while nothing is computed; what it raises is the future's."""
        future: Future[None] = Future()
        with self._wake:
            if self._is_ending:
                raise Ended
            self._acts.append((act, future))
            self._wake.notify()
        return future

    def add_lane(self, name: str, lane: Lane) -> None:
        """Answer by one more name; once it runs, `between_passes` alone."""
        self._batches = {**self._batches, name: self._new_batch(lane.model)}
        self.lanes = {**self.lanes, name: lane}

    def remove_lane(self, name: str, then: Callable[[], None]) -> None:
        """Answer by a name no more, once the answers that it has are written; `between_passes` alone."""
        self._leaving[name] = then

    @property
    def is_alive(self) -> bool:
        """Whether requests are being answered."""
        return self._thread.is_alive() and not self._is_ending

    @property
    def num_waiting(self) -> int:
        """Answers that wait for their turn; one that is given up keeps no place."""
        # Copies: the engine's thread goes on meanwhile.
        rows = [row for batch in self._batches.values() for row in batch.waiting.copy()]
        jobs = [*self._inbox, *(self._jobs.get(row.index) for row in rows)]
        return sum(job is not None and not job.is_cancelled for job in jobs)

    def numbers(self) -> dict[str, tuple[int, int]]:
        """Return of each lane how many answers are being written, and how many wait."""
        inbox = Counter(job.lane for job in self._inbox.copy())
        return {
            name: (
                len(batch.taken),
                sum(not row.is_done for row in batch.waiting.copy()) + inbox[name],
            )
            for name, batch in self._batches.items()
        }

    def submit(self, jobs: Sequence[Job]) -> None:
        """Take jobs in, all of them or none; each of them is told its end, whatever happens."""
        with self._wake:
            if unknown := {job.lane for job in jobs} - set(self.lanes):
                raise KeyError(*unknown)
            if self._is_ending:
                raise Ended
            # Where nothing waits, one request is always taken, however many answers it wants.
            if self.num_waiting and self.num_waiting + len(jobs) > self.max_waiting:
                raise Busy
            self._inbox += jobs
            self._wake.notify()

    def end(self) -> None:
        """Ask the engine to end after the present token; whoever still waits is told so."""
        with self._wake:
            self._is_ending = True
            self._wake.notify()

    def stop(self) -> None:
        """End, and wait until nothing is computed any more."""
        self.end()
        # Python must not end while the thread computes: torch would abort the process.
        self._thread.join()

    def _run(self) -> None:
        try:
            while self._goes_on():
                pass
        finally:
            with self._wake:  # from here on `submit` takes nothing in
                self._is_ending = True
                left = [*self._jobs.values(), *self._inbox]
                self._jobs, self._inbox = {}, []
                acts, self._acts = self._acts, []
            for _, future in acts:
                future.set_exception(Ended())
            for job in left:
                self._told_end(job, JobFailure(reason="the server is shutting down", is_shutdown=True), "error")

    def _goes_on(self) -> bool:
        """Attend to all lanes once; False at the end. Whatever is thrown, those whom it concerns are told."""
        try:
            if not self._take_jobs():
                return False
            self._act()
            self._pace.begin(is_writing=any(not row.is_done for batch in self._batches.values() for row in batch.rows))
            for name, batch in self._batches.items():
                try:
                    self._attend(name, batch)
                except BaseException as error:  # what is written in Rust throws no `Exception`
                    self._fail(name, batch, error)
            self._pace.end()
            self._let_lanes_go()
        except BaseException as error:
            self._fail_all(error)
        return True

    def _take_jobs(self) -> bool:
        """Put new jobs into their lanes, and wait for some where there is nothing to do; False at the end."""
        with self._wake:
            while not (self._inbox or self._jobs or self._acts or self._is_ending):
                self._wake.wait()
            if self._is_ending:
                return False
            for job in self._inbox:
                if job.max_new_tokens < 1 and job.num_prompt_logprobs is None:
                    self._told_end(job, End(is_cut=True), "length")
                    continue
                self._last_index += 1
                self._jobs[self._last_index] = job
                row = Completion(
                    self._last_index,
                    job.prompt,
                    job.max_new_tokens,
                    job.stops,
                    num_prompt_logprobs=job.num_prompt_logprobs,
                )
                self._batches[job.lane].waiting.append(row)
            self._inbox = []
        return True

    def _act(self) -> None:
        """Do what was asked for between two passes; whoever asked is told."""
        with self._wake:
            acts, self._acts = self._acts, []
        for act, future in acts:
            try:
                act()
            except BaseException as error:
                future.set_exception(error)
            else:
                future.set_result(None)

    def _let_lanes_go(self) -> None:
        """Forget the lanes that are to go, and have written all their answers."""
        with self._wake:  # nothing new comes in meanwhile
            wanted = {job.lane for job in (*self._jobs.values(), *self._inbox)}
            gone = [name for name in self._leaving if name not in wanted]
            for name in gone:
                self._prefixes.forget(self._batches[name])
                self.lanes = {other: lane for other, lane in self.lanes.items() if other != name}
                self._batches = {other: batch for other, batch in self._batches.items() if other != name}
        for name in gone:
            self._leaving.pop(name)()

    def _attend(self, name: str, batch: ContinuousBatch) -> None:
        """Do for a lane what there is to do, at most two forward passes."""
        self._drop_cancelled(batch)
        if not batch.is_idle():
            self._advance(name, batch)
        else:
            batch.let_go()

    def _advance(self, name: str, batch: ContinuousBatch) -> None:
        """Let new rows of a lane come in, and write the next token of all."""
        self.lanes[name].activate()
        with torch.no_grad():
            if batch.has_prompts_to_read():
                self._read_on(batch)
            if any(not row.is_done for row in batch.rows):
                self._report(batch, batch.write())

    def _read_on(self, batch: ContinuousBatch) -> None:
        """Read some of a lane's prompts; where they cannot be read together, each of them is tried alone."""
        num_readers = sum(other.has_prompts_to_read() for other in self._batches.values())
        try:
            self._report(batch, batch.read_on(self._pace.num_tokens(num_readers)))
        except BaseException as error:
            together = batch.forget_failed()
            if not together:
                raise
            if not self._makes_room(error):
                if len(together) == 1:
                    self._fail_rows(batch, together, error)
                    return
                for row in together:
                    row.is_to_be_read_alone = True
            batch.waiting.extendleft(reversed(together))
        self._pace.note_read(batch.num_read)

    def _makes_room(self, error: BaseException) -> bool:
        """Whether memory that was too little has become more: what is kept of earlier texts goes before an answer."""
        if not (isinstance(error, torch.OutOfMemoryError) and self._prefixes.num_tokens):
            return False
        self._prefixes.clear()
        return True

    def _report(self, batch: ContinuousBatch, ended: Sequence[Completion]) -> None:
        for row in batch.rows:
            if (job := self._jobs.get(row.index)) is None:
                continue
            job.num_cached_tokens = row.num_cached_tokens
            if self.watch is not None:
                self.watch.wrote(job, row)
            if not job.waits_for_end:
                self._report_tokens(row, job)
        for row in ended:
            if (job := self._jobs.pop(row.index, None)) is not None:
                self._report_tokens(row, job)
                end = _end_of(row, job)
                self._told_end(job, end, "length" if end.is_cut else "stop")

    def _report_tokens(self, row: Completion, job: Job) -> None:
        if row.prompt_logprobs is not None and not job.is_prompt_reported:
            _tell(job, PromptRead(logprobs=row.prompt_logprobs))
            job.is_prompt_reported = True
        for place in range(job.num_reported, len(row.written)):
            logprobs = job.sampler.logprobs[place] if job.sampler.logprobs else None
            _tell(job, Token(id=row.written[place], logprobs=logprobs))
        job.num_reported = len(row.written)

    def _fail(self, name: str, batch: ContinuousBatch, error: BaseException) -> None:
        """Give up what was in the batch, or just coming in; what waits is tried, unless nothing else is left."""
        self._makes_room(error)
        if self._begin_anew(batch, error):
            return
        waiting = {row.index for row in batch.waiting}
        own = [index for index, job in self._jobs.items() if job.lane == name]
        failed = [index for index in own if index not in waiting]
        if not failed:
            failed = own
            batch.waiting.clear()
        batch.clear()
        self._tell_failure(failed, error)

    def _begin_anew(self, batch: ContinuousBatch, error: BaseException) -> bool:
        """Have the rows of a failed pass read anew, once: what fails for one of them fails there for it alone."""
        rows = batch.taken
        jobs = [job for row in rows if (job := self._jobs.get(row.index)) is not None]
        # Where some have a token already that others do not, nobody could tell what was written.
        is_clean = all(job.sampler.num_chosen == len(row.written) for job, row in zip(jobs, rows))
        if len(rows) < 2 or len(jobs) < len(rows) or not is_clean or any(job.is_retried for job in jobs):
            return False
        for job in jobs:
            job.is_retried = True
        batch.rows, batch.partly_read = [], None  # they are not given up with what is cleared
        batch.clear()
        batch.waiting.extendleft(reversed(rows))
        _report_error(f"{len(rows)} answers are begun anew where they stand: {type(error).__name__}: {error}")
        return True

    def _fail_all(self, error: BaseException) -> None:
        """Give up everything: what went wrong belongs to no lane."""
        with self._wake:
            inbox, self._inbox = self._inbox, []
        for job in inbox:
            self._told_end(job, JobFailure(reason=_reason(error)), "error")
        for batch in self._batches.values():
            batch.waiting.clear()
            batch.clear()
        self._tell_failure(list(self._jobs), error, num_others=len(inbox))

    def _fail_rows(self, batch: ContinuousBatch, rows: Sequence[Completion], error: BaseException) -> None:
        """Give rows up for what concerns no others."""
        for row in rows:
            row.is_broken = True
            batch.drop(row)
        self._tell_failure([row.index for row in rows], error)

    def _tell_failure(self, indices: Sequence[int], error: BaseException, *, num_others: int = 0) -> None:
        for index in indices:
            if (job := self._jobs.pop(index, None)) is not None:
                self._told_end(job, JobFailure(reason=_reason(error)), "error")
        _report_error(f"{len(indices) + num_others} answers failed: {type(error).__name__}: {error}")

    def _drop_cancelled(self, batch: ContinuousBatch) -> None:
        for row in [*batch.taken, *batch.waiting]:
            job = self._jobs.get(row.index)
            if job is not None and job.is_cancelled:
                del self._jobs[row.index]
                batch.drop(row)
                self._told_end(job, None, "stop" if job.is_complete else "abort")

    def _told_end(self, job: Job, event: End | JobFailure | None, reason: str) -> None:
        """Tell whoever waits how an answer ended, and whoever counts."""
        if event is not None:
            _tell(job, event)
        if self.watch is not None:
            self.watch.ended(job, reason)

    def _choose(self, rows: Sequence[Completion], logits: torch.Tensor) -> torch.Tensor:
        samplers = [self._sampler(row) for row in rows]
        tokens = choose_tokens(samplers, logits)
        for row, sampler in zip(rows, samplers):
            if sampler.failure is not None and (job := self._jobs.get(row.index)) is not None:
                self._fail_rows(self._batches[job.lane], [row], sampler.failure)
        return tokens

    def _sampler(self, row: Completion) -> Sampler:
        """Return the row's sampler; a row that nobody waits for goes along until there is room to leave it out."""
        job = self._jobs.get(row.index)
        return job.sampler if job is not None and not row.is_done else Sampler(Sampling(), ())


def _end_of(row: Completion, job: Job) -> End:
    """Return how an answer ended; the stop token, which is not written, has its likelihood behind the others'."""
    was_led = job.sampler.closing is not None and job.sampler.closing.has_led
    is_cut = was_led or len(row.written) >= row.max_new_tokens
    if is_cut or row.stop_token is None or len(job.sampler.logprobs) <= len(row.written):
        return End(is_cut=is_cut)
    return End(is_cut=False, stop_token=Token(id=row.stop_token, logprobs=job.sampler.logprobs[len(row.written)]))


def _tell(job: Job, event: Event) -> None:
    """Hand an event to whoever waits; one who cannot take it gets no more, and the others go on."""
    if job.is_cancelled:
        return
    try:
        job.on_event(event)
    except BaseException as error:  # whatever it is: it is not the model's, nor that of others in the batch
        job.is_cancelled = True
        _report_error(f"an answer has lost its reader: {type(error).__name__}: {error}")


def _reason(error: BaseException) -> str:
    """Return what a client is told of an error: nothing of the machine that it happened on."""
    if isinstance(error, torch.OutOfMemoryError):
        return "the model ran out of memory"
    if isinstance(error, GrammarFailure):  # of what the client has sent
        return str(error)
    return "the model computed no numbers" if isinstance(error, NoNumbers) else "the model failed"


def _report_error(text: str) -> None:
    with contextlib.suppress(OSError, ValueError):  # stderr may be full or closed: no reason to stop answering
        say(f"error: {text}")
