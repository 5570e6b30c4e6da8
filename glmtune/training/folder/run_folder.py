"""The folder of a run: what was asked, what was resolved, and everything a program needs to go on with it."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import shutil
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
import yaml

from glmtune import __version__
from glmtune.config.run_config import RunConfig, config_from_mapping
from glmtune.console import is_main_process
from glmtune.errors import GlmtuneError
from glmtune.evaluation.own_metrics import describe_metrics
from glmtune.files.durable import replace_file
from glmtune.files.missing import RUN_FILE, missing_run
from glmtune.modeling.finding.links import refuse_links
from glmtune.modeling.finding.model_source import CHECKPOINT_NAME, ModelSource
from glmtune.modeling.finding.run_record import read_run_file
from glmtune.modeling.library_errors import reason_of
from glmtune.reports.metrics_file import METRICS_FILE
from glmtune.reports.run_status import STATUS_FILE, STOP_FILE, read_status
from glmtune.text.secret_values import masked_arguments, without_secrets

FITTED_CONFIG = "fitted-config.yaml"
"""Of a run whose configuration was fitted to its rows: what `glmtune init` would have written."""
OWN_FILES = (
    FITTED_CONFIG,
    METRICS_FILE,
    STATUS_FILE,
    "rejects.jsonl",
    "loss.png",
    "predictions",
    "evaluation-failures.log",
)
"""What a run writes beside its checkpoints."""

MODEL_FILES = ("config.json", "adapter_config.json", "manifest.json", "tokenizer_config.json")

STAGED = (
    *(f".{name}" for name in (RUN_FILE, *OWN_FILES)),
    *(".saving", ".lock", ".shared-storage-probe", STOP_FILE),
)
"""Names under which a run writes first what it then renames, or removes."""
TRACKED = ("runs", "swanlog")
"""Folders of TensorBoard and SwanLab, which choose the names in them."""

ARITHMETIC = "arithmetic"
"""In `run.yaml`: what a CPU multiplies in. Losses stay what they are only where a resumed run does it in the same."""

DataRecord = Mapping[str, list[dict[str, str | float]]]
"""By split: path, hash and weight of every file."""

MOST_AT_ONCE = 2**31
"""Rows of a step, accumulation steps and processes: fewer than this each."""

PACKAGES = ("torch", "transformers", "peft", "accelerate", "deepspeed", "datasets", "tokenizers")


@dataclass(frozen=True, kw_only=True)
class RunRequest:
    """What a run was asked to do: everything that `resume` needs to know."""

    data_dir: Path
    model: str
    """As the user wrote it; a local folder as an absolute path."""
    config: RunConfig
    base_model: str | None = None
    init_from: str | None = None


def refuse_used_folder(folder: Path) -> None:
    """Raise where a folder already holds a run: nothing of the user's is overwritten."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise GlmtuneError(
            f"`output_dir` `{folder}` is a file", fix="choose another with `--set training_args.output_dir=...`"
        )
    held = sorted(
        entry.name for entry in folder.iterdir() if CHECKPOINT_NAME.match(entry.name) or entry.name == RUN_FILE
    )
    other = f"choose another folder: `--set training_args.output_dir={beside(folder)}`"
    if held == [RUN_FILE]:
        raise GlmtuneError(
            f"`{folder}` holds a run that ended before its first checkpoint",
            fix=f"remove what it has left there ({_own_files_in(folder)}), or {other}",
        )
    if held:
        raise GlmtuneError(
            f"`{folder}` already holds a run (`{held[-1]}`)",
            fix=f"go on with it: `glmtune resume {folder}`; or {other}",
        )
    if model := _model_in(folder):
        raise GlmtuneError(
            f"`{folder}` holds a model (`{model}`), which a run in the same folder would hide from all that reads it",
            fix=other,
        )
    refuse_links(folder, STAGED)
    for name in OWN_FILES:
        # A run that was killed before its first step leaves nothing but its status.
        if os.path.lexists(folder / name) and not (name == STATUS_FILE and read_status(folder) is not None):
            raise GlmtuneError(
                f"`{folder}` holds a `{name}`, and a run writes one of its own there",
                fix=f"move it away, or {other}",
            )


