"""A checkpoint's weights, written for other tools: adapters merged into the base model where they can be."""

from __future__ import annotations

import gc
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import GenerationConfig, PreTrainedTokenizerBase

from glmtune.chatformat.encoding import Encoder
from glmtune.chatformat.response_template import give_response_template
from glmtune.console import notice, say
from glmtune.errors import GlmtuneError, RunFailure
from glmtune.modeling.adapting.adapter_config import adapter_config
from glmtune.modeling.config_loading import load_model_config
from glmtune.modeling.finding.model_source import ADAPTER_CONFIG, ADAPTER_WEIGHTS, ModelSource
from glmtune.modeling.library_errors import answering_explained
from glmtune.modeling.loading import LoadedModel, load_model, set_stop_tokens

from .export_check import ComparedAnswer, Distance, ask, distance_to
from .sample_prompts import QUESTIONS, sample_prompts

MERGED, FULL, ADAPTER = "merged", "full", "adapter"
"""An adapter merged into full weights; a full model; an adapter that stays one."""

METHOD_NAMES = {"LORA": "LoRA", "PREFIX_TUNING": "P-Tuning v2"}


@dataclass(frozen=True, kw_only=True)
class TrainedMethod:
    """How a checkpoint was trained, and what becomes of it."""

    name: str
    kind: str
    """One of the three above."""


@dataclass(frozen=True, kw_only=True)
class Written:
    """What is known of a model after it was written, when it itself is gone from memory."""

    dtype: torch.dtype
    answers: list[ComparedAnswer]
    prompts: str
    """Where the prompts come from, in words."""
    questions: list[list[int]]
    """Ids that the tokenizer makes of a few questions."""
    changed: list[str] | None
    """Beginnings of the names of the weights that merging changed; None where it was no merge."""
    adapter_effect: Distance | None
    """How far the adapter moves the logits; None where none was merged."""


def method_of(source: ModelSource) -> TrainedMethod:
    """Return how a checkpoint was trained; prefixes and other virtual tokens cannot become weights."""
    if source.adapter is None:
        return TrainedMethod(name="full", kind=FULL)
    config: Any = adapter_config(source.adapter)
    name = METHOD_NAMES.get(str(config.peft_type.value), str(config.peft_type.value))
    return TrainedMethod(name=name, kind=ADAPTER if config.is_prompt_learning else MERGED)


def check_base(source: ModelSource, method: TrainedMethod, *, trust_remote_code: bool) -> None:
    """Raise where an adapter would have to be merged into weights whose files are quantized already."""
    if method.kind != MERGED:
        return
    config = load_model_config(source, trust_remote_code=trust_remote_code).to_dict()
    rounding = config.get("quantization_config")
    if rounding:
        how = rounding.get("quant_method")
        raise GlmtuneError(
            f"the base model's files are quantized (`{how}`), and merging would quantize them again",
            where=source.base,
            fix="give the model that they were made of with `--base-model`",
        )


def write_model(
    source: ModelSource,
    method: TrainedMethod,
    folder: Path,
    *,
    dtype: torch.dtype | None,
    max_shard_size: str,
    prompts: Path | None,
    record: Mapping[str, Any],
    trust_remote_code: bool,
) -> Written:
    """Load a checkpoint, ask it the sample prompts, and write it to a folder."""
    say(f"loading {source.base}" + (f" with the adapter {source.adapter}" if source.adapter else ""))
    quantization = record.get("asked", {}).get("config", {}).get("quantization")
    if quantization and method.kind == MERGED:
        notice(f"the run trained beside weights in {quantization}; the adapter is merged into the unquantized ones")
    loaded = load_model(source, dtype=dtype or "auto", trust_remote_code=trust_remote_code)
    _set_trained_stops(loaded, source)
    tokenizer = loaded.tokenizer
    give_response_template(tokenizer, loaded.family, loaded.model.generation_config.eos_token_id)
    prompt_ids, where = sample_prompts(prompts, record, Encoder(tokenizer, loaded.family, use_skeletons=False))
    say(f"asking it {where}")
    with answering_explained(loaded.model):
        answers = ask(loaded.model, prompt_ids)
    if not all(answer.logits.isfinite().all() for answer in answers):
        raise RunFailure(
            "the checkpoint itself computes numbers that are not finite", where=str(source.adapter or source.base)
        )
    changed, effect = None, None
    model: Any = loaded.model
    if method.kind == MERGED:
        with model.disable_adapter():
            effect = distance_to(model, answers)
        model, changed = _merged(model)
    say("writing it")
    if method.kind == ADAPTER:
        _copy_adapter(source, folder)
        model.generation_config.save_pretrained(folder)
    else:
        if model.device.type == "cpu":
            # To save a model transformers imports DeepSpeed, which says on stdout where it finds no GPU.
            os.environ.setdefault("DS_ACCELERATOR", "cpu")
        model.save_pretrained(folder, max_shard_size=max_shard_size)
    tokenizer.save_pretrained(folder)
    return Written(
        dtype=model.dtype,
        answers=answers,
        prompts=where,
        questions=question_ids(tokenizer),
        changed=changed,
        adapter_effect=effect,
    )


def question_ids(tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Return the ids that a tokenizer makes of a few questions."""
    return [
        [
            *tokenizer.apply_chat_template(
                [{"role": "user", "content": text}], add_generation_prompt=True, return_dict=False
            )
        ]
        for text in QUESTIONS
    ]


def free_memory() -> None:
    """Give back the memory of models that nothing refers to."""
    gc.collect()
    if torch.accelerator.is_available():
        torch.accelerator.empty_cache()


def _set_trained_stops(loaded: LoadedModel, source: ModelSource) -> None:
    """Add the stop tokens that an adapter's checkpoint has recorded to those of its base model."""
    if source.adapter is None or not (source.adapter / "generation_config.json").is_file():
        return
    recorded = GenerationConfig.from_pretrained(source.adapter).eos_token_id
    trained = recorded if isinstance(recorded, list) else [] if recorded is None else [recorded]
    model: Any = loaded.model
    set_stop_tokens(model.get_base_model(), loaded.tokenizer, loaded.family, trained)


def _merged(model: PeftModel) -> tuple[Any, list[str]]:
    """Return the base model with the adapter in its weights, and the names of the modules that it changed."""
    modules = model.get_base_model().named_modules()
    changed = [f"{name}." for name, module in modules if isinstance(module, BaseTunerLayer)]
    merge: Any = model.base_model
    try:
        return merge.merge_and_unload(safe_merge=True), changed
    except (ValueError, NotImplementedError, RuntimeError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        raise GlmtuneError(f"the adapter cannot be merged: {str(error).splitlines()[0]}") from error


def _copy_adapter(source: ModelSource, folder: Path) -> None:
    """Copy the files of an adapter; its configuration names the base model where it is now."""
    assert source.adapter is not None
    shutil.copyfile(source.adapter / ADAPTER_WEIGHTS, folder / ADAPTER_WEIGHTS)
    config = json.loads((source.adapter / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    name_base(folder, source.base, config)


def name_base(folder: Path, base: str, config: dict[str, Any] | None = None) -> None:
    """Write an adapter's configuration with the name of its base model."""
    path = folder / ADAPTER_CONFIG
    config = config or json.loads(path.read_text(encoding="utf-8"))
    path.write_text(
        json.dumps(config | {"base_model_name_or_path": base}, indent=2, ensure_ascii=False), encoding="utf-8"
    )
