from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from glmtune.errors import GlmtuneError
from glmtune.family import family_of
from glmtune.modeling.adapting.adapter_names import check_optimizer_modules
from glmtune.modeling.adapting.adapters import adapt, freeze_vision

LORA = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 2}


def trained_modules(model) -> set[str]:
    """Return the last names of the modules that carry a trainable LoRA matrix."""
    return {name.split(".lora_")[0].rpartition(".")[2] for name, p in model.named_parameters() if p.requires_grad}


def adapt_demo(demo_model: str, settings: dict, told: list[str] | None = None):
    model = AutoModelForCausalLM.from_pretrained(demo_model)
    notify = told.append if told is not None else lambda line: None
    return adapt(model, settings, family_of("glm"), gradient_checkpointing=False, notify=notify)


def test_lora_sits_on_every_linear_layer_of_a_glm_by_default(demo_model: str) -> None:
    assert trained_modules(adapt_demo(demo_model, LORA)) == {
        "q_proj", "k_proj", "v_proj", "o_proj", "gate_up_proj", "down_proj",
    }  # fmt: skip


def test_target_modules_of_the_original_code_are_translated_and_told(demo_model: str) -> None:
    told: list[str] = []
    model = adapt_demo(demo_model, LORA | {"target_modules": ["query_key_value"]}, told)
    assert trained_modules(model) == {"q_proj", "k_proj", "v_proj"}
    assert told == ["`target_modules`: `query_key_value` is called `q_proj`, `k_proj`, `v_proj` in this model"]


def test_target_modules_that_do_not_exist_are_an_error(demo_model: str) -> None:
    with pytest.raises(GlmtuneError, match=r"`peft_config` does not fit the model: .*nowhere"):
        adapt_demo(demo_model, LORA | {"target_modules": ["nowhere"]})


def test_lora_finds_the_layers_of_a_llama_style_model() -> None:
    tiny = LlamaConfig(hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, vocab_size=32)
    model = adapt(
        LlamaForCausalLM(tiny), LORA, family_of("llama"), gradient_checkpointing=False, notify=lambda line: None
    )
    assert trained_modules(model) == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


def test_other_peft_methods_pass_through(demo_model: str) -> None:
    model = adapt_demo(demo_model, {"peft_type": "IA3", "task_type": "CAUSAL_LM", "target_modules": ["k_proj"],
                                    "feedforward_modules": []})  # fmt: skip
    assert model.active_peft_config.peft_type == "IA3"


def test_without_a_peft_config_every_weight_is_trained(demo_model: str) -> None:
    model = AutoModelForCausalLM.from_pretrained(demo_model, dtype=torch.float32)
    adapted = adapt(model, None, family_of("glm"), gradient_checkpointing=False, notify=lambda line: None)
    assert adapted is model
    assert all(p.requires_grad for p in adapted.parameters())


def test_freezing_vision_says_that_a_text_model_has_none(demo_model: str) -> None:
    told: list[str] = []
    freeze_vision(AutoModelForCausalLM.from_pretrained(demo_model), told.append)
    assert told == ["`freezeV: true` changes nothing: the model has no vision tower"]


def names_of_trained(model) -> list[str]:
    return [name for name, weight in model.named_parameters() if weight.requires_grad]


def adapt_tied(**settings):
    tiny = LlamaConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, vocab_size=32,
        tie_word_embeddings=True,
    )  # fmt: skip
    return adapt(
        LlamaForCausalLM(tiny), LORA | settings, family_of("llama"), gradient_checkpointing=False,
        notify=lambda line: None,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"target_modules": ["q_proj", "lm_head"]}, "lm_head"),
        ({"target_modules": ["q_proj", "embed_tokens"]}, "model.embed_tokens"),
        ({"target_modules": ["q_proj", "lm_head"], "ensure_weight_tying": True}, "model.embed_tokens"),
        ({"target_modules": r".*(q_proj|lm_head)"}, "lm_head"),
    ],
)
def test_an_adapter_on_tied_layers_is_refused_at_the_start(settings: dict, name: str) -> None:
    with pytest.raises(GlmtuneError) as caught:
        adapt_tied(**settings)
    assert caught.value.what.startswith(f"`peft_config.target_modules` puts an adapter on `{name}`, but ")
    assert caught.value.fix is not None
    assert name.rpartition(".")[2] in caught.value.fix


@pytest.mark.parametrize(
    "settings",
    [{}, {"modules_to_save": ["lm_head"]}, {"modules_to_save": ["embed_tokens"]}, {"trainable_token_indices": [5]}],
)
def test_tied_layers_may_be_trained_as_a_whole(settings: dict) -> None:
    trained = names_of_trained(adapt_tied(**settings))
    assert any("lora_A" in name for name in trained)
    assert any("modules_to_save" in name for name in trained) == ("modules_to_save" in settings)
    assert any("trainable_tokens" in name for name in trained) == ("trainable_token_indices" in settings)


def test_an_adapter_on_a_last_layer_of_its_own_is_well(demo_model: str) -> None:
    trained = names_of_trained(adapt_demo(demo_model, LORA | {"target_modules": ["q_proj", "lm_head", "embed_tokens"]}))
    for layer in ("q_proj", "lm_head", "embed_tokens"):
        assert any(f"{layer}.lora_" in name for name in trained)


GIVEN = LORA | {"target_modules": ["q_proj", "k_proj"]}


