"""The loss over labelled positions, fused or not, equals the plain loss over all logits."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig, PrefixTuningConfig, get_peft_config, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Glm4Config,
    Glm4MoeConfig,
    GlmConfig,
    GraniteConfig,
    LlamaConfig,
    Qwen2Config,
)

from glmtune.errors import GlmtuneError
from glmtune.family import IGNORE_INDEX
from glmtune.kernels import fused_loss
from glmtune.kernels.loss import LabelledLoss, check_loss_kernel

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
    "llama": LlamaConfig(**SMALL),
}
CHANGED_LOGITS = {
    "gemma2": Gemma2Config(**SMALL, final_logit_softcapping=3.0),
    "granite": GraniteConfig(**SMALL, logits_scaling=4.0),
}


@pytest.fixture(scope="module")
def model(demo_model: str):
    return AutoModelForCausalLM.from_pretrained(demo_model, dtype=torch.float32)


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


@pytest.fixture(params=["auto", "logits"])
def way(request: pytest.FixtureRequest) -> str:
    return request.param


def plain_loss(model, inputs, labels, smoothing: float = 0.0) -> torch.Tensor:
    logits = model(**inputs).logits[:, :-1].float()
    return F.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), reduction="sum", label_smoothing=smoothing)


def gradients_of(model, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_equal_losses(model, batch, smoothing: float = 0.0, **options: Any) -> None:
    """Compare loss and gradients with the plain computation, to 1e-5."""
    inputs, labels = batch
    expected = plain_loss(model, inputs, labels, smoothing)
    expected_gradients = gradients_of(model, expected)
    loss = LabelledLoss(model, **options).summed(model, inputs, labels, label_smoothing=smoothing)
    gradients = gradients_of(model, loss)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)
    assert gradients.keys() == expected_gradients.keys()
    for name, gradient in expected_gradients.items():
        scale = gradient.abs().max().item()
        torch.testing.assert_close(gradients[name], gradient, rtol=1e-5, atol=1e-5 * scale, msg=name)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_loss_and_gradients_are_the_plain_ones(model, batch, way: str, smoothing: float) -> None:
    assert_equal_losses(model, batch, smoothing, kernel=way)


@pytest.mark.parametrize("architecture", [*ARCHITECTURES, *CHANGED_LOGITS])
@pytest.mark.parametrize("checkpointing", [False, True], ids=["", "checkpointing"])
def test_every_architecture_has_the_plain_loss_and_gradients(architecture: str, checkpointing: bool, batch) -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config((ARCHITECTURES | CHANGED_LOGITS)[architecture]).float().train()
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    assert_equal_losses(model, batch)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_an_architecture_whose_logits_are_the_last_thing_is_fused(architecture: str, batch) -> None:
    model = AutoModelForCausalLM.from_config(ARCHITECTURES[architecture])
    losses = LabelledLoss(model)
    losses.summed(model, *batch)
    assert losses.kernel == "fused over labelled positions"


@pytest.mark.parametrize("is_trained", [False, True])
def test_an_output_layer_with_a_bias_is_not_fused(is_trained: bool, batch) -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(ARCHITECTURES["glm"])
    model.lm_head = torch.nn.Linear(SMALL["hidden_size"], SMALL["vocab_size"]).requires_grad_(is_trained)
    torch.nn.init.normal_(model.lm_head.bias)
    assert_equal_losses(model, batch)
    assert not LabelledLoss(model).is_fused


@pytest.mark.parametrize("architecture", CHANGED_LOGITS)
def test_a_model_that_changes_its_logits_is_not_fused(architecture: str, batch) -> None:
    model = AutoModelForCausalLM.from_config(CHANGED_LOGITS[architecture])
    losses = LabelledLoss(model)
    losses.summed(model, *batch)
    assert losses.kernel == "logits of labelled positions"


@pytest.mark.parametrize("checkpointing", [False, True], ids=["", "checkpointing"])
@pytest.mark.parametrize(
    "adapter", [LoraConfig(r=4, target_modules=["q_proj", "v_proj"]), PrefixTuningConfig(num_virtual_tokens=3)]
)
def test_adapters_get_the_plain_gradients(adapter, checkpointing: bool, batch) -> None:
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_config(ARCHITECTURES["glm"])
    model = get_peft_model(base, type(adapter)(task_type="CAUSAL_LM", **_given(adapter)))
    for name, weight in model.named_parameters():
        if "lora_B" in name:  # zeros, which would leave lora_A without a gradient
            torch.nn.init.normal_(weight, std=0.02)
    if checkpointing and adapter.peft_type == "LORA":
        model.gradient_checkpointing_enable({"use_reentrant": False})
    assert_equal_losses(model, batch)


METHODS: dict[str, dict[str, Any]] = {
    "BOFT": {"target_modules": ["q_proj"]},
    "C3A": {"target_modules": ["q_proj"], "block_size": 8},
    "FOURIERFT": {"target_modules": ["q_proj"], "n_frequency": 10},
    "HRA": {"target_modules": ["q_proj"]},
    "IA3": {"target_modules": ["q_proj"], "feedforward_modules": []},
    "LN_TUNING": {"target_modules": ["input_layernorm"]},
    "LOHA": {"target_modules": ["q_proj"]},
    "LOKR": {"target_modules": ["q_proj"]},
    "LORA": {"target_modules": ["q_proj"], "use_dora": True},
    "OFT": {"target_modules": ["q_proj"], "oft_block_size": 8},
    "PREFIX_TUNING": {"num_virtual_tokens": 3},
    "PROMPT_TUNING": {"num_virtual_tokens": 3},
    "TRAINABLE_TOKENS": {"token_indices": [11, 12], "target_modules": ["embed_tokens"]},
    "VERA": {"target_modules": ["q_proj"]},
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("architecture", ["glm", "gemma2"], ids=["fused", "logits"])
def test_the_loss_of_every_method_is_that_of_peft(method: str, architecture: str, batch) -> None:
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_config((ARCHITECTURES | CHANGED_LOGITS)[architecture]).float()
    model = get_peft_model(base, get_peft_config({"peft_type": method, "task_type": "CAUSAL_LM"} | METHODS[method]))
    inputs, labels = batch
    expected = model(**inputs, labels=labels).loss * (labels[:, 1:] != IGNORE_INDEX).sum()
    expected_gradients = gradients_of(model, expected)
    loss = LabelledLoss(model).summed(model, inputs, labels)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)
    for name, gradient in gradients_of(model, loss).items():
        torch.testing.assert_close(gradient, expected_gradients[name], rtol=1e-4, atol=1e-6, msg=name)


def _given(adapter) -> dict[str, Any]:
    if adapter.peft_type == "LORA":
        return {"r": adapter.r, "target_modules": adapter.target_modules}
    return {"num_virtual_tokens": adapter.num_virtual_tokens}


def test_ligers_kernel_is_refused_without_a_gpu() -> None:
    with pytest.raises(GlmtuneError) as caught:
        check_loss_kernel("liger")
    assert str(caught.value) == (
        "Liger's kernels need a GPU, and none was found\n  --> loss_kernel\nhint: set `loss_kernel: auto`"
    )


@pytest.mark.gpu
@pytest.mark.parametrize("kernel", ["auto", "liger"])
def test_on_a_gpu_the_loss_and_the_gradients_are_the_plain_ones(batch, kernel: str) -> None:
    if kernel == "liger":
        pytest.importorskip("liger_kernel")
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(ARCHITECTURES["glm"]).float().cuda()
    inputs, labels = batch
    on_gpu = {name: tensor.cuda() for name, tensor in inputs.items()}
    assert_equal_losses(model, (on_gpu, labels.cuda()), kernel=kernel)


def test_an_output_layer_under_lora_is_asked_for_logits(batch) -> None:
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_config(ARCHITECTURES["glm"])
    model = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["lm_head", "q_proj"]))
    assert LabelledLoss(model).kernel == "logits of labelled positions"
    assert_equal_losses(model, batch)


@pytest.mark.parametrize("rows", [1, 7, 1000])
def test_the_size_of_the_buffer_changes_nothing(model, batch, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(fused_loss.BUFFER_BYTES, "cpu", rows * model.config.vocab_size * 4)
    assert_equal_losses(model, batch, 0.1)


def test_in_bfloat16_the_loss_is_nearer_to_float32_than_the_plain_one() -> None:
    """In one run 3e-6 from float32; the plain loss, whose logits are rounded to bfloat16, 1e-4."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(50, 64, generator=generator).bfloat16().requires_grad_()
    weight = (torch.randn(5000, 64, generator=generator) * 0.2).bfloat16()
    targets = torch.randint(5000, (50,), generator=generator)
    exact = F.cross_entropy(hidden.float() @ weight.float().T, targets, reduction="sum")
    plain = F.cross_entropy((hidden @ weight.T).float(), targets, reduction="sum")
    loss = fused_loss.fused_cross_entropy(hidden, weight, targets)
    assert loss.dtype == torch.float32
    assert abs(loss - exact) < 0.2 * abs(plain - exact)
    loss.backward()
    reference = torch.autograd.grad(exact, hidden)[0].float()
    torch.testing.assert_close(hidden.grad.float(), reference, rtol=0.02, atol=0.01 * reference.abs().max().item())


