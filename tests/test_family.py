"""Every entry of the tables of model families: one that goes missing would be trained as any other model."""

from __future__ import annotations

import dataclasses

import pytest

from glmtune.family import CHATGLM_TARGETS, FAMILIES, GENERIC, GLM, GLM_MOE, family_of

TYPES = {
    "chatglm": "glm",  # the original code of ChatGLM3 and GLM-4
    "glm": "glm",  # GLM-4-9B-Chat, GLM-Edge
    "glm4": "glm",  # GLM-4-0414, GLM-Z1
    "glm4v": "glm",  # GLM-4.1V
    "glm4_moe": "glm_moe",  # GLM-4.5, 4.6, 4.7
    "glm4_moe_lite": "glm_moe",  # GLM-4.7-Flash
    "glm4v_moe": "glm_moe",  # GLM-4.5V
    "glm46v": "glm_moe",
    "glm_moe_dsa": "glm_moe",  # GLM-5
    "glm5_next": "glm_moe",
}


@pytest.mark.parametrize(("model_type", "family"), TYPES.items())
def test_a_model_type_belongs_to_its_family(model_type: str, family: str) -> None:
    assert family_of(model_type).name == family


def test_the_table_is_whole() -> None:
    assert sorted(TYPES) == sorted(name for family in FAMILIES for name in family.model_types)


@pytest.mark.parametrize("model_type", ["llama", "qwen3", "glm99", "", "GLM"])
def test_any_other_model_is_of_no_family(model_type: str) -> None:
    assert family_of(model_type) is GENERIC


def test_what_a_family_is_known_by() -> None:
    stops = ("<|endoftext|>", "<|user|>", "<|observation|>")
    ends = {"stop_after_answer": "<|user|>", "stop_after_tool_call": "<|observation|>", "stop_tokens": stops}
    attention = ("q_proj", "k_proj", "v_proj", "o_proj")
    facts = [{**dataclasses.asdict(family), "model_types": ()} for family in (GLM, GLM_MOE, GENERIC)]
    assert facts == [
        {"name": "glm", "model_types": (), **ends, "lora_targets": (*attention, "gate_up_proj", "down_proj")},
        {"name": "glm_moe", "model_types": (), **ends, "lora_targets": attention},
        {"name": "generic", "model_types": (), "stop_after_answer": None, "stop_after_tool_call": None,
         "stop_tokens": (), "lora_targets": "all-linear"},
    ]  # fmt: skip


def test_names_of_the_original_code_mean_the_same_weights() -> None:
    assert CHATGLM_TARGETS == {
        "query_key_value": ("q_proj", "k_proj", "v_proj"),
        "dense": ("o_proj",),
        "dense_h_to_4h": ("gate_up_proj",),
        "dense_4h_to_h": ("down_proj",),
    }
