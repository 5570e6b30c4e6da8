"""Attention over rows laid end to end: each row attends to itself alone.

Shape legend: Q query heads, H key/value heads, T tokens of all rows, P prefix tokens (P-Tuning v2), D head size.

transformers can keep rows apart by a mask, (T, T), which is computed with and thrown away: at 8,192 tokens of 16 rows,
15 parts of 16. Here each row is a call of its own, or one call of torch's kernel for rows of different lengths on a
GPU. Both are registered through transformers' own `AttentionInterface`; a forward without `cu_seq_lens_q` (padded
batches, generation) is transformers' `sdpa` as it is.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from glmtune.compat import shared_heads

PACKED_SDPA = "packed_sdpa"


def register_packed_attention(cpu_dtype: torch.dtype = torch.float32) -> str:
    """Make the attention known to transformers; returns its name, for `attn_implementation`.

    Args:
        cpu_dtype: What a CPU computes it in where the run computes in this type; else in float32 at least.
    """
    half = "" if cpu_dtype is torch.float32 else f"_{str(cpu_dtype).removeprefix('torch.')}"
    name = f"{PACKED_SDPA}{half}"
    AttentionInterface.register(name, functools.partial(packed_sdpa, cpu_dtype=cpu_dtype))
    AttentionMaskInterface.register(name, mask_unless_packed)
    return name


def mask_unless_packed(*args: Any, **kwargs: Any) -> torch.Tensor | None:
    """Return the mask of transformers' `sdpa`; none for rows laid end to end, which come without a mask of padding."""
    if kwargs.get("attention_mask") is None:
        return None
    mask: torch.Tensor | None = ALL_MASK_ATTENTION_FUNCTIONS["sdpa"](*args, **kwargs)
    return mask


def packed_sdpa(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    cu_seq_lens_q: torch.Tensor | None = None,
    max_length_q: int = 0,
    dropout: float = 0.0,
    scaling: float | None = None,
    cpu_dtype: torch.dtype = torch.float32,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Return the attention output, (1, T, Q, D).

    Args:
        module: Of the attention.
        query: (1, Q, T, D).
        key: (1, H, P + T, D), a prefix first, which every row sees.
        value: (1, H, P + T, D).
        attention_mask: Of a batch that is not packed.
        cu_seq_lens_q: (number of rows + 1,), where each row begins; None where the batch is not packed.
        max_length_q: Of the longest row, in tokens.
        dropout: Of the attention's weights.
        scaling: Of the products; None for the usual one.
        cpu_dtype: As in `register_packed_attention`.
        kwargs: For transformers' `sdpa`.
    """
    dtype, computed = _types(query, cpu_dtype, "cpu" if cu_seq_lens_q is None else cu_seq_lens_q.device.type)
    if cu_seq_lens_q is None:
        if attention_mask is None and 1 < query.shape[2] < key.shape[2]:
            attention_mask = _seen(query.shape[2], key.shape[2] - query.shape[2], query.device)
        options = {"dropout": dropout, "scaling": scaling, **kwargs}
        attention: Callable[..., tuple[torch.Tensor, None]] = ALL_ATTENTION_FUNCTIONS["sdpa"]
        if computed == dtype or query.device.type != "cpu" or query.shape[2] == 1:
            return attention(module, query, key, value, attention_mask, **options)
        states = [each.to(computed) for each in (query, key, value)]
        with torch.autocast(query.device.type, enabled=False):
            return attention(module, *states, attention_mask, **options)[0].to(dtype), None
    prefix = key.shape[2] - query.shape[2]
    query, key, value = (states.to(computed) for states in (query, key, value))
    if query.is_cuda and query.dtype in (torch.float16, torch.bfloat16) and not dropout:
        return _in_one_call(query, key, value, cu_seq_lens_q, max_length_q, prefix, scaling), None
    starts = cu_seq_lens_q.tolist()
    with torch.autocast(query.device.type, enabled=False):
        rows = [
            _one_row(query, key, value, slice(start, end), prefix, dropout, scaling)
            for start, end in itertools.pairwise(starts)
        ]
    return torch.cat(rows, dim=2).to(dtype).transpose(1, 2).contiguous(), None


def _types(query: torch.Tensor, cpu_dtype: torch.dtype, device: str) -> tuple[torch.dtype, torch.dtype]:
    """Return the type of the attention's output, and the one that it is computed in."""
    dtype = query.dtype
    if torch.is_autocast_enabled(query.device.type):
        # As autocast does for torch's own attention: rotation by angles in float32 has made float32 of the queries.
        dtype = torch.get_autocast_dtype(query.device.type)
    is_as_asked = device != "cpu" or dtype == cpu_dtype
    return dtype, dtype if is_as_asked else torch.promote_types(dtype, torch.float32)


def _one_row(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    row: slice,
    prefix: int,
    dropout: float,
    scaling: float | None,
) -> torch.Tensor:
    """Return the attention of one row to the prefix and to itself, (1, Q, length, D)."""
    own_query = query[:, :, row]
    own_key, own_value = (_with_prefix(states, row, prefix) for states in (key, value))
    mask = None
    if prefix:
        mask = _seen(own_query.shape[2], prefix, query.device)
    return F.scaled_dot_product_attention(
        own_query,
        own_key,
        own_value,
        attn_mask=mask,
        dropout_p=dropout,
        is_causal=mask is None,
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )


def _with_prefix(states: torch.Tensor, row: slice, prefix: int) -> torch.Tensor:
    own = states[:, :, prefix + row.start : prefix + row.stop]
    return torch.cat([states[:, :, :prefix], own], dim=2) if prefix else own


def _seen(length: int, prefix: int, device: torch.device) -> torch.Tensor:
    """Return what each of `length` tokens sees of the prefix and of the row itself, (length, prefix + length)."""
    return torch.ones(length, prefix + length, dtype=torch.bool, device=device).tril(prefix)


def _in_one_call(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    starts: torch.Tensor,
    longest: int,
    prefix: int,
    scaling: float | None,
) -> torch.Tensor:
    """Return the attention of all rows by torch's flash attention for rows of different lengths."""
    from torch.nn.attention.varlen import varlen_attn

    key_starts = starts
    if prefix:
        places = starts.tolist()
        rows = [slice(start, end) for start, end in itertools.pairwise(places)]
        key, value = (torch.cat([_with_prefix(states, row, prefix) for row in rows], dim=2) for states in (key, value))
        key_starts = starts + prefix * torch.arange(len(starts), dtype=starts.dtype, device=starts.device)
    options: dict[str, Any] = {}
    groups = query.shape[1] // key.shape[1]
    if groups > 1 and not (options := shared_heads(varlen_attn)):
        key, value = (states.repeat_interleave(groups, dim=1) for states in (key, value))
    query, key, value = (states.squeeze(0).transpose(0, 1).contiguous() for states in (query, key, value))
    # Causal; the keys of a row end where its queries end, so that all of them see the prefix.
    output = varlen_attn(
        query, key, value, starts, key_starts, longest, prefix + longest, scale=scaling, window_size=(-1, 0), **options
    )  # (T, Q, D)
    assert isinstance(output, torch.Tensor)
    return output.unsqueeze(0)