def test_a_loss_beyond_the_reach_of_its_softmax_is_exact() -> None:
    weight = torch.eye(4)
    hidden = torch.tensor([[0.0, 300.0, 0.0, 0.0], [0.0, 65.0, 0.0, 1.0], [1.0, 0.0, 0.0, 0.0]], requires_grad=True)
    targets = torch.tensor([0, 3, 0])
    expected = F.cross_entropy(hidden @ weight.T, targets, reduction="sum")
    loss = fused_loss.fused_cross_entropy(hidden, weight, targets)
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(torch.autograd.grad(loss, hidden), torch.autograd.grad(expected, hidden))


def test_under_autocast_a_float32_layer_gets_its_gradient(model, batch) -> None:
    inputs, labels = batch
    exact = gradients_of(model, plain_loss(model, inputs, labels))["lm_head.weight"]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = LabelledLoss(model).summed(model, inputs, labels)
    gradient = gradients_of(model, loss)["lm_head.weight"]
    assert gradient.dtype == torch.float32
    assert F.cosine_similarity(gradient.flatten(), exact.flatten(), dim=0) > 0.999


def test_no_logits_are_made_for_what_has_no_label(model, batch) -> None:
    inputs, labels = batch
    seen: list[torch.Tensor] = []
    handle = model.lm_head.register_forward_hook(lambda module, args, output: seen.append(output))
    LabelledLoss(model).summed(model, inputs, labels)
    LabelledLoss(model, kernel="logits").summed(model, inputs, labels)
    handle.remove()
    assert seen[0].shape == ()
    # Labels 9..23 in at least one row are predicted from positions 8..22.
    assert seen[1].shape == (3, 15, model.config.vocab_size)


