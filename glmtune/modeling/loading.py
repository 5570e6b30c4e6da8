"""Loading models and tokenizers: data type, attention, stop tokens."""

from __future__ import annotations

import warnings
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from peft import PeftModel, set_peft_model_state_dict
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from glmtune.chatformat.rendering import ChatRenderer
from glmtune.config.generation_options import drop_idle_options
from glmtune.errors import GlmtuneError, install_hint
from glmtune.family import Family, family_of
from glmtune.modeling.adapting.adapter_config import adapter_config
from glmtune.modeling.adapting.name_patterns import check_patterns, patterns_of
from glmtune.modeling.adapting.ptuning import check_prefix
from glmtune.modeling.adapting.starts import check_saved_start
from glmtune.modeling.finding.hub_access import hub_file
from glmtune.modeling.finding.model_files import (
    INDEX,
    check_generation,
    check_weight_file,
    files_of_index,
    read_config,
)
from glmtune.modeling.finding.model_source import ADAPTER_CONFIG, ADAPTER_WEIGHTS, ModelSource, check_weight_files
from glmtune.tested_versions import note_untested_versions

from .config_loading import from_pretrained, load_model_config, load_tokenizer
from .context import check_vocabulary
from .finite import check_finite
from .library_errors import WHILE_BUILDING, is_lack_of_memory, reason_of, rust_errors_caught
from .quantization import check_quantization, check_quantized_can_be_read, make_trainable, quantization_options

MISSING = "missing adapter keys"
"""What PEFT warns of, and goes on with numbers of its own."""


@dataclass(frozen=True, kw_only=True)
class LoadedModel:
    """A model ready for inference or evaluation, with what belongs to it."""

    model: PreTrainedModel | PeftModel
    tokenizer: PreTrainedTokenizerBase
    family: Family

    def __repr__(self) -> str:
        """Return the kind of model, its size, and where it computes in what."""
        kind = type(self.model.get_base_model() if isinstance(self.model, PeftModel) else self.model).__name__
        adapter = " with an adapter" if isinstance(self.model, PeftModel) else ""
        size = self.model.num_parameters()
        return f"<LoadedModel: {kind}{adapter}, {size:,} parameters, {self.model.dtype} on {self.model.device}>"


def default_device() -> torch.device:
    """Return the accelerator of this machine, or the CPU: also where torch was built for a GPU that is not there."""
    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")


def default_dtype(device: torch.device | None = None) -> torch.dtype:
    """Return bfloat16 where the device computes in it, else float32; never float16, which breaks GLM."""
    device = device or default_device()
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    if device.type == "mps":
        # Metal knows the type from this macOS on; torch's autocast and transformers ask the same.
        return torch.bfloat16 if torch.backends.mps.is_macos_or_newer(14, 0) else torch.float32
    return torch.bfloat16 if device.type in ("npu", "xpu", "hpu", "musa", "mlu") else torch.float32


def load_base_model(
    source: ModelSource,
    *,
    dtype: torch.dtype | Literal["auto"],
    trust_remote_code: bool = False,
    attn_implementation: str | None = None,
    quantization: str | None = None,
    device: torch.device | None = None,
) -> PreTrainedModel:
    """Load the base model on the CPU (or wherever DeepSpeed wants it); every weight must be in the files.

    Args:
        source: Where its files are.
        dtype: Of its weights; of the sums over them where they are quantized. `auto` is that of the files.
        trust_remote_code: Whether to run Python code that lies beside the weights.
        attn_implementation: A name that transformers knows; None lets it choose.
        quantization: `4bit` or `8bit` quantizes the weights of all linear layers but the last, on `device`: quantized
            weights stay where they are.
        device: Where quantized weights go; others are loaded on the CPU, and moved by whoever needs them.
    """
    check_quantized_can_be_read(load_model_config(source, trust_remote_code=trust_remote_code), source.base)
    check_weight_files(ModelSource(base=source.base))
    if not Path(source.base).is_dir() and (index := hub_file(source.base, INDEX)) is not None:
        files_of_index(index)
    options: dict[str, Any] = {"attn_implementation": attn_implementation} if attn_implementation else {}
    if quantization is not None:
        assert isinstance(dtype, torch.dtype), "of the sums; the files do not say"
        options |= quantization_options(quantization, dtype, device or default_device())
    model: PreTrainedModel
    model, report = from_pretrained(
        AutoModelForCausalLM,
        source.base,
        "model",
        trust_remote_code=trust_remote_code,
        dtype=dtype,
        use_safetensors=True,
        ignore_mismatched_sizes=True,  # refused below, with their names
        output_loading_info=True,
        **options,
    )
    if report["mismatched_keys"]:
        name, found, expected = min(report["mismatched_keys"])
        raise GlmtuneError(
            f"weight `{name}` has the shape {tuple(found)} in the model's files, and by their `config.json` "
            f"{tuple(expected)}",
            where=source.base,
            fix="take weights and `config.json` of the same model",
        )
    if report["missing_keys"]:
        missing = sorted(report["missing_keys"])
        raise GlmtuneError(
            f"the model's files lack {len(missing)} weights, `{missing[0]}` among them", where=source.base
        )
    if quantization is not None:
        make_trainable(model)
    return model


