"""Configurations of LLaMA-Factory, for `llamafactory-cli train`: each key of its arguments, and what it is here.

The names are those of `src/llamafactory/hparams` and `src/llamafactory/v1/config` in LLaMA-Factory of August 2026.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from glmtune.config.other_tools import DATASET_INFO, LLAMAFACTORY

from .data_sets import put_data_sets
from .draft import Draft, Key, Translation, names_in
from .llamafactory_data import data_set, listed_data_sets, named_data_sets, read_info
from .shared_keys import (
    ANSWERING,
    BY_ITSELF,
    EXPORT,
    IN_ROWS,
    KERNELS,
    LAUNCHER,
    NEW_MODEL,
    NOT_RESUMED,
    OTHER_OPTIMIZER,
    OTHER_TRAINING,
    PARALLEL,
    PICTURES,
    PREFERENCES,
    PROFILER,
    SAME_SOURCE,
    SAMPLES,
    SERVE,
    STREAMING,
    TEMPLATE,
    TOKENS,
    TRACKERS,
    as_list,
    deepspeed,
    left,
    lengths,
    named_model,
    settle_evaluation,
    switch,
    translate_keys,
)

ATTENTION = {"disabled": "eager", "sdpa": "sdpa", "fa2": "flash_attention_2", "fa3": "flash_attention_3"}
GENERATION = (
    *("do_sample", "temperature", "top_p", "top_k", "num_beams", "max_new_tokens", "repetition_penalty"),
    "length_penalty",
)


def translate_llamafactory(source: Mapping[str, Any], file: Path) -> Translation:
    """Return a YAML of LLaMA-Factory in our keys."""
    draft = Draft(tool=LLAMAFACTORY, source=source, file=file)
    translate_keys(draft, KEYS, LEFT, has_arguments=True)
    if "finetuning_type" not in source and "model" not in source:
        draft.default("peft_config.peft_type", "LORA")
    if "max_input_length" not in draft.values:
        draft.default("max_input_length", 1024, "there, a row has 2,048 tokens where nothing is said")
        draft.default("max_output_length", 1024)
    if draft.values.get("peft_config.peft_type") == "LORA":
        draft.default("peft_config.r", 8)
        rank = draft.values["peft_config.r"]
        if isinstance(rank, int):
            draft.default("peft_config.lora_alpha", 2 * rank, "the default of LLaMA-Factory: twice the rank")
        draft.default("peft_config.lora_dropout", 0.0)
        draft.default("peft_config.target_modules", "all-linear")
    if not source.get("disable_gradient_checkpointing"):
        draft.default("training_args.gradient_checkpointing", True)
    settle_evaluation(draft)
    return draft.finish()


def translate_dataset_info(info: Mapping[str, Any], file: Path) -> Translation:
    """Return the data sets of a `dataset_info.json` as files of a configuration: those that lie beside it.

    Data sets of a hub are listed, and what is shown pictures; so is a pair of answers, for preferences.
    """
    draft = Draft(tool=DATASET_INFO, source=info, file=file, data_dir=str(file.parent))
    found = []
    for name, entry in info.items():
        each = data_set(draft, name, name, entry)
        if each is None:
            continue
        if entry.get("ranking") or "kto_tag" in names_in(entry.get("columns")):
            draft.leave(name, f"{PREFERENCES}; to train those of `{each.path}`, name it in `train_file`")
        elif ":" in each.path:
            draft.leave(name, f"lies on a hub; `{each.path}` in `data_config.train_file` adds it")
        else:
            found.append((name, each))
    for name, _ in found[:1]:
        put_data_sets(draft, "data_config.train_file", [each for _, each in found], name)
        draft.comments["data_config.train_file"] = "the files that lie beside it"
    draft.default("peft_config.peft_type", "LORA", "nothing is said of the method")
    return draft.finish()


def _stage(draft: Draft, key: str, value: Any) -> None:
    if value == "sft":
        draft.leave(key, "`glmtune train` does that")
    elif value == "pt":
        draft.leave(key, "rows of plain text, `{text: ...}`, are trained as such by `glmtune train`")
    else:
        draft.leave(key, PREFERENCES)


def _finetuning_type(draft: Draft, key: str, value: Any) -> None:
    if value == "full":
        draft.leave(key, "every weight is trained where there is no `peft_config`")
        return
    draft.put("peft_config.peft_type", "OFT" if value == "oft" else "LORA", key)
    if value not in ("lora", "oft"):
        draft.leave(key, "training some of the layers is not supported; LoRA stands in its place")


def _adapter(place: str) -> Key:
    """Return what puts a value into `peft_config`, unless every weight is trained."""

    def read(draft: Draft, key: str, value: Any) -> None:
        if "peft_config.peft_type" not in draft.values and draft.source.get("finetuning_type", "lora") == "full":
            draft.leave(key, "every weight is trained, without an adapter")
            return
        draft.default("peft_config.peft_type", "LORA")
        if place.endswith("target_modules"):
            value = "all-linear" if value == "all" else as_list(value)
        draft.put(place, as_list(value) if place.endswith("modules_to_save") else value, key)

    return Key(place, read, takes=(list,) if place.endswith(("target_modules", "modules_to_save")) else ())


def _for_oft(place: str) -> Key:
    def read(draft: Draft, key: str, value: Any) -> None:
        if draft.source.get("finetuning_type") == "oft":
            _adapter(place).translate(draft, key)
        else:
            draft.leave(key, "for OFT, which is not trained here")

    return Key(place, read, takes=_adapter(place).takes)


def _peft(draft: Draft, key: str, value: Any) -> None:
    """Take over the method as the newer form has it: `name`, and PEFT's own keys beside it."""
    if not isinstance(value, dict):
        draft.leave(key, "expected keys and values")
        return
    if value.get("name") != "lora":
        draft.leave(key, "training some of the layers is not supported; LoRA stands in its place")
    draft.put("peft_config.peft_type", "LORA", key)
    for name, each in value.items():
        if name in ("r", "lora_alpha", "lora_dropout", "target_modules", "modules_to_save", "use_rslora", "use_dora"):
            is_all = name == "target_modules" and each == "all"
            draft.values[f"peft_config.{name}"] = "all-linear" if is_all else each
            draft.origins[f"peft_config.{name}"] = f"{key}.{name}", each
        elif name != "name":
            draft.leave(f"{key}.{name}", LEFT.get(name, "no key of this method that is known here"), each)


