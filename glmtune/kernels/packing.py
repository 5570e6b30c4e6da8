"""Whether rows can be laid end to end in a model: what its configuration says, and what a trial shows."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface, PretrainedConfig
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from glmtune.encoded.collating import collate_packed

from .packed_attention import register_packed_attention

TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-6}
"""How far logits may move, in standard deviations of all of them, by another kernel's order of sums."""
HALF_TOLERANCE = 0.1
"""For bfloat16 and float16. A row that sees its neighbour moves its logits by about one."""

SHARP = 3.0
"""Standard deviation of the products of queries and keys that attention is tried with: few keys get all the weight."""

CHANGING_OPTIONS = ("softcap", "s_aux", "position_bias")
"""With these an attention computes something that is not tried here."""

PACKED_INPUTS = ("input_ids", "position_ids", "cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k")
"""What a forward over rows laid end to end takes of a batch."""


def attention_for(
    attn_implementation: str | None, *, is_packed: bool, cpu_dtype: torch.dtype = torch.float32
) -> str | None:
    """Return the attention to load a model with: ours where rows are laid end to end and none was asked for."""
    if is_packed and attn_implementation in (None, "sdpa"):
        return register_packed_attention(cpu_dtype)
    return attn_implementation


def reason_against_packing(config: PretrainedConfig) -> str | None:
    """Return why rows must be padded for a model of this configuration; None where nothing is known against packing."""
    text = config.get_text_config()
    kinds = set(getattr(text, "layer_types", None) or ["full_attention"])
    if kinds != {"full_attention"}:
        return f"its layers are of the kinds {', '.join(f'`{kind}`' for kind in sorted(kinds))}"
    if not getattr(text, "layer_types", None) and getattr(text, "sliding_window", None):
        return "its attention sees a sliding window"
    if getattr(config, "auto_map", None):
        return "its code is its own, not transformers'"
    return None


@torch.no_grad()
def leak_between_rows(model: nn.Module, device: torch.device, *, in_half: bool = False) -> str | None:
    """Try two rows end to end; returns what is wrong with that, or None.

    The second row must have the logits that it has alone, and keep them when the first row changes. Every process of
    a group has to call this: under ZeRO-3 a forward pass is a meeting.

    Args:
        model: In evaluation mode; possibly wrapped by DDP or DeepSpeed.
        device: Where it computes.
        in_half: Whether it computes in bfloat16 or float16 (autocast), whatever the type of its logits.
    """
    first, other, second = (
        [start + 7 * place for place in range(length)] for start, length in ((11, 9), (13, 9), (17, 6))
    )
    ids = torch.tensor([second], device=device)
    alone = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits[0]
    with _first_attention(model) as is_right:
        together = _logits_of_last(model, [first, second], device)
    changed = _logits_of_last(model, [other, second], device)
    unit = alone.std() * (HALF_TOLERANCE if in_half else TOLERANCE.get(alone.dtype, HALF_TOLERANCE))
    if not (changed - together).abs().max() <= unit:
        return "a row's logits change with the row before it"
    # Another kernel rounds in another way, and of a million logits one is always far off: hence their mean square.
    if not (together - alone).float().square().mean().sqrt() <= unit:
        return "a row behind another has other logits than alone"
    if not all(is_right):
        return "rows end to end attend in another way than alone"
    return None


def _logits_of_last(model: nn.Module, rows: list[list[int]], device: torch.device) -> torch.Tensor:
    """Return the logits of the last row, (its tokens, V)."""
    batch = collate_packed([{"input_ids": ids, "labels": ids} for ids in rows])
    inputs = {name: batch[name] for name in PACKED_INPUTS}
    inputs = {name: value.to(device) if isinstance(value, torch.Tensor) else value for name, value in inputs.items()}
    logits: torch.Tensor = model(**inputs, use_cache=False).logits
    return logits[0, -len(rows[-1]) :]


@contextmanager
def _first_attention(model: nn.Module) -> Iterator[list[bool]]:
    """Tell of the first call of an attention of packed rows whether it is right, see `_is_right`."""
    base: Any = model
    while hasattr(base, "module") or hasattr(base, "get_base_model"):
        base = base.module if hasattr(base, "module") else base.get_base_model()
    name = base.config._attn_implementation
    attention = ALL_ATTENTION_FUNCTIONS.get(name)
    found: list[bool] = []
    if attention is None:  # `eager`, which is the model's own
        yield found
        return

    def watched(module: nn.Module, query: Any, key: Any, value: Any, attention_mask: Any, **options: Any) -> Any:
        if not found:
            call = functools.partial(attention, module, key=key, value=value, attention_mask=attention_mask, **options)
            found.append(_is_right(call, (query, key, value), options))
        return attention(module, query, key, value, attention_mask, **options)

    AttentionInterface.register(name, watched)
    try:
        yield found
    finally:
        AttentionInterface.register(name, attention)


def _is_right(call: Callable[..., Any], states: Sequence[torch.Tensor], options: Mapping[str, Any]) -> bool:
    """Whether the last of the rows attends as it would alone, also where queries are sharp.

    In a model with weights as small as new ones attention is nearly even, whatever its scale: a kernel that took
    another scale than the model's would not show in the logits.

    Args:
        call: The attention, but for its query.
        states: Query (1, Q, T, D), key and value (1, H, P + T, D).
        options: Of the attention, among them where rows begin.
    """
    query = states[0]
    starts = options.get("cu_seq_lens_q")
    if starts is None or any(options.get(name) is not None for name in CHANGING_OPTIONS):
        return True
    start, prefix = int(starts[-2]), states[1].shape[2] - query.shape[2]
    scaling = query.shape[3] ** -0.5 if options.get("scaling") is None else options["scaling"]
    with torch.autocast(query.device.type, enabled=False):
        groups = query.shape[1] // states[1].shape[1]
        key, value = (
            torch.cat([each[:, :, :prefix], each[:, :, prefix + start :]], dim=2)
            .float()
            .repeat_interleave(groups, dim=1)
            for each in states[1:]
        )
        products = query[:, :, start:].float() @ key.transpose(2, 3) * scaling
        sharpness = SHARP / products.std().clamp_min(1e-30)
        unseen = torch.ones_like(products[0, 0], dtype=torch.bool).triu(prefix + 1)
        weights = (products * sharpness).masked_fill(unseen, -torch.inf).softmax(dim=-1)
        expected = (weights @ value).transpose(1, 2)  # (1, the row's T, Q, D)
    output, *_ = call(query=(query.float() * sharpness).to(query.dtype))
    difference = (output[:, start:].float() - expected).square().mean().sqrt()
    return bool(difference <= HALF_TOLERANCE * expected.std())
