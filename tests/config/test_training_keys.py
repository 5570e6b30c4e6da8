"""Every key of `training_args` is honoured, refused or noted; none is taken and forgotten."""

from __future__ import annotations

import ast
import functools
import importlib
import importlib.util
import inspect
import json
import textwrap
from collections.abc import Iterator
from dataclasses import fields
from types import FunctionType, ModuleType
from typing import Any

import pytest
from transformers import Seq2SeqTrainer, Seq2SeqTrainingArguments, Trainer, TrainingArguments
from transformers.trainer_pt_utils import AcceleratorConfig

from glmtune.config import training_keys as config_training_keys
from glmtune.config.old_keys import CHECKPOINTING
from glmtune.config.run_config import RunConfig, config_from_mapping
from glmtune.config.training_keys import (
    ACCELERATOR_HONOURED,
    ACCELERATOR_NOTED,
    ACCELERATOR_REFUSED,
    ACCUMULATION,
    ACCUMULATION_NOTED,
    ACCUMULATION_REFUSED,
    DECIDED_BY_OTHERS,
    DICTIONARIES,
    HONOURED,
    NOTED,
    REFUSED,
    REPORTER_OF,
)
from glmtune.errors import GlmtuneError
from glmtune.training import building
from glmtune.training.distributed import fsdp
from glmtune.training.setup import arguments, epochs
from glmtune.training.setup import trackers as reports
from glmtune.training.trainer import GlmTrainer

INSTALLED = {each.name: each for each in fields(Seq2SeqTrainingArguments) if each.init}

GENERATED = ("__init__", "__eq__", "__repr__", "__post_init__")
"""Of the arguments: what `dataclass` makes, and the turning of words into enumerations."""

SETTLED_AT_ONCE = ("tf32", "gradient_checkpointing_kwargs")
"""What is set in torch, or in a key of a newer name, as soon as the arguments are made."""

OTHER_VALUES = {
    "dataloader_multiprocessing_context": "spawn",
    "eval_accumulation_steps": 4,
    "generation_max_length": 64,
    "generation_num_beams": 2,
    "hub_model_id": "me/it",
    "hub_private_repo": True,
    "hub_revision": "main",
    "hub_strategy": "end",
    "hub_token": "hf_secret",
    "include_for_metrics": ["inputs"],
    "label_names": ["labels"],
    "length_column_name": "size",
    "liger_kernel_config": {"rope": True},
    "local_rank": 0,
    "parallelism_config": {"tp_size": 2},
    "resume_from_checkpoint": "out/checkpoint-2",
    "sync_with_dataloader": False,
    "num_steps": 4,
}
"""For keys that are no switch: a value that asks for something."""


def load(training_args: dict[str, Any], **top: Any) -> RunConfig:
    source = {"data_config": {"train_file": "a.jsonl"}, "training_args": training_args, **top}
    return config_from_mapping(source, where="run.yaml")


def refusal(training_args: dict[str, Any]) -> GlmtuneError:
    with pytest.raises(GlmtuneError) as caught:
        load(training_args)
    return caught.value


def value_that_asks(key: str, harmless: tuple[Any, ...]) -> Any:
    return OTHER_VALUES[key] if key in OTHER_VALUES else not next(each for each in harmless if isinstance(each, bool))


def test_every_key_of_the_installed_transformers_stands_in_one_table() -> None:
    """A key that is new: find out what reads it, and say in `config/training_keys.py` what becomes of it."""
    assert INSTALLED.keys() - HONOURED - REFUSED.keys() - NOTED.keys() == DECIDED_BY_OTHERS
    assert not HONOURED & REFUSED.keys()
    assert not HONOURED & NOTED.keys()
    assert not REFUSED.keys() & NOTED.keys()


