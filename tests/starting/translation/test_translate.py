"""Files of other tools in our keys: what each becomes, and that nothing of them is lost without a word."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from glmtune.config.run_config import load_config
from glmtune.config.sections import training_fields
from glmtune.config.yaml_source import dump_yaml
from glmtune.errors import GlmtuneError
from glmtune.starting.translation import axolotl, llamafactory, swift
from glmtune.starting.translation.draft import Translation
from glmtune.starting.translation.translate import translate

LLAMAFACTORY = {
    "model_name_or_path": "zai-org/glm-4-9b-chat-hf",
    "stage": "sft",
    "do_train": True,
    "finetuning_type": "lora",
    "lora_rank": 16,
    "lora_target": "q_proj, v_proj",
    "dataset": "mine,other",
    "dataset_dir": "data",
    "template": "glm4",
    "cutoff_len": 2048,
    "output_dir": "saves/x",
    "overwrite_output_dir": True,
    "per_device_train_batch_size": 1,
    "learning_rate": 1.0e-4,
    "num_train_epochs": 3.0,
    "warmup_ratio": 0.1,
    "bf16": True,
    "val_size": 0.1,
    "eval_strategy": "steps",
    "eval_steps": 50,
}
INFO = {
    "mine": {"file_name": "mine.json", "columns": {"prompt": "question", "response": "answer"}},
    "other": {"file_name": "other.json"},
    "chat": {
        "file_name": "chat.jsonl",
        "formatting": "sharegpt",
        "columns": {"messages": "dialog", "system": "sys"},
        "tags": {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"},
    },
    "hub": {"hf_hub_url": "o/n", "ms_hub_url": "p/q", "split": "validation"},
    "model_scope": {"ms_hub_url": "p/q", "subset": "s"},
    "shown": {"file_name": "shown.json", "columns": {"images": "images"}},
    "script": {"script_url": "script.py"},
    "plain": {"file_name": "plain.jsonl", "columns": {"prompt": "body"}},
}


def write(folder: Path, values: dict[str, Any], name: str = "lf.yaml") -> Path:
    path = folder / name
    text = json.dumps(values) if name.endswith(".json") else yaml.safe_dump(values, sort_keys=False)
    path.write_text(text, encoding="utf-8")
    return path


def of_llamafactory(folder: Path, info: dict[str, Any] | None = INFO, **values: Any) -> Translation:
    if info is not None:
        (folder / "data").mkdir(exist_ok=True)
        (folder / "data/dataset_info.json").write_text(json.dumps(info), encoding="utf-8")
    return translate(write(folder, {**LLAMAFACTORY, **values}))


def reasons(found: Translation) -> dict[str, str]:
    return {each.key: each.reason for each in found.untranslated}


def test_a_yaml_of_llamafactory_becomes_one_of_ours(tmp_path: Path) -> None:
    found = of_llamafactory(tmp_path)
    assert (found.tool, found.model, found.method) == ("LLaMA-Factory", "zai-org/glm-4-9b-chat-hf", "lora")
    assert (found.data_dir, found.data_files) == (str(tmp_path / "data"), ["mine.json"])
    assert found.config == {
        "data_config": {
            "train_file": "mine.json",
            "columns": {"instruction": "question", "output": "answer"},
            "val_size": 0.1,
        },
        "max_input_length": 1024,
        "max_output_length": 1024,
        "training_args": {
            "output_dir": "saves/x",
            "per_device_train_batch_size": 1,
            "learning_rate": 1.0e-4,
            "num_train_epochs": 3.0,
            "warmup_steps": 0.1,
            "bf16": True,
            "eval_strategy": "steps",
            "eval_steps": 50,
            "gradient_checkpointing": True,
            "predict_with_generate": False,
        },
        "peft_config": {
            "peft_type": "LORA",
            "r": 16,
            "target_modules": ["q_proj", "v_proj"],
            "lora_alpha": 32,
            "lora_dropout": 0.0,
        },
    }
    assert found.comments["max_input_length"] == "was `cutoff_len: 2048`; a row may take the sum of both"
    assert found.comments["peft_config.lora_alpha"] == "the default of LLaMA-Factory: twice the rank"
    assert "training_args.learning_rate" not in found.comments
    assert reasons(found) == {
        "stage": "`glmtune train` does that",
        "do_train": "`glmtune train` trains, and evaluates where there are rows to evaluate on",
        "dataset": "`other` calls its columns otherwise than the first data set; convert it, and add it then: "
        "`glmtune data convert other.json other-messages.jsonl`",
        "template": "rows are written with the chat template of the model's own tokenizer",
        "overwrite_output_dir": "happens by itself, or by default",
    }


def test_the_data_sets_of_llamafactory_are_named_as_ours(tmp_path: Path) -> None:
    found = of_llamafactory(tmp_path, dataset="chat,hub,model_scope,shown,script,absent")
    assert found.config["data_config"]["train_file"] == "chat.jsonl"
    assert found.config["data_config"]["columns"] == {"messages": "dialog", "system": "sys"}
    told = {str(each.value): each.reason for each in found.untranslated}
    assert told["shown"] == "`shown` has `images`: for pictures, films and sounds, which are not trained here"
    assert told["script"] == "`script` comes of a script, which is not run; write its rows to a file, and name that"
    assert told["absent"].startswith("`absent` is not in dataset_info.json")
    assert told["s"] == "`model_scope`: a subset cannot be named; download its files, and name those"
    found = of_llamafactory(tmp_path, dataset="plain")
    assert found.config["data_config"]["columns"] == {"text": "body"}
    found = of_llamafactory(tmp_path, dataset="hub,model_scope")
    assert found.config["data_config"]["train_file"] == ["hub:o/n:validation", "modelscope:p/q"]


def test_a_dataset_info_becomes_the_files_beside_it(tmp_path: Path) -> None:
    found = translate(write(tmp_path, {key: INFO[key] for key in ("other", "hub", "shown")}, "dataset_info.json"))
    assert (found.tool, found.data_dir) == ("LLaMA-Factory's dataset_info.json", str(tmp_path))
    assert found.config["data_config"] == {"train_file": "other.json"}
    assert reasons(found) == {
        "hub": "lies on a hub; `hub:o/n:validation` in `data_config.train_file` adds it",
        "shown": "`shown` has `images`: for pictures, films and sounds, which are not trained here",
    }


@pytest.mark.parametrize("stage", ["dpo", "kto", "rm", "ppo"])
def test_training_by_preferences_is_listed(stage: str, tmp_path: Path) -> None:
    found = of_llamafactory(tmp_path, stage=stage, pref_beta=0.2)
    expected = "for training by preferences or rewards; here the good answers are trained"
    assert [reasons(found)[key] for key in ("stage", "pref_beta")] == [expected, expected]


def test_what_our_own_configuration_refuses_is_listed_with_its_words(tmp_path: Path) -> None:
    found = of_llamafactory(tmp_path, learning_rate=0, auto_find_batch_size=True, made_up=5)
    assert reasons(found)["learning_rate"] == "expected a finite number above 0, found `0`"
    assert reasons(found)["auto_find_batch_size"].startswith("is not supported: the rows of a step would change")
    assert reasons(found)["made_up"] == "no key of LLaMA-Factory that is known here"
    assert "learning_rate" not in found.config["training_args"]


def test_full_training_has_no_adapter(tmp_path: Path) -> None:
    found = of_llamafactory(tmp_path, finetuning_type="full", deepspeed="examples/deepspeed/ds_z3_config.json")
    assert found.method == "sft"
    assert "peft_config" not in found.config
    assert found.config["training_args"]["deepspeed"] == "ds_zero3.json"
    assert reasons(found)["lora_rank"] == "every weight is trained, without an adapter"


def test_evaluations_without_rows_are_listed(tmp_path: Path) -> None:
    found = of_llamafactory(tmp_path, val_size=0)
    assert reasons(found)["eval_steps"] == "there are no rows to evaluate on"
    assert "eval_strategy" not in found.config["training_args"]


def test_the_newer_form_of_llamafactory_is_read(tmp_path: Path) -> None:
    (tmp_path / "sets.yaml").write_text("a: {path: data/a.json, source: local}\nb: {path: o/n}\n", encoding="utf-8")
    values = {
        "model": "m",
        "peft_config": {"name": "lora", "r": 4, "target_modules": "all"},
        "train_dataset": "sets.yaml",
        "micro_batch_size": 2,
        "cutoff_len": 512,
    }
    found = translate(write(tmp_path, values))
    assert found.config["data_config"] == {"train_file": ["data/a.json", "hub:o/n"]}
    assert found.config["peft_config"]["target_modules"] == "all-linear"
    assert found.config["training_args"]["per_device_train_batch_size"] == 2


SWIFT = {
    "model": "m",
    "train_type": "lora",
    "dataset": ["a.jsonl", "b.jsonl#500"],
    "columns": '{"question": "query", "answer": "response"}',
    "lora_rank": 8,
    "max_length": 2048,
    "learning_rate": 1e-4,
    "torch_dtype": "bfloat16",
    "system": "s",
    "deepspeed": "zero2",
}


def test_arguments_of_swift_become_ours(tmp_path: Path) -> None:
    found = translate(write(tmp_path, SWIFT, "swift.json"))
    assert (found.tool, found.model, found.method) == ("ms-swift", "m", "lora")
    assert found.config == {
        "data_config": {
            "columns": {"query": "question", "response": "answer"},
            "train_file": ["a.jsonl", "b.jsonl"],
        },
        "max_input_length": 1024,
        "max_output_length": 1024,
        "truncation": "drop",
        "training_args": {
            "bf16": True,
            "deepspeed": "ds_zero2.json",
            "learning_rate": 1e-4,
            "per_device_train_batch_size": 1,
            "gradient_accumulation_steps": 16,
            "weight_decay": 0.1,
            "adam_beta2": 0.95,
            "lr_scheduler_type": "cosine",
            "gradient_checkpointing": True,
            "logging_steps": 5,
        },
        "peft_config": {
            "peft_type": "LORA",
            "r": 8,
            "lora_alpha": 32,
            "lora_dropout": 0.05,
            "target_modules": "all-linear",
        },
    }
    assert reasons(found) == {
        "dataset": "`#500`: rows are not counted off here: write as many into a file, or give it a weight, "
        "`{path: FILE, weight: 0.5}`",
        "system": "a system's text stands in each row, as `system` or as the first message",
    }


COMMAND = r"""
# a run
export MODEL=zai-org/glm-4-9b-chat-hf
NPROC_PER_NODE=2 \
CUDA_VISIBLE_DEVICES=0,1 \
swift sft \
    --model "$MODEL" \
    --tuner_type lora \
    --dataset HF::owner/name 'my rows.jsonl' \
    --learning_rate=2e-4 \
    --target_modules q_proj v_proj \
    --use_dora \
    --split_dataset_ratio 0.01 && echo done
