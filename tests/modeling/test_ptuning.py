"""P-Tuning v2 under gradient checkpointing is P-Tuning v2."""

from __future__ import annotations

import pytest
import torch
from peft import PeftModelForCausalLM, PrefixTuningConfig, get_peft_model
from transformers import AutoModelForCausalLM

from glmtune.errors import GlmtuneError
from glmtune.family import family_of
from glmtune.modeling.adapting.adapters import adapt
from glmtune.modeling.adapting.ptuning import allow_checkpointing, check_prefix
from glmtune.modeling.loading import load_adapter

BATCH = {"input_ids": torch.arange(20, 60).view(2, 20), "attention_mask": torch.ones(2, 20, dtype=torch.long)}
BATCH["attention_mask"][1, 15:] = 0


def prefix_model(demo_model: str, *, checkpointing: bool, seed: int = 0):
    model = AutoModelForCausalLM.from_pretrained(demo_model, dtype=torch.float32)
    config = model.config
    torch.manual_seed(seed)
    adapted = get_peft_model(
        model,
        PrefixTuningConfig(
            task_type="CAUSAL_LM",
            num_virtual_tokens=5,
            num_layers=config.num_hidden_layers,
            num_attention_heads=config.num_key_value_heads,
            token_dim=config.num_key_value_heads * config.head_dim,
            num_transformer_submodules=1,
        ),
    )
    if checkpointing:
        allow_checkpointing(adapted)
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return adapted.train()


def prefix_gradient(model) -> tuple[torch.Tensor, torch.Tensor]:
    labels = BATCH["input_ids"].masked_fill(BATCH["attention_mask"] == 0, -100)
    loss = model(**BATCH, labels=labels, use_cache=False).loss
    loss.backward()
    [gradient] = [p.grad for p in model.parameters() if p.requires_grad]
    return loss.detach(), gradient


def test_checkpointing_changes_neither_loss_nor_gradient(demo_model: str) -> None:
    plain_loss, plain_gradient = prefix_gradient(prefix_model(demo_model, checkpointing=False))
    loss, gradient = prefix_gradient(prefix_model(demo_model, checkpointing=True))
    assert torch.equal(loss, plain_loss)
    assert torch.equal(gradient, plain_gradient)
    assert gradient.abs().max() > 0


def test_layers_are_recomputed_under_checkpointing(demo_model: str) -> None:
    model = prefix_model(demo_model, checkpointing=True)
    calls = []
    attention = model.get_base_model().model.layers[0].self_attn
    attention.register_forward_hook(lambda *_: calls.append(1))
    prefix_gradient(model)
    assert len(calls) == 2


def test_the_prefix_changes_what_the_model_says(demo_model: str) -> None:
    model = prefix_model(demo_model, checkpointing=True).eval()
    with torch.no_grad():
        adapted = model(**BATCH).logits
        with model.disable_adapter():
            base = model(**BATCH).logits
    assert (adapted - base).abs().max() > 1e-3


def test_generation_sees_the_prefix_as_training_does(demo_model: str) -> None:
    model = prefix_model(demo_model, checkpointing=True).eval()
    prompt = BATCH["input_ids"][:1, :12]
    written = model.generate(
        input_ids=prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=8, do_sample=False, eos_token_id=[]
    )
    with torch.no_grad():
        predicted = model(input_ids=written, attention_mask=torch.ones_like(written)).logits.argmax(-1)
    assert written[0, 12:].tolist() == predicted[0, 11:-1].tolist()


def test_batched_generation_with_left_padding_equals_single(demo_model: str) -> None:
    model = prefix_model(demo_model, checkpointing=True).eval()
    options = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": [], "pad_token_id": 0}
    short, long = BATCH["input_ids"][:1, :6], BATCH["input_ids"][1:, :12]
    padded = torch.cat([torch.cat([torch.zeros(1, 6, dtype=torch.long), short], 1), long])
    mask = torch.ones_like(padded)
    mask[0, :6] = 0
    together = model.generate(input_ids=padded, attention_mask=mask, **options)
    alone = model.generate(input_ids=short, attention_mask=torch.ones_like(short), **options)
    assert together[0, 12:].tolist() == alone[0, 6:].tolist()