@pytest.mark.parametrize("key", [key for key in REFUSED if key in INSTALLED])
def test_a_key_that_no_run_honours_is_refused_with_the_way_to_go(key: str) -> None:
    error = refusal({key: value_that_asks(key, REFUSED[key].harmless)})
    assert error.what == f"`training_args.{key}`: {REFUSED[key].message}"
    assert error.fix == REFUSED[key].fix
    for value in _harmless(key, REFUSED[key].harmless):
        assert load({key: value}).notices == ()


@pytest.mark.parametrize("key", [key for key in NOTED if key in INSTALLED])
def test_a_key_that_changes_nothing_is_noted(key: str) -> None:
    (line,) = load({key: value_that_asks(key, NOTED[key].harmless)}).notices
    assert line == f"run.yaml: `training_args.{key}` does nothing: {NOTED[key].reason}"
    assert "hf_secret" not in line
    for value in _harmless(key, NOTED[key].harmless):
        assert load({key: value}).notices == ()


def _harmless(key: str, values: tuple[Any, ...]) -> list[Any]:
    """Return the values that the field's type takes: few keys of transformers take null."""
    default = INSTALLED[key].default
    return [value for value in values if value is not None or default is None]


@pytest.mark.parametrize("value", [True, 5, ["a"]])
def test_a_refused_key_is_refused_whatever_the_type_of_its_value(value: Any) -> None:
    assert refusal({"resume_from_checkpoint": value}).fix == REFUSED["resume_from_checkpoint"].fix


def test_do_train_false_is_refused_although_transformers_has_it_as_its_default() -> None:
    assert Seq2SeqTrainingArguments.do_train is False
    assert "`training_args.do_train`" in refusal({"do_train": False}).what


@pytest.mark.parametrize(
    ("name", "value", "others", "decides"),
    [
        ("do_eval", True, {}, "training_args.eval_strategy"),
        ("do_eval", False, {"eval_strategy": "steps"}, "training_args.eval_strategy"),
        ("do_predict", True, {}, "data_config.test_file"),
    ],
)
def test_do_eval_and_do_predict_name_the_key_that_decides(
    name: str, value: bool, others: dict[str, Any], decides: str
) -> None:
    source = {"data_config": {"train_file": "a", "val_file": "b"}, "training_args": {name: value, **others}}
    (line,) = config_from_mapping(source, where="run.yaml").notices
    assert f"`training_args.{name}` does nothing: `{decides}` decides" in line


def test_do_eval_beside_evaluations_says_nothing() -> None:
    source = {"data_config": {"train_file": "a", "val_file": "b"}, "training_args": {"eval_strategy": "epoch"}}
    source["training_args"]["do_eval"] = True
    assert config_from_mapping(source, where="run.yaml").notices == ()


@pytest.mark.parametrize("name", [key for key in REPORTER_OF if key in INSTALLED])
def test_a_key_of_a_tracker_needs_the_tracker(name: str) -> None:
    (line,) = load({name: "mine"}).notices
    assert f"`training_args.{name}` does nothing: only the tracker `trackio` reads it" in line
    assert load({name: "mine", "report_to": "trackio"}).notices == ()


def test_a_run_name_needs_a_tracker() -> None:
    assert "`training_args.run_name` does nothing" in load({"run_name": "mine"}).notices[0]
    assert load({"run_name": "mine", "report_to": ["tensorboard"]}).notices == ()
    assert load({"run_name": "mine"}, swanlab="local").notices == ()


@pytest.mark.parametrize("strategy", ["group_by_length", "batch_rebalance"])
def test_a_sampling_strategy_that_is_random_here_is_noted(strategy: str) -> None:
    if strategy not in INSTALLED["train_sampling_strategy"].metadata.get("choices", [strategy]):
        pytest.skip(f"the installed transformers has no `{strategy}`")
    assert "is taken for `random`" in load({"train_sampling_strategy": strategy}).notices[0]


