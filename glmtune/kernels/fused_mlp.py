"""The gated MLP, which keeps what its first projection makes, and makes the rest again in the backward pass.

Shape legend: I intermediate size.

`silu(gate) * up` written as two operations keeps gate, up and silu(gate), and the last projection keeps the product
where it is trained (LoRA's matrix, too, reads it again): 4 I numbers a token. Gate and up suffice: the product is one
pass over them, and in GLM-4-9B 3.3 times as wide as the hidden states.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable


def joined_mlp(mlp: Any, states: torch.Tensor, *, remakes: bool) -> torch.Tensor:
    """Do what GLM's MLP does, whose first projection makes gate and up in one tensor, (..., 2 I).

    Args:
        mlp: With `gate_up_proj` and `down_proj`.
        states: (..., H).
        remakes: Whether the backward pass makes the product again; not where it makes everything again anyway.
    """
    return _project(mlp.down_proj, [mlp.gate_up_proj(states)], remakes=remakes)


def split_mlp(mlp: Any, states: torch.Tensor, *, remakes: bool) -> torch.Tensor:
    """Do what the MLP of Llama, Qwen and GLM-4.5 does, with `gate_proj` and `up_proj`; else as `joined_mlp`."""
    return _project(mlp.down_proj, [mlp.gate_proj(states), mlp.up_proj(states)], remakes=remakes)


Layer = Callable[[torch.Tensor], torch.Tensor]


def _project(layer: Layer, parts: Sequence[torch.Tensor], *, remakes: bool) -> torch.Tensor:
    product: Any = _GatedProduct.apply(*parts)  # type: ignore[no-untyped-call]
    if not remakes or not product.requires_grad:
        return layer(product)
    # Autograd keeps the hooks, and they must not keep the product: hence the number of its storage, not the storage.
    storage, size = id(product.untyped_storage()), product.numel()
    parts = [part.detach() for part in parts]

    def keep(tensor: torch.Tensor) -> torch.Tensor | Callable[[], torch.Tensor]:
        if id(tensor.untyped_storage()) != storage or tensor.numel() != size:
            return tensor
        shape = tensor.shape
        return lambda: _product(parts).view(shape)

    def give(kept: torch.Tensor | Callable[[], torch.Tensor]) -> torch.Tensor:
        return kept if isinstance(kept, torch.Tensor) else kept()

    with torch.autograd.graph.saved_tensors_hooks(keep, give):
        return layer(product)


def _halves(parts: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
    """Return gate and up, (..., I) each, which may lie in one tensor."""
    return parts if len(parts) == 2 else parts[0].chunk(2, dim=-1)


def _product(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    gate, up = _halves(parts)
    return F.silu(gate).mul_(up)


class _GatedProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *parts: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(*parts)
        return _product(parts)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, ...]:
        parts = ctx.saved_tensors
        gradients = tuple(torch.empty_like(part) for part in parts)
        gate, up = _halves(parts)
        of_gate, of_up = _halves(gradients)
        torch.mul(F.silu(gate), gradient, out=of_up)
        torch.ops.aten.silu_backward.grad_input(gradient * up, gate, grad_input=of_gate)
        return gradients
