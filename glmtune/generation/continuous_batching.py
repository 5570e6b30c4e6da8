"""Continuous batching: a row that has its answer leaves the batch, and the next prompt takes its place.

`model.generate` goes on until the longest answer of a batch is written, and a row that is done is computed all the
same. Here it only prepares: logits processors, stop tokens and adapters are its own, and the loop below takes the
place of its own through `custom_generate`, a public argument.

Memory has a limit in tokens, rows times the width of the cache. Prompts come in as long as the rows stay below it, each
as wide as it is expected to become; where a row grows wider, so that the limit would be passed, it is put back to the
end of the queue and goes on there, with others of its kind, from what it has written.

Shape legend: B rows in the batch, P tokens of a trained prefix (P-Tuning v2), W tokens of prompt and answer, padded on
the left; V vocabulary.

Under ZeRO-3 and FSDP each forward pass is a meeting of all processes, and so is the encoder of a trained prefix, which
runs where prompts come in. Therefore all processes take prompts in at the same passes, and one that has nothing to
do runs a pass that counts for nothing.
"""

from __future__ import annotations

import inspect
import itertools
from bisect import insort
from collections import deque
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from peft import PeftModel
from transformers import DynamicCache, GenerationConfig
from transformers.cache_utils import DynamicLayer

from glmtune.compat import CACHE
from glmtune.constrained.compiling import CompiledGrammar
from glmtune.constrained.held_answers import HeldAnswers
from glmtune.kernels.virtual_tokens import num_tokens_before_rows
from glmtune.processes.groups import highest

from .batch_cache import BatchCache, order_without_gaps
from .completion import Completion
from .prefill import Prefill
from .prefix_store import BLOCK_TOKENS, KeptBlock, PrefixStore, States

MAX_ROWS = 64
"""Beyond it a row more saves little; the logits of a row take 0.6 MB, several times over, where V is 151,552."""

SHARE_TO_CHANGE = 4
"""Prompts come in when there is room for a quarter of the batch: each time costs a forward pass of its own."""

EXPECTED_SHARE = 0.9
"""So many of the answers that are finished are no longer than a new one is expected to become."""

SHORT_TOKENS, SHORT_TOGETHER = 64, 512
"""Prompts of so many tokens are read together, up to so many, where more of them wait than answers are written."""

MAX_LOOKED_AT = 32
"""Prompts that wait and are looked at for those that can be read next: what is known of each has to be looked up."""

MAX_LENGTHS = 1000
"""Lengths of answers that are remembered: a server runs for weeks."""

KNOWN_OPTIONS = {
    "do_sample", "temperature", "top_k", "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff",
    "max_new_tokens", "eos_token_id", "pad_token_id", "bos_token_id", "use_cache", "transformers_version",
    "_from_model_config", "num_assistant_tokens", "num_assistant_tokens_schedule", "assistant_confidence_threshold",
    "assistant_lookbehind", "target_lookbehind",
}  # fmt: skip
"""Those that look at the next token's probabilities alone, or at an assistant that only others bring in; all others
may look at the padded batch as a whole."""

NEUTRAL = {
    "num_beams": 1, "num_beam_groups": 1, "num_return_sequences": 1, "repetition_penalty": 1.0,
    "encoder_repetition_penalty": 1.0, "length_penalty": 1.0,
}  # fmt: skip
"""Values that change nothing, but are spelled out by some models' files, and by transformers' trainer."""


Choose = Callable[[Sequence[Completion], torch.Tensor], torch.Tensor]
"""Takes rows and the logits behind each of them, (B, V) in float32; returns their next tokens, (B,)."""


def can_batch_continuously(model: Any, config: GenerationConfig) -> bool:
    """Whether rows can come and go."""
    return reason_against_continuous_batching(model, config) is None