"""


def test_a_command_for_the_shell_is_read(tmp_path: Path) -> None:
    path = tmp_path / "train.sh"
    path.write_text(COMMAND, encoding="utf-8")
    found = translate(path)
    assert found.model == "zai-org/glm-4-9b-chat-hf"
    assert found.config["data_config"] == {"train_file": ["hub:owner/name", "my rows.jsonl"], "val_size": 0.01}
    assert found.config["peft_config"]["target_modules"] == ["q_proj", "v_proj"]
    assert found.config["peft_config"]["use_dora"] is True
    assert found.config["training_args"]["learning_rate"] == 2e-4
    assert reasons(found) == {
        "NPROC_PER_NODE": "how many processes there are: `glmtune train ... --nproc N`",
        "CUDA_VISIBLE_DEVICES": "put it before `glmtune train`, too",
    }


def test_a_command_of_llamafactory_stands_on_its_yaml(tmp_path: Path) -> None:
    write(tmp_path, {**LLAMAFACTORY, "dataset": "o/n"})
    path = tmp_path / "train.sh"
    path.write_text("llamafactory-cli train lf.yaml learning_rate=5e-5\n", encoding="utf-8")
    found = translate(path)
    assert found.config["training_args"]["learning_rate"] == 5e-5
    assert found.config["data_config"]["train_file"] == "hub:o/n"


AXOLOTL = {
    "base_model": "m",
    "datasets": [
        {
            "path": "a.jsonl",
            "ds_type": "json",
            "type": "chat_template",
            "field_messages": "conversations",
            "message_property_mappings": {"role": "from", "content": "value"},
            "roles_to_train": ["assistant"],
        }
    ],
    "adapter": "qlora",
    "load_in_4bit": True,
    "lora_r": 8,
    "lora_alpha": 16,
    "lora_target_linear": True,
    "sequence_len": 2048,
    "sample_packing": True,
    "micro_batch_size": 2,
    "num_epochs": 3,
    "optimizer": "adamw_torch",
    "learning_rate": 2e-4,
    "val_set_size": 0.05,
    "saves_per_epoch": 2,
    "evals_per_epoch": 2,
    "bf16": "auto",
    "flash_attention": True,
    "wandb_project": None,
    "special_tokens": {"pad_token": "x"},
}


def test_a_yaml_of_axolotl_becomes_one_of_ours(tmp_path: Path) -> None:
    found = translate(write(tmp_path, AXOLOTL, "ax.yml"))
    assert (found.tool, found.model, found.method) == ("axolotl", "m", "lora")
    assert found.config == {
        "data_config": {"train_file": "a.jsonl", "val_size": 0.05},
        "max_input_length": 1024,
        "max_output_length": 1024,
        "packing": True,
        "quantization": "4bit",
        "attn_implementation": "flash_attention_2",
        "truncation": "drop",
        "training_args": {
            "per_device_train_batch_size": 2,
            "num_train_epochs": 3,
            "learning_rate": 2e-4,
            "optim": "adamw_torch",
            "save_strategy": "steps",
            "save_steps": 0.166667,
            "eval_strategy": "steps",
            "eval_steps": 0.166667,
            "lr_scheduler_type": "cosine",
            "predict_with_generate": False,
        },
        "peft_config": {
            "peft_type": "LORA",
            "target_modules": "all-linear",
            "r": 8,
            "lora_alpha": 16,
            "lora_dropout": 0.0,
        },
    }
    assert reasons(found) == {
        "datasets: a.jsonl.roles_to_train": "every answer is trained, and its end",
        "load_in_4bit": "`adapter: qlora` says it, too",
        "bf16": "happens by itself, or by default",
        "wandb_project": "says nothing",
        "special_tokens": "the model's folder says which tokens there are; add them there first",
    }


@pytest.mark.parametrize(
    ("entry", "columns"),
    [
        ({"path": "a.jsonl", "type": "alpaca"}, None),
        ({"path": "a.jsonl", "type": "completion", "field": "body"}, {"text": "body"}),
        ({"path": "a.jsonl", "type": "chat_template", "field_messages": "dialog"}, {"messages": "dialog"}),
        (
            {"path": "a.jsonl", "type": {"field_instruction": "q", "field_output": "a", "format": "[INST]"}},
            {"instruction": "q", "output": "a"},
        ),
    ],
)
def test_the_columns_of_axolotl_are_named(entry: dict[str, Any], columns: Any, tmp_path: Path) -> None:
    found = translate(write(tmp_path, {**AXOLOTL, "datasets": [entry]}, "ax.yml"))
    assert found.config["data_config"].get("columns") == columns


TOOLS = {
    "lf.yaml": ({"model_name_or_path": "m", "stage": "sft", "finetuning_type": "lora"}, llamafactory),
    "swift.yaml": ({"model": "m", "train_type": "lora", "torch_dtype": "bfloat16"}, swift),
    "ax.yaml": ({"base_model": "m", "adapter": "lora", "micro_batch_size": 1, "datasets": [{"path": "a"}]}, axolotl),
}


@pytest.mark.parametrize("value", [True, 4, 0.5, "x", ["x", "y"], {"x": 1}, None, -1])
@pytest.mark.parametrize("name", TOOLS)
def test_every_key_is_translated_or_listed_whatever_it_says(name: str, value: Any, tmp_path: Path) -> None:
    values, module = TOOLS[name]
    known = training_fields() if name != "ax.yaml" else {}
    keys = [*module.KEYS, *module.LEFT, *known, "made_up"]
    given = {key: value for key in keys if key not in values and key != "deepspeed"} | values
    found = translate(write(tmp_path, given, name))
    told = {each.key.split(":")[0].split(".")[0] for each in found.untranslated}
    said = " ".join(found.comments.values())
    kept = {place.rpartition(".")[2] for place in leaves(found.config)}
    silent = {"model_name_or_path", "model", "model_id_or_path", "base_model", "dataset_dir", "mode", *values}
    assert {key for key in given if key not in told | kept | silent and f"`{key}:" not in said} == set()


@pytest.mark.parametrize("name", TOOLS)
def test_what_comes_of_any_value_can_be_loaded(name: str, tmp_path: Path) -> None:
    values, module = TOOLS[name]
    for number, value in enumerate((True, 4, 0.5, "x", ["x"], {"x": 1}, 0, -1)):
        for chunk in (list(module.KEYS)[::2], list(module.KEYS)[1::2], list(training_fields())):
            found = translate(write(tmp_path, dict.fromkeys(chunk, value) | values, name))
            path = tmp_path / f"ours-{number}.yaml"
            path.write_text(dump_yaml(found.config), encoding="utf-8")
            load_config(path)


def variants(value: Any) -> Iterator[Any]:
    """Yield a value with each of its parts in turn replaced by something of another type."""
    yield from (5, None, "x", ["x"], [None, 5], {"x": 5}, {"path": 5}, True, -0.5)
    if isinstance(value, dict):
        for key, each in value.items():
            yield from ({**value, key: other} for other in variants(each))
    if isinstance(value, list):
        for index, each in enumerate(value):
            yield from ([*value[:index], other, *value[index + 1 :]] for other in variants(each))


@pytest.mark.parametrize(
    ("name", "values"),
    [("lf.yaml", LLAMAFACTORY), ("swift.json", SWIFT), ("ax.yml", AXOLOTL)],
    ids=["lf", "swift", "ax"],
)
def test_whatever_stands_in_a_file_is_no_traceback(name: str, values: dict[str, Any], tmp_path: Path) -> None:
    num_translated = 0
    for key, value in values.items():
        for other in variants(value):
            with contextlib.suppress(GlmtuneError):
                num_translated += bool(translate(write(tmp_path, {**values, key: other}, name)).config)
    assert num_translated


def test_whatever_stands_in_a_dataset_info_is_no_traceback(tmp_path: Path) -> None:
    num_translated = 0
    for key, value in INFO.items():
        for other in variants(value):
            with contextlib.suppress(GlmtuneError):
                of_llamafactory(tmp_path, {**INFO, key: other}, dataset=key)
                num_translated += bool(translate(tmp_path / "data/dataset_info.json").config)
    assert num_translated


def leaves(config: dict[str, Any], above: str = "") -> list[str]:
    found = []
    for key, value in config.items():
        found.append(f"{above}{key}")
        if isinstance(value, dict):
            found += leaves(value, f"{above}{key}.")
    return found


REFUSED: list[tuple[str, str, str]] = [
    (
        "ours.yaml",
        "data_config:\n  train_file: a\n",
        "this is a configuration of glmtune already\n  --> {path}\n"
        "hint: `glmtune train DATA_DIR MODEL {path}` trains by it",
    ),
    (
        "any.yaml",
        "a: 1\nb: 2\n",
        "these are not the keys of LLaMA-Factory, ms-swift or axolotl: `a`, `b`\n  --> {path}\nhint: expected the file "
        "that `llamafactory-cli train`, `swift sft` or `axolotl train` is given",
    ),
    (
        "any.sh",
        "echo hello\n",
        "the file has no training command that is known here\n  --> {path}\nhint: expected `swift sft --model ... "
        "--dataset ...`, or `llamafactory-cli train FILE`",
    ),
    (
        "open.sh",
        "swift sft --system 'a\n",
        "the command cannot be read: No closing quotation\n  --> {path}\nhint: close the quotes",
    ),
    (
        "absent.sh",
        "llamafactory-cli train absent.yaml\n",
        "the command names `absent.yaml`, which is not there\n  --> {path}\nhint: name that file itself",
    ),
    (
        "dataset_info.json",
        "{\n",
        "broken JSON: Expecting property name enclosed in double quotes\n  --> {path}:2\nhint: mend the file",
    ),
]


@pytest.mark.parametrize(("name", "text", "message"), REFUSED)
def test_a_file_that_cannot_be_translated_is_an_error(name: str, text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    with pytest.raises(GlmtuneError) as caught:
        translate(path)
    assert str(caught.value) == message.replace("{path}", str(path))


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(GlmtuneError, match="is a folder; expected a file"):
        translate(tmp_path)


def test_secrets_are_not_shown(tmp_path: Path) -> None:
    found = of_llamafactory(tmp_path, hf_hub_token="hf_secretsecretsecret")
    assert "hf_secretsecretsecret" not in str(found.untranslated)


NESTED: dict[str, Any] = {"mapping": {"a": "b"}, "list of mappings": [{"a": "b"}], "list": ["a", "b"]}
PLACES_OF_LISTS = {
    *("datasets", "test_datasets", "deepspeed", "dataset_dir", "dataset", "eval_dataset", "val_dataset", "report_to"),
    *("columns", "peft_config", "lora_target", "additional_target", "oft_target", "target_modules", "modules_to_save"),
    *("lora_target_modules", "target_parameters", "target_regex"),
    *(key for key in axolotl.ADAPTER if key not in ("lora_r", "lora_alpha", "lora_dropout")),
}
"""Keys that may hold more than a text or a number."""


def keys_with_a_reader() -> list[tuple[str, str]]:
    tools = {"llamafactory": llamafactory.KEYS, "swift": swift.KEYS, "axolotl": axolotl.KEYS}
    return [
        (tool, key)
        for tool, keys in tools.items()
        for key, meaning in keys.items()
        if meaning.read is not None and key not in PLACES_OF_LISTS
    ]


@pytest.mark.parametrize("kind", NESTED)
def test_what_is_no_text_or_number_is_listed_and_becomes_none(kind: str, tmp_path: Path) -> None:
    translators = {
        "llamafactory": llamafactory.translate_llamafactory,
        "swift": swift.translate_swift,
        "axolotl": axolotl.translate_axolotl,
    }
    for tool, key in keys_with_a_reader():
        found = translators[tool]({key: NESTED[kind]}, tmp_path / "x.yaml")
        assert reasons(found)[key] == "expected a text or a number", (tool, key)
        assert found.model is None
        assert not any(f"`{key}:" in comment for comment in found.comments.values()), (tool, key)


@pytest.mark.parametrize(
    ("tool", "key"),
    [
        *(("llamafactory", key) for key in ("dataset", "eval_dataset", "lora_target", "additional_target")),
        *(("swift", key) for key in ("dataset", "val_dataset", "report_to", "target_modules", "modules_to_save")),
        *(("axolotl", key) for key in ("lora_target_modules", "lora_modules_to_save")),
    ],
)
def test_names_are_taken_from_a_list_of_them_alone(tool: str, key: str, tmp_path: Path) -> None:
    translators = {
        "llamafactory": llamafactory.translate_llamafactory,
        "swift": swift.translate_swift,
        "axolotl": axolotl.translate_axolotl,
    }
    for value in ({"a": "b"}, [{"a": "b"}], [["a"]]):
        found = translators[tool]({key: value, "adapter": "lora"}, tmp_path / "x.yaml")
        assert reasons(found)[key] == "expected a text or a number, or a list of them"


def test_a_model_is_named_by_a_text(tmp_path: Path) -> None:
    for values in (
        {"base_model": {"a": "b"}, "datasets": [], "micro_batch_size": 1},
        {"model_name_or_path": ["a"], "stage": "sft", "finetuning_type": "lora"},
        {"model": ["a", "b"], "tuner_type": "lora", "dataset": "x"},
        {"base_model": True, "datasets": [], "micro_batch_size": 1},
    ):
        found = translate(write(tmp_path, values))
        assert found.model is None
        assert next(iter(values)) in reasons(found)


def axolotls_rows(folder: Path, **entry: Any) -> Translation:
    return translate(write(folder, {"base_model": "demo", "micro_batch_size": 1, "datasets": [entry]}))


def test_the_files_of_an_axolotl_data_set_may_stand_under_their_split(tmp_path: Path) -> None:
    found = axolotls_rows(tmp_path, path="json", type="alpaca", data_files={"train": ["a.json", "b.json"], "test": "t"})
    assert found.data_files == ["a.json", "b.json"]
    assert reasons(found) == {"datasets: json.data_files.test": "another split than the one that is trained on"}
    found = axolotls_rows(tmp_path, path="json", type="alpaca", split="test", data_files={"test": "t.json"})
    assert found.data_files == ["t.json"]
    for wrong in ({"dev": "x"}, {"train": {"a": "b"}}, [{"a": "b"}]):
        found = axolotls_rows(tmp_path, path="json", type="alpaca", data_files=wrong)
        assert found.data_files == ["train.jsonl"]
        assert reasons(found)["datasets: json.data_files"] == "expected the names of files"


def test_what_names_nothing_in_a_data_set_is_listed(tmp_path: Path) -> None:
    found = axolotls_rows(tmp_path, path="a.json", type="chat_template", field_messages=["x"], split={"a": "b"})
    assert found.config["data_config"] == {"train_file": "a.json"}
    assert reasons(found) == {
        "datasets: a.json.field_messages": "expected a text",
        "datasets: a.json.split": "expected a text",
    }
    info = {
        "mine": {"file_name": "a.json", "columns": {"prompt": ["q"]}, "split": ["x"]},
        "other": {"hf_hub_url": {"a": "b"}, "file_name": "o.json"},
    }
    found = of_llamafactory(tmp_path, info, dataset="mine,other")
    assert found.data_files == ["a.json", "o.json"]
    told = reasons(found)
    assert {key: told[key] for key in told if key.startswith("dataset_info")} == {
        "dataset_info.json: mine.split": "expected a text",
        "dataset_info.json: mine.columns.prompt": "expected a text",
        "dataset_info.json: other.hf_hub_url": "expected a text",
    }
