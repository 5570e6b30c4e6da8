"""What becomes of the keys of `peft_config` that are of the right type, and would all the same train nothing.

An adapter whose share is multiplied by 0, or whose input is always dropped, has no gradients: its run would come to its
end like any other. Keys that PEFT writes into `adapter_config.json` say something of a saved adapter, not of a run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from .yaml_source import Source, found

SECTION = "peft_config"
TASK = "CAUSAL_LM"
EMBEDDING = "embed_tokens"

FACTORS = (
    *("lora_alpha", "alpha", "randlora_alpha", "psoft_alpha", "shadow_alpha"),
    *("scaling", "global_scaling_weight"),
)
"""Keys that what an adapter computes is multiplied by."""

DROPOUTS = (
    *("lora_dropout", "boft_dropout", "deft_dropout", "frod_dropout", "gralora_dropout", "hira_dropout"),
    *("miss_dropout", "psoft_dropout", "pvera_dropout", "randlora_dropout", "shadow_dropout", "tinylora_dropout"),
    *("unilora_dropout", "vblora_dropout", "vera_dropout", "xlora_dropout_p", "encoder_dropout"),
    *("module_dropout", "rank_dropout"),
)
"""Keys that say how much of an adapter's input, or of the adapter, is left out by chance."""

RANKED = ("LORA", "LOHA", "LOKR")
"""Methods whose `r` is a rank, and whose patterns hold numbers."""

SAVED = {
    "inference_mode": "a run trains its adapter, whatever a saved one says of itself",
    "base_model_name_or_path": "the model that the command names is trained",
    "revision": "the model that the command names is trained",
}
"""Keys of a saved adapter that say nothing of a run, and why."""


class Dependent(NamedTuple):
    """A key that is read only where others say something."""

    is_read: Callable[[Mapping[str, Any]], bool]
    reason: str


DEPENDENT = {
    "fan_in_fan_out": Dependent(lambda _: False, "PEFT sets it by the kind of each layer"),
    "loftq_config": Dependent(
        lambda given: given.get("init_lora_weights") == "loftq", "`init_lora_weights` is not `loftq`"
    ),
    "eva_config": Dependent(lambda given: given.get("init_lora_weights") == "eva", "`init_lora_weights` is not `eva`"),
    "corda_config": Dependent(
        lambda given: given.get("init_lora_weights") == "corda", "`init_lora_weights` is not `corda`"
    ),
    "qalora_group_size": Dependent(lambda given: bool(given.get("use_qalora")), "`use_qalora` is not set"),
    "ensure_weight_tying": Dependent(
        lambda given: bool(given.get("modules_to_save") or given.get("trainable_token_indices")),
        "neither `modules_to_save` nor `trainable_token_indices` trains a tied layer",
    ),
    "encoder_hidden_size": Dependent(lambda given: False, "a prefix is trained directly, without an encoder"),
}
"""Such keys, and what must stand beside them; given without it, they do nothing."""


REFUSED = {
    "alora_invocation_tokens": "an activated LoRA trains only rows that hold these tokens, each by itself",
    "arrow_config": "it mixes adapters that were trained before",
    "runtime_config": "it holds settings of a program, which no file can give",
    "megatron_config": "models sharded by Megatron are not supported",
}
"""Keys of PEFT that ask for another kind of training."""


def settle_adapter(source: Source, peft_type: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Complain to `source` of values that would train nothing, note keys that do nothing; returns the others.

    Args:
        source: What the user wrote.
        peft_type: PEFT's name of the method.
        arguments: The keys that were written, with values of the right types.
    """
    for name, expected in _wrong_numbers(peft_type, arguments):
        value: Any = arguments
        for part in name:
            value = value[part]
        source.complain(".".join((SECTION, *map(str, name))), f"expected {expected}, found {found(value)}")
    _complain_of_task(source, arguments.get("task_type"))
    _settle_dependent(source, arguments)
    return {
        name: value
        for name, value in arguments.items()
        if not _is_noted(source, name, value) and (name != "task_type" or value is not None)
    }


def _settle_dependent(source: Source, arguments: Mapping[str, Any]) -> None:
    """Note keys that others leave nothing to say; complain of those that do not go together, or not with a run."""
    for name, why in REFUSED.items():
        if arguments.get(name) is not None:
            source.complain(f"{SECTION}.{name}", f"is not supported: {why}", "leave it out")
    whole = arguments.get("modules_to_save")
    if arguments.get("trainable_token_indices") and isinstance(whole, list) and EMBEDDING in whole:
        source.complain(
            f"{SECTION}.trainable_token_indices",
            f"names rows of the embedding, which `modules_to_save: [{EMBEDDING}]` trains as a whole",
            "leave one of them out",
        )
    for name, dependent in DEPENDENT.items():
        if arguments.get(name) and not dependent.is_read(arguments):
            key = f"{SECTION}.{name}"
            source.notices.append(f"{source.where(key)}: `{key}` does nothing: {dependent.reason}")
    if arguments.get("use_qalora") and source.values.get("quantization") is None:
        source.complain(
            f"{SECTION}.use_qalora",
            "is for a model whose weights GPTQ has quantized, and `quantization` says no such thing",
            "leave it out",
        )


def _wrong_numbers(peft_type: str, arguments: Mapping[str, Any]) -> Iterator[tuple[tuple[Any, ...], str]]:
    """Yield the keys, each with those below it, whose numbers would train nothing, and what is expected of them."""
    above_zero = "a number above 0: the adapter's share is multiplied by it"
    for name in FACTORS:
        if arguments.get(name) is not None and not _is_above_zero(arguments[name]):
            yield (name,), above_zero
    for name in DROPOUTS:
        value = arguments.get(name)
        if isinstance(value, (int, float)) and not 0 <= value < 1:
            yield (name,), "0 or more, below 1: it is a share of what is dropped"
    if peft_type not in RANKED:
        return
    if arguments.get("r") is not None and arguments["r"] < 1:
        yield ("r",), "1 or more"
    for entry, value in (arguments.get("alpha_pattern") or {}).items():
        if not _is_above_zero(value):
            yield ("alpha_pattern", entry), above_zero
    for entry, value in (arguments.get("rank_pattern") or {}).items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            yield ("rank_pattern", entry), "a whole number, 1 or more"


def _is_above_zero(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < float("inf")


def _complain_of_task(source: Source, task: Any) -> None:
    if task is not None and task != TASK:
        source.complain(
            f"{SECTION}.task_type",
            f"expected `{TASK}`, found {found(task)}: what is trained answers with text",
            "leave it out",
        )


def _is_noted(source: Source, name: str, value: Any) -> bool:
    """Whether a key says nothing of a run; noted where it says something else than what happens."""
    if name not in SAVED:
        return False
    if value:
        key = f"{SECTION}.{name}"
        source.notices.append(f"{source.where(key)}: `{key}` does nothing: {SAVED[name]}")
    return True
