"""The loss, computed from labelled positions only.

Shape legend: B batch, T tokens, N labelled positions, H hidden size, V vocabulary.

Prompts and padding need no logits. While a loss is computed, the output layer does not return logits but the loss
itself (`fused_loss.py`), from those hidden states that have a label. That happens inside the model's own forward, and
so under PEFT, DDP and ZeRO-3, too, where a weight is only whole inside its module.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.distributed.tensor import DTensor

from glmtune.console import notice
from glmtune.errors import GlmtuneError, require
from glmtune.family import IGNORE_INDEX

from .fused_loss import LogitsBuffer, fused_cross_entropy
from .virtual_tokens import num_tokens_before_rows


class LabelledLoss:
    """Computes the loss of a model in the cheapest way that is exact for it."""

    def __init__(self, model: Any, *, kernel: str = "auto", cpu_dtype: torch.dtype = torch.float32) -> None:
        """Look at the model, possibly under PEFT.

        Args:
            model: Of transformers.
            kernel: As `loss_kernel` of a configuration. `logits` asks for logits, of labelled positions where the
                model can choose them; the others have the output layer return the loss.
            cpu_dtype: What a CPU multiplies in where the output layer returns the loss.
        """
        self._is_ligers = kernel == "liger"
        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        self._base = base
        self._num_before = num_tokens_before_rows(model)
        self._head = _plain_head(base) if kernel != "logits" else None
        self._buffer = LogitsBuffer()
        self._cpu_dtype = cpu_dtype
        self._own_weight: torch.Tensor | None = None
        self._has_been_fused = False
        self._has_told = False
        self._takes_positions = "logits_to_keep" in inspect.signature(base.forward).parameters

    @property
    def is_fused(self) -> bool:
        """Whether the output layer returns the loss; known for sure once a loss has been computed."""
        return self._head is not None

    @property
    def kernel(self) -> str:
        """Return how the loss is computed, in words."""
        if self._head is not None:
            return f"{'Liger, ' if self._is_ligers else ''}fused over labelled positions"
        return "logits of labelled positions" if self._takes_positions else "all logits"

    def summed(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        labels: torch.Tensor,
        *,
        label_smoothing: float = 0.0,
        weights: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return the cross entropy summed over all labelled tokens, a scalar in float32.

        Args:
            model: The model, possibly wrapped by DDP or DeepSpeed.
            inputs: For its forward; `input_ids` is (B, T).
            labels: (B, T), `IGNORE_INDEX` where not trained. The label at t is predicted from position t - 1.
            label_smoothing: As in `torch.nn.functional.cross_entropy`.
            weights: (B, T), what each token's own loss is multiplied with; None for 1 everywhere.
        """
        targets = labels[:, 1:]
        weights = None if weights is None else weights[:, 1:]
        if self._head is not None:
            compute = functools.partial(
                # Liger's kernel knows no weights of tokens.
                _liger_cross_entropy
                if self._is_ligers and weights is None
                else functools.partial(fused_cross_entropy, cpu_dtype=self._cpu_dtype),
                label_smoothing=label_smoothing,
                buffer=self._buffer,
            )
            head = _LossHead(self._head, self._weight(self._head), targets, weights, compute, self._num_before)
            with head.in_place(self._base):
                output = model(**inputs, use_cache=False)
            if head.is_last:
                self._has_been_fused = True
                loss: torch.Tensor = output.logits  # what stands in the place of the head has put it there
                return loss
            self._do_without()
        return self._from_logits(model, inputs, targets, weights, label_smoothing)

    def _do_without(self) -> None:
        """Go on without the fused loss: for good where the model does something to all its logits, such as a soft cap.

        A model whose loss has been fused before is one that did something else this time, as an exception.
        """
        if not self._has_been_fused:
            self._head = None
        elif not self._has_told:
            self._has_told = True
            notice("the loss of a batch comes from its logits: the model did not return what its output layer gave it")

    def _weight(self, head: nn.Linear) -> torch.Tensor | None:
        """Return a frozen weight as a CPU computes with it, converted once; None where it has to be read each time."""
        weight = head.weight
        # ZeRO-3 and FSDP shard it.
        is_whole = weight.shape == (head.out_features, head.in_features) and not isinstance(weight, DTensor)
        if weight.requires_grad or weight.device.type != "cpu" or not is_whole:
            return None
        if self._own_weight is None:
            is_exact = torch.promote_types(torch.float32, weight.dtype) != torch.float32
            self._own_weight = weight.detach().to(weight.dtype if is_exact else self._cpu_dtype)
        return self._own_weight

    def _from_logits(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        targets: torch.Tensor,
        weights: torch.Tensor | None,
        label_smoothing: float,
    ) -> torch.Tensor:
        if self._takes_positions:
            positions = (targets != IGNORE_INDEX).any(dim=0).nonzero().squeeze(1)  # those with a label in any row
            logits = model(**inputs, logits_to_keep=positions + self._num_before, use_cache=False).logits
            targets = targets[:, positions]
            weights = None if weights is None else weights[:, positions]
        else:
            logits = model(**inputs, use_cache=False).logits[:, self._num_before : -1]
        losses = F.cross_entropy(
            logits.flatten(0, 1).float(),
            targets.flatten(),
            ignore_index=IGNORE_INDEX,
            reduction="sum" if weights is None else "none",
            label_smoothing=label_smoothing,
        )
        return losses if weights is None else (losses * weights.flatten()).sum()


