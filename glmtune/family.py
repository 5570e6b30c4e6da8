"""What glmtune knows of a model family by name: role tokens, stop tokens, adapter targets. No torch here.

Token ids are never written down: every id is looked up by its token's name in the tokenizer at hand.
"""

from __future__ import annotations

from dataclasses import dataclass

IGNORE_INDEX = -100
"""The label of a position that is not trained on; the loss skips it."""

SYSTEM, USER, ASSISTANT, OBSERVATION = "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>"
"""GLM's role tokens: each begins a message, and the one after an answer ends it."""

TEXT_TOOLS = ("python", "simple_browser", "cogview")
"""Tools that GLM-4's template describes by their type alone; what they are called with is a text, and no JSON."""

LLAMA_STYLE_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
ATTENTION_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj")

CHATGLM_TARGETS = {
    "query_key_value": ("q_proj", "k_proj", "v_proj"),
    "dense": ("o_proj",),
    "dense_h_to_4h": ("gate_up_proj",),
    "dense_4h_to_h": ("down_proj",),
}
"""Module names of the original ChatGLM code, and what transformers calls the same weights."""


@dataclass(frozen=True, kw_only=True)
class Family:
    """Facts of one model family that no file of a checkpoint states."""

    name: str
    model_types: tuple[str, ...] = ()
    """`model_type` values of `config.json` that belong to the family."""
    stop_after_answer: str | None = None
    """Token that ends an answer where the template writes no end-of-turn token: the next role token."""
    stop_after_tool_call: str | None = None
    """Token that ends a tool call, likewise."""
    stop_tokens: tuple[str, ...] = ()
    """Every token that must stop generation, beside those of `generation_config`."""
    lora_targets: tuple[str, ...] | str = "all-linear"
    """Default `target_modules` of LoRA."""


GLM_STOPS = ("<|endoftext|>", USER, OBSERVATION)

GLM = Family(
    name="glm",
    model_types=("glm", "glm4", "glm4v", "chatglm"),
    stop_after_answer=USER,
    stop_after_tool_call=OBSERVATION,
    stop_tokens=GLM_STOPS,
    lora_targets=(*ATTENTION_TARGETS, "gate_up_proj", "down_proj"),
)
GLM_MOE = Family(
    name="glm_moe",
    model_types=("glm4_moe", "glm4_moe_lite", "glm4v_moe", "glm_moe_dsa", "glm46v", "glm5_next"),
    stop_after_answer=USER,
    stop_after_tool_call=OBSERVATION,
    stop_tokens=GLM_STOPS,
    # The experts are stacked tensors, not linear layers; adapters sit on the attention alone.
    lora_targets=ATTENTION_TARGETS,
)
GENERIC = Family(name="generic", lora_targets="all-linear")
"""Any other model: its template must close every assistant turn with a token of its own (ChatML, Llama)."""

FAMILIES = (GLM, GLM_MOE)


def family_of(model_type: str) -> Family:
    """Return the family that `model_type` of a model's `config.json` belongs to."""
    for family in FAMILIES:
        if model_type in family.model_types:
            return family
    return GENERIC
