"""Configurations of axolotl: each key, and what it is here.

The names are those of `src/axolotl/utils/schemas` in axolotl of July 2026.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from glmtune.config.other_tools import AXOLOTL

from .axolotl_data import data_sets_of
from .data_sets import put_data_sets
from .draft import Draft, Key, Translation
from .shared_keys import (
    BY_ITSELF,
    CALLBACKS,
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
    deepspeed,
    left,
    lengths,
    named_model,
    settle_evaluation,
    translate_keys,
)

LENGTH = 512
"""Tokens of a row where nothing is said."""


def translate_axolotl(source: Mapping[str, Any], file: Path) -> Translation:
    """Return a YAML of axolotl in our keys, and its defaults where they differ from ours."""
    draft = Draft(tool=AXOLOTL, source=source, file=file)
    translate_keys(draft, KEYS, LEFT, has_arguments=False)
    if "max_input_length" not in draft.values:
        draft.default("max_input_length", LENGTH // 2, f"there, a row has {LENGTH} tokens where nothing is said")
        draft.default("max_output_length", LENGTH // 2)
    if draft.values.get("peft_config.peft_type") == "LORA":
        draft.default("peft_config.lora_dropout", 0.0)
    for key, value in DEFAULTS.items():
        draft.default(key, value)
    settle_evaluation(draft, "epoch")
    return draft.finish()


DEFAULTS = {
    "truncation": "drop",
    "training_args.num_train_epochs": 1,
    "training_args.per_device_train_batch_size": 1,
    "training_args.lr_scheduler_type": "cosine",
}
"""What axolotl does where nothing is said, and we do otherwise."""


def _adapter(draft: Draft, key: str, value: Any) -> None:
    if value in ("lora", "qlora"):
        draft.put("peft_config.peft_type", "LORA", key)
        if value == "qlora":
            draft.put("quantization", "4bit", key)
    else:
        draft.leave(key, "write PEFT's name of the method into `peft_config.peft_type`, and its keys below")


def _in_adapter(place: str) -> Key:
    def read(draft: Draft, key: str, value: Any) -> None:
        if draft.source.get("adapter") in ("lora", "qlora"):
            is_list = place.endswith("target_modules") and not isinstance(value, (list, str))
            draft.put(place, [value] if is_list else value, key)
        else:
            draft.leave(key, "every weight is trained, without an adapter")

    if place in ("peft_config.r", "peft_config.lora_alpha", "peft_config.lora_dropout"):
        return Key(place, read)
    is_of_names = place.endswith(("target_modules", "modules_to_save", "target_parameters"))
    return Key(place, read, takes=(list,) if is_of_names else (list, dict))


def _linear(draft: Draft, key: str, value: Any) -> None:
    if value is True and draft.source.get("adapter") in ("lora", "qlora"):
        draft.put("peft_config.target_modules", "all-linear", key)
    else:
        draft.leave(key, BY_ITSELF)


def _bits(bits: int) -> Key:
    def read(draft: Draft, key: str, value: Any) -> None:
        if value is True and draft.values.get("quantization") == f"{bits}bit":
            draft.leave(key, "`adapter: qlora` says it, too")
        elif value is True:
            draft.put("quantization", f"{bits}bit", key)
        else:
            draft.leave(key, BY_ITSELF)

    return Key("quantization", read)


def _data(draft: Draft, key: str, value: Any) -> None:
    place = "data_config.val_file" if key == "test_datasets" else "data_config.train_file"
    entries = value if isinstance(value, list) else [value]
    data_sets = [data_sets_of(draft, key, entry) for entry in entries]
    put_data_sets(draft, place, [each for some in data_sets for each in some], key)


def _val_size(draft: Draft, key: str, value: Any) -> None:
    if value and not draft.source.get("test_datasets"):
        draft.put("data_config.val_size", value, key)
    else:
        draft.leave(key, "`test_datasets` names the rows to evaluate on" if value else BY_ITSELF)


def _overlong(draft: Draft, key: str, value: Any) -> None:
    if value in ("drop", "truncate", "raise"):
        draft.put("truncation", {"drop": "drop", "truncate": "right", "raise": "error"}[value], key)
    else:
        draft.leave(key, "expected `drop`, `truncate` or `raise`")


def _packing(draft: Draft, key: str, value: Any) -> None:
    if value is True:
        draft.put("packing", True, key, "rows of a micro-batch; `tokens_per_batch` fills it with more")
    else:
        draft.leave(key, "packed rows never see each other here; `packing: false` pads")


def _half(draft: Draft, key: str, value: Any) -> None:
    name = "bf16" if key in ("bf16", "bfloat16") else "fp16"
    if value is True or value == "full":
        draft.put(f"training_args.{name}", True, key)
        if value == "full" or key in ("bfloat16", "float16"):
            draft.put("model_dtype", "bfloat16" if name == "bf16" else "float16", key)
    else:
        draft.leave(key, BY_ITSELF)


def _checkpointing(draft: Draft, key: str, value: Any) -> None:
    draft.put("training_args.gradient_checkpointing", bool(value), key)


def _tf32(draft: Draft, key: str, value: Any) -> None:
    if value is True:
        draft.put("training_args.tf32", True, key)
    else:
        draft.leave(key, BY_ITSELF)


def _warmup(draft: Draft, key: str, value: Any) -> None:
    if value and "training_args.warmup_steps" not in draft.values:
        draft.put("training_args.warmup_steps", value, key)
    else:
        draft.leave(key, "`warmup_steps` says it, too" if value else BY_ITSELF)


def _by_length(draft: Draft, key: str, value: Any) -> None:
    if value is True:
        draft.put("training_args.train_sampling_strategy", "group_by_length", key)
    else:
        draft.leave(key, BY_ITSELF)


def _per_epoch(event: str) -> Key:
    """Return what turns times of an epoch into a share of all steps."""

    def read(draft: Draft, key: str, value: Any) -> None:
        epochs = draft.source.get("num_epochs", 1)
        is_number = all(isinstance(each, (int, float)) and each > 0 for each in (value, epochs))
        if not is_number:
            draft.leave(key, BY_ITSELF)
        elif value == 1 or value * epochs <= 1:
            draft.put(f"training_args.{event}_strategy", "epoch", key)
        else:
            draft.put(f"training_args.{event}_strategy", "steps", key)
            draft.put(f"training_args.{event}_steps", round(1 / (value * epochs), 6), key, "a share of all steps")

    return Key(f"training_args.{event}_strategy, training_args.{event}_steps", read)


def _steps(event: str) -> Key:
    def read(draft: Draft, key: str, value: Any) -> None:
        draft.put(f"training_args.{event}_steps", value, key)
        if f"{event}_strategy" not in draft.source:
            draft.put(f"training_args.{event}_strategy", "steps", key)

    return Key(f"training_args.{event}_steps", read)


def _attention(name: str) -> Key:
    def read(draft: Draft, key: str, value: Any) -> None:
        if value is True and name:
            draft.put("attn_implementation", name, key)
        elif value and not name:
            draft.put("attn_implementation", str(value), key)
        else:
            draft.leave(key, BY_ITSELF)

    return Key("attn_implementation", read)


def _swanlab(draft: Draft, key: str, value: Any) -> None:
    mode = draft.source.get("swanlab_mode", "cloud")
    if value is True:
        draft.put("swanlab", mode if mode in ("cloud", "local", "disabled") else "cloud", key)
    else:
        draft.leave(key, BY_ITSELF)


def _tracker(name: str) -> Key:
    def read(draft: Draft, key: str, value: Any) -> None:
        if value:
            names = [*draft.values.get("training_args.report_to", []), name]
            draft.put("training_args.report_to", list(dict.fromkeys(names)), key)
        else:
            draft.leave(key, BY_ITSELF)

    return Key(f"training_args.report_to: [{name}]", read)


ARGUMENTS = {
    "output_dir": "output_dir",
    "micro_batch_size": "per_device_train_batch_size",
    "eval_batch_size": "per_device_eval_batch_size",
    "gradient_accumulation_steps": "gradient_accumulation_steps",
    "num_epochs": "num_train_epochs",
    "max_steps": "max_steps",
    "learning_rate": "learning_rate",
    "optimizer": "optim",
    "optim_args": "optim_args",
    "optim_target_modules": "optim_target_modules",
    "lr_scheduler": "lr_scheduler_type",
    "lr_scheduler_kwargs": "lr_scheduler_kwargs",
    "weight_decay": "weight_decay",
    "max_grad_norm": "max_grad_norm",
    "adam_beta1": "adam_beta1",
    "adam_beta2": "adam_beta2",
    "adam_epsilon": "adam_epsilon",
    "gradient_checkpointing_kwargs": "gradient_checkpointing_kwargs",
    "neftune_noise_alpha": "neftune_noise_alpha",
    "noisy_embedding_alpha": "neftune_noise_alpha",
    "eval_strategy": "eval_strategy",
    "evaluation_strategy": "eval_strategy",
    "save_strategy": "save_strategy",
    "save_total_limit": "save_total_limit",
    "save_only_model": "save_only_model",
    "logging_steps": "logging_steps",
    "load_best_model_at_end": "load_best_model_at_end",
    "metric_for_best_model": "metric_for_best_model",
    "greater_is_better": "greater_is_better",
    "seed": "seed",
    "fsdp": "fsdp",
    "fsdp_config": "fsdp_config",
    "ddp_timeout": "ddp_timeout",
    "ddp_bucket_cap_mb": "ddp_bucket_cap_mb",
    "ddp_broadcast_buffers": "ddp_broadcast_buffers",
    "ddp_find_unused_parameters": "ddp_find_unused_parameters",
    "dataloader_pin_memory": "dataloader_pin_memory",
    "dataloader_num_workers": "dataloader_num_workers",
    "dataloader_prefetch_factor": "dataloader_prefetch_factor",
    "dataloader_drop_last": "dataloader_drop_last",
    "accelerator_config": "accelerator_config",
    "torch_compile": "torch_compile",
    "torch_compile_backend": "torch_compile_backend",
    "torch_compile_mode": "torch_compile_mode",
    "torch_empty_cache_steps": "torch_empty_cache_steps",
    "include_tokens_per_second": "include_num_input_tokens_seen",
}
"""Keys that are arguments of transformers, and their names there."""

ADAPTER = {
    "lora_r": "r",
    "lora_alpha": "lora_alpha",
    "lora_dropout": "lora_dropout",
    "lora_target_modules": "target_modules",
    "lora_target_parameters": "target_parameters",
    "lora_modules_to_save": "modules_to_save",
    "lora_rank_pattern": "rank_pattern",
    "lora_alpha_pattern": "alpha_pattern",
    "lora_fan_in_fan_out": "fan_in_fan_out",
    "peft_layers_to_transform": "layers_to_transform",
    "peft_layers_pattern": "layers_pattern",
    "peft_use_dora": "use_dora",
    "peft_use_rslora": "use_rslora",
    "peft_layer_replication": "layer_replication",
    "peft_init_lora_weights": "init_lora_weights",
    "peft_trainable_token_indices": "trainable_token_indices",
    "peft_ensure_weight_tying": "ensure_weight_tying",
}

KEYS: dict[str, Key] = {
    "base_model": Key("MODEL", named_model),
    "early_stopping_patience": Key("early_stopping_patience"),
    "datasets": Key("data_config.train_file, data_config.columns", _data, takes=(list, dict)),
    "test_datasets": Key("data_config.val_file", _data, takes=(list, dict)),
    "val_set_size": Key("data_config.val_size", _val_size),
    "dataset_num_proc": Key("data_config.num_proc"),
    "dataset_processes": Key("data_config.num_proc"),
    "sequence_len": Key("max_input_length + max_output_length", lengths),
    "excess_length_strategy": Key("truncation", _overlong),
    "sample_packing": Key("packing", _packing),
    "adapter": Key("`peft_config.peft_type`, and `quantization` for `qlora`", _adapter),
    "lora_target_linear": Key("peft_config.target_modules: all-linear", _linear),
    **{key: _in_adapter(f"peft_config.{ours}") for key, ours in ADAPTER.items()},
    "load_in_4bit": _bits(4),
    "load_in_8bit": _bits(8),
    "bf16": Key("training_args.bf16", _half),
    "bfloat16": Key("training_args.bf16, model_dtype", _half),
    "fp16": Key("training_args.fp16", _half),
    "float16": Key("training_args.fp16, model_dtype", _half),
    "tf32": Key("training_args.tf32", _tf32),
    "gradient_checkpointing": Key("training_args.gradient_checkpointing", _checkpointing),
    "warmup_steps": Key("training_args.warmup_steps", _warmup),
    "warmup_ratio": Key("training_args.warmup_steps", _warmup),
    "group_by_length": Key("training_args.train_sampling_strategy", _by_length),
    "deepspeed": Key("training_args.deepspeed", deepspeed, takes=(dict,)),
    **{key: Key(f"training_args.{ours}") for key, ours in ARGUMENTS.items()},
    "saves_per_epoch": _per_epoch("save"),
    "evals_per_epoch": _per_epoch("eval"),
    "save_steps": _steps("save"),
    "eval_steps": _steps("eval"),
    "attn_implementation": _attention(""),
    "flash_attention": _attention("flash_attention_2"),
    "sdp_attention": _attention("sdpa"),
    "eager_attention": _attention("eager"),
    "flex_attention": _attention("flex_attention"),
    "use_wandb": _tracker("wandb"),
    "wandb_project": _tracker("wandb"),
    "use_tensorboard": _tracker("tensorboard"),
    "use_mlflow": _tracker("mlflow"),
    "use_comet": _tracker("comet_ml"),
    "use_trackio": _tracker("trackio"),
    "use_swanlab": Key("swanlab", _swanlab),
    "trust_remote_code": Key("trust_remote_code"),
}
"""Keys that have a place here."""

LEFT = left(
    {
        TEMPLATE: "chat_template chat_template_jinja chat_template_kwargs eot_tokens role_boundaries",
        IN_ROWS: "default_system_message",
        STREAMING: "dataset_prepared_path dataset_keep_in_memory skip_prepare_dataset num_dataset_shards_to_save "
        "streaming streaming_multipack_buffer_size shuffle_merged_datasets shuffle_before_merging_datasets "
        "is_preprocess preprocess_iterable push_dataset_to_hub pretrain_multipack_buffer_size "
        "pretraining_sample_concatenation pretrain_multipack_attn",
        SAMPLES: "dataset_shard_num dataset_shard_idx",
        "rows of plain text, `{text: ...}`, are trained as such: name their files in `train_file`": (
            "pretraining_dataset"
        ),
        "near-duplicates between training and validation rows are told at the start": "dataset_exact_deduplication",
        PICTURES: "processor_type processor_kwargs image_size image_resize_algorithm freeze_mm_modules",
        "only answers are trained": "train_on_inputs",
        BY_ITSELF: "pad_to_sequence_len pad_to_multiple_of sample_packing_group_size sample_packing_bin_size "
        "sample_packing_sequentially sample_packing_mp_start_method eval_sample_packing multipack_real_batches "
        "batch_flattening remove_unused_columns model_type tokenizer_type tokenizer_config tokenizer_use_fast "
        "tokenizer_legacy tokenizer_save_jinja_files tokenizer_use_mistral_common base_model_config cls_model_config "
        "type_of_model save_safetensors is_falcon_derived_model is_llama_derived_model is_mistral_derived_model "
        "is_qwen_derived_model device device_map max_memory gpu_memory_limit low_cpu_mem_usage strict "
        "experimental_skip_move_to_device float32 total_num_tokens total_supervised_tokens sample_packing_eff_est "
        "axolotl_config_path capabilities env_capabilities include_tkps lora_on_cpu max_packed_sequence_len "
        "peft_autocast_adapter_dtype qlora_sharded_model_loading embeddings_skip_upcast fp32_norms fp32_norm_classes "
        "gc_steps gc_collect_steps save_first_step eval_table_size eval_max_new_tokens "
        "bnb_config_kwargs loss_watchdog_threshold loss_watchdog_patience",
        "`max_input_length` and `max_output_length` hold for evaluations, too": "eval_sequence_len max_prompt_len",
        "rows are not left out for being short": "min_sample_len",
        "set `per_device_train_batch_size` and `gradient_accumulation_steps`": "batch_size auto_find_batch_size",
        "`glmtune resume RUN_DIR` goes on with a run": "resume_from_checkpoint auto_resume_from_checkpoints",
        NOT_RESUMED: "lora_model_dir",
        SAME_SOURCE: "revision_of_model hf_use_auth_token hub_revision",
        TOKENS: "special_tokens tokens added_tokens_overrides resize_token_embeddings_to_32x mean_resizing_embeddings "
        "shrink_embeddings fix_untrained_tokens",
        NEW_MODEL: "overrides_of_model_config overrides_of_model_kwargs rope_scaling reinit_weights num_labels "
        "model_quantization_config model_quantization_config_kwargs use_onebitllms gptq gptq_groupsize gptq_model_v1 "
        "gptq_disable_exllama model_config scaling_softmax "
        "scaling_softmax_factor scaling_softmax_bias llama4_linearized_experts quantize_moe_experts",
        KERNELS: "use_kernels flash_attn_cross_entropy flash_attn_rms_norm flash_attn_fuse_mlp flash_optimum "
        "lora_mlp_kernel lora_qkv_kernel lora_o_kernel lora_embedding_kernel chunked_cross_entropy "
        "chunked_cross_entropy_num_chunks tiled_mlp tiled_mlp_num_shards tiled_mlp_use_original_mlp "
        "experts_implementation xformers_attention sage_attention s2_attention flex_attn_compile_kwargs "
        "gemma4_hybrid_attn_impl large_head_attention flash_attn_d512 sdpa_varlen fused_attn_kernel "
        "liger_rope liger_rms_norm liger_rms_norm_gated liger_layer_norm liger_swiglu liger_glu_activation "
        "liger_cross_entropy liger_fused_linear_cross_entropy liger_use_token_scaling cut_cross_entropy expert_backend "
        "moe_grouped_backend moe_dequant_chunk_size moe_bnb_fast use_scattermoe use_sonicmoe use_dsv4_kernels "
        "use_glm_dsa_kernels dsv4_fp8_nonexpert_mode dsv4_fp8_lora_kernel dsv4_shared_mlp_lora_kernel dsv4_bf16_all "
        "dsv4_fp4_grouped_mode gemma4_fp8_nonexpert gemma4_nf4_nonexpert nonexpert_quantization",
        "checkpointing is on or off; what is kept of a layer is transformers' choice": "selective_checkpointing "
        "activation_offloading layer_offloading",
        PARALLEL: "sequence_parallel_degree context_parallel_size heads_k_stride ring_attn_func tensor_parallel_size "
        "dp_shard_size dp_replicate_size expert_parallel_size expert_parallel_backend expert_parallel_num_nvl_bytes "
        "expert_parallel_num_rdma_bytes expert_parallel_token_capacity expert_parallel_fallback_on_unsupported",
        LAUNCHER: "world_size local_rank ddp use_ray ray_run_name ray_num_workers resources_per_worker deepcompile "
        "fsdp_version fsdp_final_state_dict_type torch_compile_options",
        EXPORT: "hub_model_id hub_strategy merge_lora merge_method",
        SERVE: "gradio_title gradio_share gradio_server_name gradio_server_port gradio_max_new_tokens "
        "gradio_temperature vllm",
        OTHER_TRAINING: "relora relora_prune_ratio relora_prune_method relora_cpu_offload jagged_restart_steps "
        "jagged_restart_warmup_steps jagged_restart_anneal_steps lisa_n_layers lisa_step_interval "
        "lisa_layers_attribute unfrozen_parameters use_pose pose_split_on_token_ids pose_max_context_len "
        "pose_num_chunks curriculum_sampling use_eaft eaft_alpha eaft_k qat quantization fp8 "
        "fp8_enable_fsdp_float8_all_gather process_reward_model ebft dynamic_checkpoint "
        "use_mora mora_type mora diffusion dense_mixer hatchery kd_trainer kd_ce_alpha kd_alpha kd_temperature kd_beta "
        "kd_normalize_topk kd_online_server_base_url kd_online_topk kd_online_server kd_online_timeout "
        "kd_temperature_min spectrum_top_fraction spectrum_model_name llmcompressor grokfast_alpha grokfast_lamb "
        "nvfp4_merge_aware nvfp4_merge_aware_start_step",
        "an adapter that changes the weights below it would not be the trained model": "peft",
        OTHER_OPTIMIZER: "embedding_lr embedding_lr_scale loraplus_lr_ratio loraplus_lr_embedding lr_quadratic_warmup "
        "cosine_min_lr_ratio cosine_constant_lr_ratio lr_div_factor lr_groups torchdistx_path adam_epsilon2 adam_beta3 "
        "dion_lr dion_momentum dion_rank_fraction dion_rank_multiple_of qgalore_rank qgalore_update_proj_gap "
        "qgalore_scale qgalore_proj_type qgalore_proj_quant qgalore_proj_bits qgalore_proj_group_size "
        "qgalore_cos_threshold qgalore_gamma_proj qgalore_queue_size",
        PREFERENCES: "rl trl rl_beta dpo_beta reward_model center_rewards_coefficient dpo_use_weighting "
        "dpo_label_smoothing precompute_ref_log_probs dpo_use_liger_kernel dpo_padding_free dpo_loss_type "
        "dpo_loss_weights dpo_use_logits_to_keep dpo_generate_during_eval dpo_norm_loss rpo_alpha orpo_alpha "
        "simpo_gamma cpo_alpha kto_desirable_weight kto_undesirable_weight nemo_gym_enabled "
        "nemo_gym_dir nemo_gym_auto_clone nemo_gym_config_paths nemo_gym_head_port nemo_gym_server_timeout "
        "nemo_gym_verify_timeout nemo_gym_run_timeout nemo_gym_datasets nemo_gym_auto_start nemo_gym_model_name "
        "nemo_gym_multi_turn nemo_gym_max_turns",
        "evaluations have the loss, BLEU-4, ROUGE and the accuracy of tool calls": "do_causal_lm_eval "
        "eval_causal_lm_metrics do_bench_eval bench_dataset bench_split generate_samples num_generation_samples "
        "generation_max_new_tokens generation_temperature generation_top_p generation_top_k generation_prompt_ratio "
        "generation_do_sample lm_eval_tasks lm_eval_batch_size lm_eval_post_train lm_eval_model",
        CALLBACKS: "plugins trainer_cls",
        TRACKERS: "wandb_name wandb_run_id wandb_mode wandb_entity wandb_watch wandb_log_model mlflow_tracking_uri "
        "mlflow_experiment_name mlflow_run_name hf_mlflow_log_artifacts comet_api_key comet_workspace "
        "comet_project_name comet_experiment_key comet_mode comet_online comet_experiment_config trackio_project_name "
        "trackio_run_name trackio_space_id use_otel_metrics otel_metrics_host otel_metrics_port swanlab_project "
        "swanlab_experiment_name swanlab_description swanlab_mode swanlab_workspace swanlab_api_key swanlab_log_model "
        "swanlab_web_host swanlab_api_host swanlab_lark_webhook_url swanlab_lark_secret swanlab_log_completions "
        "swanlab_completion_log_interval swanlab_completion_max_buffer",
        PROFILER: "profiler_steps profiler_steps_start",
    }
)
"""Those that have none, and why."""