def reason_against_continuous_batching(model: Any, config: GenerationConfig) -> str | None:
    """Return why rows cannot come and go; None where the cache holds plain keys and values, and all options fit."""
    active = {name for name, value in config.to_dict().items() if value and value != NEUTRAL.get(name)}
    if unfit := sorted(active - KNOWN_OPTIONS):
        return f"{', '.join(f'`{name}`' for name in unfit)} may look at a batch as a whole"
    if num_tokens_before_rows(model):
        return "prompt tuning lays its virtual tokens before each row, where padding would part them from it"
    if config.use_cache is False:
        return "`use_cache: false` keeps no keys and values"
    base: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    absent = [name for name in (CACHE, "position_ids", "attention_mask") if name not in _arguments(base)]
    if absent:
        return f"`{type(base).__name__}` does not take {', '.join(f'`{name}`' for name in absent)}"
    layers = DynamicCache(config=base.config.get_text_config(decoder=True)).layers
    if not layers or not all(type(layer) is DynamicLayer for layer in layers):
        return f"`{type(base).__name__}` keeps more than keys and values while it answers"
    return None


def _arguments(model: Any) -> Collection[str]:
    """Return the names of what a model takes; decorators that rename arguments do not hide them."""
    return inspect.signature(model.forward).parameters


def answer_continuously(
    model: Any,
    prompts: Sequence[Sequence[int]],
    config: GenerationConfig,
    *,
    rooms: Sequence[int],
    batch_size: int,
    max_tokens: int,
    in_group: bool,
    on_pass: Callable[[list[Completion], int], None],
    grammar: CompiledGrammar | None = None,
) -> None:
    """Answer all prompts, in their order where that is possible; the longest had better come first.

    Args:
        model: Possibly with an adapter.
        prompts: Ids; under several processes those of this one, perhaps none.
        config: Whose options `can_batch_continuously` found fit.
        rooms: How many tokens the answer to each prompt may have.
        batch_size: Rows at once where all are as long as the longest; the fewest that `MAX_ROWS` may not cut down.
        max_tokens: Rows times tokens, prefixes not counted, that the cache may hold.
        in_group: Whether all processes answer together.
        on_pass: Called after every forward pass, equally often on all processes, with the answers that it finished
            and the number of prompts that were unfinished before it, on the process that has most of them left.
        grammar: What the answers have to follow.
    """
    held = None if grammar is None else HeldAnswers(grammar, config.eos_token_id or [], config.max_new_tokens)
    answers = [Completion(index, prompt, room) for index, (prompt, room) in enumerate(zip(prompts, rooms))]

    def run(model: Any, input_ids: Any, logits_processor: Any, stopping_criteria: Any, **model_kwargs: Any) -> Any:
        def choose(rows: Sequence[Completion], logits: torch.Tensor) -> torch.Tensor:
            keys = [None if row.is_done else row.index for row in rows]
            if held is not None:
                logits = held.scores(keys, logits)
            scores: torch.Tensor = logits_processor(input_ids.expand(len(rows), -1), logits)
            if config.do_sample:
                tokens = torch.multinomial(F.softmax(scores, dim=-1), num_samples=1).squeeze(1)
            else:
                tokens = scores.argmax(dim=-1)
            if held is not None:
                held.note(keys, tokens)
            return tokens

        batch = ContinuousBatch(
            model,
            answers,
            choose,
            stops=config.eos_token_id or [],
            max_tokens=max_tokens,
            max_rows=max(MAX_ROWS, batch_size),
            keeps_last_logits="logits_to_keep" in model_kwargs,
        )
        while True:
            state = [batch.num_unfinished, int(batch.wants_prompts())]
            num_unfinished, is_taking_in = highest(state, model.device) if in_group else state
            if not num_unfinished:
                return input_ids
            on_pass(batch.take_in() if is_taking_in else batch.write(), num_unfinished)

    # Of the prompt that `generate` sees nothing is used.
    nothing = torch.full((1, 1), config.pad_token_id or 0, device=model.device)
    with torch.no_grad():
        model.generate(
            input_ids=nothing,
            attention_mask=torch.ones_like(nothing),
            generation_config=config,
            custom_generate=run,
        )


