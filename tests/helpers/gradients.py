"""How far gradients are from exact ones."""

from __future__ import annotations

from collections.abc import Mapping

import torch


def distance(gradients: Mapping[str, torch.Tensor], exact: Mapping[str, torch.Tensor]) -> float:
    """Return the norm of the difference of all gradients together, as a share of the norm of the exact ones."""
    between = sum((gradients[name] - exact[name]).square().sum() for name in exact)
    return (between / sum(gradient.square().sum() for gradient in exact.values())).sqrt().item()
