"""What a GPU would compute, without one: the forward pass of a step on fake tensors, which have a device and a type.

Needs a build of torch that knows CUDA; a GPU is not needed, nor a driver.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from peft import LoraConfig, PrefixTuningConfig, get_peft_model
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from transformers import AutoModelForCausalLM, GlmConfig

from glmtune.kernels import packed_attention
from glmtune.kernels.fused_layers import FusedLayers
from glmtune.kernels.fused_loss import LogitsBuffer, _loss_and_gradients
from glmtune.kernels.packing import attention_for

pytestmark = pytest.mark.skipif(torch.version.cuda is None, reason="needs a build of torch for CUDA")

STARTS = [0, 20, 40]
ADAPTERS = {
    "lora": LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj", "o_proj", "gate_up_proj", "down_proj"]),
    "ptuning_v2": PrefixTuningConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=5, num_layers=2, num_attention_heads=2, token_dim=32,
        num_transformer_submodules=1,
    ),
    "sft": None,
}  # fmt: skip


@pytest.fixture
def autocast_on_cuda() -> Iterator[None]:
    """As `torch.autocast("cuda", torch.bfloat16)`, which does nothing where there is no GPU."""
    before = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
    torch.set_autocast_enabled("cuda", True)
    torch.set_autocast_dtype("cuda", torch.bfloat16)
    yield
    torch.set_autocast_enabled("cuda", before[0])
    torch.set_autocast_dtype("cuda", before[1])


def build(method: str) -> Any:
    config = GlmConfig(
        vocab_size=1000, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, pad_token_id=0, attention_bias=True,
    )  # fmt: skip
    dtype = torch.float32 if method == "sft" else torch.bfloat16
    attention = attention_for(None, is_packed=True)
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=attention)
        return model if ADAPTERS[method] is None else get_peft_model(model, ADAPTERS[method])


def move_to_cuda(model: nn.Module) -> None:
    for module in model.modules():
        for name, weight in module._parameters.items():
            if weight is not None:
                empty = torch.empty(weight.shape, dtype=weight.dtype, device="cuda")
                module._parameters[name] = nn.Parameter(empty, requires_grad=weight.requires_grad)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype, device="cuda")


@torch.no_grad()  # the backward pass asks the driver
@pytest.mark.parametrize("method", ADAPTERS)
def test_packed_rows_take_the_kernel_for_rows_of_different_lengths(
    method: str, autocast_on_cuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    types = []
    in_one_call = packed_attention._in_one_call

    def watched(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *rest: Any) -> torch.Tensor:
        types.append((query.dtype, key.dtype, value.dtype))
        return in_one_call(query, key, value, *rest)

    monkeypatch.setattr(packed_attention, "_in_one_call", watched)
    monkeypatch.setattr(FakeTensor, "tolist", lambda self: STARTS, raising=False)
    model = build(method)
    with FakeTensorMode(allow_non_fake_inputs=True):
        move_to_cuda(model)
        if method == "ptuning_v2":
            model.prompt_tokens["default"] = torch.arange(5, device="cuda")
        ids = torch.zeros(1, 40, dtype=torch.long, device="cuda")
        starts = torch.empty(3, dtype=torch.int32, device="cuda")
        layout = {"cu_seq_lens_q": starts, "cu_seq_lens_k": starts, "max_length_q": 20, "max_length_k": 20}
        fused = FusedLayers(model.train(), recomputes=False)
        assert fused.names == ["norms", "MLPs", *(["LoRA"] if method == "lora" else [])]
        with fused.in_use():
            logits = model(input_ids=ids, position_ids=ids, use_cache=False, **layout).logits
    assert (logits.dtype, logits.device.type, tuple(logits.shape)) == (torch.bfloat16, "cuda", (1, 40, 1000))
    assert types == [(torch.bfloat16,) * 3] * 2


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("has_weights", [False, True])
def test_the_loss_and_its_gradients_have_the_types_of_their_tensors(
    dtype: torch.dtype, smoothing: float, has_weights: bool
) -> None:
    with FakeTensorMode():
        hidden, weight = (torch.empty(size, 64, device="cuda", dtype=dtype) for size in (3000, 50000))
        targets = torch.zeros(3000, device="cuda", dtype=torch.long)
        weights = torch.ones(3000, device="cuda") if has_weights else None
        found = _loss_and_gradients(
            hidden, weight, targets, weights, smoothing, LogitsBuffer(), needs_hidden=True, needs_weight=True
        )
    assert [(each.dtype, tuple(each.shape)) for each in found if each is not None] == [
        (torch.float32, ()),
        (dtype, (3000, 64)),
        (dtype, (50000, 64)),
    ]
    assert {each.device.type for each in found if each is not None} == {"cuda"}
