"""JSON Schema of a configuration, for editors: keys, types, defaults and explanations, read off where they are defined.

Keys of `training_args` and `peft_config` are those of the installed transformers and PEFT, as `load_config` takes them.
A schema knows one key at a time; rules that join several are those of `run_config.check`.
"""

from __future__ import annotations

import ast
import inspect
import itertools
import json
import math
import textwrap
import types
from collections.abc import Mapping
from dataclasses import MISSING, Field, fields
from enum import Enum
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from glmtune.compat import CHECKPOINTING

from .generation_options import TYPES as GENERATION_TYPES
from .old_keys import RENAMED, RETIRED
from .run_config import DERIVED, SECTIONS, DataConfig, RunConfig
from .sections import NOT_TRAINED, TRAINING_DEFAULTS
from .training_keys import NOTED, REFUSED

DRAFT = "http://json-schema.org/draft-07/schema#"
"""The draft that the language servers of editors know best."""

JSON_TYPES: dict[Any, str] = {
    bool: "boolean",
    int: "integer",
    float: "number",
    str: "string",
    type(None): "null",
    list: "array",
    tuple: "array",
    set: "array",
    dict: "object",
    Mapping: "object",
}


_CHECKPOINTING_NAMES = {*CHECKPOINTING, *CHECKPOINTING.values()}


def config_schema() -> dict[str, Any]:
    """Return the JSON Schema of a configuration file."""
    top = {name: schema for name, schema in _keys(RunConfig, explanations(RunConfig)).items() if name not in SECTIONS}
    data = _section(_keys(DataConfig, explanations(DataConfig)), explanations(RunConfig)["data_config"])
    return {
        "$schema": DRAFT,
        "title": "a configuration of glmtune",
        "type": "object",
        "additionalProperties": False,
        "required": ["data_config"],
        "properties": {
            "data_config": {**data, "required": ["train_file"]},
            **top,
            "training_args": _training_section(),
            "peft_config": _peft_section(),
        },
    }


def explanations(cls: type) -> dict[str, str]:
    """Return the docstring under each field of a dataclass, in one line."""
    body = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0].body  # type: ignore[attr-defined]
    return {
        field.target.id: " ".join(str(below.value.value).split())
        for field, below in itertools.pairwise(body)
        if isinstance(field, ast.AnnAssign)
        and isinstance(field.target, ast.Name)
        and isinstance(below, ast.Expr)
        and isinstance(below.value, ast.Constant)
    }


def _training_section() -> dict[str, Any]:
    from transformers import Seq2SeqTrainingArguments

    keys = _keys(Seq2SeqTrainingArguments, _help_of(Seq2SeqTrainingArguments), TRAINING_DEFAULTS)
    for name, refused in REFUSED.items():
        if name in keys:
            keys[name]["description"] = f"Not supported: {refused.message}. To do instead: {refused.fix}."
    for name, noted in NOTED.items():
        if name in keys:
            keys[name]["description"] = f"Does nothing here: {noted.reason}."
    old = {
        **{name: f"Another name of `{new}`." for pair in CHECKPOINTING.items() for name, new in (pair, pair[::-1])},
        **{name: f"Is called `{renamed.new}` now." for name, renamed in RENAMED.items()},
        **{name: f"No longer does anything: {reason}." for name, reason in RETIRED.items()},
    }
    for name, description in old.items():
        keys.setdefault(name, {"description": description, "deprecated": name not in _CHECKPOINTING_NAMES})
    keys["fsdp"] = {"description": keys["fsdp"].get("description", "")}  # transformers annotates it as text alone
    keys["generation_config"] = {
        "type": "object",
        "description": explanations(RunConfig)["generation_config"],
        "properties": {name: json_type(annotation) for name, annotation in GENERATION_TYPES.items()},
    }
    return _section(keys, explanations(RunConfig)["training_args"])


