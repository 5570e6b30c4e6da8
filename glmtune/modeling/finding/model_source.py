"""Where a model comes from: a folder, a hub name, `demo`, a checkpoint with an adapter, or a whole run."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from glmtune.errors import GlmtuneError
from glmtune.files.file_kinds import refuse_irregular
from glmtune.files.missing import RUN_FILE
from glmtune.files.modelscope_hub import PREFIX, modelscope_model
from glmtune.files.user_paths import expand, refuse_unreadable_name
from glmtune.python_arguments import expect_paths

from .links import refuse_foreign_links, refuse_links
from .model_files import check_configs, check_weight_file, check_weights, read_config

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
CHECKPOINT_NAME = re.compile(r"checkpoint-(\d+)")
HUB_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*", re.ASCII)
"""Of a model on a hub: its owner and its own name."""
DEMO = "demo"
DEMO_SFT = "demo-sft"
EMBEDDED = (DEMO, DEMO_SFT)
"""Names of models that are made on this machine."""
MANIFEST = "manifest.json"
"""Of a checkpoint: the size and hash of every file."""


@dataclass(frozen=True, kw_only=True)
class ModelSource:
    """What to load: a base model, and an adapter on it where there is one."""

    base: str
    """Absolute folder, or the name of a model on a hub."""
    adapter: Path | None = None

    @property
    def tokenizer(self) -> str:
        """Where the tokenizer stands: a checkpoint carries its own."""
        if self.adapter and (self.adapter / "tokenizer_config.json").is_file():
            return str(self.adapter)
        return self.base


def check_weight_files(source: ModelSource) -> None:
    """Raise where the weights on this machine could not be loaded; those of a hub's model are not there yet."""
    if Path(source.base).is_dir():
        check_weights(Path(source.base))
    if source.adapter is not None:
        check_weight_file(source.adapter / ADAPTER_WEIGHTS)


def find_model(
    name: str | Path, *, base_model: str | None = None, base_of_adapter: str | None = None, needs_weights: bool = True
) -> ModelSource:
    """Return what `name` stands for, or raise an error that says what is missing.

    Args:
        name: `demo`, `demo-sft`, a model folder, a checkpoint, a run folder (its last checkpoint), a hub name, or
            `modelscope:OWNER/NAME`.
        base_model: Where the base model of an adapter is now, if it has moved.
        base_of_adapter: The same, for what need not be an adapter.
        needs_weights: Whether a folder without weights is refused; a tokenizer's user does not need them.
    """
    expect_paths(model=name)
    if str(name) == DEMO:
        from glmtune.demo.model import demo_model_path

        return ModelSource(base=str(demo_model_path()))
    if str(name) == DEMO_SFT and not Path(DEMO_SFT).is_dir():  # which a run may be called
        if not needs_weights:  # its tokenizer and its shape are those of the other
            return find_model(DEMO)
        from glmtune.demo.trained import trained_model_path

        return ModelSource(base=str(trained_model_path()))
    if str(name).startswith(PREFIX):
        name = modelscope_model(str(name))
    name = expand(str(name))
    folder = Path(name)
    if not folder.is_dir():
        return _hub_name(str(name))
    is_run = (folder / RUN_FILE).is_file()
    if is_run:
        refuse_links(folder, (entry.name for entry in folder.iterdir() if CHECKPOINT_NAME.fullmatch(entry.name)))
        folder = last_checkpoint(folder)
    folder = folder.resolve()
    if is_run or (folder / MANIFEST).is_file():
        refuse_foreign_links(folder)
    refuse_unreadable_name(folder, "model")
    if (folder / ADAPTER_CONFIG).is_file():
        return _adapter_source(folder, base_model or base_of_adapter)
    if base_model is not None:
        raise GlmtuneError(f"`{name}` is a full model, so `--base-model` has no meaning for it", fix="leave it out")
    _check_model_folder(folder, needs_weights)
    return ModelSource(base=str(folder))


def checkpoints_of(run_folder: Path) -> list[Path]:
    """Return the complete checkpoints of a run, in order of their steps."""
    found = [
        (int(match[1]), entry)
        for entry in run_folder.iterdir()
        if (match := CHECKPOINT_NAME.fullmatch(entry.name)) and (entry / MANIFEST).is_file()
    ]
    return [entry for _, entry in sorted(found)]


