"""Rows laid end to end leave each other alone: logits, losses and gradients are those of the rows alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, PrefixTuningConfig, get_peft_model
from test_loss import ARCHITECTURES, SMALL
from transformers import (
    AttentionInterface,
    AutoModelForCausalLM,
    CohereConfig,
    GemmaConfig,
    GraniteConfig,
    MistralConfig,
    Qwen2Config,
)

from glmtune.encoded.collating import collate, collate_packed
from glmtune.family import GLM
from glmtune.kernels.loss import LabelledLoss
from glmtune.kernels.packed_attention import packed_sdpa
from glmtune.kernels.packing import PACKED_INPUTS, attention_for, leak_between_rows, reason_against_packing
from glmtune.modeling.adapting.adapters import adapt, prepare

ATTENTIONS = ["packed", "sdpa", "eager"]
CPU = torch.device("cpu")


def build(architecture: str = "glm", attention: str = "packed", method: str = "sft", checkpointing: bool = False):
    torch.manual_seed(0)
    name = attention_for(None, is_packed=True) if attention == "packed" else attention
    # Weights wide enough for attention to matter.
    config = type(ARCHITECTURES[architecture])(**ARCHITECTURES[architecture].to_dict() | {"initializer_range": 0.2})
    model = AutoModelForCausalLM.from_config(config, attn_implementation=name)
    if method == "lora":
        model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj", "v_proj"]))
    if method == "ptuning_v2":
        model = get_peft_model(model, PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=5))
        prepare(model, gradient_checkpointing=checkpointing)
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return model


def rows_of(*lengths: int, seed: int = 0) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for length in lengths:
        ids = torch.randint(1, 900, (length,), generator=generator).tolist()
        rows.append({"input_ids": ids, "labels": [-100] * (length // 2) + ids[length // 2 :]})
    return rows


def logits_of(model, rows) -> list[torch.Tensor]:
    """Return each row's logits, out of one packed forward."""
    batch = collate_packed(rows)
    inputs = {name: batch[name] for name in PACKED_INPUTS}
    return list(model(**inputs, use_cache=False).logits[0].split([len(row["input_ids"]) for row in rows]))


def loss_of(model, rows, *, packed: bool) -> torch.Tensor:
    batch = collate_packed(rows) if packed else collate(rows, pad_token_id=0)
    inputs = {name: batch[name] for name in (*PACKED_INPUTS, "attention_mask") if name in batch}
    return LabelledLoss(model).summed(model, inputs, batch["labels"])


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("method", ["sft", "lora"])
def test_a_row_that_changes_moves_no_logit_of_another(attention: str, method: str) -> None:
    model = build(attention=attention, method=method).eval()
    rows, others = rows_of(9, 14, 6), rows_of(9, 14, 6, seed=1)
    before = logits_of(model, rows)
    for changed in range(3):
        after = logits_of(model, [others[place] if place == changed else row for place, row in enumerate(rows)])
        moved = [(one - other).abs().max().item() for one, other in zip(before, after)]
        assert moved[changed] > 0.1
        assert [move for place, move in enumerate(moved) if place != changed] == [0.0, 0.0]


def test_with_a_prefix_a_row_that_changes_moves_no_logit_of_another() -> None:
    model = build(method="ptuning_v2").eval()
    rows, others = rows_of(9, 14), rows_of(9, 14, seed=1)
    before, after = logits_of(model, rows), logits_of(model, [others[0], rows[1]])
    assert before[1].equal(after[1])
    assert not before[0].equal(after[0])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("checkpointing", [False, True], ids=["", "checkpointing"])
@pytest.mark.parametrize("method", ["sft", "lora", "ptuning_v2"])
def test_packed_loss_and_gradients_are_the_padded_ones(architecture: str, method: str, checkpointing: bool) -> None:
    rows = rows_of(9, 14, 6, 1, 20)
    model = build(architecture, "packed", method, checkpointing).train()
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.02)
    gradients = []
    losses = []
    for packed in (False, True):
        model.zero_grad()
        losses.append(loss_of(model, rows, packed=packed))
        losses[-1].backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-5, atol=0)
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        scale = gradient.abs().max().item()
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-4, atol=1e-5 * scale, msg=name)


