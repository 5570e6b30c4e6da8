"""Cross entropy straight from hidden states: logits exist for a few rows at a time and are overwritten by the next.

Shape legend: N labelled positions, H hidden size, V vocabulary, R rows of logits in memory at once.

GLM-4's vocabulary has 151,552 entries: the logits of 8,192 positions are 5 GB in float32, and the plain computation
holds three to four tensors of that size (logits, their float32 copy, log-softmax, gradient). Here a buffer of R rows
is all there is. The gradient of the hidden states (and of the output layer, where it is trained) follows from the
softmax that is in the buffer anyway, so it is computed at once, and the backward pass only scales it. For the
mathematics see "Cut Your Losses in Large-Vocabulary Language Models" (Wijmans et al. 2024, section 4).
"""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.function import once_differentiable

BUFFER_BYTES = {"cpu": 128 * 2**20, "cuda": 512 * 2**20}
"""Of the buffer of logits. On a CPU 256 rows took as long as all at once (16 to 64 rows a third longer)."""

CACHE_BYTES = 2**20
"""Rows of logits that a CPU core works on before the next: they stay in its cache (0.7 of the time of whole passes)."""


def fused_cross_entropy(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    *,
    weights: torch.Tensor | None = None,
    label_smoothing: float = 0.0,
) -> torch.Tensor:
    """Return the cross entropy summed over all rows, a scalar in float32 (float64 for float64 weights).

    Args:
        hidden: (N, H), what the output layer takes.
        weight: (V, H), of the output layer, which has no bias.
        targets: (N,), ids; every one counts.
        weights: (N,), what each row's loss is multiplied with; None for 1.
        label_smoothing: As in `torch.nn.functional.cross_entropy`.
    """
    if torch.is_autocast_enabled(hidden.device.type):
        half = torch.get_autocast_dtype(hidden.device.type)
        hidden, weight = hidden.to(half), weight.to(half)
    loss = _FusedCrossEntropy.apply(hidden, weight, targets, weights, label_smoothing)
    assert isinstance(loss, torch.Tensor)
    return loss


class _FusedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        targets: torch.Tensor,
        weights: torch.Tensor | None,
        label_smoothing: float,
    ) -> torch.Tensor:
        needs_hidden, needs_weight = ctx.needs_input_grad[:2]
        with torch.autocast(hidden.device.type, enabled=False):
            loss, *gradients = _loss_and_gradients(
                hidden, weight, targets, weights, label_smoothing, needs_hidden=needs_hidden, needs_weight=needs_weight
            )
        ctx.save_for_backward(*gradients)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        of_hidden, of_weight = ctx.saved_tensors
        return (
            None if of_hidden is None else of_hidden * grad_loss.to(of_hidden.dtype),
            None if of_weight is None else of_weight * grad_loss.to(of_weight.dtype),
            None,
            None,
            None,
        )


def _loss_and_gradients(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    weights: torch.Tensor | None,
    label_smoothing: float,
    *,
    needs_hidden: bool,
    needs_weight: bool,
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    """Return the summed loss and the gradients asked for, of the loss, in the types of their tensors."""
    exact = torch.promote_types(torch.float32, hidden.dtype)
    of_hidden = torch.empty_like(hidden) if needs_hidden else None
    weight_dtype = weight.dtype
    if hidden.device.type == "cpu":
        # A CPU multiplies float32 as fast as bfloat16.
        hidden, weight = hidden.to(exact), weight.to(exact)
    num_rows = max(1, BUFFER_BYTES.get(hidden.device.type, BUFFER_BYTES["cuda"]) // (len(weight) * exact.itemsize))
    buffer = torch.empty(min(num_rows, len(hidden)), len(weight), dtype=exact, device=hidden.device)
    factors = torch.ones(len(hidden), dtype=exact, device=hidden.device) if weights is None else weights.to(exact)
    mean_weight = weight.to(exact).mean(dim=0) if label_smoothing else None  # (H,)
    loss = torch.zeros((), dtype=exact, device=hidden.device)
    of_weight = torch.zeros_like(weight) if needs_weight else None
    for start in range(0, len(hidden), num_rows):
        rows = slice(start, start + num_rows)
        states, ids, factor = hidden[rows], targets[rows], factors[rows].unsqueeze(1)  # (R, H), (R,), (R, 1)
        logits = buffer[: len(states)]
        _multiply(states, weight.T, out=logits)
        of_target = logits.gather(1, ids.unsqueeze(1))
        maximum, total = _exponentiate(logits)  # the logits are exp(logit - maximum) from here on
        losses = total.log() + maximum - (1 - label_smoothing) * of_target
        if mean_weight is not None:
            losses -= label_smoothing * (states.to(exact) @ mean_weight).unsqueeze(1)
        loss += (losses * factor).sum()
        if of_hidden is not None:
            gradient = _product(logits, weight) / total - (1 - label_smoothing) * weight[ids].to(exact)
            if mean_weight is not None:
                gradient -= label_smoothing * mean_weight
            of_hidden[rows] = gradient * factor
        if of_weight is not None:
            scaled = states.to(exact) * factor
            _add_product(of_weight, logits.T, scaled / total)
            of_weight.index_add_(0, ids, ((label_smoothing - 1) * scaled).to(of_weight.dtype))
            if label_smoothing:
                of_weight -= (label_smoothing / len(weight) * scaled.sum(dim=0)).to(of_weight.dtype)
    return loss, of_hidden, None if of_weight is None else of_weight.to(weight_dtype)


def _exponentiate(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Overwrite logits, (R, V), by exp(logit - maximum of its row); returns the maxima and the sums, (R, 1) each."""
    step = len(logits)
    if logits.device.type == "cpu":
        step = max(1, CACHE_BYTES // (logits.shape[1] * logits.itemsize))
    maxima, sums = [], []
    for part in logits.split(step):
        maximum = part.amax(dim=1, keepdim=True)
        sums.append(part.sub_(maximum).exp_().sum(dim=1, keepdim=True))
        maxima.append(maximum)
    return torch.cat(maxima), torch.cat(sums)


def _multiply(left: torch.Tensor, right: torch.Tensor, *, out: torch.Tensor) -> None:
    """Multiply into `out`, whose type may be wider: the product is then summed up and kept in that type."""
    if left.dtype == out.dtype:
        torch.mm(left, right, out=out)
    else:
        torch.mm(left, right, out_dtype=out.dtype, out=out)


def _product(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Return the product in the type of `left`, computed in the type of `right`."""
    if left.dtype == right.dtype:
        return left @ right
    return torch.mm(left.to(right.dtype), right, out_dtype=left.dtype)


def _add_product(total: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> None:
    """Add the product to `total`, in its type."""
    total.addmm_(left.to(total.dtype), right.to(total.dtype))
