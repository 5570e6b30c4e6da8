"""What has changed since a run began: its files, its base model, its configuration. Named before anything runs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from glmtune.config.run_config import RunConfig
from glmtune.config.sections import adapter_fields, training_fields
from glmtune.errors import GlmtuneError
from glmtune.evaluation.own_metrics import describe_metrics
from glmtune.modeling.finding.model_source import ModelSource
from glmtune.text.secret_values import hidden

from .run_folder import DataRecord, fingerprint

ASKED = "asked.json"
"""In every checkpoint: the configuration that it was trained with."""


FREE_ADAPTER_KEYS = ("lora_alpha", "lora_dropout", "alpha_pattern", "use_rslora", "inference_mode")
"""Keys of an adapter that may change in the course of a run: no weight has its shape, or its place, by them."""

KEPT = (
    *("training_args.optim", "training_args.optim_args", "training_args.optim_target_modules"),
    *("quantization", "freezeV"),
)
"""Keys that decide what is in a checkpoint."""


def asked_settings(config: RunConfig) -> dict[str, Any]:
    """Return what was asked for, as plain values; DeepSpeed's file with what it holds, that of metrics as its hash."""
    settings = json.loads(json.dumps(dict(config.source), default=str))
    arguments = settings.get("training_args") or {}
    if isinstance(arguments.get("deepspeed"), str):
        arguments["deepspeed"] = config.deepspeed
    if config.metrics is not None:
        settings["metrics"] = describe_metrics(config.metrics)
    return hidden(settings)  # type: ignore[no-any-return]


def changes_since(
    record: Mapping[str, Any], checkpoint: Path, config: RunConfig, data_files: DataRecord, source: ModelSource
) -> list[str]:
    """Return a line for everything that is no longer what it was.

    Args:
        record: The run's `run.yaml`.
        checkpoint: The one to go on from.
        config: What would be trained with now.
        data_files: The files that would be trained on now.
        source: The model that would be trained now.
    """
    lines = [line for split in record["data"] for line in _of_files(split, record["data"][split], data_files)]
    if fingerprint(source) != record["model"]["fingerprint"]:
        lines.append(
            f"the base model `{source.base}` is not the one that the run was trained on; "
            "say where that one is with `--base-model FOLDER`"
        )
    before = _flat(json.loads((checkpoint / ASKED).read_text(encoding="utf-8")))
    now = _flat(asked_settings(config))
    for key in sorted(before.keys() | now.keys()):
        old, new = before.get(key, "not set"), now.get(key, "not set")
        if old != new:
            lines.append(f"`{key}` is {_shown(new)}, it was {_shown(old)}")
    return lines


def refuse_unfit(checkpoint: Path, config: RunConfig) -> None:
    """Raise where a setting has changed that the weights or the optimizer's state in a checkpoint are made by."""
    before = _flat(json.loads((checkpoint / ASKED).read_text(encoding="utf-8")))
    now = _flat(asked_settings(config))
    defaults = {"training_args.optim": training_fields()["optim"]}
    if config.peft_config is not None:
        adapter = adapter_fields(config.peft_config["peft_type"])
        defaults |= {f"peft_config.{name}": value for name, value in adapter.items()}
    for key in sorted(filter(_is_kept, before.keys() | now.keys())):
        default = defaults.get(key)
        if _plain(key, before.get(key), default) != _plain(key, now.get(key), default):
            raise GlmtuneError(
                f"`{key}` is {_shown(now.get(key, 'not set'))}, it was {_shown(before.get(key, 'not set'))}: what "
                f"`{checkpoint.name}` holds was made by that, and a run keeps it to its end",
                where=str(checkpoint),
                fix="to train on from its weights in another way, where they fit: "
                f"`glmtune train DATA_DIR MODEL CONFIG --init-from {checkpoint}`",
            )


def _is_kept(key: str) -> bool:
    """Whether a dotted key decides what is in a checkpoint."""
    section, _, name = key.partition(".")
    if section == "peft_config":
        return name.partition(".")[0] not in FREE_ADAPTER_KEYS
    return key in KEPT or section in KEPT


def _plain(key: str, value: Any, default: Any) -> Any:
    """Return a value as others of the same meaning: one that is not set as its default, `lora` as `LORA`."""
    if key == "peft_config.peft_type":
        return str(value).upper()
    value = default if value is None else value
    return None if value is False or value in ([], {}) else value  # 0 is a layer of its own


def refuse_moving(overrides: Sequence[str], run_folder: Path) -> None:
    """Raise where a resumed run is told another folder: it goes on in its own."""
    if any(override.partition("=")[0].strip() == "training_args.output_dir" for override in overrides):
        raise GlmtuneError(
            "`training_args.output_dir` cannot be changed: a run goes on in its own folder",
            fix=f"copy or move `{run_folder}`, and resume it where it is then",
        )


def saves_model_only(checkpoint: Path) -> bool:
    """Whether a checkpoint was written by a run that keeps no optimizer."""
    asked = json.loads((checkpoint / ASKED).read_text(encoding="utf-8"))
    return bool((asked.get("training_args") or {}).get("save_only_model"))


def refuse_changes(lines: list[str], run_folder: Path, typed: str = "") -> None:
    """Raise an error that names what has changed; `typed` are the options that were given, with a space before each."""
    raise GlmtuneError(
        "the run cannot go on where it stood, because this has changed since it began:",
        details=[f"  - {line}" for line in lines],
        where=str(run_folder),
        fix=f"restore it, or go on with it as it is now: `glmtune resume {run_folder}{typed} --accept-changes`",
    )


def _of_files(split: str, before: list[dict[str, Any]], data_files: DataRecord) -> list[str]:
    now = data_files.get(split, [])
    if [file["weight"] for file in now] != [file["weight"] for file in before]:
        return [f"the {split} rows come from {_names(now)}, they came from {_names(before)}"]
    return [f"`{file['path']}` has changed" for file, old in zip(now, before) if file["sha256"] != old["sha256"]]


def _names(files: list[dict[str, Any]]) -> str:
    return ", ".join(f"`{file['path']}` (weight {file['weight']:g})" for file in files) or "nowhere"


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested values by their dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {f"{prefix}{key}": value}
    return flat


def _shown(value: Any) -> str:
    return value if value == "not set" else json.dumps(value, ensure_ascii=False)
