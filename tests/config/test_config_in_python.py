"""A configuration that a program makes: keys and values in the place of a file."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest

import glmtune
from glmtune.config.run_config import load_config
from glmtune.config.yaml_source import read_source
from glmtune.errors import GlmtuneError

LORA = Path(__file__).parents[2] / "configs" / "lora.yaml"
SMALL = {"data_config": {"train_file": "train.jsonl"}, "training_args": {"output_dir": "runs/small", "max_steps": 2}}


def problem_of(config) -> str:
    with pytest.raises(GlmtuneError) as caught:
        load_config(config)
    return str(caught.value)


def test_keys_and_values_are_read_as_the_file_that_would_hold_them() -> None:
    from_file = load_config(LORA)
    assert load_config(read_source(LORA).values) == from_file
    assert load_config(MappingProxyType(OrderedDict(from_file.source))) == from_file


def test_overrides_stand_on_top_of_it() -> None:
    assert load_config(SMALL, ["training_args.max_steps=3"]).training_args["max_steps"] == 3
    assert SMALL["training_args"]["max_steps"] == 2


def test_paths_tuples_and_numbers_of_numpy_are_taken() -> None:
    config = load_config(
        {
            "data_config": {"train_file": ("a.jsonl", "b.jsonl"), "val_size": np.float32(0.5)},
            "training_args": {"output_dir": Path("runs") / "small", "max_steps": np.int64(2), "learning_rate": 1e-3},
        }
    )
    assert config.data_config.train_file == ["a.jsonl", "b.jsonl"]
    assert config.training_args["output_dir"] == str(Path("runs") / "small")
    assert type(config.training_args["max_steps"]) is int
    assert type(config.data_config.val_size) is float


def test_a_later_change_of_the_mapping_is_none_of_the_configuration() -> None:
    given = {**SMALL, "training_args": {**SMALL["training_args"]}}
    config = load_config(given)
    given["training_args"]["max_steps"] = 5
    assert config.source["training_args"]["max_steps"] == 2


def test_a_mistake_names_its_key_and_no_line() -> None:
    arguments = SMALL["training_args"] | {"max_stepz": 3}
    told = problem_of(SMALL | {"training_args": arguments})
    assert told == ("`training_args.max_stepz`: unknown key (did you mean `max_steps`?)\n  --> the configuration")


def test_several_mistakes_are_told_at_once() -> None:
    told = problem_of(SMALL | {"max_input_length": "long", "zzz": 1})
    assert told.splitlines()[0] == "2 problems in `the configuration`"
    assert [line.split(": ")[:2] for line in told.splitlines()[1:]] == [
        ["the configuration", "max_input_length"],
        ["the configuration", "zzz"],
    ]


@pytest.mark.parametrize(("value", "kind"), [({1}, "set"), (len, "builtin_function_or_method")])
def test_what_no_file_could_hold_is_told_by_its_key(value, kind: str) -> None:
    told = problem_of(SMALL | {"training_args": {**SMALL["training_args"], "max_steps": value}})
    assert told == (
        f"`training_args.max_steps`: is of type `{kind}`\n  --> the configuration\n"
        "hint: give text, a number, a list, or keys and values"
    )


def test_a_mapping_that_holds_itself_is_told() -> None:
    endless: dict = dict(SMALL)
    endless["peft_config"] = endless
    assert problem_of(endless).endswith(".peft_config: nested too deeply")


@pytest.mark.parametrize(
    "call",
    [
        lambda: glmtune.train("rows", "demo", {"zzz": 1}),
        lambda: glmtune.estimate("demo", {"zzz": 1}),
        lambda: glmtune.check_data("rows", config={"zzz": 1}),
        lambda: glmtune.prepare_data("rows", "demo", {"zzz": 1}),
    ],
    ids=["train", "estimate", "check_data", "prepare_data"],
)
def test_every_function_that_takes_a_configuration_takes_keys_and_values(call) -> None:
    with pytest.raises(GlmtuneError, match="zzz: unknown key"):
        call()


def test_rows_are_checked_as_keys_and_values_say(demo_data: Path) -> None:
    [(split, found)] = glmtune.check_data(demo_data, "demo", config=SMALL).items()
    assert (split, found.num_rows) == ("train", 40)


def test_a_first_configuration_is_a_public_name_and_can_be_written(demo_data: Path, tmp_path: Path) -> None:
    first = glmtune.first_config(demo_data, "demo", output_dir=tmp_path / "run")
    path = first.write(tmp_path / "first.yaml")
    assert path.read_text(encoding="utf-8") == first.text
    assert load_config(path).training_args == first.config.training_args
    with pytest.raises(GlmtuneError, match="exists already"):
        first.write(path)
