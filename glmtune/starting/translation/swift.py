"""Arguments of ms-swift, for `swift sft`: each of them, and what it is here.

The names are those of `swift/arguments` and `swift/trainers/arguments.py` in ms-swift of August 2026, and older ones.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from glmtune.config.other_tools import SWIFT

from .data_sets import DataSet, hub_name, is_on_hub, put_data_sets
from .draft import Draft, Key, Translation, texts_in
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
    switch,
    translate_keys,
)

METHOD_KEYS = ("train_type", "tuner_type", "sft_type")
"""The method, by its name in versions of ms-swift, which this one calls `tuner_type`."""
TRUNCATIONS = {"delete": "drop", "right": "right"}
ATTENTION = {"flash_attn": "flash_attention_2"}
OTHER_METHODS = (
    "write PEFT's name of the method into `peft_config.peft_type`, and its keys below; LoRA stands there now"
)
TRAINED_IN_BATCHES_OF = 16
"""Rows of a step, which ms-swift comes to where nothing is said of accumulation."""


def translate_swift(source: Mapping[str, Any], file: Path, *, verb: str = "sft") -> Translation:
    """Return the arguments of ms-swift in our keys, and its defaults where they differ from ours."""
    draft = Draft(tool=SWIFT, source=source, file=file)
    if verb == "rlhf":
        draft.leave("swift rlhf", PREFERENCES, verb)
    elif verb == "pt":
        draft.leave("swift pt", "rows of plain text, `{text: ...}`, are trained as such by `glmtune train`", verb)
    is_full = any(source.get(key) == "full" for key in METHOD_KEYS)
    translate_keys(draft, KEYS, LEFT, has_arguments=True)
    if not is_full:
        draft.default("peft_config.peft_type", "LORA")
    if draft.values.get("peft_config.peft_type") == "LORA":
        draft.default("peft_config.r", 8)
        draft.default("peft_config.lora_alpha", 32)
        draft.default("peft_config.lora_dropout", 0.05)
        draft.default("peft_config.target_modules", "all-linear")
    if "max_input_length" not in draft.values:
        draft.default("max_input_length", 1024, "there, a row may have as many tokens as the model takes")
        draft.default("max_output_length", 1024)
    draft.default("training_args.learning_rate", 1e-5 if is_full else 1e-4)
    draft.default("training_args.per_device_train_batch_size", 1)
    rows = draft.values["training_args.per_device_train_batch_size"]
    if isinstance(rows, int) and rows > 0:
        steps = max(1, math.ceil(TRAINED_IN_BATCHES_OF / rows))
        note = f"the default of {SWIFT} on one device: {TRAINED_IN_BATCHES_OF} rows a step"
        draft.default("training_args.gradient_accumulation_steps", steps, note)
    for key, value in DEFAULTS.items():
        draft.default(key, value)
    settle_evaluation(draft, "steps")
    return draft.finish()


DEFAULTS = {
    "truncation": "drop",
    "training_args.weight_decay": 0.1,
    "training_args.adam_beta2": 0.95,
    "training_args.lr_scheduler_type": "cosine",
    "training_args.gradient_checkpointing": True,
    "training_args.logging_steps": 5,
}
"""What ms-swift does where nothing is said, and we do otherwise."""


def _method(draft: Draft, key: str, value: Any) -> None:
    if value == "full":
        draft.leave(key, "every weight is trained where there is no `peft_config`")
        return
    draft.put("peft_config.peft_type", "LORA", key)
    if value != "lora":
        draft.leave(key, OTHER_METHODS)


def _adapter(place: str) -> Key:
    """Return what puts a value into `peft_config`, unless every weight is trained."""

    def read(draft: Draft, key: str, value: Any) -> None:
        if any(draft.source.get(each) == "full" for each in METHOD_KEYS):
            draft.leave(key, "every weight is trained, without an adapter")
            return
        draft.default("peft_config.peft_type", "LORA")
        if place.endswith(("target_modules", "modules_to_save")) and key != "target_regex":
            value = value if isinstance(value, list) else [value]
            if [str(each).lower() for each in value] in (["all-linear"], ["all"]):
                value = "all-linear"
            elif any(str(each).startswith("all-") for each in value):
                draft.leave(key, "`all-embedding` and `all-norm` stand for names of layers: write those")
                return
        if place.endswith("init_lora_weights"):
            value = {"true": True, "false": False}.get(str(value).lower(), value)
        draft.put(place, value, key)

    is_of_names = place.endswith(("target_modules", "modules_to_save", "target_parameters"))
    return Key(place, read, takes=(list,) if is_of_names else ())


def _data(draft: Draft, key: str, value: Any) -> None:
    place = "data_config.val_file" if key == "val_dataset" else "data_config.train_file"
    names = value if isinstance(value, list) else str(value).split()
    data_sets = [_data_set(draft, key, str(name)) for name in names]
    put_data_sets(draft, place, [each for each in data_sets if each is not None], key)


def _data_set(draft: Draft, key: str, name: str) -> DataSet | None:
    """Return a data set of `hub::name:subset#rows`, or a file; None where it cannot be named here."""
    path, _, sample = name.partition("#") if not Path(name).exists() else (name, "", "")
    if sample:
        draft.leave(key, f"`#{sample}`: {SAMPLES}", name)
    hub, has_hub, rest = path.partition("::")
    path = rest if has_hub else path
    is_huggingface = hub.lower() == "hf" if has_hub else bool(draft.source.get("use_hf"))
    path, _, subset = path.partition(":") if not re.match(r"[A-Za-z]:[\\/]", path) else (path, "", "")
    if subset:
        draft.leave(key, f"`:{subset}`: a subset cannot be named; download its files, and name those", name)
    if is_on_hub(path, draft.file.parent):
        path = hub_name(path, hub="hub" if is_huggingface else "modelscope")
    return DataSet(name=name, path=path, columns=draft.values.get("data_config.columns", {}))


def _columns(draft: Draft, key: str, value: Any) -> None:
    """Turn what the file calls a column into what a column is called in the file."""
    try:
        named = json.loads(value) if isinstance(value, str) else value
    except ValueError:
        named = None
    if not isinstance(named, dict):
        draft.leave(key, "expected an object: the file's name of a column, and what it is")
        return
    names = texts_in(draft, key, named)
    draft.put("data_config.columns", {ours: str(own) for own, ours in names.items()}, key)


def _share(draft: Draft, key: str, value: Any) -> None:
    if value and not draft.source.get("val_dataset"):
        draft.put("data_config.val_size", value, key)
    else:
        draft.leave(key, "`val_dataset` names the rows to evaluate on" if value else BY_ITSELF)


def _truncation(draft: Draft, key: str, value: Any) -> None:
    if str(value) in TRUNCATIONS:
        draft.put("truncation", TRUNCATIONS[str(value)], key)
    else:
        draft.leave(key, "rows are cut at their end (`right`), left out (`drop`), or lose their turns (`drop_turns`)")


def _loss_scale(draft: Draft, key: str, value: Any) -> None:
    if value == "last_round":
        draft.put("train_on", "last", key)
    elif value == "default":
        draft.leave(key, BY_ITSELF)
    else:
        draft.leave(key, "every token of an answer weighs the same; a message may have a weight of its own, `loss`")


def _type(draft: Draft, key: str, value: Any) -> None:
    name = str(value).removeprefix("torch.")
    if name in ("bfloat16", "bf16"):
        draft.put("training_args.bf16", True, key)
    elif name in ("float16", "fp16"):
        draft.leave(key, "GLM's loss turns to 0 or NaN in fp16: set `training_args.bf16: true`, or nothing")
    elif name == "float32":
        draft.put("model_dtype", name, key)
    else:
        draft.leave(key, BY_ITSELF)


def _attention(draft: Draft, key: str, value: Any) -> None:
    draft.put("attn_implementation", ATTENTION.get(str(value), str(value)), key)


def _quantization(draft: Draft, key: str, value: Any) -> None:
    method = str(draft.source.get("quant_method", "bnb")).lower()
    if value in (4, 8) and method == "bnb":
        draft.put("quantization", f"{value}bit", key)
    else:
        draft.leave(key, "weights are quantized by bitsandbytes, to 4 or 8 bits")


def _swanlab(draft: Draft, key: str, value: Any) -> None:
    if "swanlab" in str(draft.source.get("report_to")):
        draft.put("swanlab", value, key)
    else:
        draft.leave(key, "`report_to` does not name SwanLab")


def _reporters(draft: Draft, key: str, value: Any) -> None:
    names = [str(name) for name in value] if isinstance(value, list) else str(value).split()
    others = [name for name in names if name != "swanlab"]
    if "swanlab" in names:
        draft.put("swanlab", draft.source.get("swanlab_mode", "cloud"), key)
    if others:
        draft.put("training_args.report_to", others, key)


def _answer(place: str) -> Key:
    return Key(f"training_args.generation_config.{place}")


KEYS: dict[str, Key] = {
    "model": Key("MODEL", named_model),
    "early_stop_interval": Key("early_stopping_patience"),
    "model_id_or_path": Key("MODEL", named_model),
    "columns": Key("data_config.columns", _columns, takes=(dict,)),
    "dataset": Key("data_config.train_file", _data, takes=(list,)),
    "val_dataset": Key("data_config.val_file", _data, takes=(list,)),
    "split_dataset_ratio": Key("data_config.val_size", _share),
    "strict": Key("data_config.strict"),
    "dataset_num_proc": Key("data_config.num_proc"),
    "max_length": Key("max_input_length + max_output_length", lengths),
    "truncation_strategy": Key("truncation", _truncation),
    "loss_scale": Key("`train_on: last` for `last_round`", _loss_scale),
    "packing": switch("packing", True),
    "padding_free": switch("packing", True),
    **{key: Key("`peft_config.peft_type`; no `peft_config` for `full`", _method) for key in METHOD_KEYS},
    "lora_rank": _adapter("peft_config.r"),
    "lora_alpha": _adapter("peft_config.lora_alpha"),
    "lora_dropout": _adapter("peft_config.lora_dropout"),
    "lora_dropout_p": _adapter("peft_config.lora_dropout"),
    "lora_bias": _adapter("peft_config.bias"),
    "target_modules": _adapter("peft_config.target_modules"),
    "lora_target_modules": _adapter("peft_config.target_modules"),
    "target_regex": _adapter("peft_config.target_modules"),
    "target_parameters": _adapter("peft_config.target_parameters"),
    "modules_to_save": _adapter("peft_config.modules_to_save"),
    "use_rslora": _adapter("peft_config.use_rslora"),
    "use_dora": _adapter("peft_config.use_dora"),
    "init_weights": _adapter("peft_config.init_lora_weights"),
    "quant_bits": Key("quantization", _quantization),
    "torch_dtype": Key("`training_args.bf16` for `bfloat16`", _type),
    "attn_impl": Key("attn_implementation", _attention),
    "use_liger_kernel": switch("loss_kernel", "liger"),
    "freeze_vit": Key("freezeV"),
    "deepspeed": Key("training_args.deepspeed", deepspeed, takes=(dict,)),
    "report_to": Key("`training_args.report_to`, or `swanlab`", _reporters, takes=(list,)),
    "swanlab_mode": Key("swanlab", _swanlab),
    "max_new_tokens": _answer("max_new_tokens"),
    "temperature": _answer("temperature"),
    "top_k": _answer("top_k"),
    "top_p": _answer("top_p"),
    "repetition_penalty": _answer("repetition_penalty"),
    "num_beams": _answer("num_beams"),
}
"""Arguments that have a place here; those of transformers have theirs under their own names, in `training_args`."""

LEFT = left(
    {
        TEMPLATE: "template agent_template use_chat_template template_backend response_prefix enable_thinking "
        "preserve_thinking add_non_thinking_prefix disable_ignore_empty_think norm_bbox is_binary_loss_scale",
        IN_ROWS: "system",
        STREAMING: "streaming shuffle_buffer_size load_from_cache_file lazy_tokenize cached_dataset "
        "cached_val_dataset download_mode interleave_prob stopping_strategy dataset_shuffle val_dataset_shuffle "
        "train_dataloader_shuffle custom_dataset_info disable_auto_column_mapping",
        PICTURES: "max_pixels freeze_llm freeze_aligner vit_gradient_checkpointing vit_lr aligner_lr",
        BY_ITSELF: "add_version create_checkpoint_symlink check_model tuner_backend load_args load_data_args "
        "ignore_args_error use_logits_to_keep packing_length packing_num_proc packing_strategy padding_side "
        "quant_method bnb_4bit_compute_dtype bnb_4bit_quant_type bnb_4bit_use_double_quant bnb_4bit_quant_storage "
        "acc_strategy safe_serialization enable_npu_model_patch ds3_gather_for_generation use_swift_lora lora_dtype "
        "logging_dir device_map max_memory model_type task_type init_strategy",
        NOT_RESUMED: "adapters resume_only_model",
        SAME_SOURCE: "use_hf hub_token model_revision local_repo_path",
        TOKENS: "new_special_tokens",
        NEW_MODEL: "rope_scaling max_model_len num_labels problem_type model_kwargs experts_impl router_aux_loss_coef",
        KERNELS: "loss_type",
        PARALLEL: "sequence_parallel_size zero_hpz_partition_size deepspeed_autotp_size",
        LAUNCHER: "use_ray ray_exp_name device_groups use_flash_ckpt",
        EXPORT: "merge_lora max_shard_size",
        SERVE: "stream logprobs top_logprobs stop_words structured_outputs_regex",
        "the identity of a model stands in the rows": "model_name model_author",
        OTHER_METHODS: "fourier_n_frequency fourier_scaling boft_block_size boft_block_num boft_n_butterfly_factor "
        "boft_dropout vera_rank vera_projection_prng_key vera_dropout vera_d_initial adapter_act adapter_length "
        "adalora_target_r adalora_init_r adalora_tinit adalora_tfinal adalora_deltaT adalora_beta1 adalora_beta2 "
        "adalora_orth_reg_weight llamapro_num_new_blocks llamapro_num_groups reft_layer_key reft_layers reft_rank "
        "reft_intervention_type reft_args lora_ga_batch_size lora_ga_iters lora_ga_max_length lora_ga_direction "
        "lora_ga_scale lora_ga_stable_gamma hqq_axis",
        OTHER_TRAINING: "freeze_parameters freeze_parameters_regex freeze_parameters_ratio trainable_parameters "
        "trainable_parameters_regex enable_dft_loss enable_channel_loss lisa_activated_layers lisa_step_interval "
        "mrl_dims max_epochs",
        OTHER_OPTIMIZER: "optimizer lorap_lr_ratio",
        "`training_args.optim: galore_adamw` or `apollo_adamw`, with `optim_target_modules`": (
            "use_galore galore_target_modules galore_rank galore_update_proj_gap galore_scale galore_proj_type "
            "galore_optim_per_parameter galore_with_embedding galore_quantization galore_proj_quant galore_proj_bits "
            "galore_proj_group_size galore_cos_threshold galore_gamma_proj galore_queue_size"
        ),
        "evaluations have the loss, BLEU-4, ROUGE and the accuracy of tool calls": "eval_metric eval_use_evalscope "
        "eval_dataset eval_dataset_args eval_limit eval_generation_config extra_eval_args",
        CALLBACKS: "external_plugins custom_register_path callbacks",
        TRACKERS: "swanlab_token swanlab_project swanlab_workspace swanlab_exp_name swanlab_notification_method "
        "swanlab_webhook_url swanlab_secret swanlab_sender_email swanlab_receiver_email swanlab_smtp_server "
        "swanlab_smtp_port swanlab_email_language",
        PREFERENCES: "rlhf_type ref_model ref_adapters ref_model_type ref_model_revision beta label_smoothing "
        "max_completion_length rpo_alpha ld_alpha discopop_tau loss_weights cpo_alpha simpo_gamma desirable_weight "
        "undesirable_weight center_rewards_coefficient sft_alpha lmbda seq_kd gkd_logits_topk reward_model "
        "reward_adapters reward_model_type reward_model_revision reward_template teacher_model teacher_adapters "
        "teacher_model_type teacher_model_revision teacher_deepspeed teacher_model_server offload_teacher_model "
        "num_ppo_epochs whiten_rewards kl_coef cliprange vf_coef cliprange_value gamma lam num_mini_batches "
        "local_rollout_forward_batch_size num_sample_generations response_length missing_eos_penalty num_generations "
        "reward_funcs reward_weights log_completions num_iterations reference_free ref_adapter_name epsilon "
        "epsilon_high delta cosine_min_len_value_wrong cosine_max_len_value_wrong cosine_min_len_value_correct "
        "cosine_max_len_value_correct cosine_max_len repetition_n_grams repetition_max_penalty reward_model_plugin "
        "chord_sft_dataset chord_sft_per_device_train_batch_size chord_enable_phi_function chord_mu_warmup_steps "
        "chord_mu_decay_steps chord_mu_peak chord_mu_valley sync_ref_model ref_model_sync_steps ref_model_mixup_alpha "
        "multi_turn_scheduler max_turns completion_length_limit_scope vllm_server_pass_dataset use_gym_env gym_env "
        "dynamic_sample max_resample_times overlong_filter soft_max_length soft_cache_length scale_rewards log_entropy "
        "top_entropy_quantile importance_sampling_level tau_pos tau_neg advantage_estimator kl_in_reward "
        "teacher_kl_coef advantage_reweight rlsd_lambda rlsd_reweight_clip_range rlsd_lambda_warmup_steps "
        "rlsd_lambda_decay_steps rlsd_negative_only sdar_loss_coef sdar_gate_beta real_tau fipo_decay_rate "
        "fipo_clip_range fipo_clip_high_only fipo_safety_threshold num_generations_eval "
        "rollout_importance_sampling_mode rollout_importance_sampling_threshold log_rollout_offpolicy_metrics "
        "off_policy_sequence_mask_delta min_p use_vllm vllm_mode vllm_enable_lora vllm_server_base_url "
        "vllm_server_host vllm_server_port vllm_server_timeout vllm_server_group_port enable_flattened_weight_sync "
        "async_generate sleep_level move_model_batches offload_optimizer offload_model wandb_log_unique_prompts "
        "generation_batch_size steps_per_generation teacher_tag_key vllm_gpu_memory_utilization "
        "vllm_tensor_parallel_size vllm_pipeline_parallel_size vllm_enable_expert_parallel vllm_max_num_seqs "
        "vllm_max_model_len vllm_disable_custom_all_reduce vllm_enforce_eager vllm_limit_mm_per_prompt "
        "vllm_max_lora_rank vllm_enable_prefix_caching vllm_use_async_engine vllm_quantization vllm_reasoning_parser "
        "vllm_disable_cascade_attn vllm_mm_processor_cache_gb vllm_speculative_config vllm_engine_kwargs "
        "vllm_data_parallel_size",
    }
)
"""Those that have none, and why."""
