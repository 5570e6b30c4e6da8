"""What a model has room for: tokens of prompt and answer together, and ids in its embedding."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from peft import PeftModel, PromptLearningConfig
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from glmtune.errors import GlmtuneError


def context_of(config: PretrainedConfig) -> int | None:
    """Return how many tokens a model was made for; None where its configuration sets no limit.

    Positions that are scaled (YaRN and its like) reach further: `factor` times the length before the scaling. Files
    differ in whether `max_position_embeddings` is the length before or after it.
    """
    values = config.get_text_config(decoder=True).to_dict()
    limit = values.get("max_position_embeddings")
    if not isinstance(limit, int):
        return None
    return max(limit, *(int(_scaled(limit, rope)) for rope in _rope_parameters(values)))


def context_tokens(model: Any) -> int | None:
    """Return how many tokens prompt and answer may have together; a trained prefix takes its share."""
    if not isinstance(model, PeftModel):
        return context_of(model.config)
    base: Any = model.get_base_model()
    limit = context_of(base.config)
    adapter = model.active_peft_config
    if limit is not None and isinstance(adapter, PromptLearningConfig):
        limit -= adapter.num_virtual_tokens
    return limit


def check_prompt(num_tokens: int, limit: int | None, what: str, fix: str) -> None:
    """Raise where a prompt leaves no room in the model's context for a single token of an answer."""
    if limit is not None and num_tokens >= limit:
        raise GlmtuneError(f"{what} has {num_tokens:,} tokens, and the model's context ends at {limit:,}", fix=fix)


def vocabulary_of(config: PretrainedConfig) -> int | None:
    """Return how many rows a model's embedding has; None where its configuration does not say."""
    num_rows: int | None = getattr(config.get_text_config(decoder=True), "vocab_size", None)
    return num_rows


def check_vocabulary(tokenizer: PreTrainedTokenizerBase, config: PretrainedConfig) -> None:
    """Raise where the tokenizer has tokens that the model's embedding has no row for."""
    num_rows = vocabulary_of(config)
    if num_rows is None:
        return
    beyond = sorted((place, token) for token, place in tokenizer.get_vocab().items() if place >= num_rows)
    if beyond:
        place, token = beyond[0]
        others = f" and {len(beyond) - 1} more" if len(beyond) > 1 else ""
        raise GlmtuneError(
            f"the model has no embedding for the token `{token}` (id {place:,}){others}: its embedding ends at "
            f"{num_rows:,} rows (`vocab_size`)",
            where=str(tokenizer.name_or_path),
            fix=f"enlarge the model once: `model.resize_token_embeddings({beyond[-1][0] + 1})`, save it beside the "
            "tokenizer, and train the new rows with `modules_to_save: [embed_tokens, lm_head]`; or take the tokens "
            "out of the tokenizer",
        )


def _scaled(limit: int, rope: Mapping[str, Any]) -> float:
    original = rope.get("original_max_position_embeddings")
    factor = rope.get("factor")
    if rope.get("rope_type", "default") == "default" or not isinstance(factor, (int, float)):
        return 0
    return factor * (original if isinstance(original, int) else limit)


def _rope_parameters(values: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return how positions are turned: one way for all layers, or one for each type of layer."""
    rope = values.get("rope_parameters") or {}
    return [rope, *(each for each in rope.values() if isinstance(each, Mapping))]