def test_every_packed_row_sees_the_prefix() -> None:
    model = build(method="ptuning_v2").eval()
    rows = rows_of(9, 14)
    before = logits_of(model, rows)
    with torch.no_grad():
        for weight in model.prompt_encoder.parameters():
            weight.normal_()
    after = logits_of(model, rows)
    assert all((one - other).abs().max() > 0.1 for one, other in zip(before, after))


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("method", ["sft", "lora"])
def test_the_trial_finds_nothing_where_rows_leave_each_other_alone(attention: str, method: str) -> None:
    assert leak_between_rows(build(attention=attention, method=method).eval(), CPU) is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_trial_finds_a_prefix_that_transformers_does_not_give_to_every_row(dtype: torch.dtype) -> None:
    assert leak_between_rows(build(method="ptuning_v2").to(dtype).eval(), CPU) is None
    leak = leak_between_rows(build(attention="sdpa", method="ptuning_v2").to(dtype).eval(), CPU)
    assert leak == "a row's logits change with the row before it"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_trial_finds_an_attention_that_takes_all_rows_for_one(dtype: torch.dtype) -> None:
    def one_row(module, query, key, value, attention_mask, **kwargs):
        groups = query.shape[1] // key.shape[1]
        key, value = (states.repeat_interleave(groups, dim=1) for states in (key, value))
        output = torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        return output.transpose(1, 2).contiguous(), None

    AttentionInterface.register("one_row", one_row)
    model = build(attention="one_row").to(dtype).eval()
    assert leak_between_rows(model, CPU) == "a row's logits change with the row before it"


def test_the_trial_finds_positions_that_do_not_begin_behind_the_prefix() -> None:
    """Without a prefix it would not matter where they begin: rotary positions are relative."""
    model = build(method="ptuning_v2").eval()

    def begin_at_0(module, args, kwargs):
        places = kwargs.get("position_ids")
        return args, kwargs | {"position_ids": None if places is None else places - 5}

    model.get_base_model().register_forward_pre_hook(begin_at_0, with_kwargs=True)
    assert leak_between_rows(model, CPU) == "a row behind another has other logits than alone"


def test_a_padded_batch_and_generation_are_what_they_are_with_sdpa() -> None:
    packed, plain = build(), build(attention="sdpa")
    plain.load_state_dict(packed.state_dict())
    batch = collate(rows_of(5, 12), pad_token_id=0)
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    assert packed(**inputs).logits.equal(plain(**inputs).logits)
    left = {name: tensor.flip(1) for name, tensor in inputs.items()}
    options = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    assert packed.generate(**left, **options).equal(plain.generate(**left, **options))


def test_without_a_mask_a_prefix_is_seen_by_all() -> None:
    packed, plain = (build(attention=name, method="ptuning_v2").eval() for name in ("packed", "sdpa"))
    plain.load_state_dict(packed.state_dict())
    ids = torch.tensor([rows_of(7)[0]["input_ids"]])
    expected = plain(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    torch.testing.assert_close(packed(input_ids=ids).logits, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (ARCHITECTURES["glm4"], None),
        (Qwen2Config(), None),
        (
            Qwen2Config(use_sliding_window=True, max_window_layers=2, num_hidden_layers=4),
            "its layers are of the kinds `full_attention`, `sliding_attention`",
        ),
        (MistralConfig(sliding_window=4096), "its attention sees a sliding window"),
        (
            MistralConfig(sliding_window=None, auto_map={"AutoModel": "modeling.Model"}),
            "its code is its own, not transformers'",
        ),
    ],
)
def test_a_configuration_that_rules_packing_out_says_why(config, reason: str | None) -> None:
    assert reason_against_packing(config) == reason


def test_adapters_of_other_kinds_are_packed_too() -> None:
    ia3 = {"peft_type": "IA3", "target_modules": ["k_proj"], "feedforward_modules": [], "task_type": "CAUSAL_LM"}
    model = adapt(build(), ia3, GLM, gradient_checkpointing=False, notify=print)
    assert leak_between_rows(model.eval(), CPU) is None


SCALED = {
    "granite": GraniteConfig(**SMALL, attention_multiplier=2.0),
    "granite, small": GraniteConfig(**SMALL, attention_multiplier=0.01),
    "glm": ARCHITECTURES["glm"],
}


def scaled_model(name: str, attention: str, **changes: Any):
    torch.manual_seed(0)
    config = type(SCALED[name])(**SCALED[name].to_dict() | {"initializer_range": 0.5} | changes)
    return AutoModelForCausalLM.from_config(config, attn_implementation=attention)


@pytest.mark.parametrize("name", SCALED)
def test_packed_rows_keep_an_attention_scale_of_the_models_own(name: str) -> None:
    model = scaled_model(name, attention_for(None, is_packed=True)).eval()
    rows = rows_of(9, 14, 6)
    for row, packed in zip(rows, logits_of(model, rows)):
        ids = torch.tensor([row["input_ids"]])
        alone = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0]
        torch.testing.assert_close(packed, alone, rtol=1e-3, atol=1e-4 * alone.abs().max().item())


