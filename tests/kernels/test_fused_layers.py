"""Norms, gated MLPs and LoRA in their cheaper form: the same loss and gradients, less memory, nothing left behind."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from contextlib import nullcontext, suppress
from typing import Any

import pytest
import torch
from gradients import distance
from peft import LoraConfig, PrefixTuningConfig, get_peft_model
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Glm4Config,
    Glm4MoeConfig,
    GlmConfig,
    LlamaConfig,
    Phi3Config,
    Qwen2Config,
    Qwen3Config,
)

from glmtune.evaluation.evaluate import quiet_evaluation
from glmtune.kernels import fused_mlp
from glmtune.kernels.fused_layers import FusedLayers
from glmtune.kernels.fused_lora import plain_lora_layers
from glmtune.kernels.fused_norm import rms_norm

SMALL: dict[str, Any] = {
    "vocab_size": 1000, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 0,
}  # fmt: skip
ARCHITECTURES = {
    "glm": GlmConfig(**SMALL),
    "glm4": Glm4Config(**SMALL),
    "glm4_moe": Glm4MoeConfig(
        **SMALL, moe_intermediate_size=16, n_routed_experts=4, num_experts_per_tok=2, first_k_dense_replace=1
    ),
    "qwen2": Qwen2Config(**SMALL, tie_word_embeddings=True),
    "qwen3": Qwen3Config(**SMALL),
    "llama": LlamaConfig(**SMALL),
    "phi3": Phi3Config(**SMALL),
}
LINEAR = ["q_proj", "v_proj", "o_proj", "gate_up_proj", "gate_proj", "up_proj", "down_proj", "qkv_proj"]


def build(architecture: str, *, lora: dict[str, Any] | None = None, dtype: torch.dtype = torch.float32) -> Any:
    torch.manual_seed(0)
    config = ARCHITECTURES[architecture] if isinstance(architecture, str) else architecture
    model: Any = AutoModelForCausalLM.from_config(config, dtype=dtype).train()
    for name, weight in model.named_parameters():
        if "norm" in name:  # ones, which would hide a scale that is left out
            nn.init.uniform_(weight, 0.5, 1.5)
    if lora is None:
        return model
    present = {name.rpartition(".")[2] for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    settings = {"r": 4, "lora_alpha": 10, "target_modules": [name for name in LINEAR if name in present]} | lora
    model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **settings))
    for name, weight in model.named_parameters():
        if "lora_B" in name:  # zeros, which would leave lora_A without a gradient
            nn.init.normal_(weight, std=0.05)
    return model


def loss_and_gradients(model: Any, fused: FusedLayers | None = None, *, half: bool = False) -> tuple[Any, dict]:
    """Train on three rows of random ids once."""
    ids = torch.randint(10, 900, (3, 24), generator=torch.Generator().manual_seed(1)).to(model.device)
    model.zero_grad()
    torch.manual_seed(5)  # of dropout
    with (
        fused.in_use() if fused else nullcontext(),
        torch.autocast("cpu", torch.bfloat16) if half else nullcontext(),
    ):
        loss = model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=ids, use_cache=False).loss
        loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same(model: Any, fused: FusedLayers, tolerance: float = 1e-5) -> None:
    expected, expected_gradients = loss_and_gradients(model)
    loss, gradients = loss_and_gradients(model, fused)
    torch.testing.assert_close(loss, expected, rtol=tolerance / 10, atol=0)
    assert gradients.keys() == expected_gradients.keys()
    for name, gradient in expected_gradients.items():
        scale = gradient.abs().max().item()
        torch.testing.assert_close(gradients[name], gradient, rtol=tolerance, atol=tolerance * scale, msg=name)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("lora", [None, {}, {"lora_dropout": 0.3}], ids=["sft", "lora", "dropout"])
@pytest.mark.parametrize("checkpointing", [False, True], ids=["", "checkpointing"])
def test_loss_and_gradients_are_the_same(architecture: str, lora: dict[str, Any] | None, checkpointing: bool) -> None:
    if lora and architecture == "glm4_moe":
        lora = lora | {"target_modules": ["q_proj", "v_proj"]}  # PEFT has no dropout for experts
    model = build(architecture, lora=lora)
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    fused = FusedLayers(model, recomputes=checkpointing)
    with quiet_evaluation(model):
        assert fused.drop_what_differs(torch.device("cpu")) == []
    assert fused.names == ["norms", "MLPs", *(["LoRA"] if lora is not None else [])]
    assert_same(model, fused)


@pytest.mark.parametrize("architecture", ["glm", "llama"])
def test_the_gradient_of_a_prefix_is_the_same(architecture: str) -> None:
    shape = {"num_layers": 2, "num_attention_heads": 2, "token_dim": 16, "num_transformer_submodules": 1}
    config = PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=5, **shape)
    model: Any = get_peft_model(build(architecture), config).train()
    fused = FusedLayers(model, recomputes=False)
    assert fused.names == ["norms", "MLPs"]
    assert_same(model, fused)


@pytest.mark.gpu
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("lora", [None, {}], ids=["sft", "lora"])
def test_on_a_gpu_loss_and_gradients_are_the_same(architecture: str, lora: dict[str, Any] | None) -> None:
    model = build(architecture, lora=lora).cuda()
    fused = FusedLayers(model, recomputes=False)
    with quiet_evaluation(model):
        assert fused.drop_what_differs(torch.device("cuda")) == []
    # torch's norm adds up in another order there.
    assert_same(model, fused, tolerance=1e-4)


@pytest.mark.parametrize("architecture", ["glm", "llama"])
@pytest.mark.parametrize("lora", [None, {}], ids=["sft", "lora"])
def test_in_bfloat16_the_gradients_are_about_as_near_to_float32(architecture: str, lora: dict | None) -> None:
    """Of all weights together."""
    _, exact = loss_and_gradients(build(architecture, lora=lora))
    model = build(architecture, lora=lora)
    for weight in model.parameters():
        if not weight.requires_grad:
            weight.data = weight.data.bfloat16()
    _, theirs = loss_and_gradients(model, half=True)
    _, ours = loss_and_gradients(model, FusedLayers(model, recomputes=False), half=True)

    # Which way a number is rounded is chance: it differs by a tenth from one CPU to another.
    assert distance(ours, exact) < 1.3 * distance(theirs, exact)


def kept_bytes(model: Any, fused: FusedLayers | None) -> int:
    """Return what autograd keeps of a forward pass beside weights."""
    weights = {id(weight.untyped_storage()) for weight in model.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if id(storage) not in weights:
            kept[id(storage)] = storage
        return tensor

    ids = torch.randint(10, 900, (1, 256))
    with (
        fused.in_use() if fused else nullcontext(),
        torch.autocast("cpu", torch.bfloat16),
        torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor),
    ):
        model(input_ids=ids, use_cache=False, logits_to_keep=1)
    return sum(storage.nbytes() for storage in kept.values())


@pytest.mark.parametrize(("lora", "share"), [({}, 0.72), (None, 0.75)], ids=["lora", "sft"])
def test_less_is_kept_for_the_backward_pass(lora: dict[str, Any] | None, share: float) -> None:
    """In one run 0.66 of what transformers and PEFT keep for LoRA on all linear layers, 0.70 for full fine-tuning.

    What the last projection of an MLP takes is made again, and not seen here: it is not kept.
    """
    config = GlmConfig(**(SMALL | {"hidden_size": 64, "intermediate_size": 216, "head_dim": 16}))
    model = build(config, lora=lora, dtype=torch.bfloat16)  # type: ignore[arg-type]
    assert kept_bytes(model, FusedLayers(model, recomputes=False)) < share * kept_bytes(model, None)


@pytest.mark.parametrize("architecture", ["glm", "llama"])
@pytest.mark.parametrize("because", ["", "checkpointing", "ZeRO-3"])
def test_the_product_of_an_mlp_does_not_live_until_the_backward_pass(
    architecture: str, because: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But for checkpointing, which makes it again anyway, and where weights are sharded."""
    living: list[weakref.ref] = []
    plain = fused_mlp._product

    def watched(parts: Any) -> torch.Tensor:
        product = plain(parts)
        living.append(weakref.ref(product.untyped_storage()))
        return product

    monkeypatch.setattr(fused_mlp, "_product", watched)
    model = build(architecture)
    if because == "ZeRO-3":
        for weight in model.parameters():
            weight.ds_id = 0
    with FusedLayers(model, recomputes=because == "checkpointing").in_use():
        output = model(input_ids=torch.arange(20, 30).unsqueeze(0), use_cache=False)
        assert [each() is not None for each in living] == [bool(because)] * 2
        output.logits.sum().backward()
    assert len(living) == (2 if because else 4)