def test_the_prefix_takes_the_shape_of_the_model_and_says_so(demo_model: str) -> None:
    model = AutoModelForCausalLM.from_pretrained(demo_model)
    told: list[str] = []
    settings = {"peft_type": "PREFIX_TUNING", "task_type": "CAUSAL_LM", "num_virtual_tokens": 3, "token_dim": 256}
    adapted = adapt(model, settings, family_of("glm"), gradient_checkpointing=False, notify=told.append)
    config = adapted.active_peft_config
    assert (config.num_layers, config.num_attention_heads, config.token_dim) == (4, 2, 64)
    assert told == ["`peft_config.token_dim` is 64 in this model; the configuration says 256"]


@pytest.mark.parametrize("seed", [1, 2])
def test_two_rows_do_not_share_state_between_steps(demo_model: str, seed: int) -> None:
    """The read-only cache of one step must not leak into the next."""
    model = prefix_model(demo_model, checkpointing=True, seed=seed)
    first, _ = prefix_gradient(model)
    model.zero_grad()
    second, _ = prefix_gradient(model)
    assert torch.equal(first, second)


def without_prefix_in_forward(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a PEFT that hands the prefix over under a name that the model does not know."""
    monkeypatch.setattr(PeftModelForCausalLM, "forward", lambda self, **inputs: self.base_model(**inputs))


def without_prefix_in_generate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        PeftModelForCausalLM,
        "prepare_inputs_for_generation",
        lambda self, **inputs: self.base_model_prepare_inputs_for_generation(**inputs),
    )


@pytest.mark.parametrize(
    ("lose", "way"), [(without_prefix_in_forward, "`forward`"), (without_prefix_in_generate, "`generate`")]
)
@pytest.mark.parametrize("is_loaded", [False, True], ids=["fresh", "loaded"])
def test_a_prefix_that_does_not_arrive_is_an_error(
    demo_model: str, tmp_path, monkeypatch: pytest.MonkeyPatch, lose, way: str, is_loaded: bool
) -> None:
    prefix_model(demo_model, checkpointing=False).save_pretrained(str(tmp_path))
    model = AutoModelForCausalLM.from_pretrained(demo_model)
    settings = {"peft_type": "PREFIX_TUNING", "task_type": "CAUSAL_LM", "num_virtual_tokens": 3}
    lose(monkeypatch)

    def make() -> object:
        if is_loaded:
            return load_adapter(model, tmp_path, is_trainable=False)
        return adapt(model, settings, family_of("glm"), gradient_checkpointing=False, notify=lambda text: None)

    with pytest.raises(GlmtuneError, match=f"prefix does not reach GlmForCausalLM through {way}"):
        make()


def test_the_trial_of_the_prefix_reads_no_weight_and_leaves_no_hook(demo_model: str) -> None:
    model = prefix_model(demo_model, checkpointing=True)
    base = model.get_base_model()
    calls: list[object] = []
    for module in base.modules():
        module.register_forward_hook(lambda *_: calls.append(1))
    hooks = [len(module._forward_pre_hooks) for module in base.modules()]
    check_prefix(model)
    assert not calls
    assert [len(module._forward_pre_hooks) for module in base.modules()] == hooks
    assert model.training


def test_attention_that_takes_no_cache_is_not_checkpointed(demo_model: str) -> None:
    model = prefix_model(demo_model, checkpointing=False)
    attention = model.get_base_model().model.layers[1].self_attn
    attention.forward = lambda hidden_states, **kwargs: hidden_states
    with pytest.raises(GlmtuneError, match="does not know the attention modules"):
        allow_checkpointing(model)
