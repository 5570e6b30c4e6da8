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
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

BUFFER_BYTES = {"cpu": 128 * 2**20, "cuda": 512 * 2**20}
"""Of the buffer of logits. On a CPU 64 to 256 rows at once took as long, 32 rows a third longer."""

CPU_TYPES = (torch.float32, torch.bfloat16)
"""What a CPU may multiply in; which of them is faster, and by how much, differs from one to the next."""

LARGE_LOSS = 60.0
"""Of one token: beyond it the softmax, 1e-26, is on its way to where float32 ends."""


class LogitsBuffer:
    """Memory for some rows of logits, kept from step to step on a CPU.

    A CPU's allocator gives 128 MB back at once and fetches it again page by page: a fifth of a small model's step.
    """

    def __init__(self) -> None:
        self._memory: dict[torch.dtype, torch.Tensor] = {}

    def rows(
        self, num_rows: int, width: int, like: torch.Tensor, factor_dtype: torch.dtype
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return (up to num_rows, width) to write to, of the type and on the device of `like`; and as much once more.

        The second is in `factor_dtype`, for a CPU that multiplies in another type than `like`; else there is none.
        """
        needs_half = like.device.type == "cpu" and factor_dtype != like.dtype
        size = max(1, min(num_rows, rows_at_once(width, like.device.type, like.dtype, factor_dtype))) * width
        exact = self._part(size, like).view(-1, width)
        return exact, self._part(size, like.to(factor_dtype)).view(-1, width) if needs_half else None

    def _part(self, size: int, like: torch.Tensor) -> torch.Tensor:
        memory = self._memory.get(like.dtype)
        if memory is None or memory.numel() < size or memory.device != like.device:
            memory = like.new_empty(size)
        if like.device.type == "cpu":
            self._memory[like.dtype] = memory
        return memory[:size]


def rows_at_once(width: int, device: str, dtype: torch.dtype, factor_dtype: torch.dtype) -> int:
    """Return how many rows of logits are in memory together, 0 where not even one fits into the buffer.

    Args:
        width: Of a row, V.
        device: `cpu` or another.
        dtype: Of the logits.
        factor_dtype: Of what is multiplied.
    """
    num_bytes = dtype.itemsize
    if device == "cpu" and factor_dtype != dtype:
        # A CPU has no product of bfloat16 that is summed up and kept in float32: it is made in bfloat16 and converted.
        num_bytes += factor_dtype.itemsize
    return BUFFER_BYTES.get(device, BUFFER_BYTES["cuda"]) // (width * num_bytes)


def fused_cross_entropy(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    *,
    weights: torch.Tensor | None = None,
    label_smoothing: float = 0.0,
    buffer: LogitsBuffer | None = None,
    cpu_dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """Return the cross entropy summed over all rows, a scalar in float32 (float64 for float64 weights).

    Args:
        hidden: (N, H), what the output layer takes.
        weight: (V, H), of the output layer, which has no bias.
        targets: (N,), ids; every one counts.
        weights: (N,), what each row's loss is multiplied with; None for 1.
        label_smoothing: As in `torch.nn.functional.cross_entropy`.
        buffer: Memory from the step before; None for new.
        cpu_dtype: What a CPU multiplies in, one of `CPU_TYPES`; float64 stays float64.
    """
    if not torch.is_grad_enabled():
        # A weight that is trained says that it needs a gradient, in an evaluation, too.
        hidden, weight = hidden.detach(), weight.detach()
    if hidden.device.type != "cpu" and torch.is_autocast_enabled(hidden.device.type):
        half = torch.get_autocast_dtype(hidden.device.type)
        hidden, weight = hidden.to(half), weight.to(half)
    loss = _FusedCrossEntropy.apply(  # type: ignore[no-untyped-call]
        hidden, weight, targets, weights, label_smoothing, buffer or LogitsBuffer(), cpu_dtype
    )
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
        buffer: LogitsBuffer,
        cpu_dtype: torch.dtype,
    ) -> torch.Tensor:
        needs_hidden, needs_weight = ctx.needs_input_grad[:2]
        with torch.autocast(hidden.device.type, enabled=False):
            loss, *gradients = _loss_and_gradients(
                hidden,
                weight,
                targets,
                weights,
                label_smoothing,
                buffer,
                cpu_dtype=cpu_dtype,
                needs_hidden=needs_hidden,
                needs_weight=needs_weight,
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
            *(None,) * 5,
        )


def _loss_and_gradients(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    weights: torch.Tensor | None,
    label_smoothing: float,
    buffer: LogitsBuffer,
    *,
    cpu_dtype: torch.dtype = torch.float32,
    needs_hidden: bool,
    needs_weight: bool,
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    """Return the summed loss and the gradients asked for, of the loss, in the types of their tensors."""
    exact = torch.promote_types(torch.float32, hidden.dtype)
    of_hidden = torch.empty_like(hidden) if needs_hidden else None
    of_weight = _zeros_to_sum(weight) if needs_weight else None
    weight_dtype = weight.dtype
    if hidden.device.type == "cpu":
        dtype = cpu_dtype if exact == torch.float32 else exact
        hidden, weight = hidden.to(dtype), weight.to(dtype)
    memory, half = buffer.rows(len(hidden), len(weight), hidden.new_empty(0, dtype=exact), weight.dtype)
    num_rows = len(memory)
    factors = torch.ones(len(hidden), dtype=exact, device=hidden.device) if weights is None else weights.to(exact)
    mean_weight = weight.mean(dim=0, dtype=exact) if label_smoothing else None  # (H,)
    loss = torch.zeros((), dtype=exact, device=hidden.device)
    for start in range(0, len(hidden), num_rows):
        rows = slice(start, start + num_rows)
        states, ids, factor = hidden[rows], targets[rows].unsqueeze(1), factors[rows].unsqueeze(1)  # (R, H), (R, 1) x 2
        logits = memory[: len(states)]
        converted = None if half is None else half[: len(states)]
        _multiply(states, weight.T, out=logits, through=converted)
        if converted is not None:
            # Rounding errors of all logits average out in the sum over them; that of the target would not.
            logits.scatter_(
                1, ids, torch.linalg.vecdot(states.to(exact), weight[ids.squeeze(1)].to(exact)).unsqueeze(1)
            )
        of_target = logits.gather(1, ids)
        losses = _softmax_in_place(logits, ids)  # the logits are their softmax from here on
        if logits.device.type == "cpu":
            _mend_large(losses, states, weight, ids)
        if mean_weight is not None:
            # The mean over all ids of -log softmax is that of the target, and what its logit is above the mean logit.
            losses += label_smoothing * (of_target - (states.to(exact) @ mean_weight).unsqueeze(1))
        loss += (losses * factor).sum()
        factors_of_rows = logits if converted is None else converted.copy_(logits)
        if of_hidden is not None:
            gradient = _product(factors_of_rows, weight, exact) - (1 - label_smoothing) * weight[ids.squeeze(1)].to(
                exact
            )
            if mean_weight is not None:
                gradient -= label_smoothing * mean_weight
            of_hidden[rows] = gradient * factor
        if of_weight is not None:
            scaled = states.to(exact) * factor
            _add_product(of_weight, factors_of_rows.T, scaled)
            of_weight.index_add_(0, ids.squeeze(1), ((label_smoothing - 1) * scaled).to(of_weight.dtype))
            if label_smoothing:
                of_weight -= (label_smoothing / len(weight) * scaled.sum(dim=0)).to(of_weight.dtype)
    return loss, of_hidden, None if of_weight is None else of_weight.to(weight_dtype)


def _zeros_to_sum(weight: torch.Tensor) -> torch.Tensor:
    """Return zeros to add the gradient up in; on a CPU in float32 at least."""
    dtype = torch.promote_types(torch.float32, weight.dtype) if weight.device.type == "cpu" else weight.dtype
    return torch.zeros_like(weight, dtype=dtype)


def _softmax_in_place(logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Overwrite logits, (R, V), by their softmax; returns -log softmax at the ids, (R, 1)."""
    if logits.device.type == "cpu":
        # One call that works row by row in the cache: half the time of the passes below.
        torch.softmax(logits, dim=1, out=logits)
        return -logits.gather(1, ids).log()
    of_target = logits.gather(1, ids)
    maximum = logits.amax(dim=1, keepdim=True)
    total = logits.sub_(maximum).exp_().sum(dim=1, keepdim=True)
    logits.div_(total)
    return total.log() + maximum - of_target


def _mend_large(losses: torch.Tensor, states: torch.Tensor, weight: torch.Tensor, ids: torch.Tensor) -> None:
    """Compute those losses, (R, 1), again whose softmax is too near to 0 for its logarithm to be exact."""
    large = (losses > LARGE_LOSS).squeeze(1)
    if large.any():
        logits = (states[large] @ weight.T).to(losses.dtype)
        losses[large] = F.cross_entropy(logits, ids[large].squeeze(1), reduction="none").unsqueeze(1)


def _multiply(left: torch.Tensor, right: torch.Tensor, *, out: torch.Tensor, through: torch.Tensor | None) -> None:
    """Multiply into `out`, whose type may be wider: a GPU sums the product up in it, a CPU goes `through` another."""
    if through is not None:
        out.copy_(torch.mm(left, right, out=through))
    elif left.dtype == out.dtype:
        torch.mm(left, right, out=out)
    else:
        torch.mm(left, right, out_dtype=out.dtype, out=out)


def _product(left: torch.Tensor, right: torch.Tensor, exact: torch.dtype) -> torch.Tensor:
    """Return the product in the type `exact`, computed in the type of `right`."""
    if right.dtype == exact or right.device.type == "cpu":
        return (left @ right).to(exact)
    return torch.mm(left.to(right.dtype), right, out_dtype=exact)


def _add_product(total: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> None:
    """Add the product to `total`; a CPU computes it in the type of `left`, a GPU in that of `total`."""
    if total.device.type == "cpu" and left.dtype != total.dtype:
        total += left @ right.to(left.dtype)
    else:
        total.addmm_(left.to(total.dtype), right.to(total.dtype))