def test_afterwards_nothing_is_left() -> None:
    model = build("glm", lora={})
    fused = FusedLayers(model, recomputes=False)
    with suppress(KeyboardInterrupt), fused.in_use():
        assert any("forward" in vars(module) for module in model.modules())
        raise KeyboardInterrupt
    assert not any("forward" in vars(module) for module in model.modules())
    for layer in plain_lora_layers(model):
        assert layer.lora_variant == {}
        assert layer.cast_input_dtype_enabled


def test_every_linear_layer_with_lora_is_found() -> None:
    model = build("glm", lora={})
    assert len(plain_lora_layers(model)) == 2 * 5  # q, v, o, gate_up, down


@pytest.mark.parametrize(
    "lora", [{"use_dora": True}, {"lora_bias": True}, {"target_modules": ["embed_tokens"]}], ids=str
)
def test_other_kinds_of_lora_are_left_to_peft(lora: dict[str, Any]) -> None:
    model = build("glm", lora=lora)
    fused = FusedLayers(model, recomputes=False)
    assert fused.names == ["norms", "MLPs"]
    # The gradient of a bias is a sum of much that cancels out: in float32 it is 1.6e-5 from float64 in PEFT, too.
    assert_same(model, fused, tolerance=1e-4)


def test_two_adapters_at_once_are_left_to_peft() -> None:
    model = build("glm", lora={})
    model.add_adapter("other", LoraConfig(r=2, target_modules=["q_proj"]))
    model.base_model.set_adapter(["default", "other"])
    assert plain_lora_layers(model) == []