def beside(folder: Path) -> Path:
    """Return a name beside a folder that may be taken instead; `.` has none of its own."""
    name = folder.name or folder.resolve().name
    return folder.parent / f"{name}-2" if folder.name else folder / f"{name}-2"


def _own_files_in(folder: Path) -> str:
    return ", ".join(f"`{name}`" for name in (RUN_FILE, *OWN_FILES) if os.path.lexists(folder / name))


def _model_in(folder: Path) -> str | None:
    """Return a file by which a folder is a model, an adapter or a checkpoint; None where it is none."""
    names = sorted(entry.name for entry in folder.iterdir())
    return next((name for name in names if name in MODEL_FILES or name.endswith((".safetensors", ".gguf"))), None)


def discard_own_files(folder: Path) -> None:
    """Remove what a run has written into a folder that was there before it, and held nothing of these names."""
    for name in (RUN_FILE, *OWN_FILES):
        path = folder / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def write_run_file(
    folder: Path,
    request: RunRequest,
    source: ModelSource,
    data_files: DataRecord,
    training_args: Any,
    arithmetic: Mapping[str, str] | None = None,
) -> None:
    """Write `run.yaml`; secrets never enter it."""
    resolved = without_secrets(training_args.to_dict())
    # transformers was given a hidden folder and no limit: the run moves and deletes its checkpoints itself.
    resolved |= {"output_dir": str(folder), "save_total_limit": request.config.training_args.get("save_total_limit")}
    record = {
        "glmtune": __version__,
        "started": _now(),
        "argv": masked_arguments(sys.argv),
        "asked": {
            "data_dir": str(request.data_dir.resolve()),
            "model": request.model,
            "base_model": request.base_model,
            "init_from": request.init_from,
            "config": dict(request.config.source),
        },
        "model": {"base": source.base, "adapter": str(source.adapter or ""), "fingerprint": fingerprint(source)},
        "data": data_files,
        "metrics": None if request.config.metrics is None else describe_metrics(request.config.metrics),
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES if _is_installed(name)},
        "world_size": world_size(),
        ARITHMETIC: arithmetic,
        "resolved_training_args": resolved,
    }
    _write_record(folder, record)
    if request.config.text:
        replace_file(folder / FITTED_CONFIG, request.config.text.encode())


def _write_record(folder: Path, record: Mapping[str, Any]) -> None:
    """Write `run.yaml`: whole, or not at all."""
    # Through JSON: enumerations and tuples become the plain values that a safe YAML loader reads again.
    plain = json.loads(json.dumps(record, default=str))
    replace_file(folder / RUN_FILE, yaml.safe_dump(plain, allow_unicode=True, sort_keys=False).encode())


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def read_request(folder: Path, overrides: Sequence[str] = ()) -> tuple[RunRequest, dict[str, Any]]:
    """Return what a run was asked to do, and its whole record."""
    path = folder / RUN_FILE
    refuse_links(folder, [RUN_FILE])
    if not path.is_file():
        raise missing_run(folder)
    record = read_run_file(path)
    try:
        asked = record["asked"]
        request = RunRequest(
            data_dir=Path(asked["data_dir"]),
            model=asked["model"],
            config=config_from_mapping(asked["config"], where=str(path), overrides=overrides),
            base_model=asked["base_model"],
            init_from=asked["init_from"],
        )
        _check_record(record)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise GlmtuneError(f"`{RUN_FILE}` cannot be read: {reason_of(error)}", where=str(path)) from None
    return request, record


