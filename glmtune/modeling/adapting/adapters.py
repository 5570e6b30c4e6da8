"""What of a model is trained: an adapter (LoRA, P-Tuning v2, any other of PEFT's), or all of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from peft import PeftConfig, PeftModel, get_peft_config, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import PreTrainedModel

from glmtune.errors import GlmtuneError, install_hint
from glmtune.family import CHATGLM_TARGETS, Family
from glmtune.modeling.library_errors import REFUSALS, reason_of

from .adapter_names import check_adapter_names
from .ptuning import allow_checkpointing, check_prefix

Notify = Callable[[str], None]


def adapt(
    model: PreTrainedModel,
    peft_config: Mapping[str, Any] | None,
    family: Family,
    *,
    gradient_checkpointing: bool,
    notify: Notify,
) -> PreTrainedModel | PeftModel:
    """Return the model with only those weights trainable that the configuration asks for; all without one."""
    if peft_config is None:
        return model
    settings = METHODS.get(peft_config["peft_type"], _other)(dict(peft_config), model, family, notify)
    check_adapter_names(settings, model)
    is_tied = _is_tied(model)
    try:
        config: PeftConfig = get_peft_config(settings)
        adapted = get_peft_model(model, config)
    except REFUSALS as error:
        what = str(error) if isinstance(error, ValueError) else reason_of(error)
        fix = install_hint(error) or _rounding_hint(error, model)
        raise GlmtuneError(f"`peft_config` does not fit the model: {what}", fix=fix) from error
    check_prefix(adapted)
    if is_tied:
        _refuse_tied_layers(adapted)
    prepare(adapted, gradient_checkpointing=gradient_checkpointing)
    return adapted


def _rounding_hint(error: Exception, model: PreTrainedModel) -> str | None:
    """Return what to do where PEFT misses what quantized weights have, since the model says of itself that it has them.

    Its other refusals, such as of layers that are not there, have nothing to do with rounding.
    """
    if not isinstance(error, AttributeError) or getattr(model.config, "quantization_config", None) is None:
        return None
    return (
        f"`config.json` of `{model.config.name_or_path}` says by `quantization_config` that its weights are quantized: "
        "take it out if they are not, or train the model that it was made from"
    )


def _is_tied(model: PreTrainedModel) -> bool:
    """Whether the model's last layer computes with the weights of its embedding."""
    last: Any = model.get_output_embeddings()
    return last is not None and last.weight is model.get_input_embeddings().weight


def _refuse_tied_layers(model: PeftModel) -> None:
    """Raise where an adapter sits on one of two layers with the same weights: merged, it would change both."""
    base: Any = model.get_base_model()
    adapted = (base.get_input_embeddings(), base.get_output_embeddings())
    names = [name for name, module in base.named_modules() if module in adapted and isinstance(module, BaseTunerLayer)]
    if names:
        raise GlmtuneError(
            f"`peft_config.target_modules` puts an adapter on `{names[0]}`, but the model's embedding and its last "
            "layer are the same weights (`tie_word_embeddings`): merged for an export, it would change both",
            fix=f"leave it out, or train the layer as a whole: `modules_to_save: [{names[0].rpartition('.')[2]}]`",
        )


def prepare(model: PeftModel, *, gradient_checkpointing: bool) -> None:
    """Make an adapted model ready to train; also for one whose adapter was loaded from a checkpoint."""
    if gradient_checkpointing and model.active_peft_config.peft_type == "PREFIX_TUNING":
        allow_checkpointing(model)


def freeze_vision(model: PreTrainedModel, notify: Notify) -> None:
    """Freeze the vision tower (`freezeV: true`), where the model has one."""
    towers = [module for name, module in model.named_modules() if name.endswith(("vision", "visual", "vision_tower"))]
    for tower in towers:
        tower.requires_grad_(False)
    if not towers:
        notify("`freezeV: true` changes nothing: the model has no vision tower")


def _lora(settings: dict[str, Any], model: PreTrainedModel, family: Family, notify: Notify) -> dict[str, Any]:
    """Choose the layers: the family's, or those that a configuration for the original ChatGLM code means."""
    targets = settings.get("target_modules")
    if targets is None:
        return settings | {"target_modules": _as_list(family.lora_targets)}
    names = [targets] if isinstance(targets, str) else list(targets)
    present = {name.rpartition(".")[2] for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    renamed = {name: CHATGLM_TARGETS[name] for name in names if name in CHATGLM_TARGETS and name not in present}
    for old, new in renamed.items():
        notify(f"`target_modules`: `{old}` is called {', '.join(f'`{name}`' for name in new)} in this model")
    if renamed:
        names = [part for name in names for part in renamed.get(name, (name,))]
        return settings | {"target_modules": names}
    return settings


def _ptuning_v2(settings: dict[str, Any], model: PreTrainedModel, family: Family, notify: Notify) -> dict[str, Any]:
    """Give the prefix the shape of the model's keys and values; it has no other."""
    if settings.get("prefix_projection"):
        raise GlmtuneError(
            "`peft_config.prefix_projection: true` cannot be trained here: PEFT saves the projected prefix alone, so "
            "that the run could not be resumed",
            fix="leave it out: the prefix is then trained directly",
        )
    config = model.config.get_text_config()
    head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    num_heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    shape = {
        "num_layers": config.num_hidden_layers,
        "num_attention_heads": num_heads,
        "token_dim": num_heads * head_size,
        "num_transformer_submodules": 1,
    }
    for key, value in shape.items():
        if settings.get(key, value) != value:
            notify(f"`peft_config.{key}` is {value} in this model; the configuration says {settings[key]}")
    return settings | shape


def _other(settings: dict[str, Any], model: PreTrainedModel, family: Family, notify: Notify) -> dict[str, Any]:
    """Leave the settings of every other PEFT method as they are."""
    return settings


METHODS: dict[str, Callable[..., dict[str, Any]]] = {"LORA": _lora, "PREFIX_TUNING": _ptuning_v2}


def _as_list(targets: tuple[str, ...] | str) -> list[str] | str:
    return targets if isinstance(targets, str) else list(targets)