def test_a_float32_adapter_beside_half_weights_works_without_autocast() -> None:
    model = build("glm", lora={})
    for weight in model.parameters():
        if not weight.requires_grad:
            weight.data = weight.data.bfloat16()
    expected, _ = loss_and_gradients(model)
    loss, _ = loss_and_gradients(model, FusedLayers(model, recomputes=False))
    torch.testing.assert_close(loss, expected, rtol=1e-3, atol=0)


class PlusOneRMSNorm(nn.Module):
    """Has the parts of the norm that is known, and does something else."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(32))
        self.variance_epsilon = 1e-6

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return rms_norm(states, self.weight + 1, self.variance_epsilon)


def test_a_layer_that_computes_something_else_is_left_as_it_is() -> None:
    model = build("glm")
    model.model.norm = PlusOneRMSNorm()
    fused = FusedLayers(model, recomputes=False)
    assert fused.drop_what_differs(torch.device("cpu")) == ["PlusOneRMSNorm"]
    assert fused.names == ["norms", "MLPs"]
    assert_same(model, fused)


class SlightlyOffRMSNorm(nn.Module):
    """Differs from the norm that it looks like by a share of every number."""

    def __init__(self, width: int, share: float, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width, dtype=dtype))
        self.variance_epsilon = 1e-6
        self.share = share

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        exact = rms_norm(states.float(), self.weight.float(), self.variance_epsilon)
        return (exact * (1 + self.share)).to(states.dtype)


@pytest.mark.parametrize(
    ("dtype", "share", "is_kept"),
    [
        (torch.float32, 1e-5, True),
        (torch.float32, 1e-4, False),
        (torch.bfloat16, 0.004, True),  # half of what bfloat16 rounds away
        (torch.bfloat16, 0.05, False),
    ],
)
def test_a_layer_may_differ_by_what_its_type_rounds_and_not_by_more(
    dtype: torch.dtype, share: float, is_kept: bool
) -> None:
    """The largest number of a try lies at two to four standard deviations."""
    torch.manual_seed(0)
    model = build("glm", dtype=dtype)
    model.model.norm = SlightlyOffRMSNorm(32, share, dtype)
    left = FusedLayers(model, recomputes=False).drop_what_differs(torch.device("cpu"))
    assert left == ([] if is_kept else ["SlightlyOffRMSNorm"])


def test_a_model_with_other_layers_is_trained_as_it_is() -> None:
    gemma: Any = AutoModelForCausalLM.from_config(Gemma2Config(**SMALL)).train()
    fused = FusedLayers(gemma, recomputes=False)
    assert fused.names == []
    assert_same(gemma, fused)


def test_an_mlp_of_another_activation_is_left_as_it_is() -> None:
    model = build(GlmConfig(**SMALL, hidden_act="gelu"))  # type: ignore[arg-type]
    fused = FusedLayers(model, recomputes=False)
    assert fused.names == ["norms"]
    assert_same(model, fused)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("weight_dtype", [torch.float32, torch.bfloat16])
def test_the_norm_is_transformers_to_the_last_digit(dtype: torch.dtype, weight_dtype: torch.dtype) -> None:
    model = build("glm")
    norm = model.model.norm.to(weight_dtype)
    states = torch.randn(3, 7, 32).to(dtype)
    expected = norm(states)
    found = rms_norm(states, norm.weight, norm.variance_epsilon)
    assert found.dtype == expected.dtype
    assert found.equal(expected)


@pytest.mark.parametrize("way", ["ours", "torch's"])
def test_the_gradients_of_the_norm_are_those_of_numerical_differences(way: Callable) -> None:
    states, weight = (torch.randn(*shape, dtype=torch.float32, requires_grad=True) for shape in ((2, 3, 8), (8,)))
    norm = rms_norm if way == "ours" else lambda s, w, e: torch.nn.functional.rms_norm(s, w.shape, w, e)
    upstream = torch.randn(2, 3, 8)
    found = torch.autograd.grad((norm(states, weight, 1e-6) * upstream).sum(), (states, weight))
    exact = [tensor.detach().double().requires_grad_() for tensor in (states, weight)]
    plain = exact[0] * torch.rsqrt(exact[0].square().mean(-1, keepdim=True) + 1e-6) * exact[1]
    for gradient, reference in zip(found, torch.autograd.grad((plain * upstream.double()).sum(), exact)):
        torch.testing.assert_close(gradient.double(), reference, rtol=1e-5, atol=1e-6)
