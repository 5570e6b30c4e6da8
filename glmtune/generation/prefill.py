"""Prefill: prompts that are read together, in one forward pass or in chunks between which others get their tokens.

The beginning of a prompt may have been read before (`prefix_store.py`): its keys and values are put in their place, and
reading begins behind them.

Shape legend: B rows, P tokens of a trained prefix (P-Tuning v2), W tokens of the widest text, padded on the left; S
columns that are read at once; V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from transformers import DynamicCache

from glmtune.compat import CACHE, key_heads_shared

from .batch_cache import BatchCache
from .completion import Completion
from .prefix_store import BLOCK_TOKENS, KeptBlock
from .prompt_logprobs import PromptLogprobs, joined, score

SCORED_TOKENS = 512
"""Rows times tokens that are read at once where the likelihoods of a prompt are wanted: logits are kept of all of them,
0.3 MB a token in bfloat16 where V is 151,552."""


class Prefill:
    """Rows whose text is being read."""

    def __init__(
        self,
        model: Any,
        rows: Sequence[Completion],
        model_kwargs: dict[str, Any],
        known: Sequence[Sequence[KeptBlock]] | None = None,
    ) -> None:
        """Lay the texts side by side; nothing is read yet.

        Args:
            model: As `generate` uses it.
            rows: With what is written so far.
            model_kwargs: Of a forward pass whose last logits alone are wanted.
            known: Keys and values of each row's beginning, of all but its last token at most.
        """
        self.model, self.rows, self._model_kwargs = model, list(rows), model_kwargs
        texts = [[*row.prompt, *row.written] for row in rows]
        self.width = max(len(text) for text in texts)
        self.paddings = [self.width - len(text) for text in texts]
        self._known = known or [()] * len(texts)
        # All rows are read from the same column on: what is known beyond it is read again.
        self._start = min(padding + BLOCK_TOKENS * len(blocks) for padding, blocks in zip(self.paddings, self._known))
        self._column = self._start
        device = model.device
        self.input_ids = torch.tensor(
            [[0] * padding + text for padding, text in zip(self.paddings, texts)], dtype=torch.long, device=device
        )
        self._mask = (torch.arange(self.width) >= torch.tensor(self.paddings)[:, None]).long().to(device)
        self._position_ids = (self._mask.cumsum(-1) - 1).clamp(min=0)
        self._scores = any(row.is_to_score for row in rows)
        self._parts: list[list[PromptLogprobs]] = [[] for _ in rows]
        self.cache: Any = None
        self.num_prefix = 0
        self.shift = 0
        """What is added to each position: PEFT may count a prefix, too."""

    @property
    def num_left(self) -> int:
        """Rows times columns that are to be read."""
        return len(self.rows) * (self.width - self._column)

    def num_cached(self, index: int) -> int:
        """Return how many tokens of a row are not read, since their keys and values were known."""
        return max(0, self._start - self.paddings[index])

    def read(self, most: int | None = None) -> torch.Tensor | None:
        """Read on, rows times columns of `most` at most; returns the logits behind each text, (B, 1, V), at its end."""
        most = most or self.num_left
        if self._scores:
            most = min(most, SCORED_TOKENS)
        start, end = self._column, min(self.width, self._column + max(1, most // len(self.rows)))
        inputs = self._inputs(start, end) if self.cache is not None else self._first_inputs(start, end)
        with key_heads_shared(self.model.device.type) if end - start > 1 else nullcontext():
            logits: torch.Tensor = self.model(**inputs, return_dict=True).logits
        self._column = end
        if self._scores:
            self._score(logits, start)
        if end < self.width:
            self._make_room()
            return None
        for row, own in zip(self.rows, self._parts):
            if row.is_to_score:
                row.prompt_logprobs = joined(own)
        return logits

    def _make_room(self) -> None:
        """Have what comes next written behind what was read, without copying that again for each chunk."""
        if len(self.rows) == 1 and not isinstance(self.cache, BatchCache):
            read, self.cache = self.cache, BatchCache(self.cache, max_tokens=0)
            self.cache.add(read, [0], self.num_prefix)

    def _first_inputs(self, start: int, end: int) -> dict[str, Any]:
        """Return what the model takes at first, as it prepares it itself: a trained prefix comes in here."""
        position_ids = self._position_ids[:, start:end]
        inputs = self.model.prepare_inputs_for_generation(
            self.input_ids[:, start:end],
            attention_mask=self._mask[:, start:end],
            position_ids=position_ids,
            is_first_iteration=True,
            **{CACHE: DynamicCache(config=self.model.config.get_text_config(decoder=True))},
            **({"use_cache": True} if self._scores else self._model_kwargs),
        )
        self.cache = inputs[CACHE]  # ours, or the one that PEFT has put a prefix into
        self.num_prefix = self.cache.get_seq_length()
        self.shift = int(inputs["position_ids"][0, 0] - position_ids[0, 0])
        if start:
            self._put_known()
            inputs["attention_mask"] = self._mask_until(end)
        return dict(inputs)

    def _inputs(self, start: int, end: int) -> dict[str, Any]:
        # Not prepared: behind a prefix PEFT would leave all but the last token out.
        return {
            "input_ids": self.input_ids[:, start:end],
            "attention_mask": self._mask_until(end),
            "position_ids": self._position_ids[:, start:end] + self.shift,
            CACHE: self.cache,
            **({"use_cache": True} if self._scores else self._model_kwargs),
        }

    def _mask_until(self, end: int) -> torch.Tensor:
        return torch.cat([self._mask.new_ones((len(self.rows), self.num_prefix)), self._mask[:, :end]], dim=1)

    def _put_known(self) -> None:
        """Put the keys and values that are known into the cache, up to the column that is read first."""
        like = next(blocks[0] for blocks in self._known if blocks)
        for layer, pair in enumerate(like.layers):
            states = [
                states.new_zeros((len(self.rows), states.shape[0], self._start, states.shape[2])) for states in pair
            ]
            for row, (padding, blocks) in enumerate(zip(self.paddings, self._known)):
                if blocks and padding < self._start:
                    for kind, laid in enumerate(states):
                        own = torch.cat([block.layers[layer][kind] for block in blocks], dim=1)
                        laid[row, :, padding:] = own[:, : self._start - padding]
            self.cache.update(*states, layer)

    def _score(self, logits: torch.Tensor, start: int) -> None:
        """Add to the parts of each row what is likely by these logits, (B, S, V), of the columns from `start`."""
        for index, row in enumerate(self.rows):
            if not row.is_to_score:
                continue
            padding = self.paddings[index]
            first = max(start, padding)
            behind = min(start + logits.shape[1], padding + len(row.prompt) - 1)
            if first < behind:
                following = self.input_ids[index, first + 1 : behind + 1]
                own = logits[index, first - start : behind - start]
                self._parts[index].append(score(own, following, row.num_prompt_logprobs or 0))