def _peft_section() -> dict[str, Any]:
    """Return the keys of every method that can be trained; `peft_type` decides which of them hold."""
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    methods = {
        peft_type.value: cls for peft_type, cls in PEFT_TYPE_TO_CONFIG_MAPPING.items() if peft_type not in NOT_TRAINED
    }
    names = sorted(methods)
    return {
        "type": ["object", "null"],
        "description": explanations(RunConfig)["peft_config"],
        "required": ["peft_type"],
        "properties": {"peft_type": {"enum": names, "description": "The method of PEFT."}},
        "allOf": [
            {
                "if": {"properties": {"peft_type": {"const": name}}, "required": ["peft_type"]},
                "then": {
                    "additionalProperties": False,
                    "properties": _keys(methods[name], _help_of(methods[name])) | {"peft_type": {"const": name}},
                },
            }
            for name in names
        ],
    }


def _section(keys: Mapping[str, Any], description: str) -> dict[str, Any]:
    return {"type": "object", "description": description, "additionalProperties": False, "properties": dict(keys)}


def _help_of(cls: type) -> dict[str, str]:
    """Return what a dataclass of transformers or PEFT says of its fields."""
    return {
        each.name: " ".join(str(each.metadata["help"]).replace("%%", "%").split())
        for each in fields(cls)
        if each.metadata.get("help")
    }


def _keys(cls: type, described: Mapping[str, str], defaults: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return the schema of every field of a dataclass that a file may set; `defaults` go before its own."""
    types_of = get_type_hints(cls)
    keys = {}
    for each in fields(cls):
        if not each.init or each.name in DERIVED:
            continue
        schema = _field_type(each, types_of[each.name])
        if described.get(each.name):
            schema["description"] = described[each.name]
        default = (defaults or {}).get(each.name, _default(each))
        if default is not MISSING and _is_plain(default):
            schema["default"] = default.value if isinstance(default, Enum) else default
        keys[each.name] = schema
    return keys


def _field_type(field: Field[Any], annotation: Any) -> dict[str, Any]:
    """Return the type of a field's value; `token_dim: int = None` means that it may be null."""
    choices = field.metadata.get("choices")
    schema = {"enum": list(choices)} if choices else json_type(annotation)
    if field.default is None and schema:
        return _any_of([schema, {"type": "null"}])
    return schema


def _default(field: Field[Any]) -> Any:
    """Return what holds where a file leaves the field out; `MISSING` where it has to be given."""
    return field.default_factory() if field.default_factory is not MISSING else field.default


def _is_plain(value: Any) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, (bool, int, str, Enum)) or value == {}


def json_type(annotation: Any) -> dict[str, Any]:
    """Return the schema of values that `field_types.fit` takes; any value where it does not look."""
    origin = get_origin(annotation) or annotation
    if origin in (Union, types.UnionType):
        members = get_args(annotation)
        # `IntervalStrategy | str` means one of the words of the enum, not any text.
        has_enum = any(isinstance(member, type) and issubclass(member, Enum) for member in members)
        return _any_of([json_type(member) for member in members if not (has_enum and member is str)])
    if origin is Literal:
        options = list(get_args(annotation))
        # PEFT writes a pattern among the words: `pissa_niter_[number of iters]`.
        return {"type": "string"} if any("[" in str(option) for option in options) else {"enum": options}
    if isinstance(origin, type) and issubclass(origin, Enum):
        return {"enum": [member.value for member in origin]}
    if origin not in JSON_TYPES:
        return {}
    schema: dict[str, Any] = {"type": JSON_TYPES[origin]}
    if origin is list and get_args(annotation) and (items := json_type(get_args(annotation)[0])):
        schema["items"] = items
    return schema


def _any_of(schemas: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the schema of values that fit one of several, in its shortest form."""
    flat = [part for schema in schemas for part in _alternatives(schema)]
    # Sorted: `typing` hands out an equal union that somebody wrote in another order.
    flat.sort(key=lambda schema: (schema == {"type": "null"}, json.dumps(schema, sort_keys=True)))
    distinct = [schema for index, schema in enumerate(flat) if schema not in flat[:index]]
    if {} in distinct:
        return {}
    if len(distinct) == 1:
        return distinct[0]
    if all(schema.keys() == {"type"} for schema in distinct):
        return {"type": [schema["type"] for schema in distinct]}
    return {"anyOf": distinct}


def _alternatives(schema: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the schemas of which a value that fits `schema` fits one."""
    if "anyOf" in schema:
        return list(schema["anyOf"])
    if isinstance(schema.get("type"), list):
        return [{"type": name} for name in schema["type"]]
    return [schema]
