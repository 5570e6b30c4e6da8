"""What a server answers with: one base model in memory, and any number of adapters on it."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import GenerationConfig, PreTrainedTokenizerBase

from glmtune.errors import GlmtuneError, install_hint
from glmtune.family import Family
from glmtune.files.user_paths import expand, user_path
from glmtune.generation.continuous_batching import reason_against_continuous_batching
from glmtune.kernels.virtual_tokens import lays_tokens_before_rows
from glmtune.modeling.adapting.adapter_config import adapter_config
from glmtune.modeling.adapting.starts import check_saved_start
from glmtune.modeling.config_loading import load_tokenizer
from glmtune.modeling.context import check_vocabulary
from glmtune.modeling.finding.model_source import DEMO, ModelSource, find_model
from glmtune.modeling.library_errors import WHILE_BUILDING, reason_of
from glmtune.modeling.loading import check_adapter, load_adapter, load_model

from .engine import Lane

PREFIX = "PREFIX_TUNING"
DEFAULT_LENGTH = 8192
"""Tokens of prompt and answer where the model's configuration names no limit."""


@dataclass(frozen=True, kw_only=True)
class ServedModels:
    """Models by the names that requests ask for; the first one is the checkpoint itself."""

    lanes: dict[str, Lane]
    tokenizer: PreTrainedTokenizerBase
    family: Family
    base: Any
    """The base model, for its configuration."""
    keeps_last_logits: bool
    """Whether its `forward` takes `logits_to_keep`."""
    layers: Layers
    """Of the adapters inside it."""

    @property
    def max_tokens(self) -> int:
        """Tokens that the base model was made for."""
        config = self.base.config.get_text_config(decoder=True)
        return config.to_dict().get("max_position_embeddings") or DEFAULT_LENGTH

    def context_tokens(self, name: str) -> int:
        """Return how many tokens prompt and answer of a model may have together."""
        return self.max_tokens - self.lanes[name].num_virtual_tokens


def find_adapters(adapters: list[str], source: ModelSource) -> dict[str, ModelSource]:
    """Return the adapters of `--adapter NAME=PATH` options, all of them on the checkpoint's base model."""
    found: dict[str, ModelSource] = {}
    for option in adapters:
        name, equals, path = option.partition("=")
        if not (name and equals and path):
            raise GlmtuneError(f"`--adapter {option}`: expected NAME=PATH")
        if name in found:
            raise GlmtuneError(f"`--adapter {option}`: the name `{name}` is given twice")
        # The base model of an adapter that has moved is the checkpoint's; whether it fits, its shapes tell.
        adapter = find_model(path, base_model=source.base if _is_adapter(path) else None)
        if adapter.adapter is None:
            raise GlmtuneError(f"`--adapter {option}`: `{path}` is a full model, not an adapter")
        found[name] = adapter
    return found


def load_models(
    source: ModelSource,
    name: str,
    adapters: Mapping[str, ModelSource],
    *,
    trust_remote_code: bool = False,
    quantization: str | None = None,
) -> ServedModels:
    """Load a base model and put all adapters on it.

    Args:
        source: The checkpoint; may have an adapter itself.
        name: What requests call the checkpoint.
        adapters: Others, by what requests call them.
        trust_remote_code: Whether to run Python code that lies beside the weights.
        quantization: `4bit` or `8bit` rounds the base model's weights while they are loaded.
    """
    if name in adapters:
        raise GlmtuneError(
            f"the name `{name}` is the checkpoint's and an adapter's", fix="choose another with `--name`"
        )
    loaded = load_model(ModelSource(base=source.base), trust_remote_code=trust_remote_code, quantization=quantization)
    base: Any = loaded.model
    reason = reason_against_continuous_batching(
        base, GenerationConfig(eos_token_id=base.generation_config.eos_token_id)
    )
    if reason is not None:
        raise GlmtuneError(
            f"{reason}, so that its rows cannot come and go",
            fix="serve it with `transformers serve` or vLLM",
        )
    folders = {name: source.adapter} if source.adapter else {}
    folders |= {other: found.adapter for other, found in adapters.items() if found.adapter}
    for folder in folders.values():
        check_saved_start(folder, is_alone=len(folders) == 1 and source.adapter is not None)
    layers = Layers()
    lanes = _lanes(base, layers, folders)
    if source.adapter is None:
        lanes = {name: Lane(model=base, activate=partial(layers.use, None))} | lanes
    keeps = "logits_to_keep" in inspect.signature(base.forward).parameters
    # A checkpoint carries its own, with the chat template that it was trained with.
    tokenizer = load_tokenizer(source, trust_remote_code=trust_remote_code)
    check_vocabulary(tokenizer, base.config)
    return ServedModels(
        lanes=lanes, tokenizer=tokenizer, family=loaded.family, base=base, keeps_last_logits=keeps, layers=layers
    )


def check_new_adapter(models: ServedModels, folder: Path) -> None:
    """Look through the files of an adapter that is to be added, while answers go on: all its weights are read."""
    check_saved_start(folder, is_alone=False)
    check_adapter(folder, models.layers.model or models.base)