def test_every_part_of_accelerators_configuration_stands_in_a_table() -> None:
    tables = {*ACCELERATOR_HONOURED, *ACCELERATOR_REFUSED, *ACCELERATOR_NOTED, ACCUMULATION}
    assert {each.name for each in fields(AcceleratorConfig)} == tables


@pytest.mark.parametrize("key", ACCELERATOR_REFUSED)
def test_a_part_of_accelerators_configuration_that_batches_do_not_follow_is_refused(key: str) -> None:
    harmless = ACCELERATOR_REFUSED[key].harmless
    error = refusal({"accelerator_config": {key: value_that_asks(key, harmless)}})
    assert error.what == f"`training_args.accelerator_config.{key}`: {ACCELERATOR_REFUSED[key].message}"
    for value in harmless:
        assert load({"accelerator_config": {key: value}}).notices == ()


def test_other_parts_of_accelerators_configuration_are_noted_or_refused() -> None:
    (line,) = load({"accelerator_config": {"use_seedable_sampler": False}}).notices
    assert "`training_args.accelerator_config.use_seedable_sampler` does nothing" in line
    assert load({"accelerator_config": {"non_blocking": True}}).notices == ()
    for key in ACCUMULATION_NOTED:
        (line,) = load({"accelerator_config": {ACCUMULATION: {key: False}}}).notices
        assert f"`training_args.accelerator_config.{ACCUMULATION}.{key}` does nothing" in line
    for key in ACCUMULATION_REFUSED:
        error = refusal({"accelerator_config": {ACCUMULATION: {key: OTHER_VALUES[key]}}})
        assert f"`training_args.accelerator_config.{ACCUMULATION}.{key}`" in error.what
    assert "did you mean `split_batches`?" in refusal({"accelerator_config": {"split_batch": True}}).what
    assert "expected keys and values" in refusal({"accelerator_config": "accelerator.json"}).what


def test_an_unknown_key_of_a_later_transformers_is_passed_on_with_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config_training_keys, "HONOURED", HONOURED - {"adam_beta1"})
    config = load({"adam_beta1": 0.8})
    assert config.training_args["adam_beta1"] == 0.8
    assert "`training_args.adam_beta1` is new in the installed transformers" in config.notices[0]


def test_what_runs_reads_every_key_that_is_honoured() -> None:
    """A method that is overridden takes its reading of arguments away; this walks over what still runs."""
    assert sorted((HONOURED & INSTALLED.keys()) - set(_read_keys())) == []


def _read_keys() -> Iterator[str]:
    """Yield the attributes of arguments that are read by methods of the trainers that run, and by what they call."""
    for method in _methods_that_run():
        yield from _attributes(method, of_arguments=True)
    for module in _modules_of_transformers():
        yield from _attributes(module, of_arguments=True)
    for name, method in vars(TrainingArguments).items():
        function = inspect.unwrap(_function_of(method))
        if isinstance(function, FunctionType) and not name.startswith("set_") and name not in GENERATED:
            yield from _attributes(function, of_arguments=False)
    for module in (arguments, building, epochs, fsdp, reports):
        yield from _attributes(module, of_arguments=False)
        yield from (node.value for node in _nodes(module) if isinstance(node, ast.Constant))  # `settings["bf16"]`
    yield from SETTLED_AT_ONCE


def _function_of(member: Any) -> Any:
    if isinstance(member, (staticmethod, classmethod)):
        return member.__func__
    if isinstance(member, functools.cached_property):
        return member.func
    return member.fget if isinstance(member, property) else member


def _attributes(code: Any, *, of_arguments: bool) -> Iterator[str]:
    attributes = (node for node in _nodes(code) if isinstance(node, ast.Attribute))
    return (node.attr for node in attributes if _is_arguments(node.value) or not of_arguments)


def _nodes(code: Any) -> Iterator[ast.AST]:
    return ast.walk(ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(code)))))