def without(option: str):
    """Return an attention of packed rows that leaves something out."""

    def attention(*args: Any, **kwargs: Any) -> Any:
        if kwargs.get("cu_seq_lens_q") is not None:
            kwargs[option] = None
        return packed_sdpa(*args, **kwargs)

    return attention


LEAKS = ("a row behind another has other logits than alone", "rows end to end attend in another way than alone")


@pytest.mark.parametrize("deviation", [0.02, 0.5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["granite", "granite, small"])
def test_the_trial_finds_packed_rows_that_ignore_the_models_scale(
    name: str, dtype: torch.dtype, deviation: float
) -> None:
    """Weights as small as new ones make nearly even attention of any scale: the logits alone would not show it."""
    AttentionInterface.register("without_scaling", without("scaling"))
    model = scaled_model(name, "without_scaling", initializer_range=deviation).to(dtype).eval()
    assert leak_between_rows(model, CPU, in_half=dtype is torch.bfloat16) in LEAKS
    right = scaled_model(name, attention_for(None, is_packed=True), initializer_range=deviation).to(dtype).eval()
    assert leak_between_rows(right, CPU) is None


@pytest.mark.parametrize("config", [GemmaConfig(**SMALL), CohereConfig(**SMALL), *ARCHITECTURES.values()])
def test_the_trial_lets_pass_what_attends_as_it_should(config: Any) -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention_for(None, is_packed=True))
    assert leak_between_rows(model.eval(), CPU) is None


def test_dropout_of_attention_reaches_packed_rows() -> None:
    """Where all weights of the attention are dropped, nothing is left of it: its output is zero."""
    model = scaled_model("glm", attention_for(None, is_packed=True), attention_dropout=0.5).train()
    rows = rows_of(9, 14)
    seen: list[torch.Tensor] = []
    handle = model.model.layers[0].self_attn.o_proj.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    torch.manual_seed(1)
    for _ in range(300):
        logits_of(model, rows)
    model.eval()
    logits_of(model, rows)
    handle.remove()
    *dropped, whole = [each.detach() for each in seen]
    assert all(not each.equal(whole) for each in dropped)
    # What is left is scaled so that its mean is what it would be without.
    torch.testing.assert_close(torch.stack(dropped).mean(0), whole, rtol=0, atol=0.35 * whole.abs().max().item())


@pytest.mark.parametrize("method", ["sft", "lora", "ptuning_v2"])
def test_attention_in_bfloat16_is_that_of_the_padded_rows_within_its_precision(method: str) -> None:
    rows = rows_of(9, 14, 6, 1, 20)
    losses, gradients = [], []
    for packed, cpu_dtype in ((False, torch.float32), (True, torch.float32), (True, torch.bfloat16)):
        model = build(method=method).train()
        name = attention_for(None, is_packed=True, cpu_dtype=cpu_dtype)
        (model.get_base_model() if method != "sft" else model).set_attn_implementation(name)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            losses.append(loss_of(model, rows, packed=packed))
        losses[-1].backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    assert losses[2] != losses[1]
    torch.testing.assert_close(losses[1], losses[0], rtol=2e-3, atol=0)
    torch.testing.assert_close(losses[2], losses[0], rtol=2e-3, atol=0)
    for gradient in gradients[1:]:
        assert torch.nn.functional.cosine_similarity(gradient, gradients[0], dim=0) > 0.99


def attention_inputs(dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(1, 4, 10, 16, generator=generator)
    key, value = (torch.randn(1, 2, 10, 16, generator=generator) for _ in range(2))
    return query, key, value.to(dtype)  # as out of a rotation by angles in float32


@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
def test_under_autocast_a_cpu_that_multiplies_float32_faster_rounds_the_result_alone(packed: bool) -> None:
    query, key, value = attention_inputs(torch.bfloat16)
    exact = torch.nn.functional.scaled_dot_product_attention(
        query, key, value.float(), is_causal=True, enable_gqa=True
    ).transpose(1, 2)
    found = {}
    module = torch.nn.Identity()
    module.is_causal, module.num_key_value_groups = True, 2
    for cpu_dtype in (torch.float32, torch.bfloat16):
        options = {"cu_seq_lens_q": torch.tensor([0, 10]), "max_length_q": 10} if packed else {}
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found[cpu_dtype], _ = packed_sdpa(module, query, key, value, None, cpu_dtype=cpu_dtype, **options)
    assert {each.dtype for each in found.values()} == {torch.bfloat16}
    assert found[torch.float32].equal(exact.bfloat16())
    assert not found[torch.bfloat16].equal(exact.bfloat16())