def last_checkpoint(run_folder: Path) -> Path:
    """Return the newest complete checkpoint of a run, or raise."""
    checkpoints = checkpoints_of(run_folder)
    if not checkpoints:
        raise GlmtuneError(f"the run `{run_folder}` has no complete checkpoint", fix="train it further, or start anew")
    return checkpoints[-1]


def _hub_name(name: str) -> ModelSource:
    """Take a name for a hub's, unless it can only have been meant as a folder."""
    if looks_like_path(name):
        refuse_irregular(Path(name), "give the folder of a model")
        raise GlmtuneError(
            f"model `{name}` does not exist",
            fix="give a model folder, a checkpoint, a hub name such as `zai-org/glm-4-9b-chat-hf`, or `demo`",
        )
    return ModelSource(base=name)


def looks_like_path(name: str) -> bool:
    """Whether a name can only have been meant as a folder, not as that of a model on a hub."""
    return not HUB_NAME.fullmatch(name) or Path(name).parent.is_dir()


def _adapter_source(folder: Path, base_model: str | None) -> ModelSource:
    """Return an adapter and its base model, wherever that is now."""
    if not (folder / ADAPTER_WEIGHTS).is_file():
        raise GlmtuneError(f"`{folder}` has an adapter's configuration but no `{ADAPTER_WEIGHTS}`")
    if base_model is not None:
        return ModelSource(base=find_model(base_model).base, adapter=folder)
    recorded = read_config(folder / ADAPTER_CONFIG).get("base_model_name_or_path")
    if not recorded or not isinstance(recorded, str):
        raise GlmtuneError(f"the adapter `{folder}` does not name its base model", fix="add `--base-model FOLDER`")
    # Other tools write down what was typed: a path from where they were started, or from the adapter.
    beside = folder / recorded
    if not Path(recorded).is_dir() and beside.is_dir():
        _refuse_adapter_as_base(beside, folder)
        return ModelSource(base=find_model(beside).base, adapter=folder)
    if looks_like_path(recorded) and recorded not in EMBEDDED and not Path(recorded).is_dir():
        gone = "is no longer there" if Path(recorded).is_absolute() else "is neither here nor beside the adapter"
        raise GlmtuneError(
            f"the adapter's base model `{recorded}` {gone}",
            where=str(folder / ADAPTER_CONFIG),
            fix="add `--base-model FOLDER` to say where it is now",
        )
    _refuse_adapter_as_base(Path(recorded), folder)
    return ModelSource(base=find_model(recorded).base, adapter=folder)


def _refuse_adapter_as_base(base: Path, folder: Path) -> None:
    """Raise where an adapter names an adapter as its base model: it may be itself, or one that names it in turn."""
    if (base / ADAPTER_CONFIG).is_file() or (base / RUN_FILE).is_file():
        raise GlmtuneError(
            f"the adapter names `{base}` as its base model, which is an adapter or a run itself",
            where=str(folder / ADAPTER_CONFIG),
            fix="add `--base-model FOLDER` to say which full model it was trained on",
        )


def _check_model_folder(folder: Path, needs_weights: bool) -> None:
    """Raise unless the folder holds a configuration, a tokenizer and safetensors weights."""
    names = {entry.name for entry in folder.iterdir()}
    if "config.json" not in names:
        listing = ", ".join(f"`{name}`" for name in sorted(names)[:6]) or "nothing"
        raise GlmtuneError(
            f"`{folder}` is neither a model nor a checkpoint: it has no `config.json`", fix=f"it holds {listing}"
        )
    if not names & {"tokenizer.json", "tokenizer_config.json", "tokenizer.model"}:
        raise GlmtuneError(f"the model `{folder}` has no tokenizer", fix="copy `tokenizer.json` and its siblings there")
    if needs_weights and not any(name.endswith(".safetensors") for name in names):
        pickled = any(name.endswith((".bin", ".pt", ".pth")) for name in names)
        raise GlmtuneError(
            f"the model `{folder}` has no safetensors weights",
            fix="its weights are pickled, which could run code: convert them with transformers' `save_pretrained`"
            if pickled
            else "download the `*.safetensors` files of the model",
        )
    check_configs(folder)
