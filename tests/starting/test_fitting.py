"""Settings that fit rows, model and machine: each choice from the facts that decide it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from glmtune.config.run_config import config_from_mapping
from glmtune.errors import GlmtuneError
from glmtune.memory.run import estimate
from glmtune.modeling.config_loading import load_model_config
from glmtune.modeling.finding.model_source import find_model
from glmtune.starting.fitting import METHODS, SAFE_SHARE, Fitted, Machine, fit
from glmtune.starting.row_facts import Files, RowFacts

PLENTY = Machine(device_bytes=1e12, num_gpus=0)
GLM4 = Path(__file__).parents[3] / "shared" / "glm-4-9b-chat"


def facts_of(
    num_rows: int = 300,
    *,
    row_tokens: Sequence[int] = (40,) * 100,
    columns: Mapping[str, str] | None = None,
    num_val_rows: int = 0,
    num_distinct: int | None = None,
) -> RowFacts:
    return RowFacts(
        num_rows=num_rows,
        num_distinct=num_rows if num_distinct is None else num_distinct,
        unread=(),
        num_rejected=0,
        first_problem=("", ""),
        columns=columns or {},
        prompt_tokens=[tokens // 2 for tokens in row_tokens],
        answer_tokens=[tokens - tokens // 2 for tokens in row_tokens],
        row_tokens=row_tokens,
        num_val_rows=num_val_rows,
        formats={"alpaca": len(row_tokens)},
    )


def fitted(
    facts: RowFacts, *, model: str = "demo", method: str = "lora", machine: Machine = PLENTY, **names: str
) -> Fitted:
    files = Files(folder=Path(), names={"train_file": "a.csv"} | names, train=[])
    model_config = load_model_config(find_model(model, needs_weights=False))
    return fit(files, facts, model=model, model_config=model_config, method=method, output_dir="o", machine=machine)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("num_rows", [1, 9, 10, 300, 20_000, 2_000_000])
def test_whatever_is_chosen_is_a_whole_configuration(method: str, num_rows: int) -> None:
    found = fitted(facts_of(num_rows), method=method)
    config = config_from_mapping(found.values, where="test")
    assert config.method == method
    assert config.data_config.has_val_rows == (num_rows >= 10)
    assert config.training_args["eval_strategy"] == (
        "no" if num_rows < 10 else "epoch" if num_rows <= 20_000 else "steps"
    )
    # Of a tenth of so many rows an answer each would take longer than the training.
    assert config.training_args["predict_with_generate"] == (10 <= num_rows < 20_000)


def test_files_for_the_splits_leave_the_training_rows_whole() -> None:
    found = fitted(facts_of(num_val_rows=100), val_file="dev.csv", test_file="test.csv")
    data = found.values["data_config"]
    assert data == {"train_file": "a.csv", "val_file": "dev.csv", "test_file": "test.csv"}
    assert found.values["training_args"]["predict_with_generate"]
    found = fitted(facts_of(num_val_rows=10_000), val_file="dev.csv")
    assert not found.values["training_args"]["predict_with_generate"]


def test_columns_are_named() -> None:
    found = fitted(facts_of(columns={"instruction": "问题", "output": "回答"}))
    assert found.values["data_config"]["columns"] == {"instruction": "问题", "output": "回答"}


@pytest.mark.parametrize(
    ("row_tokens", "expected", "num_cut"),
    [
        pytest.param((40,) * 100, 64, 0, id="room for each"),
        pytest.param((*(40,) * 999, 79), 96, 0, id="and for one that is a little longer"),
        pytest.param((*(40,) * 999, 4_000), 64, 1, id="not for one that is a hundred times as long"),
    ],
)
def test_limits_leave_room_for_all_rows_but_for_a_few_far_longer_ones(
    row_tokens: Sequence[int], expected: int, num_cut: int
) -> None:
    found = fitted(facts_of(row_tokens=row_tokens))
    limit = found.values["max_input_length"] + found.values["max_output_length"]
    assert limit == expected
    assert sum(tokens > limit for tokens in row_tokens) == num_cut
    assert bool(num_cut) == ("truncation" in found.values) == bool(found.notes)


def test_limits_end_where_the_context_of_the_model_does() -> None:
    found = fitted(facts_of(row_tokens=(8_150,) * 10), method="ptuning_v2")
    context = load_model_config(find_model("demo")).max_position_embeddings
    virtual = METHODS["ptuning_v2"]["num_virtual_tokens"]
    assert found.values["max_input_length"] + found.values["max_output_length"] + virtual <= context


def test_rows_without_room_for_an_answer_are_told_and_refused_where_there_are_no_others() -> None:
    context = load_model_config(find_model("demo")).max_position_embeddings
    lengths = (*(100,) * 98, 3 * context, 3 * context)
    found = fitted(facts_of(row_tokens=lengths))
    assert found.notes[-1] == "of these, 2 are left out: their answers begin behind the limit"
    with pytest.raises(GlmtuneError, match="every row's prompt is longer than the"):
        fitted(facts_of(row_tokens=(3 * context,) * 11))


def test_equal_rows_are_not_split() -> None:
    assert "val_size" not in fitted(facts_of(num_distinct=9)).values["data_config"]
    assert "val_size" in fitted(facts_of(num_distinct=10)).values["data_config"]


MACHINES = {
    "lora, 80 GB": ("lora", 80, 1, {}, None, 1),
    "lora, 24 GB": ("lora", 24, 1, {"gradient_checkpointing": True}, None, 1),
    "lora, 16 GB": ("lora", 16, 1, {}, "4bit", 1),
    "sft, 8 of 80 GB": ("sft", 80, 8, {"deepspeed": "ds_zero2.json"}, None, 1),
    "sft, 8 of 24 GB": ("sft", 24, 8, {"deepspeed": "ds_zero3_offload.json"}, None, 1),
    "sft, 80 GB": ("sft", 80, 1, {"gradient_checkpointing": True}, None, 0),
}


@pytest.mark.skipif(not GLM4.is_dir(), reason="the configuration of GLM-4-9B is not there")
@pytest.mark.parametrize(
    ("method", "gigabytes", "num_gpus", "expected", "quantization", "fits"), MACHINES.values(), ids=MACHINES
)
def test_memory_decides_how_many_rows_are_computed_at_once_and_how(
    method: str, gigabytes: int, num_gpus: int, expected: dict[str, Any], quantization: str | None, fits: int
) -> None:
    machine = Machine(device_bytes=gigabytes * 2**30, num_gpus=num_gpus)
    found = fitted(facts_of(5_000, row_tokens=(500,) * 100), model=str(GLM4), method=method, machine=machine)
    training = found.values["training_args"]
    assert {key: training[key] for key in ("gradient_checkpointing", "deepspeed") if key in training} == expected
    assert found.values.get("quantization") == quantization
    at_once, steps = training["per_device_train_batch_size"], training["gradient_accumulation_steps"]
    assert at_once * steps * num_gpus == 16
    config = config_from_mapping(found.values, where="test")
    total = estimate(str(GLM4), config, num_gpus=num_gpus, only_configured=True).configured.memory.total
    assert (total <= SAFE_SHARE * machine.device_bytes) == bool(fits) == (not found.notes)


def test_a_small_model_learns_faster_and_longer() -> None:
    small = fitted(facts_of()).values["training_args"]
    assert (small["learning_rate"], small["num_train_epochs"]) == (5e-3, 20)
    if GLM4.is_dir():
        large = fitted(facts_of(), model=str(GLM4)).values["training_args"]
        assert (large["learning_rate"], large["num_train_epochs"]) == (5e-4, 5)