def _check_record(record: Mapping[str, Any]) -> None:
    """Raise a KeyError or TypeError where what a resumed run reads of its record is not what one writes."""
    texts = [record["asked"]["data_dir"], record["asked"]["model"], record["model"]["fingerprint"]]
    texts += [each for each in (record["asked"]["base_model"], record["asked"]["init_from"]) if each is not None]
    files = [file for split in record["data"].values() for file in split]
    texts += [file[key] for file in files for key in ("path", "sha256")]
    numbers = [file["weight"] for file in files]
    resolved = record["resolved_training_args"]
    counts = [record["world_size"]]
    counts += [resolved[key] for key in ("per_device_train_batch_size", "gradient_accumulation_steps")]
    wrong = [text for text in texts if not isinstance(text, str)]
    wrong += [number for number in numbers if not isinstance(number, (int, float))]
    wrong += [count for count in counts if not isinstance(count, int) or not 0 < count <= MOST_AT_ONCE]
    if not isinstance(record.get("changes", []), list):
        wrong.append(record["changes"])
    if wrong:
        raise TypeError(f"found {str(wrong[0])[:60]!r} in the place of another value")


def record_changes(
    folder: Path,
    record: Mapping[str, Any],
    request: RunRequest,
    source: ModelSource,
    data_files: DataRecord,
    changes: Sequence[str],
) -> None:
    """Write into `run.yaml` what the run goes on with from now on, and what that changed."""
    history = [*record.get("changes", ()), {"at": _now(), "what": list(changes)}]
    asked = {**record["asked"], "config": dict(request.config.source)}
    metrics = None if request.config.metrics is None else describe_metrics(request.config.metrics)
    model = {**record["model"], "base": source.base, "fingerprint": fingerprint(source)}
    _write_record(
        folder, {**record, "asked": asked, "model": model, "data": data_files, "metrics": metrics, "changes": history}
    )


def world_size() -> int:
    """Return how many processes `torchrun` started."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def check_shared(folder: Path) -> None:
    """Raise on every process of several machines where one does not see the folder that the main process made."""
    if world_size() == int(os.environ.get("LOCAL_WORLD_SIZE", world_size())):
        return
    probe = folder / ".shared-storage-probe"
    # Random, so that what an earlier run left behind on a local disk is not taken for it.
    token = [os.urandom(8).hex()]
    torch.distributed.broadcast_object_list(token)
    if is_main_process():
        probe.write_text(token[0], encoding="utf-8")
    torch.distributed.barrier()
    seen: list[Any] = [None] * world_size()
    torch.distributed.all_gather_object(seen, (socket.gethostname(), _appears(probe, token[0])))
    if is_main_process():
        probe.unlink()
    blind = sorted({host for host, sees in seen if not sees})
    if blind:
        raise GlmtuneError(
            f"`output_dir` is not shared: {', '.join(blind)} cannot see what the main process writes there",
            where=str(folder.absolute()),
            fix="set `training_args.output_dir` to a folder on storage that all machines share",
        )


def _appears(path: Path, content: str) -> bool:
    """Whether a file with this content can be read within ten seconds."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        # NFS remembers for up to a minute that a name was not there; listing a folder makes it look again.
        for folder in (path.parent.parent, path.parent):
            if folder.is_dir():
                os.listdir(folder)
        if path.is_file() and path.read_text(encoding="utf-8") == content:
            return True
        time.sleep(0.2)
    return False


def fingerprint(source: ModelSource) -> str:
    """Return a short hash of a base model: its configuration, and the names, sizes and first bytes of its weights."""
    folder = Path(source.base)
    if not folder.is_dir():
        return f"hub:{source.base}"
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.name == "config.json" or path.suffix == ".safetensors":
            digest.update(f"{path.name}:{path.stat().st_size}".encode())
            with path.open("rb") as file:
                digest.update(file.read(1 << 20))
    return digest.hexdigest()[:16]


def _is_installed(package: str) -> bool:
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True
