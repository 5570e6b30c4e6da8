"""Going on with another number of processes: a step's rows stay the same."""

from __future__ import annotations

import pytest

from glmtune.config.run_config import RunConfig, config_from_mapping
from glmtune.errors import GlmtuneError
from glmtune.training.distributed.global_batch import keep_global_batch


@pytest.fixture
def config() -> RunConfig:
    return config_from_mapping(
        {"data_config": {"train_file": "train.jsonl"}, "training_args": {"output_dir": "out", "seed": 3}}, where="test"
    )


def record(*, world_size: int, rows_at_once: int, accumulation: int) -> dict:
    resolved = {"per_device_train_batch_size": rows_at_once, "gradient_accumulation_steps": accumulation}
    return {"world_size": world_size, "resolved_training_args": resolved}


def test_as_many_processes_change_nothing(config: RunConfig) -> None:
    assert keep_global_batch(config, record(world_size=2, rows_at_once=4, accumulation=3), 2) == (config, "")


@pytest.mark.parametrize(
    ("before", "rows_at_once", "accumulation", "now", "rows_now", "accumulation_now"),
    [
        (2, 4, 1, 1, 4, 2),  # memory holds no more than 4 rows at once
        (1, 4, 3, 2, 3, 2),  # 6 rows each, which 4 does not divide
        (8, 1, 2, 4, 1, 4),
        (4, 2, 1, 8, 1, 1),
    ],
)
def test_rows_of_a_step_stay_the_same(
    config: RunConfig, before: int, rows_at_once: int, accumulation: int, now: int, rows_now: int, accumulation_now: int
) -> None:
    begun = record(world_size=before, rows_at_once=rows_at_once, accumulation=accumulation)
    changed, told = keep_global_batch(config, begun, now)
    assert changed.training_args["per_device_train_batch_size"] == rows_now
    assert changed.training_args["gradient_accumulation_steps"] == accumulation_now
    assert rows_now * accumulation_now * now == rows_at_once * accumulation * before
    assert changed.training_args["seed"] == 3, "what else was asked for stays"
    assert f"the run began with {before} process" in told


def test_a_number_of_processes_that_cannot_share_is_refused(config: RunConfig) -> None:
    with pytest.raises(GlmtuneError) as caught:
        keep_global_batch(config, record(world_size=2, rows_at_once=3, accumulation=1), 4)
    assert caught.value.what == "the run trains 6 rows a step, which 4 processes cannot share equally"
    assert caught.value.fix == "go on with 1, 2, 3 or 6 processes"
