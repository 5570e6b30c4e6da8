"""Models and data sets of ModelScope: `modelscope:OWNER/NAME`, downloaded by its own library into its own cache.

Only files that nothing runs by reading: weights as safetensors, configurations, tables of rows. Pickles are never
downloaded.
"""

from __future__ import annotations

import os
import re
import urllib.error
import urllib.request
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Literal

from glmtune.console import notice
from glmtune.errors import GlmtuneError, require

PREFIX = "modelscope:"
SECONDS_TO_ANSWER = 8
"""The library itself tries for minutes."""

MODEL_FILES = ("*.safetensors", "*.json", "*.jinja", "*.txt", "*.model", "*.tiktoken", "*.py")
"""What a model is made of; `*.py` is read by nothing unless `trust_remote_code` says so."""
ROW_FILES = tuple(
    f"*.{kind}{packed}"
    for kind in ("jsonl", "json", "csv", "tsv", "parquet", "arrow")
    for packed in ("", ".gz", ".zst")
)

Kind = Literal["model", "dataset"]


def modelscope_model(name: str) -> Path:
    """Return the folder of a model, downloaded where it is not here: `modelscope:OWNER/NAME`."""
    match = re.fullmatch(r"modelscope:(\w[\w.-]*/\w[\w.-]*)", name)
    if match is None:
        raise GlmtuneError(f"`{name}` is no model of ModelScope; expected `modelscope:OWNER/NAME`")
    folder = _snapshot(match[1], "model", MODEL_FILES)
    if not any(folder.rglob("*.safetensors")):
        raise GlmtuneError(
            f"ModelScope's `{match[1]}` has no safetensors weights",
            where=str(folder),
            fix="choose a model that has them: pickled weights could run code, and are not downloaded",
        )
    return folder


def modelscope_rows(name: str) -> Path:
    """Return the folder of a data set, or one file of it: `modelscope:OWNER/NAME` or `modelscope:OWNER/NAME:FILE`."""
    match = re.fullmatch(r"modelscope:(\w[\w.-]*/\w[\w.-]*)(?::(.+))?", name)
    if match is None:
        raise GlmtuneError(
            f"`{name}` is no data set of ModelScope; expected `modelscope:OWNER/NAME` or `modelscope:OWNER/NAME:FILE`"
        )
    folder = _snapshot(match[1], "dataset", (match[2],) if match[2] else ROW_FILES)
    if match[2] is None:
        return folder
    path = folder / match[2]
    if not path.is_file() or folder.resolve() not in path.resolve().parents:
        raise GlmtuneError(
            f"ModelScope's `{match[1]}` has no file `{match[2]}`", where=name, fix="look at its files there"
        )
    return path


@lru_cache(maxsize=64)
def _snapshot(name: str, kind: Kind, patterns: tuple[str, ...]) -> Path:
    require("modelscope", extra="modelscope")
    from modelscope_hub.errors import HubError

    problem = _problem()
    try:
        return _download(name, kind, patterns, is_offline=bool(problem))
    except (HubError, OSError, ValueError, RuntimeError) as error:
        lines = str(error).strip().splitlines()
        reason = problem or (lines[0].rstrip(".") if lines else type(error).__name__)
    raise GlmtuneError(
        f"ModelScope's {kind} `{name}` cannot be had: {reason}" + (", and there is no copy here" if problem else ""),
        where=PREFIX + name,
        fix="look at its name on modelscope.cn; take it from Hugging Face (`HF_ENDPOINT` names a mirror of it); or "
        f"download it where there is a network (`modelscope download --{kind} {name} --local_dir FOLDER`), and give "
        "the folder",
    )


def _download(name: str, kind: Kind, patterns: Sequence[str], *, is_offline: bool) -> Path:
    from modelscope import snapshot_download

    if is_offline:
        folder = Path(snapshot_download(name, repo_type=kind, local_files_only=True))
        notice(f"ModelScope does not answer: the copy of `{name}` on this machine is used")
        return folder
    return Path(snapshot_download(name, repo_type=kind, allow_patterns=list(patterns)))


@lru_cache(maxsize=1)
def _problem() -> str:
    """Return why ModelScope cannot be asked; empty where it answers anything."""
    domain = os.environ.get("MODELSCOPE_ENDPOINT") or os.environ.get("MODELSCOPE_DOMAIN") or "www.modelscope.cn"
    address = domain if "://" in domain else f"https://{domain}"
    try:
        urllib.request.urlopen(address, timeout=SECONDS_TO_ANSWER).close()
    except urllib.error.HTTPError:
        return ""
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        return f"`{address}` does not answer ({reason})"
    return ""