def _quantization(draft: Draft, key: str, value: Any) -> None:
    if value in (4, 8) and str(draft.source.get("quantization_method", "bnb")).lower() in ("bnb", "bitsandbytes"):
        draft.put("quantization", f"{value}bit", key)
    else:
        draft.leave(key, "weights are quantized by bitsandbytes, to 4 or 8 bits")


def _attention(draft: Draft, key: str, value: Any) -> None:
    name = ATTENTION.get(str(value))
    if name is None:
        draft.leave(key, BY_ITSELF)
    else:
        draft.put("attn_implementation", name, key)


def _checkpointing(draft: Draft, key: str, value: Any) -> None:
    draft.put("training_args.gradient_checkpointing", not value, key)


def _swanlab(draft: Draft, key: str, value: Any) -> None:
    mode = draft.source.get("swanlab_mode", "cloud")
    if value is True:
        draft.put("swanlab", mode if mode in ("cloud", "local", "disabled") else "cloud", key)
    else:
        draft.leave(key, BY_ITSELF)


def _val_size(draft: Draft, key: str, value: Any) -> None:
    if value and not draft.source.get("eval_dataset"):
        draft.put("data_config.val_size", value, key)
    else:
        draft.leave(key, "`eval_dataset` names the rows to evaluate on" if value else BY_ITSELF)


def _data_folder(draft: Draft, key: str, value: Any) -> None:
    """Leave the folder to `_data`, which looks into it; without data sets it says nothing."""
    if not draft.source.get("dataset"):
        draft.leave(key, "no data set is named")


def _data(draft: Draft, key: str, value: Any) -> None:
    folder = draft.source.get("dataset_dir", "data")
    info: dict[str, Any] = folder if isinstance(folder, dict) else {}
    if isinstance(folder, str) and folder != "ONLINE" and not folder.startswith("REMOTE:"):
        draft.data_dir, info = read_info(folder, draft.file)
    place = "data_config.val_file" if key == "eval_dataset" else "data_config.train_file"
    names = as_list(value)
    put_data_sets(draft, place, named_data_sets(draft, key, names, info), key)


def _new_data(draft: Draft, key: str, value: Any) -> None:
    """Take the file of rows, or the hub's data set, that the newer form names; a YAML of data sets is listed."""
    place = "data_config.val_file" if key == "eval_dataset" else "data_config.train_file"
    if isinstance(value, list):
        draft.leave(key, "expected one file, or a YAML that lists several")
        return
    if str(value).endswith((".yaml", ".yml")):
        put_data_sets(draft, place, listed_data_sets(draft, key, str(value)), key)
        return
    if Path(str(value)).suffix:
        draft.put(place, str(value), key)
    else:
        put_data_sets(draft, place, named_data_sets(draft, key, [str(value)], {}), key)