@pytest.mark.parametrize("way", ["fused", "without gradients"])
def test_an_evaluation_works_out_no_gradients(model, batch, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[bool] = []
    whole = fused_loss._loss_and_gradients

    def watched(*arguments: Any, **options: Any) -> Any:
        loss, *gradients = whole(*arguments, **options)
        made.extend(gradient is not None for gradient in gradients)
        return (loss, *gradients)

    monkeypatch.setattr(fused_loss, "_loss_and_gradients", watched)
    inputs, labels = batch
    with nullcontext() if way == "fused" else torch.no_grad():
        loss = LabelledLoss(model).summed(model, inputs, labels)
    assert made == [way == "fused"] * 2  # of what goes into the output layer, and of its weight
    assert loss.requires_grad == (way == "fused")


def test_afterwards_the_model_gives_logits_again(model, batch) -> None:
    inputs, labels = batch
    before = model(**inputs).logits
    LabelledLoss(model).summed(model, inputs, labels)
    assert model(**inputs).logits.equal(before)


def token_losses(model, inputs, labels) -> torch.Tensor:
    """Return the cross entropy of every labelled token, (B, T), 0 elsewhere."""
    logits = model(**inputs).logits.float().log_softmax(-1)
    losses = torch.zeros(labels.shape)
    for row, position in (labels != IGNORE_INDEX).nonzero().tolist():
        if position:
            losses[row, position] = -logits[row, position - 1, labels[row, position]]
    return losses


def test_a_weight_multiplies_the_loss_of_its_token(model, batch, way: str) -> None:
    inputs, labels = batch
    weights = torch.rand(labels.shape, generator=torch.Generator().manual_seed(2)) * 3
    expected = (token_losses(model, inputs, labels) * weights).sum()
    loss = LabelledLoss(model, kernel=way).summed(model, inputs, labels, weights=weights)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)


