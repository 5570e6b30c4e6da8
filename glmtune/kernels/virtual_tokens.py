"""Virtual tokens that an adapter lays before each row: hidden states and logits begin with theirs."""

from __future__ import annotations

from typing import Any

from peft import PeftConfig, PeftModel, PromptLearningConfig


def num_tokens_before_rows(model: Any) -> int:
    """Return how many virtual tokens an adapter lays before the embeddings of each row: those of prompt tuning.

    Padding on the left then stands between them and the row, and hidden states and logits begin with theirs. A prefix
    (P-Tuning v2) stands in the cache of keys and values instead.
    """
    if not isinstance(model, PeftModel):
        return 0
    adapter = model.active_peft_config
    return adapter.num_virtual_tokens if lays_tokens_before_rows(adapter) else 0


def lays_tokens_before_rows(adapter: PeftConfig) -> bool:
    """Whether an adapter's prompt are embeddings before those of a row, not keys and values."""
    return isinstance(adapter, PromptLearningConfig) and adapter.peft_type not in ("PREFIX_TUNING", "CARTRIDGE")