class ContinuousBatch:
    """The rows that are being answered, their keys and values, and the prompts that wait."""

    def __init__(
        self,
        model: Any,
        answers: Iterable[Completion],
        choose: Choose,
        *,
        stops: Iterable[int],
        max_tokens: int,
        max_rows: int,
        keeps_last_logits: bool,
        prefixes: PrefixStore | None = None,
    ) -> None:
        self.model = model
        self.choose = choose
        self.stops = set(stops)
        self.max_tokens = max_tokens
        self.max_rows = max_rows
        self.prefixes = prefixes
        self.model_kwargs: dict[str, Any] = {"use_cache": True}
        if keeps_last_logits:
            self.model_kwargs["logits_to_keep"] = 1
        self.waiting = deque(answers)
        self.num_unfinished = len(self.waiting)
        self.finished_lengths: list[int] = []
        self.rows: list[Completion] = []
        self.coming_in: Prefill | None = None  # in this pass: where it fails, those in the batch are as they were
        self.partly_read: Prefill | None = None  # in several passes
        self._is_turn_of_others = False
        self.num_read = 0  # rows times tokens, by the last pass that read prompts
        self.cache: BatchCache | None = None
        self.num_prefix = 0
        self.shift = 0  # of positions, by a prefix
        self.tokens = torch.empty((0, 1), dtype=torch.long, device=model.device)  # (B, 1), the last of each row
        self.lengths = torch.empty(0, dtype=torch.long, device=model.device)  # (B,), without padding and prefix

    @property
    def taken(self) -> list[Completion]:
        """Rows that are being answered, or whose prompts are being read."""
        prefill = self.partly_read  # another thread may ask
        return [row for row in (*self.rows, *(prefill.rows if prefill else ())) if not row.is_done]

    def wants_prompts(self) -> bool:
        """Whether prompts had better come in before the next token is written."""
        active = [row for row in self.rows if not row.is_done]
        num_new = self._num_to_take(active)
        return num_new > 0 and num_new * SHARE_TO_CHANGE >= len(active)

    def has_prompts_to_read(self) -> bool:
        """Whether a prompt is being read, or could be at once, without regard to what it costs those in the batch."""
        return self.partly_read is not None or self._num_to_take(self.taken) > 0

    def drop(self, row: Completion) -> None:
        """Give a row up, in the batch or waiting, in the same time however many wait."""
        if not row.is_done:
            row.is_done = True
            self.num_unfinished -= 1

    def is_idle(self) -> bool:
        """Whether there is nothing to write."""
        self._pass_over_dropped()
        return not self.waiting and not self.taken

    def clear(self) -> None:
        """Give up all rows in the batch, and their keys and values, whatever state a failure left them in."""
        for row in self.taken:
            self.drop(row)
        self.rows, self.coming_in, self.partly_read, self.cache = [], None, None, None
        self.tokens, self.lengths = self.tokens[:0], self.lengths[:0]

    def take_in(self) -> list[Completion]:
        """Let prompts come in, as many as there is room for, and write the first token of each.

        Returns the answers that ended so.
        """
        self.let_go()
        new = self._next_prompts(self._num_to_take(self.rows))
        if not new:  # it is another process that has room
            Prefill(self.model, [Completion(-1, [0], 1)], self.model_kwargs).read()
            return []
        return self._read(self._begun(new))

    def read_on(self, most: int) -> list[Completion]:
        """Read of the prompts, in one forward pass, so many tokens at most; where one is at its end, it comes in.

        A long prompt takes many passes; every other one is left to those that wait behind it and fit into one. Where
        more prompts wait than answers are being written, short ones are read together, however many tokens they have.
        Returns the answers that ended with their first token.
        """
        self.let_go()
        prefill, self.num_read = self._next_prefill(most), 0
        return [] if prefill is None else self._read(prefill, most if prefill is self.partly_read else None)

    def forget_failed(self) -> list[Completion]:
        """Return the rows whose reading failed: they are neither in the batch any more, nor do they wait."""
        failed, self.coming_in = self.coming_in, None
        if failed is self.partly_read:
            self.partly_read = None
        return [] if failed is None else failed.rows

    def write(self) -> list[Completion]:
        """Write the next token of every row; returns the answers that ended with it."""
        num_done = sum(row.is_done for row in self.rows)
        width = self._width() + 1
        if num_done * SHARE_TO_CHANGE >= len(self.rows) or len(self.rows) * width > self.max_tokens:
            self.let_go()
            width = self._width() + 1
        if not self.rows:  # it is another process that has some
            self.model(input_ids=self._on_device([[0]]), use_cache=False)
            return []
        places = torch.arange(self.num_prefix + width, device=self.lengths.device)
        inputs: dict[str, Any] = {
            "attention_mask": (places >= (width - 1 - self.lengths)[:, None]).long(),  # (B, P + W + 1)
            "position_ids": self.lengths[:, None] + self.shift,
            CACHE: self.cache,
            **self.model_kwargs,
        }
        if not self.num_prefix:  # else PEFT would prepare for a prefix that stands before the padding
            inputs = self.model.prepare_inputs_for_generation(self.tokens, **inputs)
        logits = self.model(**{"input_ids": self.tokens, **inputs}, return_dict=True).logits
        self.tokens = self._choose(self.rows, logits)
        self.lengths = self.lengths + 1
        return self._note(self.rows, self.tokens)

    def let_go(self) -> None:
        """Drop the rows that are done, and put the widest back where the others would not fit beside them."""
        if self.partly_read is not None and all(row.is_done for row in self.partly_read.rows):
            self.partly_read = None
        kept = [index for index, row in enumerate(self.rows) if not row.is_done]
        leaving = [index for index, row in enumerate(self.rows) if row.is_done]
        while len(kept) > 1:
            widest = max(kept, key=lambda index: self.rows[index].length)
            if len(kept) * self.rows[widest].length <= self.max_tokens:
                break
            kept.remove(widest)
            leaving.append(widest)
            self.waiting.append(self.rows[widest])
        if not leaving:
            return
        self._keep_prefixes(leaving)
        order = order_without_gaps(kept)
        indices = self._on_device(order)
        self.rows = [self.rows[index] for index in order]
        self.tokens, self.lengths = self.tokens[indices], self.lengths[indices]
        if self.rows and self.cache is not None:
            self.cache.keep(order, self.num_prefix + max(row.length for row in self.rows) - 1)
        else:
            self.cache = None

    def _next_prefill(self, most: int) -> Prefill | None:
        """Return what is read next: prompts that fit into this pass, or a long one that takes several."""
        long = self.partly_read
        if long is None or self._is_turn_of_others:
            self._is_turn_of_others = False
            rows, fits = self._next_group(most, is_beside_long=long is not None)
            if rows:
                prefill = self._begun(rows)
                if not fits:
                    self.partly_read, self._is_turn_of_others = prefill, True
                return prefill
        self._is_turn_of_others = True
        return long

    def _next_group(self, most: int, *, is_beside_long: bool) -> tuple[list[Completion], bool]:
        """Return what is read together, or a single prompt, and whether one pass is enough; they wait no more."""
        active = self.taken
        most_of_short = max(most, SHORT_TOGETHER) if len(self.waiting) > len(active) else most
        group: list[Completion] = []
        is_one_pass = True
        num_columns, widest = 0, max(map(self._expected_width, active), default=0)
        for row in list(itertools.islice(self.waiting, MAX_LOOKED_AT)):
            if row.is_done:
                continue
            wider = max(widest, self._expected_width(row))
            if self._is_too_much(len(active) + len(group) + 1, wider):
                break
            columns = max(num_columns, row.length - BLOCK_TOKENS * len(self._known(row)))
            limit = most_of_short if columns <= SHORT_TOKENS else most
            fits = (len(group) + 1) * columns <= limit and not row.is_to_be_read_alone
            if fits or not (group or is_beside_long):
                group.append(row)
                num_columns, widest, is_one_pass = columns, wider, fits
            if not fits and not is_beside_long:
                break
        chosen = set(map(id, group))
        self.waiting = deque(row for row in self.waiting if id(row) not in chosen)
        return group, is_one_pass

    def _known(self, row: Completion) -> list[KeptBlock]:
        """Return keys and values of the row's beginning, of all but its last token at most."""
        if self.prefixes is None or row.is_to_score:
            return []
        return self.prefixes.find(self, [*row.prompt, *row.written][:-1])

    def _begun(self, rows: Sequence[Completion]) -> Prefill:
        prefill = Prefill(self.model, rows, self.model_kwargs, [self._known(row) for row in rows])
        for index, row in enumerate(rows):
            if not row.written:
                row.num_cached_tokens = prefill.num_cached(index)
        return prefill

    def _read(self, prefill: Prefill, most: int | None = None) -> list[Completion]:
        """Read on; at the end the rows come in, and their first tokens are written."""
        self.coming_in, num_left = prefill, prefill.num_left
        logits = prefill.read(most)
        self.num_read = num_left - prefill.num_left
        if logits is None:
            self.coming_in = None
            return []
        tokens = self._choose(prefill.rows, logits)
        self.coming_in = None
        if prefill is self.partly_read:
            self.partly_read = None
        self.num_prefix, self.shift = prefill.num_prefix, prefill.shift
        if self.cache is None:
            self.cache = BatchCache(prefill.cache, self.max_tokens)
        self.cache.add(prefill.cache, prefill.paddings, prefill.num_prefix)
        self.tokens = torch.cat([self.tokens, tokens])
        self.lengths = torch.cat([self.lengths, self._on_device([row.length for row in prefill.rows])])
        self.rows += prefill.rows
        self._keep_prefixes(range(len(self.rows) - len(prefill.rows), len(self.rows)))
        return self._note(prefill.rows, tokens)

    def _keep_prefixes(self, places: Iterable[int]) -> None:
        """Keep the keys and values of rows, for texts that begin as theirs do."""
        if self.prefixes is None or self.cache is None:
            return
        layers, lengths = self.cache.layers, self.lengths.tolist()
        for place in places:
            row, first = self.rows[place], self.cache.get_seq_length() - lengths[place]

            def states_of(start: int, end: int, place: int = place, first: int = first) -> States:
                columns = slice(first + start, first + end)
                return [(layer.keys[place, :, columns], layer.values[place, :, columns]) for layer in layers]

            try:
                if not row.is_broken:
                    self.prefixes.keep(self, [*row.prompt, *row.written][: lengths[place]], states_of)
            except torch.OutOfMemoryError:  # the answers need it more
                self.prefixes.clear()

    def _choose(self, rows: Sequence[Completion], logits: torch.Tensor) -> torch.Tensor:
        """Return the next token of each row, (B, 1)."""
        return self.choose(rows, logits[:, -1].float())[:, None]

    def _note(self, rows: Sequence[Completion], tokens: torch.Tensor) -> list[Completion]:
        """Write the tokens down; returns the answers that ended."""
        ended = []
        for row, token in zip(rows, tokens.squeeze(1).tolist()):
            if row.is_done:
                continue
            is_stop = token in (self.stops if row.stops is None else row.stops)
            if not is_stop and row.max_new_tokens:
                row.written.append(token)
            row.stop_token = token if is_stop else None
            row.is_done = is_stop or len(row.written) >= row.max_new_tokens
            if row.is_done:
                insort(self.finished_lengths, len(row.written))
                if len(self.finished_lengths) > MAX_LENGTHS:
                    del self.finished_lengths[::2]
                ended.append(row)
        self.num_unfinished -= len(ended)
        return ended

    def _num_to_take(self, active: Sequence[Completion]) -> int:
        """Return how many of the waiting prompts there is room for, beside the active rows."""
        self._pass_over_dropped()
        widest = max(map(self._expected_width, active), default=0)
        number = 0
        for row in self.waiting:
            if row.is_done:
                continue
            widest = max(widest, self._expected_width(row))
            if self._is_too_much(len(active) + number + 1, widest):
                break
            number += 1
        return number

    def _is_too_much(self, num_rows: int, width: int) -> bool:
        """Whether so many rows are beyond the limits; one always has room."""
        return num_rows > 1 and (num_rows * width > self.max_tokens or num_rows > self.max_rows)

    def _next_prompts(self, number: int) -> list[Completion]:
        """Return so many of the prompts that wait, or all; they wait no more."""
        new: list[Completion] = []
        while self.waiting and len(new) < number:
            row = self.waiting.popleft()
            if not row.is_done:
                new.append(row)
        return new

    def _pass_over_dropped(self) -> None:
        while self.waiting and self.waiting[0].is_done:
            self.waiting.popleft()

    def _expected_width(self, row: Completion) -> int:
        """Return how many tokens the row is expected to hold at its end; before any is finished, the most it may."""
        expected = row.max_new_tokens
        if self.finished_lengths:
            expected = self.finished_lengths[int(EXPECTED_SHARE * (len(self.finished_lengths) - 1))] + 1
        return len(row.prompt) + min(row.max_new_tokens, max(expected, len(row.written) + 1))

    def _width(self) -> int:
        """Return W."""
        return self.cache.get_seq_length() - self.num_prefix if self.cache is not None else 0

    def _on_device(self, values: Any) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.long, device=self.model.device)