def test_weighted_gradients_are_those_of_the_rows_alone_times_their_weights(model, batch, way: str) -> None:
    inputs, labels = batch
    losses = LabelledLoss(model, kernel=way)
    model.zero_grad()
    for row, weight in enumerate((0.25, 1.0, 2.0)):
        alone = {name: tensor[row : row + 1] for name, tensor in inputs.items()}
        (weight * losses.summed(model, alone, labels[row : row + 1])).backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters()}
    weights = torch.tensor([[0.25], [1.0], [2.0]]).expand(labels.shape)
    gradients = gradients_of(model, losses.summed(model, inputs, labels, weights=weights))
    for name, gradient in expected.items():
        torch.testing.assert_close(gradients[name], gradient, rtol=1e-5, atol=1e-5 * gradient.abs().max().item())


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_weights_of_one_are_the_loss_without_weights(model, batch, way: str, smoothing: float) -> None:
    inputs, labels = batch
    losses = LabelledLoss(model, kernel=way)
    plain = losses.summed(model, inputs, labels, label_smoothing=smoothing)
    loss = losses.summed(model, inputs, labels, label_smoothing=smoothing, weights=torch.ones(labels.shape))
    torch.testing.assert_close(loss, plain, rtol=1e-6, atol=0)


def test_weights_of_what_is_not_trained_change_nothing(model, batch, way: str) -> None:
    inputs, labels = batch
    weights = torch.full(labels.shape, 0.5)
    losses = LabelledLoss(model, kernel=way)
    loss = losses.summed(model, inputs, labels, weights=weights)
    other = weights.masked_fill(labels == IGNORE_INDEX, 7.0)
    assert losses.summed(model, inputs, labels, weights=other).equal(loss)


def half_parts(rows: int = 50, width: int = 64, size: int = 3000) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return hidden states, the weight of an output layer and targets, all that is not ids in bfloat16."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(rows, width, generator=generator).bfloat16().requires_grad_()
    weight = (torch.randn(size, width, generator=generator) * 0.2).bfloat16().requires_grad_()
    return hidden, weight, torch.randint(size, (rows,), generator=generator)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weighted", [False, True], ids=["", "weighted"])
@pytest.mark.parametrize("rows_at_once", [7, 1000])
def test_multiplied_in_bfloat16_loss_and_gradients_are_the_plain_ones_within_its_precision(
    rows_at_once: int, weighted: bool, smoothing: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    hidden, weight, targets = half_parts()
    monkeypatch.setitem(fused_loss.BUFFER_BYTES, "cpu", rows_at_once * len(weight) * (4 + 2))
    weights = torch.rand(len(hidden), generator=torch.Generator().manual_seed(1)) * 2 if weighted else None
    logits = hidden.float() @ weight.float().T
    each = F.cross_entropy(logits, targets, reduction="none", label_smoothing=smoothing)
    expected = (each if weights is None else each * weights).sum()
    references = torch.autograd.grad(expected, (hidden, weight))
    loss = fused_loss.fused_cross_entropy(
        hidden, weight, targets, weights=weights, label_smoothing=smoothing, cpu_dtype=torch.bfloat16
    )
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, expected, rtol=1e-3, atol=0)
    assert loss != expected  # it was computed in another type
    for found, reference in zip(torch.autograd.grad(loss, (hidden, weight)), references):
        assert found.dtype == torch.bfloat16
        scale = reference.float().abs().max().item()
        torch.testing.assert_close(found.float(), reference.float(), rtol=0.03, atol=0.01 * scale)


def test_in_bfloat16_the_loss_is_nearer_to_the_exact_one_than_that_of_logits_in_bfloat16() -> None:
    """The target's logit is made in float32: the errors of the others average out. In one run 2e-5 and 9e-5."""
    hidden, weight, targets = half_parts(400)
    exact = F.cross_entropy(hidden.float() @ weight.float().T, targets, reduction="none")
    plain = F.cross_entropy((hidden @ weight.T).float(), targets, reduction="none")
    ours = torch.stack(
        [
            fused_loss.fused_cross_entropy(
                hidden[row : row + 1], weight, targets[row : row + 1], cpu_dtype=torch.bfloat16
            )
            for row in range(len(hidden))
        ]
    )
    assert (ours - exact).square().mean() < 0.1 * (plain - exact).square().mean()


