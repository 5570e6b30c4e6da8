"""Liger's kernel without a GPU: Triton's interpreter runs it on the CPU, number by number."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

NEEDED = ("liger_kernel", "triton")
TOLERANCE = 1e-5

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        any(importlib.util.find_spec(name) is None for name in NEEDED), reason="needs liger-kernel and triton"
    ),
]


@pytest.fixture(scope="module")
def cases() -> dict[str, dict[str, float]]:
    """Compute every case in a process of its own: Triton has to know of its interpreter when it is imported."""
    folder = Path(__file__).parents[2]
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": str(folder)}
    result = subprocess.run(
        [sys.executable, __file__], env=environment, cwd=folder, capture_output=True, text=True, timeout=600
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("architecture", ["glm", "glm4", "glm4_moe", "qwen2", "llama"])
def test_loss_and_gradients_are_the_plain_ones(architecture: str, smoothing: float, cases) -> None:
    case = cases[f"{architecture} {smoothing}"]
    assert case["kernel"] == "Liger, fused over labelled positions"
    assert case["loss"] < TOLERANCE
    assert case["gradients"] < TOLERANCE
    assert case["calls"] == 1


def test_where_tokens_have_weights_our_own_kernel_steps_in(cases) -> None:
    case = cases["weights"]
    assert case["loss"] < TOLERANCE
    assert case["calls"] == 0


def main() -> None:
    """Print, for each case, how far loss and gradients lie from the plain ones, in parts of their size."""
    import torch
    from test_loss import ARCHITECTURES, gradients_of, plain_loss, token_losses
    from transformers import AutoModelForCausalLM

    from glmtune.family import IGNORE_INDEX
    from glmtune.kernels import loss as loss_module
    from glmtune.kernels.loss import LabelledLoss

    calls = []
    plain_call = loss_module._liger_cross_entropy
    loss_module._liger_cross_entropy = lambda *args, **kwargs: calls.append(1) or plain_call(*args, **kwargs)
    ids = torch.randint(10, 900, (2, 10), generator=torch.Generator().manual_seed(1))
    labels = ids.clone()
    labels[:, :4] = IGNORE_INDEX
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    found = {}
    for architecture, config in ARCHITECTURES.items():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config).float()
        losses = LabelledLoss(model, kernel="liger")
        for smoothing in (0.0, 0.1):
            expected = plain_loss(model, inputs, labels, smoothing)
            expected_gradients = gradients_of(model, expected)
            calls.clear()
            loss = losses.summed(model, inputs, labels, label_smoothing=smoothing)
            gradients = gradients_of(model, loss)
            assert gradients.keys() == expected_gradients.keys()
            found[f"{architecture} {smoothing}"] = {
                "kernel": losses.kernel,
                "loss": abs(loss / expected - 1).item(),
                "gradients": max(
                    ((gradients[name] - gradient).abs().max() / gradient.abs().max()).item()
                    for name, gradient in expected_gradients.items()
                    if gradient.abs().max() > 0
                ),
                "calls": len(calls),
            }
    calls.clear()
    weights = torch.rand(labels.shape, generator=torch.Generator().manual_seed(2))
    expected = (token_losses(model, inputs, labels) * weights).sum()
    loss = losses.summed(model, inputs, labels, weights=weights)
    found["weights"] = {"loss": abs(loss / expected - 1).item(), "calls": len(calls)}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
