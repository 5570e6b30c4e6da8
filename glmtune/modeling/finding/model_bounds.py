"""How large the numbers of a model's configuration may be: beyond what exists, below what no machine can hold.

A library builds what a file asks for: a million layers, or an embedding of 10^12 rows, take hours or all memory before
anything is refused. The largest models have 126 layers, 10^12 weights and a context of 10^7 tokens.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from glmtune.errors import GlmtuneError

BOUNDS: tuple[tuple[re.Pattern[str], int], ...] = (
    (re.compile(r"(num_)?(\w+_)?(hidden_|encoder_|decoder_)?layers?|n_layers?|depth"), 2_000),
    (re.compile(r"(num|n)_(\w+_)?experts(_per_tok)?"), 10_000),
    (re.compile(r"(num_|n_)?(\w+_)?heads?"), 100_000),
    (re.compile(r"(\w+_)?(hidden_size|intermediate_size|ffn_hidden_size|embedding_size|embed_dim)"), 10_000_000),
    (re.compile(r"d_model|d_ff|d_kv|n_embd|n_inner|(\w+_)?(head_dim|lora_rank)"), 10_000_000),
    (re.compile(r"num_labels"), 1_000_000),
    (re.compile(r"(\w+_)?vocab_size|(\w+_)?(image|patch)_size"), 100_000_000),
    (re.compile(r"(\w+_)?max_position_embeddings|n_positions|n_ctx|seq_length|(\w+_)?max_length"), 1_000_000_000),
)
"""Names of keys, at any depth, and the largest number that stands under one."""

MOST_WEIGHTS = 10**14
MOST_OF_ANYTHING = 2**53
"""Of a whole number under any key; libraries put them into 64 bits."""
DEEPEST = 50
SHOWN_CHARACTERS = 40


def check_bounds(path: Path, config: Mapping[str, Any]) -> None:
    """Raise where a number of a configuration is absurd, or the whole would be a model that nothing can hold."""
    for depth, key, value in _entries(config):
        if depth > DEEPEST:
            raise _wrong(path, f"is nested more than {DEEPEST} levels deep")
        if isinstance(value, float) and math.isnan(value):
            raise _wrong(path, f"has a `{key}` that is not a number")
        most = next((most for names, most in BOUNDS if names.fullmatch(key)), None)
        if most is None and isinstance(value, int):
            most = MOST_OF_ANYTHING
        if most is not None and isinstance(value, (int, float)) and value > most:
            raise _wrong(path, f"has `{key}: {_shown(value)}`; no model has more than {most:,}")
    for part in (config, *(each for each in config.values() if isinstance(each, Mapping))):
        if (num_weights := _num_weights(part)) > MOST_WEIGHTS:
            raise _wrong(path, f"describes a model of about {num_weights:.0e} numbers; none has {MOST_WEIGHTS:.0e}")


def _entries(config: Mapping[str, Any]) -> Iterator[tuple[int, str, Any]]:
    """Yield every value with its depth and its key; an entry of a list has the key of the list."""
    waiting: list[tuple[int, str, Any]] = [(1, key, value) for key, value in config.items()]
    while waiting:
        depth, key, value = waiting.pop()
        yield depth, key, value
        if depth > DEEPEST:
            continue
        if isinstance(value, dict):
            waiting += [(depth + 1, inner, each) for inner, each in value.items()]
        elif isinstance(value, list):
            waiting += [(depth + 1, key, each) for each in value if isinstance(each, (dict, list, float, int))]


def _num_weights(config: Mapping[str, Any]) -> float:
    """Return about how many weights a model of such sizes has, in float: products may be beyond all numbers."""

    def size(key: str, default: float) -> float:
        value = config.get(key)
        return float(value) if isinstance(value, int) and not isinstance(value, bool) else default

    width, num_layers = size("hidden_size", 0), size("num_hidden_layers", 1)
    experts = max(size(key, 1) for key in ("num_experts", "num_local_experts", "n_routed_experts"))
    inner = size("moe_intermediate_size", size("intermediate_size", 0))
    heads = size("num_attention_heads", 1) * size("head_dim", 0)
    return size("vocab_size", 0) * width + num_layers * width * (4 * max(width, heads) + 3 * inner * experts)


def _wrong(path: Path, what: str) -> GlmtuneError:
    return GlmtuneError(f"`{path.name}` {what}", where=str(path), fix=f"take the model's own `{path.name}`")


def _shown(value: float) -> str:
    text = json.dumps(value) if isinstance(value, float) else f"{value:,}" if value < 10**30 else "10^30 and more"
    return text[:SHOWN_CHARACTERS]
