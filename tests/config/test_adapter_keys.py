"""Keys of `peft_config` that would train nothing are refused at their line; those of a saved adapter are noted."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest
from peft import LoraConfig
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

from glmtune.config.adapter_keys import DROPOUTS, FACTORS, SAVED
from glmtune.config.run_config import RunConfig, config_from_mapping
from glmtune.errors import GlmtuneError

HARMLESS = ("regularization_alpha",)
"""Names like those of a factor or of a dropout that are neither."""


def load(**peft_config: Any) -> RunConfig:
    values = {"data_config": {"train_file": "a"}, "peft_config": {"peft_type": "LORA"} | peft_config}
    return config_from_mapping(values, where="run.yaml")


def error_of(**peft_config: Any) -> str:
    with pytest.raises(GlmtuneError) as caught:
        load(**peft_config)
    return caught.value.what


def method_with(name: str) -> str:
    for method, settings in PEFT_TYPE_TO_CONFIG_MAPPING.items():
        if name in [each.name for each in fields(settings)]:
            return str(method.value)
    pytest.skip(f"the installed PEFT has no `{name}`")


@pytest.mark.parametrize("name", FACTORS)
@pytest.mark.parametrize("value", [0, -1])
def test_a_factor_that_takes_the_adapter_away_is_refused(name: str, value: int) -> None:
    told = error_of(peft_type=method_with(name), num_virtual_tokens=1, **{name: value})
    assert f"peft_config.{name}" in told
    assert f"expected a number above 0: the adapter's share is multiplied by it, found `{value}`" in told


@pytest.mark.parametrize("name", DROPOUTS)
@pytest.mark.parametrize("value", [1, 1.5, -0.1])
def test_a_dropout_that_leaves_nothing_is_refused(name: str, value: float) -> None:
    told = error_of(peft_type=method_with(name), num_virtual_tokens=1, **{name: value})
    assert f"peft_config.{name}" in told
    assert "expected " in told


def test_every_factor_and_dropout_of_the_installed_peft_is_known() -> None:
    names = {each.name for settings in PEFT_TYPE_TO_CONFIG_MAPPING.values() for each in fields(settings)}
    endings = ("alpha", "scaling", "scaling_weight", "dropout", "dropout_p")
    assert {name for name in names if name.endswith(endings)} <= {*FACTORS, *DROPOUTS, *HARMLESS}


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"r": 0}, "`peft_config.r`: expected 1 or more, found `0`"),
        ({"rank_pattern": {"q_proj": "8"}}, "`peft_config.rank_pattern.q_proj`: expected a whole number, 1 or more, "),
        ({"rank_pattern": {"q_proj": 0}}, "`peft_config.rank_pattern.q_proj`: expected a whole number, 1 or more, "),
        ({"rank_pattern": {"q_proj": None}}, "`peft_config.rank_pattern.q_proj`: expected a whole number, 1 or more, "),
        ({"rank_pattern": {"q_proj": True}}, "`peft_config.rank_pattern.q_proj`: expected a whole number, 1 or more, "),
        ({"alpha_pattern": {"a.q_proj": 0}}, "`peft_config.alpha_pattern.a.q_proj`: expected a number above 0: "),
        ({"alpha_pattern": {"q_proj": "8"}}, "`peft_config.alpha_pattern.q_proj`: expected a number above 0: "),
        ({"task_type": "SEQ_CLS"}, "`peft_config.task_type`: expected `CAUSAL_LM`, found the text `SEQ_CLS`: "),
        ({"task_type": "SEQ_2_SEQ_LM"}, "`peft_config.task_type`: expected `CAUSAL_LM`, "),
    ],
)
def test_other_values_that_no_adapter_is_trained_with_are_refused(settings: dict[str, Any], complaint: str) -> None:
    assert error_of(**settings).startswith(complaint)


def test_the_same_in_another_method() -> None:
    assert error_of(peft_type="PREFIX_TUNING", num_virtual_tokens=4, task_type="TOKEN_CLS").startswith(
        "`peft_config.task_type`: expected `CAUSAL_LM`"
    )


@pytest.mark.parametrize(
    ("key", "value"), [("inference_mode", True), ("base_model_name_or_path", "a"), ("revision", "b")]
)
def test_what_a_saved_adapter_says_of_itself_is_noted(key: str, value: Any) -> None:
    config = load(**{key: value})
    assert config.notices == (f"run.yaml: `peft_config.{key}` does nothing: {SAVED[key]}",)
    assert config.peft_config == {"peft_type": "LORA", "task_type": "CAUSAL_LM"}


def test_the_settings_that_peft_saves_with_an_adapter_are_taken() -> None:
    saved = LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=8, rank_pattern={"q_proj": 2}).to_dict()
    saved |= {"inference_mode": True, "peft_type": "LORA", "base_model_name_or_path": "/models/glm"}
    config = load(**saved)
    assert config.peft_config is not None
    assert not SAVED.keys() & config.peft_config.keys()
    assert config.peft_config["rank_pattern"] == {"q_proj": 2}


def test_a_task_that_is_null_is_the_only_one_that_there_is() -> None:
    assert load(task_type=None).peft_config == {"peft_type": "LORA", "task_type": "CAUSAL_LM"}