def _modules_of_transformers() -> list[ModuleType]:
    names = (
        *("trainer_callback", "trainer_optimizer", "trainer_utils"),
        *("integrations.integration_utils", "integrations.deepspeed"),
    )
    found = [f"transformers.{name}" for name in names if importlib.util.find_spec(f"transformers.{name}")]
    return [importlib.import_module(name) for name in found]


def _is_arguments(node: ast.expr) -> bool:
    return (isinstance(node, ast.Name) and node.id == "args") or (
        isinstance(node, ast.Attribute) and node.attr == "args"
    )


def _methods_that_run() -> list[Any]:
    """Return the methods of the trainer that training reaches, each in the class that overrides it last."""
    classes = (GlmTrainer, Seq2SeqTrainer, Trainer)

    def find(name: str, start: int = 0) -> tuple[int, Any] | None:
        for level, cls in enumerate(classes[start:], start):
            if name in vars(cls):
                function = inspect.unwrap(_function_of(vars(cls)[name]))
                return (level, function) if isinstance(function, FunctionType) else None
        return None

    reached: dict[tuple[int, str], Any] = {}
    ahead = [("__init__", 0), ("train", 0), ("finish", 0), ("first_evaluation", 0)]
    while ahead:
        name, start = ahead.pop()
        method = find(name, start)
        if method is None or (method[0], name) in reached:
            continue
        reached[method[0], name] = method[1]
        for node in _nodes(method[1]):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "self":
                ahead.append((node.attr, 0))
            elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Call):
                called = node.value.func
                if isinstance(called, ast.Name) and called.id == "super":
                    ahead.append((node.attr, method[0] + 1))
    return list(reached.values())


def test_noted_keys_read_back_from_a_run_folder() -> None:
    config = load({"remove_unused_columns": True, "use_cache": True})
    assert config_from_mapping(json.loads(json.dumps(dict(config.source))), where="run.yaml") == config


PRESENT_DICTIONARIES = [name for name in DICTIONARIES if name in INSTALLED and name not in CHECKPOINTING]


@pytest.mark.parametrize("name", PRESENT_DICTIONARIES)
@pytest.mark.parametrize("text", ["{a: 1}", '{"a": 1', "{'a': 1}", "{"])
def test_text_that_is_no_json_in_the_place_of_keys_and_values_is_refused(name: str, text: str) -> None:
    message = str(refusal({name: text}))
    assert message.startswith(f"`training_args.{name}`: expected keys and values, found the text `{text}`, which is no")
    assert message.endswith("\n  --> run.yaml\nhint: take the quotes away")


@pytest.mark.parametrize("name", PRESENT_DICTIONARIES)
def test_other_text_in_the_place_of_keys_and_values_is_refused(name: str) -> None:
    assert str(refusal({name: "absent.json"})).startswith(f"`training_args.{name}`: expected keys and values")
    assert load({name: '{"a": 1}'}).training_args[name] == '{"a": 1}'
    assert load({name: {"a": 1}}).training_args[name] == {"a": 1}


@pytest.mark.parametrize("name", ["eval_steps", "save_steps", "logging_steps", "warmup_steps"])
def test_one_and_a_half_steps_are_refused_at_their_line(name: str) -> None:
    assert str(refusal({name: 1.5})) == (
        f"`training_args.{name}`: expected a whole number, or a share of all steps below 1, found `1.5`\n  --> run.yaml"
    )
    for value in (0.5, 1, 2.0, 100):
        load({name: value})


def test_evaluations_at_every_0_steps_are_noted() -> None:
    files = {"train_file": "a.jsonl", "val_file": "b.jsonl"}
    arguments = {"eval_strategy": "steps", "eval_steps": 0}
    config = config_from_mapping({"data_config": files, "training_args": arguments}, where="run.yaml")
    assert config.notices == (
        "run.yaml: `training_args.eval_steps` is 0, which stands for `logging_steps`: a run is evaluated as often as "
        "it logs",
    )
    assert load({"eval_steps": 0}).notices == ()
