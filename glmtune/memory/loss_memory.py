"""What the fused loss allocates, without its work: for counting on tensors that have only shapes.

Shape legend: N labelled positions, h hidden size, V vocabulary, R rows of logits in memory at once.

The loss makes the logits of R rows at a time, in float32, and the gradients at once: of the hidden states, (N, h), and
of the output layer, (V, h), where it is trained. A CPU multiplies in float32 or bfloat16, whichever is faster there,
so that weights in another type are copied first. It keeps the buffer, and the copy of a frozen layer.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from glmtune.kernels.fused_loss import rows_at_once


def fused_loss(
    hidden: torch.Tensor,
    head: nn.Linear,
    num_labelled: int,
    device: str,
    cpu_dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """Return a scalar that keeps and needs as much memory as the real loss.

    Args:
        hidden: (B, T, h), what the output layer takes.
        head: The output layer, without bias.
        num_labelled: N.
        device: `cpu` or `cuda`, which the loss is computed on.
        cpu_dtype: What a CPU multiplies in.
    """
    states = hidden.flatten(0, 1)[:num_labelled].clone()  # (N, h): those that have a label
    weight = head.weight
    if device != "cpu" and torch.is_autocast_enabled("cpu"):
        half = torch.get_autocast_dtype("cpu")
        states, weight = states.to(half), weight.to(half)
    loss = _Allocations.apply(states, weight, device, cpu_dtype)  # type: ignore[no-untyped-call]
    assert isinstance(loss, torch.Tensor)
    return loss


class _Allocations(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, states: torch.Tensor, weight: torch.Tensor, device: str, cpu_dtype: torch.dtype
    ) -> torch.Tensor:
        needs_states, needs_weight = ctx.needs_input_grad[:2]
        half = weight.dtype
        exact = torch.promote_types(torch.float32, half)
        of_states = torch.empty_like(states) if needs_states else None
        of_weight = torch.empty_like(weight, dtype=exact if device == "cpu" else half) if needs_weight else None
        if device == "cpu":
            dtype = cpu_dtype if exact == torch.float32 else exact
            states, weight = states.to(dtype), weight.to(dtype)
        num_rows = min(max(1, rows_at_once(len(weight), device, exact, weight.dtype)), len(states))
        logits = torch.empty(num_rows, len(weight), dtype=exact)
        copied = logits.to(weight.dtype)  # what is multiplied with half weights is half, too
        rows = [torch.empty(num_rows, weight.shape[1], dtype=exact) for _ in range(2)]
        if device == "cpu":
            # Kept from step to step, and so through the backward pass: the buffers, and the copy of a frozen layer.
            ctx.kept = (logits, copied, None if needs_weight else weight)
        del copied, rows
        ctx.save_for_backward(of_states, None if of_weight is None else of_weight.to(half))
        return torch.zeros((), dtype=exact)

    @staticmethod
    def backward(ctx: Any, grad_loss: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        of_states, of_weight = ctx.saved_tensors
        return (
            None if of_states is None else of_states * grad_loss.to(of_states.dtype),
            None if of_weight is None else of_weight * grad_loss.to(of_weight.dtype),
            None,
            None,
        )
