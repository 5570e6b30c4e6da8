"""Files of other tools that are given as a configuration: each is named, in one error, with the command that helps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from glmtune.config.other_tools import KEYS, recognise, tool_of_command
from glmtune.config.run_config import load_config
from glmtune.errors import GlmtuneError

HINT = (
    "makes a configuration of it, whose keys stand in `data_config`, `training_args` (such as `learning_rate`) and "
    "`peft_config`, and lists what has no place there"
)

RECOGNISED: list[tuple[dict[str, Any], str]] = [
    ({"model_name_or_path": "m", "stage": "sft", "dataset": "a"}, "LLaMA-Factory"),
    ({"model": "m", "train_dataset": "a.jsonl", "cutoff_len": 5, "peft_config": {"name": "lora"}}, "LLaMA-Factory"),
    ({"model": "m", "train_type": "lora", "dataset": ["a.jsonl"], "torch_dtype": "bfloat16"}, "ms-swift"),
    ({"base_model": "m", "datasets": [], "adapter": "lora"}, "axolotl"),
    ({"a": {"file_name": "a.json"}, "b": {"hf_hub_url": "o/n"}}, "LLaMA-Factory's dataset_info.json"),
]
NOT_RECOGNISED: list[Any] = [
    {},
    None,
    [],
    {"learning_rate": 1, "output_dir": "o"},
    {"data_config": {"train_file": "a"}, "stage": "sft", "finetuning_type": "lora", "model_name_or_path": "m"},
    {"a": {"file_name": "a.json"}, "b": 5},
]


@pytest.mark.parametrize(("values", "tool"), RECOGNISED)
def test_a_tool_is_known_by_its_keys(values: dict[str, Any], tool: str) -> None:
    assert recognise(values) == tool


@pytest.mark.parametrize("values", NOT_RECOGNISED)
def test_other_keys_are_nobodys(values: Any) -> None:
    assert recognise(values) is None


def test_no_key_speaks_for_two_tools() -> None:
    sets = list(KEYS.values())
    assert all(not first & second for index, first in enumerate(sets) for second in sets[index + 1 :])


@pytest.mark.parametrize(
    ("text", "tool"),
    [
        ("swift sft \\\n  --model m\n", "ms-swift"),
        ("NPROC_PER_NODE=2 swift rlhf --rlhf_type dpo", "ms-swift"),
        ("torchrun x/swift/cli/sft.py --model m", "ms-swift"),
        ("FORCE_TORCHRUN=1 llamafactory-cli train a.yaml", "LLaMA-Factory"),
        ("# swift sft\necho", None),
        ("swift infer --model m", None),
    ],
)
def test_a_command_is_known_by_its_verb(text: str, tool: str | None) -> None:
    assert tool_of_command(text) == tool


@pytest.mark.parametrize(
    ("name", "text", "tool"),
    [
        (
            "lf.yaml",
            "model_name_or_path: m\nstage: sft\ndataset: a\nlearning_rate: 1e-4\n",
            "a configuration of LLaMA-Factory",
        ),
        ("swift.json", json.dumps(RECOGNISED[2][0]), "a configuration of ms-swift"),
        ("ax.yml", "base_model: m\ndatasets: []\nadapter: lora\n", "a configuration of axolotl"),
        ("dataset_info.json", '{"a": {"file_name": "a.json"}}', "LLaMA-Factory's dataset_info.json"),
        ("train.sh", "swift sft \\\n  --model m \\\n  --dataset a.jsonl\n", "a configuration of ms-swift"),
        ("run.sh", "export A=1\nA: b\nswift sft --model 'm'\n", "a configuration of ms-swift"),
    ],
)
def test_a_file_of_another_tool_is_one_error(name: str, text: str, tool: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    with pytest.raises(GlmtuneError) as caught:
        load_config(path)
    assert str(caught.value) == (
        f"this is {tool}; expected one of glmtune\n  --> {path}\nhint: `glmtune init --from {path}` {HINT}"
    )
