"""Rows of a data set on the Hugging Face hub: `hub:OWNER/NAME`, or `hub:OWNER/NAME:SPLIT`."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from functools import lru_cache
from typing import Any

from glmtune.console import quiet_datasets
from glmtune.data.formats.pairs import CHAT_KEYS
from glmtune.errors import GlmtuneError

from .row import Row
from .tables import ROWS_PER_BATCH, batch_rows

PREFIX = "hub:"
DEFAULT_SPLIT = "train"
SECONDS_TO_ANSWER = 8


def full_name(name: str) -> str:
    """Return the name with its split, or raise where it is not `hub:OWNER/NAME[:SPLIT]`."""
    match = re.fullmatch(r"hub:([\w.-]+/[\w.-]+)(?::(.+))?", name)
    if match is None:
        raise GlmtuneError(f"`{name}` is no data set of the hub; expected `hub:OWNER/NAME` or `hub:OWNER/NAME:SPLIT`")
    return f"{PREFIX}{match[1]}:{match[2] or DEFAULT_SPLIT}"


def hub_rows(name: str, null_columns: Collection[str] = CHAT_KEYS) -> Iterator[Row]:
    """Download a split where it is not there yet and yield its rows, numbered from 1; its code is never run."""
    where = full_name(name)
    dataset_name, _, split = where.removeprefix(PREFIX).partition(":")
    done = 0
    for table in _load(dataset_name, split, where).with_format("arrow").iter(ROWS_PER_BATCH):
        for batch in table.to_batches():
            yield from batch_rows(batch, where, done + 1, null_columns)
            done += batch.num_rows


@lru_cache(maxsize=64)
def ask_hub(name: str) -> None:
    """Raise where the hub does not answer, or has no such data set; before anything is imported that loads one.

    `load_dataset` tries a hub that does not answer again and again, for half a minute.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.constants import HF_HUB_OFFLINE
    from huggingface_hub.errors import HTTPError, RepositoryNotFoundError

    where = full_name(name)
    dataset_name = where.removeprefix(PREFIX).partition(":")[0]
    if HF_HUB_OFFLINE:
        return
    try:
        HfApi().dataset_info(dataset_name, timeout=SECONDS_TO_ANSWER)
    except RepositoryNotFoundError:
        raise GlmtuneError(
            f"the hub has no data set `{dataset_name}`, or you may not see it",
            where=where,
            fix="look at its name; where access is granted on request, log in with `hf auth login`",
        ) from None
    except (OSError, HTTPError) as error:
        raise _unreachable(dataset_name, where, _first_line(error)) from None


def _load(dataset_name: str, split: str, where: str) -> Any:
    ask_hub(where)
    # Here, so that rows of files are read without it.
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError
    from huggingface_hub.constants import HF_HUB_OFFLINE
    from huggingface_hub.errors import HTTPError

    try:
        with quiet_datasets():
            return load_dataset(dataset_name, split=split)
    except (OSError, ValueError, RuntimeError, HTTPError, DatasetsError) as error:
        is_offline = HF_HUB_OFFLINE and isinstance(error, ConnectionError)
        reason = "`HF_HUB_OFFLINE` is set and there is no copy here" if is_offline else _first_line(error)
        raise _unreachable(dataset_name, where, reason) from None


def _unreachable(dataset_name: str, where: str, reason: str) -> GlmtuneError:
    return GlmtuneError(
        f"the hub's `{dataset_name}` cannot be loaded: {reason}",
        where=where,
        fix="set `HF_ENDPOINT` to a mirror that you can reach; take `modelscope:OWNER/NAME` where ModelScope has it; "
        f"or download it where there is a network (`hf download --repo-type dataset {dataset_name} --local-dir "
        "FOLDER`) and name the files of the folder instead",
    )


def _first_line(error: Exception) -> str:
    """Return the first line of what went wrong; `datasets` puts it into the cause where it failed to read a file."""
    cause = error.__cause__ or error
    lines = str(cause).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(cause).__name__