class _LossHead:
    """Stands in for the forward of an output layer during one call of its model."""

    def __init__(
        self,
        layer: nn.Linear,
        weight: torch.Tensor | None,
        targets: torch.Tensor,
        weights: torch.Tensor | None,
        compute: Callable[..., torch.Tensor],
        num_before: int = 0,
    ) -> None:
        self.layer = layer
        self.weight = weight  # in the place of the layer's own
        self.targets = targets  # (B, T - 1)
        self.weights = weights
        self.compute = compute
        self.num_before = num_before  # virtual tokens before each row
        self.loss: torch.Tensor | None = None
        self.is_last = False
        """Whether the model returned the loss as it was, so that nothing is done to logits after the output layer."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Return the summed loss instead of logits; `input` is (B, T, H), the hidden states, behind virtual tokens."""
        hidden = input[:, self.num_before :]
        if hidden.shape[:2] != (len(self.targets), self.targets.shape[1] + 1):
            return F.linear(input, self.layer.weight)  # a model of another build
        is_labelled = self.targets != IGNORE_INDEX
        self.loss = self.compute(
            hidden[:, :-1][is_labelled],
            self.layer.weight if self.weight is None else self.weight,
            self.targets[is_labelled],
            weights=None if self.weights is None else self.weights[is_labelled],
        )
        return self.loss

    @contextmanager
    def in_place(self, base: nn.Module) -> Iterator[None]:
        """Have the layer return the loss, and see what becomes of it."""

        def compare(module: nn.Module, args: Any, output: Any) -> None:
            # ZeRO-3 hands out the same number as another tensor, so that it hears of the backward pass.
            self.is_last = self.loss is not None and (
                output.logits.shape == () and output.logits.data_ptr() == self.loss.data_ptr()
            )

        before = vars(self.layer).get("forward")
        handle = base.register_forward_hook(compare)
        self.layer.forward = self.forward  # type: ignore[method-assign]
        try:
            yield
        finally:
            del self.layer.forward
            if before is not None:  # a hook of accelerate's stands there
                self.layer.forward = before  # type: ignore[method-assign]
            handle.remove()


def check_loss_kernel(kernel: str) -> None:
    """Raise where a `loss_kernel` cannot work on this machine."""
    if kernel != "liger":
        return
    if not torch.cuda.is_available():
        raise GlmtuneError(
            "Liger's kernels need a GPU, and none was found", where="loss_kernel", fix="set `loss_kernel: auto`"
        )
    require("liger_kernel", extra="liger")


def _liger_cross_entropy(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    *,
    weights: torch.Tensor | None,
    label_smoothing: float,
    buffer: LogitsBuffer,
) -> torch.Tensor:
    """Do what `fused_cross_entropy` does by Liger's kernel."""
    assert weights is None, "Liger's kernel knows no weights of tokens"
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

    kernel = LigerFusedLinearCrossEntropyLoss(reduction="sum", label_smoothing=label_smoothing)
    loss: torch.Tensor = kernel(weight, hidden.to(weight.dtype), targets)
    return loss.float()


def _plain_head(base: Any) -> nn.Linear | None:
    """Return the output layer, or None where it is more than one matrix: under LoRA, quantized, with a bias."""
    head = base.get_output_embeddings()
    if isinstance(head, nn.Linear) and head.bias is None and head.weight.is_floating_point():
        return head
    return None
