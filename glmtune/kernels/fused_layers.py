"""Layers that train with less memory and fewer passes over it: norms, gated MLPs, LoRA.

What the layers compute stays what transformers and PEFT compute; how they do it is changed for the length of a training
step, and only then: evaluations, generation and saved models know nothing of it. Layers are known by their parts, not
by the name of their model, and each kind is tried against the original before the first step.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from .fused_lora import added_in_place, plain_lora_layers
from .fused_mlp import joined_mlp, split_mlp
from .fused_norm import rms_norm
from .whole_weights import is_whole
from .wide_linear import wide_linears

Forward = Callable[[torch.Tensor], torch.Tensor]

TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-8}
"""How far a layer's result may lie from the original's, in standard deviations of it."""
HALF_TOLERANCE = 0.05
"""For bfloat16, which has 8 bits."""


NORMS, MLPS, LORA = "norms", "MLPs", "LoRA"
KINDS = (NORMS, MLPS, LORA)

SILU = ("SiLU", "SiLUActivation")
"""Torch's and transformers' own."""


class FusedLayers:
    """The layers of one model that can be trained in a cheaper way."""

    def __init__(
        self, model: nn.Module, *, recomputes: bool, kinds: Collection[str] = KINDS, is_wide: bool = False
    ) -> None:
        """Find them.

        Args:
            model: Of transformers, possibly under PEFT, as it is trained: with weights sharded where they will be.
            recomputes: Whether whole layers are recomputed in the backward pass (gradient checkpointing).
            kinds: What to look for, of `KINDS`.
            is_wide: Whether linear layers compute in float32 what autocast would compute in half.
        """
        norms = [module for module in model.modules() if NORMS in kinds and _is_rms_norm(module)]
        mlps = [(module, _mlp_forward(module)) for module in model.modules() if MLPS in kinds]
        self._norms = {module: _norm_forward(module) for module in norms}
        self._mlps: dict[nn.Module, Forward] = {
            module: functools.partial(forward, module, remakes=not recomputes and _is_whole(module))
            for module, forward in mlps
            if forward is not None
        }
        self._lora = plain_lora_layers(model) if LORA in kinds else []
        self._is_wide = is_wide
        self._linears = wide_linears(model) if is_wide else {}

    @property
    def names(self) -> list[str]:
        """Return those of `KINDS` that are fused."""
        found = {NORMS: self._norms, MLPS: self._mlps, LORA: self._lora}
        return [name for name, layers in found.items() if layers]

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Train with them as long as this lasts, forward and backward pass."""
        with _replaced(self._norms | self._mlps | self._linears), added_in_place(self._lora, is_wide=self._is_wide):
            yield

    @contextmanager
    def in_evaluation(self) -> Iterator[None]:
        """Evaluate as long as this lasts: layer by layer as the model has them, in the type that is faster."""
        with _replaced(self._linears):
            yield

    @torch.no_grad()
    def drop_what_differs(self, device: torch.device) -> list[str]:
        """Try one layer of each class; those that compute something else are left as they are.

        Args:
            device: Where the model computes. Under ZeRO-3 every process has to call this: a forward pass is a meeting.

        Returns:
            The names of the classes that were left.
        """
        differing: set[type] = set()
        for forwards in (self._norms, self._mlps):
            first = {type(module): module for module in reversed(forwards)}
            differing |= {kind for kind, module in first.items() if not _is_equal(module, forwards[module], device)}
            for module in [module for module in forwards if type(module) in differing]:
                del forwards[module]
        return sorted(kind.__name__ for kind in differing)


def _is_equal(module: Any, forward: Forward, device: torch.device) -> bool:
    width = module.down_proj.out_features if hasattr(module, "down_proj") else len(module.weight)
    weights = [weight for weight in module.parameters() if weight.is_floating_point()]
    # That of the frozen weights, where there are some: LoRA's are in float32. Quantized ones take any.
    dtype = min(weights, key=lambda weight: weight.requires_grad).dtype if weights else torch.float32
    states = torch.randn(4, width, device=device, dtype=dtype)
    expected = module(states)
    with _replaced({module: forward}):
        found = module(states)
    unit = expected.float().std() * TOLERANCE.get(expected.dtype, HALF_TOLERANCE)
    return found.dtype == expected.dtype and bool((found - expected).abs().max() <= unit)


def _is_whole(module: nn.Module) -> bool:
    # What is kept through hooks, as the product is, keeps a weight that was gathered for the forward pass, too.
    return all(is_whole(weight) for weight in module.parameters())


@contextmanager
def _replaced(forwards: Mapping[nn.Module, Forward]) -> Iterator[None]:
    for module, forward in forwards.items():
        module.forward = forward
    try:
        yield
    finally:
        for module in forwards:
            del module.forward


def _is_rms_norm(module: Any) -> bool:
    """Whether it is a norm as Llama and GLM have it, and nobody changed it: others add 1 to the weight, or a bias."""
    if not type(module).__name__.endswith("RMSNorm") or "forward" in vars(module):
        return False
    weights = dict(module.named_parameters())
    return list(weights) == ["weight"] and hasattr(module, "variance_epsilon") and is_whole(module.weight)


def _norm_forward(module: Any) -> Forward:
    return lambda hidden_states: rms_norm(hidden_states, module.weight, module.variance_epsilon)


def _mlp_forward(module: Any) -> Callable[..., torch.Tensor] | None:
    """Return the function that does what a gated MLP does; None for everything else."""
    if "forward" in vars(module) or any(isinstance(weight, DTensor) for weight in module.parameters()):
        return None  # FSDP makes the weights of a decoder layer whole, and an MLP cannot be tried alone
    parts = dict(module.named_children())
    for activation, names, forward in (
        ("activation_fn", {"gate_up_proj", "down_proj"}, joined_mlp),
        ("act_fn", {"gate_proj", "up_proj", "down_proj"}, split_mlp),
    ):
        if parts.keys() == {*names, activation} and type(parts[activation]).__name__ in SILU:
            return forward
    return None
