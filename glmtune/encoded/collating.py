"""Examples to a batch: laid end to end, or padded on the right."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from glmtune.family import IGNORE_INDEX


@dataclass
class Collator:
    """Makes a batch of examples."""

    pad_token_id: int
    is_packed: bool
    """Whether they are laid end to end; changed before the first batch where the model turns out not to allow it."""

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Return the batch."""
        return collate_packed(examples) if self.is_packed else collate(examples, self.pad_token_id)


def collate(examples: Sequence[Mapping[str, Any]], pad_token_id: int) -> dict[str, torch.Tensor]:
    """Return a batch of (B, T) tensors `input_ids`, `attention_mask`, `labels`, and (B,) `rows`.

    Padding is masked by length, never by id: a padding token that is also a stop token keeps its label where it
    stands in a row. Where a token weighs other than 1 in the loss, there is `weights` (B, T), too. `rows` is each
    example's place in its dataset, -1 where unknown, and `lengths` its tokens; a failing batch names them.
    """
    length = max(len(example["input_ids"]) for example in examples)
    input_ids = torch.full((len(examples), length), pad_token_id, dtype=torch.long)
    attention_mask = torch.zeros_like(input_ids)
    labels = torch.full_like(input_ids, IGNORE_INDEX)
    for row, example in enumerate(examples):
        size = len(example["input_ids"])
        input_ids[row, :size] = torch.as_tensor(example["input_ids"])
        attention_mask[row, :size] = 1
        labels[row, :size] = torch.as_tensor(example["labels"])
    batch = {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}
    if any(example.get("weights") for example in examples):
        batch["weights"] = torch.ones(labels.shape)
        for row, example in enumerate(examples):
            if example.get("weights"):
                batch["weights"][row, : len(example["weights"])] = torch.as_tensor(example["weights"])
    return {**batch, **_facts(examples)}


def collate_packed(examples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the examples as one row of T tokens: `input_ids`, `labels`, `position_ids`, (1, T) each.

    Positions begin at 0 in every example. `cu_seq_lens_q` and `cu_seq_lens_k` tell where each begins and the last
    ends, `max_length_q` and `max_length_k` how long the longest is: the names by which transformers' attention kernels
    know them. `rows` and `weights` are as in `collate`.
    """
    lengths = [len(example["input_ids"]) for example in examples]
    labels = _joined(example["labels"] for example in examples)
    starts = torch.tensor([0, *lengths]).cumsum(0)
    # A row's first token follows nothing; here it would follow the end of another row.
    labels[starts[:-1]] = IGNORE_INDEX
    batch: dict[str, Any] = {
        "input_ids": _joined(example["input_ids"] for example in examples).unsqueeze(0),
        "position_ids": torch.cat([torch.arange(length) for length in lengths]).unsqueeze(0),
        "labels": labels.unsqueeze(0),
    }
    if any(example.get("weights") for example in examples):
        weights = (example.get("weights") or [1.0] * length for example, length in zip(examples, lengths))
        batch["weights"] = torch.cat([torch.as_tensor(each, dtype=torch.float32) for each in weights]).unsqueeze(0)
    for side in ("q", "k"):
        batch[f"cu_seq_lens_{side}"] = starts.int()
        batch[f"max_length_{side}"] = max(lengths)
    return {**batch, **_facts(examples)}


def _joined(parts: Iterable[Any]) -> torch.Tensor:
    return torch.cat([torch.as_tensor(part, dtype=torch.long) for part in parts])


def _facts(examples: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
    """Return what is told of a batch: which rows they are and how many tokens each has, (B,)."""
    return {
        "rows": torch.tensor([example.get("row", -1) for example in examples]),
        "lengths": torch.tensor([len(example["input_ids"]) for example in examples]),
    }
