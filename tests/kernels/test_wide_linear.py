"""Linear layers multiplied in float32 under autocast: the same results and gradients, less rounding, nothing left."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from gradients import distance
from test_fused_layers import build, loss_and_gradients
from torch import nn

from glmtune.kernels.fused_layers import FusedLayers
from glmtune.kernels.wide_linear import wide_linear, wide_linears


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("is_trained", [False, True])
@pytest.mark.parametrize("weight_dtype", [torch.float32, torch.bfloat16])
def test_a_layer_gives_what_autocast_gives_with_less_rounding(
    weight_dtype: torch.dtype, is_trained: bool, bias: bool
) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(40, 24, bias=bias).to(weight_dtype).requires_grad_(is_trained)
    states, upstream = torch.randn(2, 7, 40).bfloat16(), torch.randn(2, 7, 24).bfloat16()
    found = []
    for forward in (layer, lambda states: wide_linear(layer, states)):
        own = states.clone().requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            output = forward(own)
        assert output.dtype == torch.bfloat16
        found.append(
            [output, *torch.autograd.grad(output, [own, *layer.parameters()] if is_trained else [own], upstream)]
        )
    exact_in = states.float().requires_grad_()
    wide = nn.functional.linear(exact_in, layer.weight.float(), None if layer.bias is None else layer.bias.float())
    asked = [exact_in, *layer.parameters()] if is_trained else [exact_in]
    exact = [wide, *torch.autograd.grad(wide, asked, upstream.float())]
    for theirs, ours, reference in zip(*found, exact, strict=True):
        assert ours.dtype == theirs.dtype
        distances = [(each.float() - reference.float()).square().mean().sqrt() for each in (theirs, ours)]
        assert distances[1] <= 1.01 * distances[0]
        assert distances[1] <= 4e-3 * reference.float().abs().max()


def test_without_autocast_it_is_the_layer_itself_in_float32() -> None:
    layer, states = nn.Linear(8, 4), torch.randn(3, 8)
    assert wide_linear(layer, states).equal(layer(states))


def test_without_autocast_a_layer_in_bfloat16_is_rounded_once_at_the_end() -> None:
    layer, states = nn.Linear(80, 40).bfloat16(), torch.randn(3, 80).bfloat16()
    exact = nn.functional.linear(states.float(), layer.weight.float(), layer.bias.float())
    assert wide_linear(layer, states).equal(exact.bfloat16())


def test_types_that_do_not_fit_are_refused_as_torch_does() -> None:
    layer, states = nn.Linear(8, 4), torch.randn(3, 8).bfloat16()
    with pytest.raises(RuntimeError, match="same dtype"):
        wide_linear(layer, states)


@pytest.mark.parametrize("architecture", ["glm", "llama"])
@pytest.mark.parametrize("lora", [None, {}], ids=["sft", "lora"])
@pytest.mark.parametrize("checkpointing", [False, True], ids=["", "checkpointing"])
def test_the_gradients_of_a_model_are_about_as_near_to_float32_or_nearer(
    architecture: str, lora: dict[str, Any] | None, checkpointing: bool
) -> None:
    _, exact = loss_and_gradients(build(architecture, lora=lora))
    model = build(architecture, lora=lora)
    for weight in model.parameters():
        if not weight.requires_grad:
            weight.data = weight.data.bfloat16()
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    _, half = loss_and_gradients(model, FusedLayers(model, recomputes=checkpointing), half=True)
    _, wide = loss_and_gradients(model, FusedLayers(model, recomputes=checkpointing, is_wide=True), half=True)
    assert wide.keys() == half.keys() == exact.keys()

    # A CPU that adds up bfloat16 in float32 rounds as often as we do; a tenth more or less is chance.
    assert distance(wide, exact) < 1.3 * distance(half, exact)
    assert not any("forward" in vars(module) for module in model.modules())


def test_plain_linear_layers_are_found_and_none_that_somebody_has_changed() -> None:
    model = build("glm", lora={})
    base = model.get_base_model()
    changed = base.model.layers[1].self_attn.o_proj.base_layer
    changed.forward = changed.forward
    found = wide_linears(model)
    assert {base.lm_head, base.model.layers[0].self_attn.q_proj.base_layer} <= found.keys()
    assert changed not in found
    assert all(type(module) is nn.Linear for module in found)
    assert len(found) == sum(type(module) is nn.Linear for module in model.modules()) - 1


@torch.no_grad()
def test_an_evaluation_multiplies_in_float32_and_leaves_the_layers_as_they_were() -> None:
    model = build("glm", lora=None).bfloat16()
    ids = torch.arange(12).view(1, 12)
    usual = model(ids).logits
    fused = FusedLayers(model, recomputes=False, is_wide=True)
    with fused.in_evaluation():
        replaced = {module for module in model.modules() if "forward" in vars(module)}
        wide = model(ids).logits
    assert replaced == {module for module in model.modules() if type(module) is nn.Linear}
    assert wide.dtype == usual.dtype
    exact = model.float()(ids).logits
    assert (wide - exact).square().mean() <= 1.01 * (usual - exact).square().mean()
    assert not any("forward" in vars(module) for module in model.modules())


def test_an_evaluation_of_a_run_whose_layers_stay_in_bfloat16_replaces_nothing() -> None:
    model = build("glm", lora=None).bfloat16()
    with FusedLayers(model, recomputes=False).in_evaluation():
        assert not any("forward" in vars(module) for module in model.modules())


def test_nothing_in_float32_is_kept_for_the_backward_pass() -> None:
    layer = nn.Linear(64, 64, bias=False).bfloat16().requires_grad_(False)
    kept: list[torch.Tensor] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor)
        return tensor

    states = torch.randn(5, 64).bfloat16().requires_grad_()
    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with hooks, torch.autocast("cpu", dtype=torch.bfloat16):
        wide_linear(layer, states)
    assert [tensor.data_ptr() for tensor in kept] == [layer.weight.data_ptr()]
