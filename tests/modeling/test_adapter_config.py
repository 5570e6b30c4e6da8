"""Settings of saved adapters that PEFT cannot use: one clear error, whatever it raises."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from glmtune.errors import GlmtuneError
from glmtune.modeling.finding.model_source import find_model
from glmtune.modeling.loading import load_model


@pytest.fixture
def adapter(demo_model: str, tmp_path: Path) -> Path:
    model = AutoModelForCausalLM.from_pretrained(demo_model)
    get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")).save_pretrained(tmp_path)
    return tmp_path


WITHOUT = {
    "scipy": ({"init_lora_weights": "loftq", "loftq_config": {"loftq_bits": 4}}, "scipy"),
    "sklearn": ({"peft_type": "ADAMSS"}, "scikit-learn"),
}


@pytest.mark.parametrize("module", WITHOUT)
def test_a_package_that_an_adapter_needs_is_named(module: str, adapter: Path) -> None:
    if importlib.util.find_spec(module):
        pytest.skip(f"`{module}` is installed")
    settings, package = WITHOUT[module]
    changed(adapter, **settings)
    with pytest.raises(GlmtuneError, match=r"^PEFT cannot use the adapter's settings: ") as caught:
        load_model(find_model(adapter))
    assert caught.value.where == str(adapter / "adapter_config.json")
    assert caught.value.fix == f"run `pip install {package}` and try again"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"peft_type": "FOO"}, "the adapter is of the kind `FOO`, which PEFT does not know"),
        ({"peft_type": ["LORA"]}, "the adapter is of the kind `['LORA']`, which PEFT does not know"),
        ({"peft_type": None}, "the adapter's settings do not say of what kind it is (`peft_type`)"),
        ({"layers_pattern": "h"}, "PEFT cannot use the adapter's settings: When `layers_pattern` is specified"),
        ({"init_lora_weights": "foo"}, "the adapter does not fit the base model: Unknown initialization"),
        ({"r": "x"}, "the adapter does not fit the base model: TypeError: "),
        ({"target_modules": 5}, "the adapter does not fit the base model: TypeError: "),
    ],
    ids=str,
)
def test_settings_that_peft_cannot_use_are_an_error(settings: dict[str, Any], message: str, adapter: Path) -> None:
    changed(adapter, **settings)
    with pytest.raises(GlmtuneError) as caught:
        load_model(find_model(adapter))
    assert caught.value.what.startswith(message)
    assert str(adapter) in str(caught.value.where)


def changed(adapter: Path, **settings: Any) -> None:
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | settings), encoding="utf-8")
