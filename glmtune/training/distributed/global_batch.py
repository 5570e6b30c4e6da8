"""Going on with another number of processes: the same rows a step, in the same order.

transformers gives one shuffled order of rows in batches to the processes in turn. With the global batch
(rows of a process at once x accumulation steps x processes) kept, step N trains the same rows, whoever trains them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from glmtune.config.run_config import RunConfig
from glmtune.errors import GlmtuneError


def keep_global_batch(config: RunConfig, record: Mapping[str, Any], num_processes: int) -> tuple[RunConfig, str]:
    """Return the configuration for this number of processes, and what was changed in it, in words.

    Args:
        config: The run's, as it was asked for.
        record: The run's `run.yaml`.
        num_processes: Of the group that goes on.

    Raises:
        GlmtuneError: The rows of a step cannot be shared equally by so many processes.
    """
    before = record["world_size"]
    if before == num_processes:
        return config, ""
    resolved = record["resolved_training_args"]
    rows_at_once = resolved["per_device_train_batch_size"]
    global_batch = rows_at_once * resolved["gradient_accumulation_steps"] * before
    rows_each, rest = divmod(global_batch, num_processes)
    if rest:
        raise GlmtuneError(
            f"the run trains {global_batch} rows a step, which {num_processes} processes cannot share equally",
            fix=f"go on with {_listed(count for count in range(1, global_batch + 1) if global_batch % count == 0)} "
            "processes",
        )
    # As many rows at once as before where that divides the share; never more, since memory would not hold them.
    batch_size = max(size for size in range(1, rows_at_once + 1) if rows_each % size == 0)
    changed = {
        "per_device_train_batch_size": batch_size,
        "gradient_accumulation_steps": rows_each // batch_size,
    }
    told = (
        f"the run began with {before} process{'es' if before > 1 else ''}, now {num_processes}: each trains "
        f"{rows_each // batch_size} x {batch_size} rows a step, so that a step's {global_batch} rows stay the same"
    )
    return replace(config, training_args={**config.training_args, **changed}), told


def _listed(numbers: Any) -> str:
    *first, last = map(str, numbers)
    return f"{', '.join(first)} or {last}" if first else last