def load_model(
    source: ModelSource,
    *,
    dtype: torch.dtype | Literal["auto"] | None = None,
    device: torch.device | None = None,
    trust_remote_code: bool = False,
    quantization: str | None = None,
) -> LoadedModel:
    """Load model, adapter and tokenizer for inference, in the dtype that suits the device unless another is given.

    `quantization`, `4bit` or `8bit`, is that of the base model's weights; an adapter on them stays as it is.
    """
    note_untested_versions()
    device = device or default_device()
    tokenizer = load_tokenizer(source, trust_remote_code=trust_remote_code)
    config = load_model_config(source, trust_remote_code=trust_remote_code)
    check_vocabulary(tokenizer, config)
    check_quantization(quantization, config, source.base)
    family = family_of(config.model_type)
    model: Any = load_base_model(
        source,
        dtype=dtype or default_dtype(device),
        trust_remote_code=trust_remote_code,
        quantization=quantization,
        device=device,
    )
    check_generation(Path(source.base) / "generation_config.json", model.generation_config.to_dict())
    set_stop_tokens(model, tokenizer, family)
    if source.adapter is not None:
        model = load_adapter(model, source.adapter, is_trainable=False)
    if quantization is None:  # else it is there already, and PEFT has put the adapter beside it
        model = model.to(device)
    return LoadedModel(model=model.eval(), tokenizer=tokenizer, family=family)


def load_adapter(
    model: PreTrainedModel, folder: Path, *, is_trainable: bool, name: str = "default", is_checked: bool = False
) -> PeftModel:
    """Put a saved adapter on its base model; PEFT calls it `name`.

    `is_checked`: whoever calls has looked through its files.
    """
    if not is_checked:
        check_adapter(folder, model)
        check_saved_start(folder)
    try:
        with rust_errors_caught(), warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            adapted = PeftModel.from_pretrained(model, str(folder), adapter_name=name, is_trainable=is_trainable)
        check_prefix(adapted)
    except WHILE_BUILDING as error:
        if is_lack_of_memory(error):
            raise
        raise GlmtuneError(
            f"the adapter does not fit the base model: {reason_of(error)}",
            where=str(folder),
            fix=install_hint(error) or "give the model that it was trained on with `--base-model`",
        ) from error
    for each in warned:
        if MISSING in str(each.message):
            raise GlmtuneError(
                "the adapter's file lacks weights that its settings describe; without them it would change nothing",
                where=str(folder / ADAPTER_WEIGHTS),
                fix="take settings and weights of the same adapter",
            )
        warnings.warn_explicit(each.message, each.category, each.filename, each.lineno)
    return adapted


def check_adapter(folder: Path, model: PreTrainedModel | PeftModel) -> None:
    """Raise where a saved adapter's two files are damaged, ask for what no adapter needs, or take for ever."""
    check_weight_file(folder / ADAPTER_WEIGHTS)
    check_finite(folder / ADAPTER_WEIGHTS)
    adapter_config(folder)
    path = folder / ADAPTER_CONFIG
    check_patterns(patterns_of(read_config(path)), (name for name, _ in model.named_modules()), str(path))


def load_adapter_weights(model: PeftModel, folder: Path) -> None:
    """Copy the weights of a saved adapter into the model's own, which has the same shape."""
    path = folder / ADAPTER_WEIGHTS
    check_weight_file(path)
    check_finite(path)
    try:
        result: Any = set_peft_model_state_dict(model, load_file(path))
    except WHILE_BUILDING as error:
        if is_lack_of_memory(error):
            raise
        raise GlmtuneError(
            f"the adapter does not fit the run's configuration: {reason_of(error)}", where=str(path)
        ) from error
    # A prefix is loaded into its encoder, under another name than in the file.
    unexpected = [name for name in result.unexpected_keys if name != "prompt_embeddings"]
    if unexpected:
        raise GlmtuneError(
            f"the adapter does not fit the run's configuration: it holds `{unexpected[0]}`",
            where=str(folder / ADAPTER_WEIGHTS),
        )


def stop_token_ids(settings: GenerationConfig, tokenizer: PreTrainedTokenizerBase, family: Family) -> list[int]:
    """Return every id that ends an answer: of the family, of `generation_config`, of the tokenizer, of the template."""
    configured = settings.eos_token_id
    ids = [*configured] if isinstance(configured, (list, tuple)) else [configured]
    vocabulary = tokenizer.get_vocab()
    names = [*family.stop_tokens, tokenizer.eos_token, ChatRenderer(tokenizer, family).end_token]
    ids += [vocabulary[name] for name in names if name in vocabulary]
    return sorted({token for token in ids if token is not None})


def set_stop_tokens(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, family: Family, trained: Collection[int] = ()
) -> None:
    """Write the stop tokens into the model's `generation_config`, so that every tool that loads it stops, too.

    `trained` are the ids that the labels teach to stop with: generation has to heed each of them.
    """
    config = model.generation_config
    assert config is not None, "a causal language model has a generation config"
    config.eos_token_id = sorted({*stop_token_ids(config, tokenizer, family), *trained})
    config.pad_token_id = tokenizer.pad_token_id
    # Greedy models whose files still carry sampling values cannot be saved: transformers checks both together.
    drop_idle_options(config)
