"""What no file of a run can allow: to run code that came along with it, and to send anything away.

`resume` reads the configuration out of the run's folder, and that may be somebody else's. Consent comes from this
command line, or from a record in the user's own cache that `train` left there: a hash of all that was asked for, of the
code beside the model, and of nothing that a folder could change unnoticed. So a user's own runs go on without a flag.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glmtune.config.run_config import RunConfig
from glmtune.console import notice
from glmtune.errors import GlmtuneError
from glmtune.files.cache_files import cache_folder
from glmtune.files.durable import replace_file
from glmtune.modeling.finding.model_files import read_config
from glmtune.modeling.finding.model_source import ModelSource
from glmtune.training.folder.changes import asked_settings
from glmtune.training.folder.run_folder import RunRequest

from .trackers import reporters

LOCAL_REPORTERS = ("none", "tensorboard")
MONITORS = ("wandb", "comet")
"""Sections of a DeepSpeed file that send figures away; its `tensorboard` and `csv_monitor` write files."""
CONFIGS = ("config.json", "tokenizer_config.json")
AUTO_MAP = "auto_map"


@dataclass(frozen=True, kw_only=True)
class Consent:
    """What the user has agreed to on this command line."""

    runs_code: bool = False
    sends: bool = False
    keys: frozenset[str] = frozenset()
    """That were set there, too: who writes a key knows what it asks for."""

    @classmethod
    def of(cls, overrides: Sequence[str], *, runs_code: bool, sends: bool) -> Consent:
        """Return what flags and overrides agree to."""
        keys = frozenset(override.partition("=")[0].strip() for override in overrides)
        return cls(runs_code=runs_code, sends=sends, keys=keys)


@dataclass(frozen=True)
class _Wish:
    """Something that a configuration asks for and that only its user can allow."""

    key: str
    shown: str
    runs_code: bool
    place: str = "with the model"


def check_consent(
    run_folder: Path, own: RunRequest, config: RunConfig, source: ModelSource, checkpoint: Path, consent: Consent
) -> None:
    """Raise where a run's folder asks for code to be run, or figures to be sent, and its user has not agreed.

    Args:
        run_folder: The run's.
        own: What the folder says that the run was asked to do, without what was typed now.
        config: What would be trained with now.
        source: The model that would be loaded.
        checkpoint: The one to go on from: a full one is loaded with its own code.
        consent: What was typed now.
    """
    wishes = list(_wishes(config))
    if not wishes:
        return
    is_remembered = _is_remembered(_digest(own, source))
    for wish in wishes:
        agreed = consent.runs_code if wish.runs_code else consent.sends
        # Of an adapter's run a checkpoint is not loaded as a model.
        is_own_code = config.peft_config is not None or _brings_no_other_code(checkpoint, source)
        remembered = is_remembered and (not wish.runs_code or is_own_code)
        if agreed or wish.key in consent.keys or remembered:
            continue
        raise GlmtuneError(
            f"the run's folder asks for `{wish.shown}`, which "
            + (
                f"runs code that lies {wish.place}, and that is for you to allow"
                if wish.runs_code
                else "sends figures of the run away, and that is for you to allow"
            ),
            where=str(run_folder),
            fix="read that code, then add `--trust-remote-code`"
            if wish.runs_code
            else "add `--allow-sending`, or switch it off: `--set training_args.report_to=none --set swanlab=null`",
        )


def remember(request: RunRequest, source: ModelSource) -> None:
    """Let `resume` know later that this user has asked for this very run; only where it will have to ask."""
    if not list(_wishes(request.config)):
        return
    digest = _digest(request, source)
    try:
        folder = _records()
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        replace_file(folder / digest, digest.encode())
    except (OSError, GlmtuneError) as error:
        notice(f"`resume` will ask for your consent once more: it could not be noted in the cache ({error})")


def _wishes(config: RunConfig) -> Iterator[_Wish]:
    if config.trust_remote_code:
        yield _Wish("trust_remote_code", "trust_remote_code: true", runs_code=True)
    if config.metrics is not None:
        yield _Wish("metrics", f"metrics: {config.metrics}", runs_code=True, place="in that file")
    if "/" in (config.attn_implementation or ""):
        # A kernel of a hub: code, by the name of its repository.
        yield _Wish("attn_implementation", f"attn_implementation: {config.attn_implementation}", runs_code=True)
    for name in reporters(config):
        is_local = name in LOCAL_REPORTERS or (name == "swanlab" and config.swanlab == "local")
        if not is_local:
            key = "swanlab" if name == "swanlab" and config.swanlab else "training_args.report_to"
            shown = f"swanlab: {config.swanlab}" if key == "swanlab" else f"report_to: {name}"
            yield _Wish(key, shown, runs_code=False)
    yield from _deepspeed_wishes(config.deepspeed or {})


def _deepspeed_wishes(content: Mapping[str, Any]) -> Iterator[_Wish]:
    key = "training_args.deepspeed"
    for name in MONITORS:
        section = content.get(name)
        if isinstance(section, dict) and section.get("enabled"):
            yield _Wish(key, f"deepspeed: {name}", runs_code=False)
    autocast = content.get("torch_autocast")
    if isinstance(autocast, dict) and autocast.get("lower_precision_safe_modules"):
        # DeepSpeed imports what stands there.
        yield _Wish(key, "deepspeed: torch_autocast.lower_precision_safe_modules", runs_code=True)


def _digest(request: RunRequest, source: ModelSource) -> str:
    """Return a hash of what a run was asked to do, and of the code that its model brings."""
    facts = {
        "data_dir": str(request.data_dir.resolve()),
        "model": request.model,
        "base_model": request.base_model,
        "init_from": request.init_from,
        "settings": asked_settings(request.config),
        "code": sorted(_code_beside(source)),
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _code_beside(source: ModelSource) -> set[str]:
    """Return the code of a model on this machine: the names and hashes of its modules, and what is built of them."""
    folders = [Path(source.base), *([source.adapter] if source.adapter else [])]
    return {each for folder in folders if folder.is_dir() for each in _code_of(folder)}


def _code_of(folder: Path) -> Iterator[str]:
    for path in folder.glob("*.py"):
        yield f"{path.name}:{hashlib.sha256(path.read_bytes()).hexdigest()}"
    for name in CONFIGS:
        if (folder / name).is_file():
            classes = read_config(folder / name).get(AUTO_MAP)
            yield from (f"{AUTO_MAP}:{_flat(each)}" for each in (classes.items() if isinstance(classes, dict) else ()))


def _flat(item: tuple[str, Any]) -> str:
    return json.dumps(item, sort_keys=True)


def _brings_no_other_code(checkpoint: Path, source: ModelSource) -> bool:
    """Whether a checkpoint brings no code but its model's own, which was agreed to."""
    return set(_code_of(checkpoint)) <= _code_beside(source)


def _records() -> Path:
    return cache_folder() / "asked-for"


def _is_remembered(digest: str) -> bool:
    """Whether this user has asked for a run; in a shared cache others' records say nothing."""
    path = _records() / digest
    with suppress(OSError, GlmtuneError):
        is_own = "geteuid" not in vars(os) or path.lstat().st_uid == os.geteuid()
        return is_own and not path.is_symlink() and path.read_text(encoding="ascii") == digest
    return False