def _rows_to_evaluate_on(draft: Draft, key: str, value: Any) -> None:
    (_new_data if "model" in draft.source else _data)(draft, key, value)


KEYS: dict[str, Key] = {
    "model_name_or_path": Key("MODEL", named_model),
    "early_stopping_steps": Key("early_stopping_patience"),
    "model": Key("MODEL", named_model),
    "stage": Key("`glmtune train` for `sft`", _stage),
    "dataset_dir": Key("DATA_DIR", _data_folder, takes=(dict,)),
    "dataset": Key("data_config.train_file, data_config.columns", _data, takes=(list,)),
    "train_dataset": Key("data_config.train_file", _new_data),
    "eval_dataset": Key("data_config.val_file", _rows_to_evaluate_on, takes=(list,)),
    "val_size": Key("data_config.val_size", _val_size),
    "preprocessing_num_workers": Key("data_config.num_proc"),
    "cutoff_len": Key("max_input_length + max_output_length", lengths),
    "mask_history": switch("train_on", "last", "every answer is trained by default"),
    "packing": switch("packing", True, "packed rows never see each other here; `packing: false` pads"),
    "neat_packing": switch("packing", True, "packed rows never see each other here"),
    "finetuning_type": Key("`peft_config.peft_type`; no `peft_config` for `full`", _finetuning_type),
    "lora_rank": _adapter("peft_config.r"),
    "lora_alpha": _adapter("peft_config.lora_alpha"),
    "lora_dropout": _adapter("peft_config.lora_dropout"),
    "lora_target": _adapter("peft_config.target_modules"),
    "additional_target": _adapter("peft_config.modules_to_save"),
    "use_rslora": _adapter("peft_config.use_rslora"),
    "use_dora": _adapter("peft_config.use_dora"),
    "peft_config": Key("peft_config", _peft, takes=(dict,)),
    "oft_rank": _for_oft("peft_config.r"),
    "oft_block_size": _for_oft("peft_config.oft_block_size"),
    "oft_target": _for_oft("peft_config.target_modules"),
    "module_dropout": _for_oft("peft_config.module_dropout"),
    "quantization_bit": Key("quantization", _quantization),
    "pure_bf16": switch("model_dtype", "bfloat16"),
    "flash_attn": Key("attn_implementation", _attention),
    "enable_liger_kernel": switch("loss_kernel", "liger"),
    "disable_gradient_checkpointing": Key("training_args.gradient_checkpointing", _checkpointing),
    "freeze_vision_tower": Key("freezeV"),
    "trust_remote_code": Key("trust_remote_code"),
    "use_swanlab": Key("swanlab", _swanlab),
    "deepspeed": Key("training_args.deepspeed", deepspeed, takes=(dict,)),
    **{key: Key(f"training_args.generation_config.{key}") for key in GENERATION},
    "micro_batch_size": Key("training_args.per_device_train_batch_size"),
    "enable_activation_checkpointing": Key("training_args.gradient_checkpointing"),
}
"""Keys that have a place here; arguments of transformers have theirs under their own names, in `training_args`."""

