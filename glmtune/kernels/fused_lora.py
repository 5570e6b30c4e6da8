"""LoRA's share of a layer, added in place: no copies of what goes in, no passes over what comes out.

Shape legend: N tokens, I numbers in, O numbers out, R rank.

PEFT computes `result + lora_B(lora_A(x)) * scaling` one operation after the other. Its matrices are in float32, so
that each layer converts its input to float32 (and autocast converts it back, into one more copy for each of the
projections that share it), multiplies (N, O) numbers by the scaling and adds them to a new tensor. Here the product
goes into the result itself, the scaling into the (N, R) numbers between the matrices, and the backward pass needs
what the frozen layer needs, no more.

PEFT has a door for this, the variants of a LoRA layer, but calls it private. All that is used of it stands in this
file: `lora_variant`, `cast_input_dtype_enabled`, and the names in `_is_plain`. `tests/kernels/test_fused_layers.py`
holds them with the lowest and the newest version.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import nn
from torch.autograd.function import once_differentiable

from .whole_weights import is_whole

PLAIN_LAYERS = ("Linear", "Linear4bit", "Linear8bitLt")
"""PEFT's wrappers of linear layers, frozen ones in 4 and 8 bits among them."""


def plain_lora_layers(model: nn.Module) -> list[LoraLayer]:
    """Return the layers whose LoRA is nothing but two matrices."""
    return [module for module in model.modules() if isinstance(module, LoraLayer) and _is_plain(module)]


@contextmanager
def added_in_place(layers: list[LoraLayer], *, is_wide: bool = False) -> Iterator[None]:
    """Have these layers add their product in place, as long as this lasts.

    Args:
        layers: Of `plain_lora_layers`.
        is_wide: Whether they multiply in float32 whatever the type of the result.
    """
    for layer in layers:
        layer.lora_variant[layer.active_adapters[0]] = _InPlaceWide if is_wide else _InPlace  # type: ignore[assignment]
        layer.cast_input_dtype_enabled = False
    try:
        yield
    finally:
        for layer in layers:
            del layer.lora_variant[layer.active_adapters[0]]
            layer.cast_input_dtype_enabled = True


def _is_plain(layer: Any) -> bool:
    if type(layer).__name__ not in PLAIN_LAYERS or not type(layer).__module__.startswith("peft."):
        return False
    if len(layer.active_adapters) != 1 or layer.lora_variant or layer.merged or layer.disable_adapters:
        return False
    name = layer.active_adapters[0]
    matrices = [getattr(layer, part)[name] for part in ("lora_A", "lora_B") if name in getattr(layer, part)]
    return len(matrices) == 2 and all(
        type(matrix) is nn.Linear and matrix.bias is None and is_whole(matrix.weight) for matrix in matrices
    )


class _InPlace:
    """As PEFT's own variants of LoRA: a class with a static forward."""

    @staticmethod
    def forward(module: Any, **states: Any) -> torch.Tensor:
        """Return `result`, (..., O), with LoRA's product added; `x` is (..., I)."""
        return _added(module, **states, is_wide=False)


class _InPlaceWide:
    """The same, multiplied in float32."""

    @staticmethod
    def forward(module: Any, **states: Any) -> torch.Tensor:
        """Return `result`, (..., O), with LoRA's product added; `x` is (..., I)."""
        return _added(module, **states, is_wide=True)


def _added(
    module: Any, *, active_adapter: str, x: torch.Tensor, result: torch.Tensor, is_wide: bool, **_: Any
) -> torch.Tensor:
    down, up = module.lora_A[active_adapter], module.lora_B[active_adapter]
    scaling = module.scaling[active_adapter]
    x = module.lora_dropout[active_adapter](x)
    # As autocast would: in the type of the result. Without it only where all of them have that type.
    fits = torch.is_autocast_enabled(x.device.type) or result.dtype == x.dtype == down.weight.dtype
    if not fits or not result.is_contiguous():
        product: torch.Tensor = up(down(x.to(down.weight.dtype))) * scaling
        return result + product
    if result._base is not None:  # a view from inside of bitsandbytes' function for 8 bits: not to be written to
        result = result.clone()
    dtype = torch.float32 if is_wide else result.dtype
    with torch.autocast(x.device.type, enabled=False):
        added = _AddProduct.apply(  # type: ignore[no-untyped-call]
            result, x, down.weight, up.weight, scaling, dtype
        )
    assert isinstance(added, torch.Tensor)
    return added


class _AddProduct(torch.autograd.Function):
    """`result += scaling * x @ down.T @ up.T`, multiplied in a type that may be wider than that of the result."""

    @staticmethod
    def forward(
        ctx: Any,
        result: torch.Tensor,
        x: torch.Tensor,
        down: torch.Tensor,
        up: torch.Tensor,
        scaling: float,
        dtype: torch.dtype,
    ) -> torch.Tensor:
        between = x.flatten(0, -2).to(dtype) @ down.to(dtype).T  # (N, R)
        rows = result.view(-1, result.shape[-1])
        if dtype == result.dtype:
            rows.addmm_(between, up.to(dtype).T, alpha=scaling)
        else:
            rows += (between * scaling) @ up.to(dtype).T
        ctx.mark_dirty(result)
        ctx.save_for_backward(x, down, up, between)
        ctx.scaling = scaling
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, down, up, between = ctx.saved_tensors
        rows = gradient.flatten(0, -2).to(between.dtype)  # (N, O)
        of_between = (rows @ up.to(rows.dtype)).mul_(ctx.scaling)  # (N, R)
        of_x = of_down = of_up = None
        if ctx.needs_input_grad[1]:
            of_x = (of_between @ down.to(rows.dtype)).view(x.shape).to(x.dtype)
        if ctx.needs_input_grad[2]:
            of_down = (of_between.T @ x.flatten(0, -2).to(rows.dtype)).to(down.dtype)
        if ctx.needs_input_grad[3]:
            of_up = (rows.T @ between).mul_(ctx.scaling).to(up.dtype)
        return gradient, of_x, of_down, of_up, None, None
