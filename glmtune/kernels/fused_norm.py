"""RMSNorm that keeps its input and one number per token, and nothing in float32.

Written as separate operations, as in transformers, a norm leaves its float32 input behind for the backward pass: for a
model in bfloat16 twice the memory of the input itself, in every layer two times. For the norm see "Root Mean Square
Layer Normalization" (Zhang and Sennrich 2019, section 4).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable


def rms_norm(states: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
    """Return `states` divided by their root mean square and multiplied by `weight`, as transformers computes it.

    Args:
        states: (..., H).
        weight: (H,).
        epsilon: Added to the mean square.
    """
    with torch.autocast(states.device.type, enabled=False):
        if states.is_cuda and states.dtype == weight.dtype:
            return F.rms_norm(states, weight.shape, weight, epsilon)  # one kernel there
        result = _RMSNorm.apply(states, weight, epsilon)  # type: ignore[no-untyped-call]
    assert isinstance(result, torch.Tensor)
    return result


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, states: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
        exact = states.to(torch.float32)
        scale = torch.rsqrt(exact.square().mean(dim=-1, keepdim=True) + epsilon)  # (..., 1)
        ctx.save_for_backward(states, weight, scale)
        # Rounded before it is multiplied, as in transformers.
        return (exact * scale).to(states.dtype) * weight

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        states, weight, scale = ctx.saved_tensors
        normalized = states.to(torch.float32) * scale  # (..., H)
        of_weight = of_states = None
        if ctx.needs_input_grad[1]:
            product = gradient * normalized.to(states.dtype)
            of_weight = product.flatten(0, -2).sum(dim=0, dtype=normalized.dtype).to(weight.dtype)
        if ctx.needs_input_grad[0]:
            upstream = gradient.to(normalized.dtype) * weight
            share = torch.linalg.vecdot(upstream, normalized).unsqueeze(-1).div_(states.shape[-1])
            of_states = upstream.sub_(normalized.mul_(share)).mul_(scale).to(states.dtype)
        return of_states, of_weight, None
