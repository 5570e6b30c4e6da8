"""Which other tool a configuration is of, by keys that only it has: so that one error says what to do with the file."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from typing import Any

from glmtune.errors import GlmtuneError

LLAMAFACTORY, SWIFT, AXOLOTL = "LLaMA-Factory", "ms-swift", "axolotl"
DATASET_INFO = "LLaMA-Factory's dataset_info.json"

_LLAMAFACTORY = """
    stage finetuning_type cutoff_len dataset_dir lora_target quantization_bit preprocessing_num_workers flash_attn
    pref_beta pref_loss neat_packing mask_history train_on_prompt adapter_name_or_path max_samples plot_loss
    freeze_trainable_layers export_dir infer_backend enable_liger_kernel media_dir tokenized_path
    use_unsloth additional_target train_dataset custom_chat_template quant_config kernel_config batching_strategy
"""
_SWIFT = """
    train_type tuner_type sft_type split_dataset_ratio attn_impl val_dataset dataset_num_proc torch_dtype loss_scale
    quant_method quant_bits lazy_tokenize rlhf_type agent_template use_hf model_author tuner_backend padding_free
    truncation_strategy create_checkpoint_symlink model_id_or_path target_regex freeze_vit
    custom_dataset_info external_plugins init_weights packing_length dataset_shuffle
"""
_AXOLOTL = """
    base_model datasets adapter lora_r lora_target_linear micro_batch_size sequence_len
    sample_packing num_epochs val_set_size dataset_prepared_path pad_to_sequence_len train_on_inputs test_datasets
    load_in_4bit load_in_8bit flash_attention lora_modules_to_save eval_sample_packing evals_per_epoch saves_per_epoch
    lora_model_dir wandb_project special_tokens plugins rl chat_template_jinja tokenizer_type
"""
KEYS = {
    LLAMAFACTORY: frozenset(_LLAMAFACTORY.split()),
    SWIFT: frozenset(_SWIFT.split()),
    AXOLOTL: frozenset(_AXOLOTL.split()),
}
"""Keys of a tool that the others do not have."""
MODEL_KEYS = {LLAMAFACTORY: "model_name_or_path", SWIFT: "model", AXOLOTL: "base_model"}
"""What it calls the model."""

OURS = frozenset(("data_config", "training_args", "max_input_length", "max_output_length"))
"""Keys of a configuration of ours: such a one is no other tool's, whatever else stands in it."""
DATA_SOURCES = frozenset(("file_name", "hf_hub_url", "ms_hub_url", "om_hub_url", "script_url", "cloud_file_name"))
"""Where a data set of a `dataset_info.json` comes from; each has one of them."""

_COMMANDS = {
    SWIFT: re.compile(r"(?:^|[\s;&|/])swift\s+(?:sft|pt|rlhf)\b|swift/cli/(?:sft|pt|rlhf)\.py"),
    LLAMAFACTORY: re.compile(r"(?:^|[\s;&|/])(?:llamafactory-cli|lmf)\s+train\b"),
}
"""What the commands of other tools look like in a file for the shell."""


def recognise(values: Any) -> str | None:
    """Return whose configuration keys and values are, or None: of nobody known, or of ours."""
    if not isinstance(values, Mapping) or not OURS.isdisjoint(values):
        return None
    if values and all(isinstance(each, dict) and not DATA_SOURCES.isdisjoint(each) for each in values.values()):
        return DATASET_INFO
    num_keys = {
        tool: len(keys.intersection(values)) + (MODEL_KEYS[tool] in values and tool != AXOLOTL)
        for tool, keys in KEYS.items()
    }
    tool = max(num_keys, key=lambda each: num_keys[each])
    return tool if num_keys[tool] >= 2 else None


def tool_of_command(text: str) -> str | None:
    """Return whose training command stands in a file for the shell, or None."""
    code = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
    return next((tool for tool, pattern in _COMMANDS.items() if pattern.search(code)), None)


def foreign_configuration(tool: str, path: str, expected: str) -> GlmtuneError:
    """Return the error for a configuration of another tool that was given as something of ours."""
    what = tool if tool == DATASET_INFO else f"a configuration of {tool}"
    return GlmtuneError(
        f"this is {what}; expected {expected}",
        where=path,
        fix=f"`glmtune init --from {shlex.quote(path)}` makes a configuration of it, whose keys stand in "
        "`data_config`, `training_args` (such as `learning_rate`) and `peft_config`, and lists what has no place there",
    )