def test_a_weight_in_float32_gets_its_gradient_in_float32_from_products_in_bfloat16() -> None:
    hidden, weight, targets = half_parts()
    wide = weight.detach().float().requires_grad_()
    reference = torch.autograd.grad(F.cross_entropy(hidden.float() @ wide.T, targets, reduction="sum"), wide)[0]
    found = torch.autograd.grad(fused_loss.fused_cross_entropy(hidden, wide, targets, cpu_dtype=torch.bfloat16), wide)[
        0
    ]
    assert found.dtype == torch.float32
    assert F.cosine_similarity(found.flatten(), reference.flatten(), dim=0) > 0.9999


def test_in_bfloat16_a_loss_beyond_the_reach_of_its_softmax_is_finite_and_near() -> None:
    weight = torch.eye(4).bfloat16()
    hidden = torch.tensor([[0.0, 300.0, 0.0, 0.0], [0.0, 65.0, 0.0, 1.0], [1.0, 0.0, 0.0, 0.0]]).bfloat16()
    targets = torch.tensor([0, 3, 0])
    expected = F.cross_entropy(hidden.float() @ weight.float().T, targets, reduction="sum")
    loss = fused_loss.fused_cross_entropy(hidden, weight, targets, cpu_dtype=torch.bfloat16)
    torch.testing.assert_close(loss, expected, rtol=5e-3, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_is_exact_stays_exact_whatever_a_cpu_multiplies_faster(dtype: torch.dtype) -> None:
    """In float64 a choice of bfloat16 means nothing; float32 alone is given where a run is not in bfloat16."""
    hidden, weight, targets = (each.detach().to(dtype) if each.is_floating_point() else each for each in half_parts())
    cpu_dtype = torch.bfloat16 if dtype is torch.float64 else torch.float32
    loss = fused_loss.fused_cross_entropy(hidden, weight, targets, cpu_dtype=cpu_dtype)
    expected = F.cross_entropy(hidden @ weight.T, targets, reduction="sum")
    assert loss.dtype == dtype
    torch.testing.assert_close(loss, expected, rtol=1e-6 if dtype is torch.float32 else 1e-12, atol=0)


@pytest.mark.parametrize("cpu_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("head_dtype", [torch.float32, torch.bfloat16])
def test_a_frozen_output_layer_is_kept_in_the_type_that_is_multiplied(
    head_dtype: torch.dtype, cpu_dtype: torch.dtype, batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[torch.Tensor] = []
    whole = fused_loss._loss_and_gradients

    def watched(hidden: Any, weight: Any, *arguments: Any, **options: Any) -> Any:
        used.append(weight)
        assert options["cpu_dtype"] == cpu_dtype
        return whole(hidden, weight, *arguments, **options)

    monkeypatch.setattr(fused_loss, "_loss_and_gradients", watched)
    model = AutoModelForCausalLM.from_config(ARCHITECTURES["glm"]).to(head_dtype)
    model.lm_head.requires_grad_(False)
    losses = LabelledLoss(model, cpu_dtype=cpu_dtype)
    for _ in range(2):
        losses.summed(model, *batch)
    assert used[0].dtype == cpu_dtype
    assert used[0].data_ptr() == used[1].data_ptr()  # converted once
    assert (used[0].data_ptr() == model.lm_head.weight.data_ptr()) == (head_dtype == cpu_dtype)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_logits_of_a_model_in_bfloat16_are_summed_up_in_float32(batch, smoothing: float) -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(ARCHITECTURES["glm"]).bfloat16()
    inputs, labels = batch
    loss = LabelledLoss(model, kernel="logits").summed(model, inputs, labels, label_smoothing=smoothing)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, plain_loss(model, inputs, labels, smoothing), rtol=1e-6, atol=0)


def twice_and_halved(module: Any, args: Any, output: Any) -> None:
    """Give the same logits in another tensor."""
    output.logits = output.logits * 2 / 2


def test_a_forward_that_is_an_exception_costs_one_batch_its_fused_loss_and_is_told_once(batch, capsys) -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(ARCHITECTURES["glm"])
    inputs, labels = batch
    losses = LabelledLoss(model)
    expected = losses.summed(model, inputs, labels)
    for _ in range(2):
        handle = model.register_forward_hook(twice_and_halved)
        torch.testing.assert_close(losses.summed(model, inputs, labels), expected, rtol=1e-5, atol=0)
        handle.remove()
        assert losses.kernel == "fused over labelled positions"
    assert losses.summed(model, inputs, labels).equal(expected)
    assert capsys.readouterr().err == (
        "note: the loss of a batch comes from its logits: the model did not return what its output layer gave it\n"
    )