LEFT = left(
    {
        TEMPLATE: "template tool_format enable_thinking preserve_thinking custom_chat_template",
        IN_ROWS: "default_system",
        SAMPLES: "max_samples mix_strategy interleave_probs eval_on_each_dataset",
        STREAMING: "streaming buffer_size overwrite_cache preprocessing_batch_size tokenized_path "
        "data_shared_file_system batching_workers",
        PICTURES: "media_dir image_max_pixels image_min_pixels image_do_pan_and_scan crop_to_patches video_max_pixels "
        "video_min_pixels video_fps video_maxlen use_audio_in_video audio_sampling_rate freeze_multi_modal_projector "
        "freeze_language_model",
        "only answers are trained": "train_on_prompt",
        BY_ITSELF: "ignore_pad_token_for_loss use_fast_tokenizer low_cpu_mem_usage offload_folder use_kv_cache "
        "quantization_type double_quantization quantization_device_map quantization_method plot_loss upcast_layernorm "
        "upcast_lmhead_output use_unsloth_gc use_reentrant_gc infer_dtype print_param_status compute_dtype device_map "
        "model_max_length block_diag_attn eval_num_beams split_special_tokens skip_special_tokens model_class "
        "init_config save_ckpt_as_hf swanlab_mode overwrite_output_dir",
        NOT_RESUMED: "adapter_name_or_path adapter_folder create_new_adapter",
        SAME_SOURCE: "cache_dir model_revision hf_hub_token ms_hub_token om_hub_token",
        TOKENS: "resize_vocab add_tokens add_special_tokens new_special_tokens_config init_special_tokens",
        NEW_MODEL: "rope_scaling shift_attn mixture_of_depths moe_aux_loss_coef train_from_scratch",
        KERNELS: "use_unsloth use_v1_kernels kernel_config",
        PARALLEL: "use_mca use_megatron_bridge megatron_bridge_args use_hyper_parallel hyper_parallel_args "
        "hyper_parallel_cp_size dp_size cp_size cp_mode mp_replicate_size mp_shard_size use_kt kt_config "
        "kt_cpu_activation kt_weight_path kt_non_expert_weight_path kt_expert_checkpoint_path kt_use_lora_experts "
        "kt_lora_expert_num kt_lora_expert_intermediate_size tensor_model_parallel_size pipeline_model_parallel_size "
        "expert_model_parallel_size context_parallel_size virtual_pipeline_model_parallel_size sequence_parallel",
        LAUNCHER: "ray_num_workers ray_init_kwargs master_addr master_port dist_timeout",
        EXPORT: "export_dir export_size export_device export_quantization_bit export_quantization_dataset "
        "export_quantization_nsamples export_quantization_maxlen export_legacy_format export_hub_model_id",
        SERVE: "infer_backend vllm_maxlen vllm_gpu_util vllm_enforce_eager vllm_max_lora_rank vllm_config "
        "sglang_maxlen sglang_mem_fraction sglang_tp_size sglang_config sglang_lora_backend sample_backend",
        ANSWERING: "max_length",
        "`glmtune eval` scores a file of rows": "task task_dir batch_size lang n_shot save_dir download_mode",
        OTHER_TRAINING: "freeze_trainable_layers freeze_trainable_modules freeze_extra_modules use_llama_pro "
        "use_dft_loss use_asft_loss asft_alpha use_eaft_loss eaft_alpha disable_shuffling fp8 fp8_backend "
        "fp8_enable_fsdp_float8_all_gather",
        "an adapter that changes the weights below it would not be the trained model": "pissa_init pissa_iter "
        "pissa_convert",
        PREFERENCES: "pref_beta pref_ftx pref_bco_weight pref_loss dpo_label_smoothing kto_chosen_weight "
        "kto_rejected_weight simpo_gamma ppo_buffer_size ppo_epochs ppo_score_norm ppo_target ppo_whiten_rewards "
        "ref_model ref_model_adapters ref_model_quantization_bit reward_model reward_model_adapters "
        "reward_model_quantization_bit reward_model_type ld_alpha",
        OTHER_OPTIMIZER: "loraplus_lr_ratio loraplus_lr_embedding use_adam_mini use_muon use_badam badam_mode "
        "badam_start_block badam_switch_mode badam_switch_interval badam_update_ratio badam_mask_mode badam_verbose "
        "optim_config lr_scheduler_config",
        "`training_args.optim: galore_adamw` or `apollo_adamw`, with `optim_target_modules`": (
            "use_galore galore_target galore_rank galore_update_interval galore_scale galore_proj_type "
            "galore_layerwise use_apollo apollo_target apollo_rank apollo_update_interval apollo_scale apollo_proj "
            "apollo_proj_type apollo_scale_type apollo_layerwise apollo_scale_front"
        ),
        TRACKERS: "swanlab_project swanlab_workspace swanlab_run_name swanlab_api_key swanlab_logdir "
        "swanlab_lark_webhook_url swanlab_lark_secret",
        "evaluations have BLEU-4, ROUGE and the accuracy of tool calls": "compute_accuracy",
        "`training_args.include_num_input_tokens_seen` counts tokens": "include_effective_tokens_per_second",
        PROFILER: "enable_torch_profiler profiler_output_dir profiler_wait_steps profiler_warmup_steps "
        "profiler_active_steps profiler_repeat profiler_record_shapes profiler_profile_memory profiler_with_stack "
        "profile_modules",
        "set `training_args.fsdp`, or name a file of DeepSpeed's": "dist_config",
        "set `quantization: 4bit` or `8bit`": "quant_config",
        "set `training_args.gradient_accumulation_steps`: global size / (micro size × processes)": "global_batch_size",
        "rows are laid end to end (`packing`, `tokens_per_batch`)": "batching_strategy",
        "set `training_args.save_strategy: epoch`": "save_epochs",
    }
)
"""Keys that have none, and why."""
