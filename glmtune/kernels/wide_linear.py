"""Linear layers that multiply in float32 what stands in bfloat16: for CPUs where bfloat16 takes longer.

Shape legend: N tokens, I numbers in, O numbers out.

What goes in and comes out stays as it was, and so does what is kept for the backward pass; between them inputs and
weights are converted, (N, I) and (O, I) numbers for N x I x O multiplications: a twentieth of their time.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable

from .whole_weights import is_whole


def wide_linears(model: Any) -> dict[nn.Module, Callable[[torch.Tensor], torch.Tensor]]:
    """Return the linear layers of a model of transformers and what is to compute them."""
    return {
        module: functools.partial(wide_linear, module)
        for module in model.modules()
        if type(module) is nn.Linear
        and "forward" not in vars(module)
        and module.weight.is_floating_point()
        and is_whole(module.weight)
    }


def wide_linear(layer: nn.Linear, states: torch.Tensor) -> torch.Tensor:
    """Return what the layer makes of `states`, (..., I), in the type that it would make it in; (..., O)."""
    device = states.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
    elif states.dtype == layer.weight.dtype:
        dtype = states.dtype
    else:  # torch says what is wrong
        return F.linear(states, layer.weight, layer.bias)
    with torch.autocast(device, enabled=False):
        product = _WideProduct.apply(states, layer.weight, layer.bias, dtype)  # type: ignore[no-untyped-call]
    assert isinstance(product, torch.Tensor)
    return product


class _WideProduct(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, states: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, dtype: torch.dtype
    ) -> torch.Tensor:
        # As autocast keeps it: in the type that is handed on.
        ctx.save_for_backward(states.to(dtype) if ctx.needs_input_grad[1] else None, weight)
        ctx.states_dtype = states.dtype
        ctx.bias_dtype = None if bias is None else bias.dtype
        return F.linear(states.float(), weight.float(), None if bias is None else bias.float()).to(dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        states, weight = ctx.saved_tensors
        wide = gradient.float()
        of_states = of_weight = of_bias = None
        if ctx.needs_input_grad[0]:
            of_states = (wide @ weight.float()).to(ctx.states_dtype)
        if ctx.needs_input_grad[1]:
            of_weight = (wide.flatten(0, -2).T @ states.flatten(0, -2).float()).to(weight.dtype)
        if ctx.needs_input_grad[2]:
            of_bias = wide.flatten(0, -2).sum(dim=0).to(ctx.bias_dtype)
        return of_states, of_weight, of_bias, None
