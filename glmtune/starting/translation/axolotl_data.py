"""Entries of axolotl's `datasets`: their files, and what they call the columns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .data_sets import DataSet, hub_name, is_on_hub
from .draft import NO_TEXT, Draft, names_in
from .shared_keys import IN_ROWS, PREFERENCES, SAME_SOURCE, SAMPLES, TEMPLATE

FILES_OF = ("json", "jsonl", "csv", "parquet", "arrow", "text")
"""What stands in `path` where `data_files` names the files."""
DATA_KEYS = {
    *("path", "split", "type", "data_files", "ds_type", "field", "field_messages", "field_tools", "name"),
    *("message_field_role", "message_field_content", "message_property_mappings", "chat_template"),
    *("field_thinking", "conversation", "chat_template_jinja", "trust_remote_code"),
}
"""Keys of a data set that are read, or that decide nothing here."""
NESTED = {"type", "data_files", "message_property_mappings"}
"""Those of them that may hold more than a text."""
DATA_LEFT = {
    **dict.fromkeys(("shards", "shards_idx", "preprocess_shards"), SAMPLES),
    **dict.fromkeys(
        ("roles", "roles_to_train", "train_on_eos", "train_on_eot"), "every answer is trained, and its end"
    ),
    **dict.fromkeys(
        ("message_field_training", "message_field_training_detail"), "`loss` in a message weighs it as a whole"
    ),
    **dict.fromkeys(("input_format", "input_transform", "template_thinking_key", "split_thinking"), TEMPLATE),
    "drop_system_message": IN_ROWS,
    "revision": SAME_SOURCE,
    **dict.fromkeys(("logprobs_field", "temperature", "field_chosen", "field_rejected"), PREFERENCES),
}


def data_sets_of(draft: Draft, key: str, entry: Any) -> list[DataSet]:
    """Return the files of an entry; what of it has no place is listed."""
    entry = {"path": entry} if isinstance(entry, str) else entry
    if not isinstance(entry, dict) or not isinstance(entry.get("path"), str):
        draft.leave(key, "expected a `path`", entry)
        return []
    name = entry["path"]
    for part, value in entry.items():
        if part not in DATA_KEYS and value is not None:
            draft.leave(f"{key}: {name}.{part}", DATA_LEFT.get(part, "no key of a data set that is known here"), value)
        elif part in DATA_KEYS - NESTED and isinstance(value, (dict, list)):
            draft.leave(f"{key}: {name}.{part}", NO_TEXT, value)
    entry = {part: value for part, value in entry.items() if part in NESTED or not isinstance(value, (dict, list))}
    columns = _columns(draft, key, entry)
    if columns is None:
        return []
    if entry.get("data_files"):
        names = _files(draft, f"{key}: {name}.data_files", entry["data_files"], entry.get("split") or "train")
        prefix = "" if name in FILES_OF else f"{name}/"
        return [DataSet(name=name, path=f"{prefix}{each}", columns=columns) for each in names]
    if entry.get("name"):
        draft.leave(
            f"{key}: {name}.name", "a subset cannot be named; download its files, and name those", entry["name"]
        )
    path = hub_name(name, entry.get("split")) if is_on_hub(name, draft.file.parent) else name
    return [DataSet(name=name, path=path, columns=columns)]


def _files(draft: Draft, where: str, files: Any, split: str) -> list[str]:
    """Return the names of files: one, a list, or those of a split; nothing, with a line for the user, otherwise."""
    if isinstance(files, dict) and split in files:
        for other in files.keys() - {split}:
            draft.leave(f"{where}.{other}", "another split than the one that is trained on", files[other])
        files = files[split]
    names = files if isinstance(files, list) else [files]
    if not all(isinstance(each, str) for each in names):
        draft.leave(where, "expected the names of files", files)
        return []
    return names


def _columns(draft: Draft, key: str, entry: Mapping[str, Any]) -> dict[str, str] | None:
    """Return what the file calls our keys; None, with a line for the user, where the form cannot be read here."""
    kind, where = entry.get("type"), f"{key}: {entry['path']}.type"
    if isinstance(kind, dict):
        return _of_prompter(draft, where, kind)
    name = str(kind or "").partition(":")[0].partition(".")[0]
    if name == "completion":
        field = names_in(entry).get("field", "text")
        return {} if field == "text" else {"text": field}
    if name in ("chat_template", "sharegpt", "messages"):
        return _of_messages(entry, name)
    if name not in ("alpaca", "", "context_qa", "oasst", "gpteacher", "reflection", "jeopardy", "load_open_orca"):
        draft.leave(where, "is not known here; `glmtune data check FILE` says whether the rows are read", kind)
        return None if name == "input_output" else {}
    if name not in ("alpaca", ""):
        draft.leave(where, "prompts are not put together; `glmtune data check FILE` says how the rows are read", kind)
    return {}


def _of_messages(entry: Mapping[str, Any], kind: str) -> dict[str, str]:
    """Return the columns of rows that hold messages."""
    mappings, entry = names_in(entry.get("message_property_mappings")), names_in(entry)
    role = entry.get("message_field_role") or mappings.get("role") or ("from" if kind == "sharegpt" else "role")
    content = (
        entry.get("message_field_content") or mappings.get("content") or ("value" if kind == "sharegpt" else "content")
    )
    own = entry.get("field_messages") or ("conversations" if kind == "sharegpt" else "messages")
    is_turns = role == "from" or content == "value"
    found = {"conversations": own, "from": role, "value": content} if is_turns else {"messages": own}
    if not is_turns:
        found |= {"role": role, "content": content}
    if entry.get("field_tools"):
        found["tools"] = entry["field_tools"]
    reasoning = entry.get("field_thinking") or mappings.get("reasoning_content")
    if reasoning:
        found["reasoning_content"] = reasoning
    return {ours: own for ours, own in found.items() if ours != own}


def _of_prompter(draft: Draft, where: str, kind: Mapping[str, Any]) -> dict[str, str]:
    """Return the columns of a form that the user described; prompts are not put together here."""
    names = {"instruction": "instruction", "input": "input", "output": "output", "system": "system"}
    for part, value in kind.items():
        if not part.startswith("field_") and value:
            draft.leave(f"{where}.{part}", TEMPLATE, value)
    named = names_in(kind)
    found = {ours: named[f"field_{theirs}"] for theirs, ours in names.items() if named.get(f"field_{theirs}")}
    return {ours: own for ours, own in found.items() if ours != own}
