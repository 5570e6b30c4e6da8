"""Continuous batching: a row that has its answer leaves the batch, and the next prompt takes its place.

`model.generate` goes on until the longest answer of a batch is written, and a row that is done is computed all the
same. Here it only prepares: logits processors, stop tokens and adapters are its own, and the loop below takes the
place of its own through `custom_generate`, a public argument.

Memory has a limit in tokens, rows times the width of the cache. Prompts come in as long as the rows stay below it, each
as wide as it is expected to become; where a row grows wider, so that the limit would be passed, it is put back to the
end of the queue and goes on there, with others of its kind, from what it has written.

Shape legend: B rows in the batch, P tokens of a trained prefix (P-Tuning v2), W tokens of prompt and answer, padded on
the left; H key/value heads, D head size, V vocabulary. Keys and values are (B, H, P + W, D).

Under ZeRO-3 and FSDP each forward pass is a meeting of all processes, and so is the encoder of a trained prefix, which
runs where prompts come in. Therefore all processes take prompts in at the same passes, and one that has nothing to
do runs a pass that counts for nothing.
"""

from __future__ import annotations

import inspect
from bisect import insort
from collections import deque
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
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

from .prompt_logprobs import PromptLogprobs, joined, score

MAX_ROWS = 64
"""Beyond it a row more saves little; the logits of a row take 0.6 MB, several times over, where V is 151,552."""

SHARE_TO_CHANGE = 4
"""Prompts come in when there is room for a quarter of the batch: each time costs a forward pass of its own."""

EXPECTED_SHARE = 0.9
"""So many of the answers that are finished are no longer than a new one is expected to become."""

SCORED_TOKENS = 512
"""Rows times tokens that are read at once where the likelihoods of a prompt are wanted: logits are kept of all of them,
0.3 MB a token in bfloat16 where V is 151,552."""

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


