"""Loading what describes a model: tokenizer, configuration, family. Neither PEFT nor models are imported for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoTokenizer, PretrainedConfig, PreTrainedTokenizerBase

from glmtune.errors import GlmtuneError, install_hint
from glmtune.family import Family, family_of
from glmtune.modeling.finding.hub_access import hub_file, hub_options
from glmtune.modeling.finding.model_files import check_model_config, read_config
from glmtune.modeling.finding.model_source import ModelSource

from .library_errors import WHILE_BUILDING, is_lack_of_memory, reason_of, rust_errors_caught


def load_tokenizer(source: ModelSource, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """Load the tokenizer; one without a padding token pads with its end token."""
    tokenizer: PreTrainedTokenizerBase = from_pretrained(
        AutoTokenizer, source.tokenizer, "tokenizer", trust_remote_code=trust_remote_code
    )
    try:
        with rust_errors_caught():
            if tokenizer.pad_token is None:
                tokenizer.pad_token = tokenizer.eos_token
            # Many a damaged file shows only now, and would in the midst of a text.
            tokenizer.decode(tokenizer.encode("a", add_special_tokens=False))
            tokenizer("", add_special_tokens=True)
            tokenizer.convert_tokens_to_ids("<no such token>")
    except WHILE_BUILDING as error:
        raise GlmtuneError(
            f"the tokenizer of `{source.tokenizer}` cannot be used: {reason_of(error)}",
            where=source.tokenizer,
            fix="take the model's own `tokenizer.json` and `tokenizer_config.json`",
        ) from error
    return tokenizer


def load_model_config(source: ModelSource, *, trust_remote_code: bool = False) -> PretrainedConfig:
    """Return the configuration of the base model."""
    folder = Path(source.base)
    path = folder / "config.json" if folder.exists() else hub_file(source.base, "config.json", "configuration")
    if path is not None and path.is_file():
        check_model_config(path, read_config(path))
    config: PretrainedConfig = from_pretrained(
        AutoConfig, source.base, "configuration", trust_remote_code=trust_remote_code
    )
    if getattr(config, "quantization_config", None) is not None:
        from .quantization import check_quantization_method  # imports what only such a model needs

        check_quantization_method(config, source.base)
    return config


def load_family(source: ModelSource, *, trust_remote_code: bool = False) -> Family:
    """Return the family that the model's configuration names."""
    return family_of(load_model_config(source, trust_remote_code=trust_remote_code).model_type)


def from_pretrained(loader: Any, name: str, part: str, **options: Any) -> Any:
    """Load with one of transformers' Auto classes; its refusals become errors of ours."""
    options |= hub_options(name, part)
    try:
        with rust_errors_caught():
            return loader.from_pretrained(name, **options)
    except WHILE_BUILDING as error:
        if is_lack_of_memory(error):
            raise
        fix = "run with `--debug` for the whole story"
        if "trust_remote_code" in str(error):
            fix = "the model brings its own code; read it, then set `trust_remote_code: true`"
        elif "gated repo" in str(error):
            fix = "ask for access on the model's page, then log in with `hf auth login`"
        elif hint := install_hint(error):
            fix = hint
        elif "model type" in str(error):
            fix = "see `model_type` in its `config.json`; a new model may need `pip install -U transformers`"
        raise GlmtuneError(f"cannot load the {part} of `{name}`: {reason_of(error)}", fix=fix) from error
