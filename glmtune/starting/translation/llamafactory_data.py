"""LLaMA-Factory's `dataset_info.json`: its entries as data sets of ours."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from glmtune.config.yaml_source import read_keys
from glmtune.data.formats.sharegpt import SPEAKERS
from glmtune.data.parts.calls import CALLERS
from glmtune.errors import GlmtuneError, nearest
from glmtune.files.text_encoding import read_utf8

from .data_sets import HUB_NAME, DataSet, hub_name
from .draft import NO_TEXT, Draft, names_in, texts_in
from .shared_keys import PICTURES, SAMPLES

INFO = "dataset_info.json"
ALPACA = {"prompt": "instruction", "query": "input", "response": "output", "history": "history"}
BESIDE = {"system": "system", "tools": "tools", "chosen": "chosen", "rejected": "rejected"}
MEDIA = ("images", "videos", "audios")
"""Columns of a data set that is shown something."""
TAGS = {
    "role_tag": "from",
    "content_tag": "value",
    "user_tag": "human",
    "assistant_tag": "gpt",
    "observation_tag": "observation",
    "function_tag": "function_call",
    "system_tag": "system",
}
"""Names within messages, and what they are where nothing is said."""
ROLES = {"user_tag": "user", "assistant_tag": "assistant", "observation_tag": "observation", "system_tag": "system"}


def read_info(folder: str, file: Path) -> tuple[str, dict[str, Any]]:
    """Return the folder of data sets, and what its `dataset_info.json` says of them; nothing where there is none.

    The folder is looked up from the working directory, from the configuration's own folder, and those above it: a
    configuration of LLaMA-Factory is run from the top of its checkout.
    """
    candidates = [Path(folder), *(above / folder for above in file.absolute().parents)]
    found = next((each for each in candidates if (each / INFO).is_file()), None)
    if found is None:
        there = next((each for each in candidates[:2] if each.is_dir()), Path(folder))
        return str(there), {}
    return str(found), info_of(found / INFO)


def info_of(path: Path) -> dict[str, Any]:
    """Return what a `dataset_info.json` says; raises `GlmtuneError` where it is broken."""
    try:
        info = json.loads(read_utf8(path))
    except json.JSONDecodeError as error:
        raise GlmtuneError(f"broken JSON: {error.msg}", where=f"{path}:{error.lineno}", fix="mend the file") from None
    if not isinstance(info, dict):
        raise GlmtuneError("expected an object of data sets", where=f"{path}:1")
    return info


def named_data_sets(draft: Draft, key: str, names: Sequence[str], info: Mapping[str, Any]) -> list[DataSet]:
    """Return the data sets that a key of the configuration names; those that cannot be read are listed."""
    found = []
    for name in names:
        if name in info and isinstance(info[name], dict):
            each = data_set(draft, key, name, info[name])
            found += [each] if each else []
        elif info:
            draft.leave(key, f"`{name}` is not in {INFO}{nearest(name, list(info))}", name)
        elif HUB_NAME.fullmatch(name):
            found.append(DataSet(name=name, path=hub_name(name)))
        else:
            draft.leave(
                key,
                f"there is no {INFO} that says which file `{name}` is: put the file's name into `train_file`",
                name,
            )
    return found


def listed_data_sets(draft: Draft, key: str, name: str) -> list[DataSet]:
    """Return the data sets that a YAML of the newer form lists, or nothing where it is not there."""
    candidates = [Path(name), *(above / name for above in draft.file.absolute().parents)]
    file = next((each for each in candidates if each.is_file()), None)
    if file is None:
        draft.leave(key, f"there is no `{name}` here: put the names of the files that it lists into `train_file`")
        return []
    found = []
    for entry_name, entry in read_keys(file).values.items():
        if not isinstance(entry, dict) or not isinstance(entry.get("path"), str):
            draft.leave(f"{key}: {entry_name}", "expected a `path`", entry)
            continue
        for part in entry.keys() - {"path", "source", "split", "converter", "streaming"}:
            draft.leave(f"{key}: {entry_name}.{part}", f"`{entry_name}`: {SAMPLES}", entry[part])
        for part in ("source", "split"):
            if not isinstance(entry.get(part, ""), str):
                draft.leave(f"{key}: {entry_name}.{part}", NO_TEXT, entry[part])
                entry = {each: value for each, value in entry.items() if each != part}
        hub = {"ms_hub": "modelscope", "hf_hub": "hub"}.get(str(entry.get("source", "hf_hub")))
        path = entry["path"]
        found.append(DataSet(name=entry_name, path=hub_name(path, entry.get("split"), hub=hub) if hub else path))
    return found


def data_set(draft: Draft, key: str, name: str, entry: Any) -> DataSet | None:
    """Return the data set of an entry; None, with a line for the user, where it cannot be read here."""
    if not isinstance(entry, dict):
        draft.leave(key, f"`{name}` is no data set: expected keys and values", entry)
        return None
    for part in ("file_name", "hf_hub_url", "ms_hub_url", "split"):
        if not isinstance(entry.get(part, ""), str):
            draft.leave(f"{INFO}: {name}.{part}", NO_TEXT, entry[part])
            entry = {key: value for key, value in entry.items() if key != part}
    columns = names_in(entry.get("columns"))
    shown = next((each for each in MEDIA if each in columns), None)
    if shown:
        draft.leave(key, f"`{name}` has `{shown}`: {PICTURES}", name)
        return None
    path = _path(entry)
    if path is None:
        why = "comes of a script, which is not run" if "script_url" in entry else "lies where it cannot be read from"
        draft.leave(key, f"`{name}` {why}; write its rows to a file, and name that", name)
        return None
    for part, reason in (
        ("num_samples", f"`{name}`: {SAMPLES}"),
        ("subset", f"`{name}`: a subset cannot be named; download its files, and name those"),
    ):
        if entry.get(part) is not None:
            draft.leave(f"{INFO}: {name}.{part}", reason, entry[part])
    for part in entry.keys() - READ_KEYS:
        draft.leave(f"{INFO}: {name}.{part}", "no key of a data set that is known here", entry[part])
    return DataSet(name=name, path=path, columns=_columns(draft, name, entry))


READ_KEYS = frozenset(
    (
        *("file_name", "hf_hub_url", "ms_hub_url", "om_hub_url", "script_url", "cloud_file_name", "formatting"),
        *("ranking", "subset", "split", "folder", "num_samples", "columns", "tags"),
    )
)


def _path(entry: Mapping[str, Any]) -> str | None:
    split = entry.get("split")
    if "hf_hub_url" in entry:
        return hub_name(str(entry["hf_hub_url"]), split)
    if "ms_hub_url" in entry:
        return hub_name(str(entry["ms_hub_url"]), split, hub="modelscope")
    return str(entry["file_name"]) if "file_name" in entry else None


def _columns(draft: Draft, name: str, entry: Mapping[str, Any]) -> dict[str, str]:
    """Return what the file calls our keys, where that differs."""
    columns = texts_in(draft, f"{INFO}: {name}.columns", entry.get("columns"))
    tags = {**TAGS, **texts_in(draft, f"{INFO}: {name}.tags", entry.get("tags"))}
    found = {ours: columns[theirs] for theirs, ours in BESIDE.items() if columns.get(theirs)}
    if entry.get("formatting") in ("sharegpt", "openai"):
        if entry["formatting"] == "openai" and not entry.get("tags"):
            tags |= {"role_tag": "role", "content_tag": "content"}
        is_openai = (tags["role_tag"], tags["content_tag"]) == ("role", "content")
        own = columns.get("messages", "messages" if is_openai else "conversations")
        found |= {"messages": own} if is_openai else {"conversations": own}
        if not is_openai:
            found |= {"from": tags["role_tag"], "value": tags["content_tag"]}
        _check_speakers(draft, name, tags, is_openai=is_openai)
    elif columns.get("prompt") and not {"response", "chosen"}.intersection(columns):
        found |= {"text": columns["prompt"]}  # plain text, for `stage: pt`
    else:
        found |= {ours: columns[theirs] for theirs, ours in ALPACA.items() if columns.get(theirs)}
    return {ours: own for ours, own in found.items() if ours != own}


def _check_speakers(draft: Draft, name: str, tags: Mapping[str, Any], *, is_openai: bool) -> None:
    """List names of speakers that our reader does not know."""
    for tag, default in TAGS.items():
        said = str(tags[tag])
        if tag in ("role_tag", "content_tag") or said == default:
            continue
        role = "assistant" if said in CALLERS else SPEAKERS.get(said, said if said in ROLES.values() else None)
        if is_openai and said in ("tool", "developer", "function"):
            role = "observation" if said != "developer" else "system"
        expected = ROLES.get(tag, "assistant")
        if role != expected:
            draft.leave(
                f"{INFO}: {name}.tags.{tag}",
                f"rows name a speaker `{said}`, which is not known: call it `{ROLES.get(tag, default)}` in the file",
                said,
            )