@dataclass(eq=False)
class Completion:
    """A prompt, and what is written behind it so far."""

    index: int
    prompt: Sequence[int]
    max_new_tokens: int
    stops: Collection[int] | None = None
    """Ids that end the answer; None for those of the batch."""
    written: list[int] = field(default_factory=list)
    """Ids, without the stop token."""
    num_prompt_logprobs: int | None = None
    """Most likely tokens to tell beside each of the prompt's, with their likelihoods; None tells nothing."""
    prompt_logprobs: PromptLogprobs | None = None
    """Known once the prompt has been read, where they are wanted."""
    stop_token: int | None = None
    """The id that ended the answer."""
    is_done: bool = False

    @property
    def length(self) -> int:
        """Tokens of prompt and answer; while it is in the batch, keys and values are kept of all but the last."""
        return len(self.prompt) + len(self.written)

    @property
    def is_to_score(self) -> bool:
        """Whether the likelihoods of its prompt are wanted and not yet known."""
        return self.num_prompt_logprobs is not None and self.prompt_logprobs is None


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
    ) -> None:
        self.model = model
        self.choose = choose
        self.stops = set(stops)
        self.max_tokens = max_tokens
        self.max_rows = max_rows
        self.model_kwargs: dict[str, Any] = {"use_cache": True}
        if keeps_last_logits:
            self.model_kwargs["logits_to_keep"] = 1
        self.waiting = deque(answers)
        self.num_unfinished = len(self.waiting)
        self.finished_lengths: list[int] = []
        self.rows: list[Completion] = []
        self.coming_in: list[Completion] = []  # being read: where that fails, those in the batch are as they were
        self.cache: Any = None
        self.num_prefix = 0
        self.tokens = torch.empty((0, 1), dtype=torch.long, device=model.device)  # (B, 1), the last of each row
        self.lengths = torch.empty(0, dtype=torch.long, device=model.device)  # (B,), without padding and prefix

    def wants_prompts(self) -> bool:
        """Whether prompts had better come in before the next token is written."""
        active = [row for row in self.rows if not row.is_done]
        num_new = self._num_to_take(active)
        return num_new > 0 and num_new * SHARE_TO_CHANGE >= len(active)

    def has_room(self) -> bool:
        """Whether a prompt that waits could come in at once, without regard to what it costs those in the batch."""
        return self._num_to_take([row for row in self.rows if not row.is_done]) > 0

    def drop(self, row: Completion) -> None:
        """Give a row up, in the batch or waiting, in the same time however many wait."""
        if not row.is_done:
            row.is_done = True
            self.num_unfinished -= 1

    def is_idle(self) -> bool:
        """Whether there is nothing to write."""
        self._pass_over_dropped()
        return not self.waiting and all(row.is_done for row in self.rows)

    def clear(self) -> None:
        """Give up all rows in the batch, and their keys and values, whatever state a failure left them in."""
        for row in self.rows:
            self.drop(row)
        self.rows, self.coming_in, self.cache = [], [], None
        self.tokens, self.lengths = self.tokens[:0], self.lengths[:0]

    def take_in(self, most: int | None = None) -> list[Completion]:
        """Let prompts come in, `most` of them, and write the first token of each; returns the answers that ended so."""
        self._let_go()
        new = self._next_prompts(self._num_to_take(self.rows) if most is None else most)
        if not new:  # it is another process that has room
            self._read([Completion(-1, [0], 1)])
            return []
        self.coming_in = new
        logits, cache = self._read(new)
        tokens = self._choose(new, logits)
        self.coming_in = []
        width = max([*(row.length - 1 for row in self.rows), *(row.length for row in new)])
        self._align(cache, width)
        if self.rows:
            self._align(self.cache, width)
            for layer, other in zip(self.cache.layers, cache.layers):
                layer.keys = torch.cat([layer.keys, other.keys])
                layer.values = torch.cat([layer.values, other.values])
        else:
            self.cache = cache
        self.tokens = torch.cat([self.tokens, tokens])
        self.lengths = self._on_device([*(row.length - 1 for row in self.rows), *(row.length for row in new)])
        self.rows += new
        return self._note(new, tokens)

    def write(self) -> list[Completion]:
        """Write the next token of every row; returns the answers that ended with it."""
        num_done = sum(row.is_done for row in self.rows)
        width = self._width() + 1
        if num_done * SHARE_TO_CHANGE >= len(self.rows) or len(self.rows) * width > self.max_tokens:
            self._let_go()
            width = self._width() + 1
        if not self.rows:  # it is another process that has some
            self.model(input_ids=self._on_device([[0]]), use_cache=False)
            return []
        places = torch.arange(width, device=self.lengths.device)
        inputs = self.model.prepare_inputs_for_generation(
            self.tokens,
            attention_mask=(places >= (width - 1 - self.lengths)[:, None]).long(),  # (B, W + 1)
            position_ids=self.lengths[:, None],
            **{CACHE: self.cache},
            **self.model_kwargs,
        )
        self.tokens = self._choose(self.rows, self.model(**inputs, return_dict=True).logits)
        self.lengths = self.lengths + 1
        return self._note(self.rows, self.tokens)

    def _read(self, rows: Sequence[Completion]) -> tuple[torch.Tensor, Any]:
        """Return the logits behind each row's text, (B, 1, V), and the cache of what stands there."""
        texts = [[*row.prompt, *row.written] for row in rows]
        width = max(len(text) for text in texts)
        input_ids = self._on_device([[0] * (width - len(text)) + text for text in texts])
        mask = self._on_device([[0] * (width - len(text)) + [1] * len(text) for text in texts])
        position_ids = (mask.cumsum(-1) - 1).clamp(min=0)
        scores = any(row.is_to_score for row in rows)
        step = max(1, SCORED_TOKENS // len(rows)) if scores else width
        inputs = self.model.prepare_inputs_for_generation(
            input_ids[:, :step],
            attention_mask=mask[:, :step],
            position_ids=position_ids[:, :step],
            is_first_iteration=True,
            **{CACHE: DynamicCache(config=self.model.config.get_text_config(decoder=True))},
            **({"use_cache": True} if scores else self.model_kwargs),
        )
        logits = self.model(**inputs, return_dict=True).logits
        cache = inputs[CACHE]  # ours, or the one that PEFT has put a prefix into
        self.num_prefix = cache.get_seq_length() - min(step, width)
        if not scores:
            return logits, cache
        parts: list[list[PromptLogprobs]] = [[] for _ in rows]
        self._score(rows, input_ids, logits, 0, parts)
        before = mask.new_ones((len(rows), self.num_prefix))
        shift = inputs["position_ids"][0, 0] - position_ids[0, 0]  # PEFT counts a prefix, too
        for start in range(step, width, step):
            end = start + step
            # Not prepared: behind a prefix PEFT would leave all but the last token out.
            logits = self.model(
                input_ids=input_ids[:, start:end],
                attention_mask=torch.cat([before, mask[:, :end]], dim=1),
                position_ids=position_ids[:, start:end] + shift,
                use_cache=True,
                return_dict=True,
                **{CACHE: cache},
            ).logits
            self._score(rows, input_ids, logits, start, parts)
        for row, own in zip(rows, parts):
            if row.is_to_score:
                row.prompt_logprobs = joined(own)
        return logits, cache

    def _score(
        self,
        rows: Sequence[Completion],
        input_ids: torch.Tensor,
        logits: torch.Tensor,
        start: int,
        parts: Sequence[list[PromptLogprobs]],
    ) -> None:
        """Add to the parts of each row what is likely by these logits, (B, S, V), of the columns from `start`."""
        for index, row in enumerate(rows):
            if not row.is_to_score:
                continue
            padding = input_ids.shape[1] - row.length
            first = max(start, padding)
            behind = min(start + logits.shape[1], padding + len(row.prompt) - 1)
            if first < behind:
                following = input_ids[index, first + 1 : behind + 1]
                own = logits[index, first - start : behind - start]
                parts[index].append(score(own, following, row.num_prompt_logprobs or 0))

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
            num_rows = len(active) + number + 1
            if num_rows > 1 and (num_rows * widest > self.max_tokens or num_rows > self.max_rows):
                break
            number += 1
        return number

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

    def _let_go(self) -> None:
        """Drop the rows that are done, and put the widest back where the others would not fit beside them."""
        kept = [index for index, row in enumerate(self.rows) if not row.is_done]
        while len(kept) > 1:
            widest = max(kept, key=lambda index: self.rows[index].length)
            if len(kept) * self.rows[widest].length <= self.max_tokens:
                break
            kept.remove(widest)
            self.waiting.append(self.rows[widest])
        if len(kept) == len(self.rows):
            return
        indices = self._on_device(kept)
        self.rows = [self.rows[index] for index in kept]
        self.tokens, self.lengths = self.tokens[indices], self.lengths[indices]
        if self.rows:
            self.cache.batch_select_indices(indices)
            self._align(self.cache, max(row.length for row in self.rows) - 1)
        else:
            self.cache = None

    def _align(self, cache: Any, width: int) -> None:
        """Add or take away padding between prefix and text, so that the text is `width` wide."""
        missing = self.num_prefix + width - cache.get_seq_length()
        if not missing:
            return
        for layer in cache.layers:
            layer.keys = self._aligned(layer.keys, missing)
            layer.values = self._aligned(layer.values, missing)

    def _aligned(self, states: torch.Tensor, missing: int) -> torch.Tensor:
        prefix, text = states[:, :, : self.num_prefix], states[:, :, self.num_prefix :]
        return torch.cat([prefix, F.pad(text, (0, 0, missing, 0))], dim=2)  # below 0, it takes away

    def _width(self) -> int:
        return self.cache.get_seq_length() - self.num_prefix if self.rows else 0

    def _on_device(self, values: Any) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.long, device=self.model.device)