@pytest.mark.parametrize(
    ("settings", "key", "entry", "meant"),
    [
        ({"target_modules": ["q_proj", "kv_porj"]}, "target_modules", "kv_porj", "v_proj"),
        ({"target_modules": ["q_proj", "layers.9.mlp.down_proj"]}, "target_modules", "layers.9.mlp.down_proj", ""),
        ({"modules_to_save": ["embed_tokens", "lm_haed"]}, "modules_to_save", "lm_haed", "lm_head"),
        ({"exclude_modules": ["o_prjo"]}, "exclude_modules", "o_prjo", "o_proj"),
        ({"exclude_modules": r".*\.o_prjo"}, "exclude_modules", r".*\.o_prjo", "o_proj"),
        ({"rank_pattern": {"q_proj": 4, "k_porj": 8}}, "rank_pattern", "k_porj", "k_proj"),
        ({"rank_pattern": {"o_proj": 4}}, "rank_pattern", "o_proj", ""),  # has no adapter
        ({"alpha_pattern": {"layers.7.self_attn.q_proj": 4}}, "alpha_pattern", "layers.7.self_attn.q_proj", ""),
        ({"layers_to_transform": [0], "layers_pattern": "layer"}, "layers_pattern", "layer", "layers"),
        ({"layers_to_transform": [0, 40]}, "layers_to_transform", "40", ""),
        ({"layers_to_transform": -1}, "layers_to_transform", "-1", ""),
        ({"trainable_token_indices": [5, 10**6]}, "trainable_token_indices", "1000000", ""),
        ({"trainable_token_indices": {"embed_tokens": [-1]}}, "trainable_token_indices", "-1", ""),
        ({"trainable_token_indices": {"embed_token": [5]}}, "trainable_token_indices", "embed_token", "embed_tokens"),
    ],
)
def test_an_entry_that_names_nothing_of_the_model_is_an_error_among_others_that_do(
    settings: dict, key: str, entry: str, meant: str, demo_model: str
) -> None:
    with pytest.raises(GlmtuneError) as caught:
        adapt_demo(demo_model, GIVEN | settings)
    assert caught.value.what.startswith(f"`peft_config` does not fit the model: `{key}` has `{entry}`")
    assert caught.value.where == f"peft_config.{key}"
    assert f"(did you mean `{meant}`?)" in caught.value.what or not meant


@pytest.mark.parametrize(
    "settings",
    [
        {"target_modules": ["q_proj", "layers.0.mlp.down_proj"]},
        {"target_modules": "all-linear", "rank_pattern": {"o_proj": 4}},
        {"target_modules": r".*\.q_proj"},
        {"modules_to_save": ["embed_tokens", "lm_head"]},
        {"exclude_modules": ["model.layers.0.self_attn.q_proj"]},
        {"rank_pattern": {r"layers\.0\.self_attn\.q_proj": 4, "k_proj": 8}, "alpha_pattern": {"^model.*k_proj": 3}},
        {"layers_to_transform": [0, 1], "layers_pattern": "layers"},
        {"layers_to_transform": 0},
        {"trainable_token_indices": [0, 5]},
        {"trainable_token_indices": {"embed_tokens": [5]}},
    ],
)
def test_entries_that_name_something_pass(settings: dict, demo_model: str) -> None:
    adapted = adapt_demo(demo_model, GIVEN | settings)
    assert names_of_trained(adapted)
    kept = adapted.peft_config["default"]
    for key, value in settings.items():
        if key not in ("target_modules", "exclude_modules"):  # which PEFT keeps as sets, with names for `all-linear`
            assert getattr(kept, key) == value


@pytest.mark.parametrize(
    ("wanted", "entry"),
    [(["q_proj", "k_porj"], "k_porj"), (r".*\.k_porj", r".*\.k_porj"), (["mlp", "atention"], "atention")],
)
def test_an_optimizers_layers_have_to_be_there(wanted: str | list[str], entry: str, demo_model: str) -> None:
    model = AutoModelForCausalLM.from_pretrained(demo_model)
    with pytest.raises(GlmtuneError, match=r"`training_args` does not fit the model") as caught:
        check_optimizer_modules(wanted, model)
    assert f"`optim_target_modules` has `{entry}`" in caught.value.what
    for right in (None, "all-linear", ["q_proj", "mlp"], r".*\.q_proj", [r".*self_attn\.q_proj"]):
        check_optimizer_modules(right, model)


def test_a_model_that_says_wrongly_that_it_is_quantized_is_told_of_it(
    demo_model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise AttributeError("'Parameter' object has no attribute 'compress_statistics'")

    monkeypatch.setattr("glmtune.modeling.adapting.adapters.get_peft_model", refuse)
    model = AutoModelForCausalLM.from_pretrained(demo_model)
    hints = []
    for quantization in (None, {"quant_method": "bitsandbytes"}):
        model.config.quantization_config = quantization
        with pytest.raises(GlmtuneError, match="does not fit the model: AttributeError: ") as caught:
            adapt(model, LORA, family_of("glm"), gradient_checkpointing=False, notify=print)
        hints.append(caught.value.fix)
    assert hints[0] is None
    assert f"`config.json` of `{demo_model}` says by `quantization_config`" in hints[1]
    monkeypatch.undo()
    with pytest.raises(GlmtuneError, match="nowhere") as caught:
        adapt(
            model, LORA | {"target_modules": ["nowhere"]}, family_of("glm"), gradient_checkpointing=False, notify=print
        )
    assert "quantization_config" not in str(caught.value)
