"""The JSON Schema of a configuration: it knows every key that `load_config` takes, and takes what we ship."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from glmtune.config.old_keys import RENAMED, RETIRED
from glmtune.config.run_config import DERIVED, DataConfig, RunConfig
from glmtune.config.schema import config_schema, json_type
from glmtune.config.sections import NOT_TRAINED, adapter_fields, training_fields
from glmtune.config.yaml_source import read_source

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))
TYPES = {"boolean": bool, "integer": int, "number": (int, float), "string": str, "null": type(None), "array": list,
         "object": dict}  # fmt: skip


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    return config_schema()


def fits(value: Any, schema: Mapping[str, Any]) -> bool:
    """Whether a value fits, by the words of JSON Schema that are used here."""
    if "anyOf" in schema:
        return any(fits(value, each) for each in schema["anyOf"])
    if "enum" in schema or "const" in schema:
        return value in schema.get("enum", [schema.get("const")])
    names = schema.get("type", list(TYPES))
    names = [names] if isinstance(names, str) else names
    is_flag = isinstance(value, bool)
    if not any(isinstance(value, TYPES[name]) and (not is_flag or name == "boolean") for name in names):
        return False
    if isinstance(value, list):
        return all(fits(each, schema.get("items", {})) for each in value)
    if not isinstance(value, dict):
        return True
    known = schema.get("properties", {})
    branches = [each["then"] for each in schema.get("allOf", []) if fits(value, {**each["if"], "type": "object"})]
    return (
        all(key in value for key in schema.get("required", []))
        and all(fits(each, known[key]) for key, each in value.items() if key in known)
        and (schema.get("additionalProperties", True) or value.keys() <= known.keys())
        and all(fits(value, {**branch, "type": "object"}) for branch in branches)
    )


def test_it_has_every_key_that_a_file_may_have(schema: dict[str, Any]) -> None:
    keys = schema["properties"]
    assert set(keys) == {each.name for each in fields(RunConfig)} - set(DERIVED)
    assert set(keys["data_config"]["properties"]) == {each.name for each in fields(DataConfig)}
    assert set(keys["training_args"]["properties"]) >= {*training_fields(), *RENAMED, *RETIRED, "generation_config"}
    methods = {each["if"]["properties"]["peft_type"]["const"]: each["then"] for each in keys["peft_config"]["allOf"]}
    assert set(methods["LORA"]["properties"]) >= set(adapter_fields("LORA"))
    assert not set(keys["peft_config"]["properties"]["peft_type"]["enum"]) & set(NOT_TRAINED)


def test_every_key_of_ours_is_explained(schema: dict[str, Any]) -> None:
    keys = schema["properties"]
    assert [name for name in keys if not keys[name].get("description")] == []
    assert [name for name, each in keys["data_config"]["properties"].items() if not each.get("description")] == []


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_the_shipped_configurations_fit(schema: dict[str, Any], path: Path) -> None:
    assert fits(read_source(path).values, schema)


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_input_lenght": 5},
        {"max_input_length": "five"},
        {"truncation": "left"},
        {"training_args": {"learning_rate": "fast"}},
        {"training_args": {"eval_strategy": "sometimes"}},
        {"peft_config": {"peft_type": "LORRA"}},
        {"peft_config": {"peft_type": "LORA", "num_virtual_tokens": 5}},
        {"data_config": {}},
    ],
    ids=str,
)
def test_a_slip_does_not_fit(schema: dict[str, Any], wrong: dict[str, Any]) -> None:
    assert fits({"data_config": {"train_file": "a.jsonl"}}, schema)
    assert not fits({"data_config": {"train_file": "a.jsonl"}} | wrong, schema)


def test_old_names_are_marked_as_such(schema: dict[str, Any]) -> None:
    keys = schema["properties"]["training_args"]["properties"]
    assert keys["evaluation_strategy"] == {"description": "Is called `eval_strategy` now.", "deprecated": True}


def test_a_type_that_nobody_looks_into_takes_every_value() -> None:
    assert json_type(Any) == {}
    assert json_type(str | Path) == {}


def test_the_verb_prints_it(program: Path, schema: dict[str, Any]) -> None:
    printed = subprocess.run([program, "config", "schema"], capture_output=True, text=True, check=True).stdout
    assert json.loads(printed) == schema
