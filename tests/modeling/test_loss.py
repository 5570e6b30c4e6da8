"""The loss over labelled positions equals the plain loss over all logits."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM

from glmtune.family import IGNORE_INDEX
from glmtune.modeling.loss import summed_loss, takes_positions


@pytest.fixture(scope="module")
def model(demo_model: str):
    return AutoModelForCausalLM.from_pretrained(demo_model, dtype=torch.float64)


@pytest.fixture
def batch() -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    ids = torch.randint(10, 900, (3, 24), generator=torch.Generator().manual_seed(1))
    labels = ids.clone()
    labels[:, :9] = IGNORE_INDEX
    labels[0, 9:14] = IGNORE_INDEX
    labels[2, 20:] = IGNORE_INDEX
    mask = torch.ones_like(ids)
    mask[2, 20:] = 0
    return {"input_ids": ids, "attention_mask": mask}, labels


def plain_loss(model, inputs, labels, smoothing: float = 0.0) -> torch.Tensor:
    logits = model(**inputs).logits[:, :-1].float()
    return F.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), reduction="sum", label_smoothing=smoothing)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_labelled_positions_give_the_plain_loss_and_gradients(model, batch, smoothing: float) -> None:
    inputs, labels = batch
    model.zero_grad()
    expected = plain_loss(model, inputs, labels, smoothing)
    expected.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    assert takes_positions(model)
    loss = summed_loss(model, inputs, labels, by_position=True, label_smoothing=smoothing)
    loss.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-5, atol=1e-7)


def test_full_logits_give_the_same_loss_for_models_that_cannot_choose(model, batch) -> None:
    inputs, labels = batch
    by_position = summed_loss(model, inputs, labels, by_position=True)
    torch.testing.assert_close(summed_loss(model, inputs, labels, by_position=False), by_position, rtol=1e-6, atol=0)


def test_only_labelled_positions_get_logits(model, batch) -> None:
    inputs, labels = batch
    shapes = []
    handle = model.lm_head.register_forward_hook(lambda module, args, output: shapes.append(tuple(output.shape)))
    summed_loss(model, inputs, labels, by_position=True)
    handle.remove()
    # Labels 9..23 in at least one row are predicted from positions 8..22.
    assert shapes == [(3, 15, model.config.vocab_size)]