def add_adapter(models: ServedModels, folder: Path) -> Lane:
    """Put an adapter that is checked on the base model while nothing is computed.

    Where that fails, all is as before.
    """
    with models.layers.undone_on_failure(models.base):
        return _lane(models.base, models.layers, folder, is_checked=True)


def model_name(checkpoint: str | Path) -> str:
    """Return what a checkpoint is called where no name is given: its folder's last parts, or the hub's name."""
    checkpoint = expand(str(checkpoint))
    if checkpoint == DEMO or not Path(checkpoint).is_dir():
        return str(checkpoint)
    folder = Path(checkpoint).resolve()
    # `checkpoint-600` says little without the run that it is of.
    return f"{folder.parent.name}/{folder.name}" if folder.name.startswith("checkpoint-") else folder.name


def _is_adapter(path: str) -> bool:
    folder = user_path(path)
    return folder.is_dir() and ((folder / "adapter_config.json").is_file() or (folder / "run.yaml").is_file())


class Prefixed:
    """A model with a trained prefix as `generate` uses it: PEFT prepares the inputs, the base model computes."""

    def __init__(self, base: Any, prefix: PeftModel) -> None:
        self.base = base
        self.config = base.config
        self.device = base.device
        self.prepare_inputs_for_generation = prefix.prepare_inputs_for_generation

    def __call__(self, **inputs: Any) -> Any:
        return self.base(**inputs)


class Layers:
    """The layers of LoRA and its like inside the base model, which hold all adapters and use one of them, or none."""

    def __init__(self) -> None:
        self.model: PeftModel | None = None
        self.num_loaded = 0
        self._used: str | None = None

    def load(self, base: Any, folder: Path, key: str, *, is_checked: bool = False) -> PeftModel:
        """Load one more adapter, and use it; `is_checked`: its files have been looked through already."""
        if self.model is None:
            self.model = load_adapter(base, folder, is_trainable=False, name=key, is_checked=is_checked)
        else:
            if not is_checked:
                check_adapter(folder, self.model)
            try:
                # Without numbers by chance first, which would be overwritten: that takes most of the time.
                self.model.load_adapter(str(folder), adapter_name=key, is_trainable=False, low_cpu_mem_usage=True)
            except WHILE_BUILDING as error:
                raise GlmtuneError(
                    f"the adapter does not fit the base model or the other adapters: {reason_of(error)}",
                    where=str(folder),
                    fix=install_hint(error),
                ) from error
        self.model.eval()
        self.use(key)
        return self.model

    def remove(self, key: str) -> None:
        """Let go of an adapter."""
        assert self.model is not None, "an adapter that was loaded is in the model"
        self.use(None)
        self.model.delete_adapter(key)

    @contextmanager
    def undone_on_failure(self, base: Any) -> Iterator[None]:
        """Take out again what was put into the layers of the base model where putting it there fails."""
        known = set(self.model.peft_config) if self.model is not None else set()
        try:
            yield
        except BaseException:
            if self.model is None:  # the first of all adapters
                _take_layers_out(base)
            else:
                for key in set(self.model.peft_config) - known:
                    self.model.delete_adapter(key)
                self._used = ""  # whatever it uses now, it is told anew
            raise

    def use(self, key: str | None) -> None:
        """Compute with this adapter from now on, or with the base model alone."""
        if self.model is None or key == self._used:
            return
        tuner: Any = self.model.base_model
        if key is None:
            tuner.disable_adapter_layers()
        else:
            if not self._used:
                tuner.enable_adapter_layers()
            self.model.set_adapter(key, inference_mode=True)
        self._used = key


def _take_layers_out(base: Any) -> None:
    """Put the base model's own layers back into their places."""
    for name, module in list(base.named_modules()):
        if isinstance(module, BaseTunerLayer):
            parent, _, child = name.rpartition(".")
            setattr(base.get_submodule(parent), child, module.get_base_layer())


def _lanes(base: Any, layers: Layers, folders: Mapping[str, Path]) -> dict[str, Lane]:
    """Put every adapter on the base model."""
    return {name: _lane(base, layers, folder) for name, folder in folders.items()}


def _lane(base: Any, layers: Layers, folder: Path, *, is_checked: bool = False) -> Lane:
    """Put an adapter on the base model; a trained prefix stands beside its layers."""
    settings = adapter_config(folder)
    if lays_tokens_before_rows(settings):
        raise GlmtuneError(
            "an adapter of prompt tuning cannot be served: rows that come and go are padded between its virtual "
            "tokens and their own",
            where=str(folder),
            fix="ask it with `glmtune infer` or `glmtune chat`",
        )
    if settings.peft_type == PREFIX:
        prefix = load_adapter(base, folder, is_trainable=False, is_checked=is_checked).eval()
        return Lane(
            model=Prefixed(base, prefix),
            activate=partial(layers.use, None),
            num_virtual_tokens=prefix.active_peft_config.num_virtual_tokens,
        )
    key = f"adapter_{layers.num_loaded}"  # names of requests may hold dots, which PEFT's may not
    layers.num_loaded += 1
    model = layers.load(base, folder, key, is_checked=is_checked)
    return Lane(model=model, activate=partial(layers.use, key), remove=partial(layers.remove, key))
