"""The settings of a saved adapter, as PEFT reads them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peft import PeftConfig
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

from glmtune.errors import GlmtuneError, install_hint
from glmtune.modeling.finding.model_files import read_config
from glmtune.modeling.finding.model_source import ADAPTER_CONFIG
from glmtune.modeling.library_errors import WHILE_BUILDING, reason_of

OTHER_FILES = {
    "megatron_config": "has PEFT import a module by its name",
    "tokenizer_kwargs": "has PEFT load a tokenizer from wherever the file says",
    "prompt_tuning_init_state_dict_path": "has PEFT load another file, which may be a pickle",
    "adapters": "has PEFT load other adapters from wherever the file says",
}
"""Keys that lead out of the adapter's own two files, and how; one that is empty does nothing."""

LARGEST = {
    **dict.fromkeys(("r", "rank", "block_size", "lora_alpha", "alpha", "num_vectors"), 1_000_000),
    **dict.fromkeys(("num_virtual_tokens", "encoder_hidden_size", "token_dim"), 10_000_000),
    **dict.fromkeys(("num_layers", "encoder_num_layers", "num_transformer_submodules", "adapter_layers"), 2_000),
    **dict.fromkeys(("num_attention_heads",), 100_000),
}
"""Numbers that PEFT makes room for."""
MOST_REPEATED_LAYERS = 2_000


def adapter_config(folder: Path) -> PeftConfig:
    """Return the settings of a saved adapter.

    Raises:
        GlmtuneError: PEFT does not know such an adapter, refuses its settings, or lacks a package for it.
    """
    where = str(folder / ADAPTER_CONFIG)
    settings = read_config(folder / ADAPTER_CONFIG)
    kind = settings.get("peft_type")
    if kind not in [each.value for each in PEFT_TYPE_TO_CONFIG_MAPPING]:
        raise GlmtuneError(
            "the adapter's settings do not say of what kind it is (`peft_type`)"
            if kind is None
            else f"the adapter is of the kind `{kind}`, which PEFT does not know",
            where=where,
            fix="take the adapter's own file" if kind is None else "a newer PEFT may know it: `pip install -U peft`",
        )
    _check_settings(settings, where)
    try:
        config: PeftConfig = PeftConfig.from_pretrained(str(folder))
    except WHILE_BUILDING as error:
        raise GlmtuneError(
            f"PEFT cannot use the adapter's settings: {reason_of(error)}", where=where, fix=install_hint(error)
        ) from error
    return config


def _check_settings(settings: Mapping[str, Any], where: str) -> None:
    """Raise where settings lead to other files, or ask for what nothing can hold, before PEFT looks at them."""
    for key, consequence in OTHER_FILES.items():
        if settings.get(key):
            raise GlmtuneError(
                f"the adapter's settings have `{key}`, which {consequence}",
                where=where,
                fix="take the key out: a saved adapter needs nothing but its own weights",
            )
    for key, most in LARGEST.items():
        for value in _numbers(settings.get(key)):
            if not math.isfinite(value) or abs(value) > most:
                raise GlmtuneError(
                    f"the adapter's settings have `{key}: {json.dumps(value)[:40]}`; expected at most {most:,}",
                    where=where,
                    fix="take the adapter's own file",
                )
    if _num_repeated(settings.get("layer_replication")) > MOST_REPEATED_LAYERS:
        raise GlmtuneError(
            f"the adapter's settings repeat more than {MOST_REPEATED_LAYERS:,} layers (`layer_replication`)",
            where=where,
        )


def _numbers(value: Any) -> list[float]:
    return [value] if isinstance(value, (int, float)) and not isinstance(value, bool) else []


def _num_repeated(ranges: Any) -> int:
    """Return how many layers `layer_replication` makes: pairs of the first layer, and of that behind the last."""
    if not isinstance(ranges, list):
        return 0
    pairs = [each for each in ranges if isinstance(each, list) and len(each) == 2]
    return sum(max(0, last - first) for first, last in pairs if isinstance(first, int) and isinstance(last, int))
