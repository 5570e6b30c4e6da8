"""The records of a checkpoint, looked at before a run goes on with them: of their kind, and of this very step."""

from __future__ import annotations

import dataclasses
import json
import math
import pickle
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from transformers import TrainerState

from glmtune.errors import GlmtuneError
from glmtune.modeling.finding.model_files import read_config
from glmtune.modeling.library_errors import WHILE_BUILDING, is_lack_of_memory, reason_of

from .changes import ASKED
from .checkpoint import step_of
from .loss_window import LOSS_WINDOW

STATE = "trainer_state.json"

UNFINISHED = "unfinished"
"""Key, among the records of callbacks, of what a stopped run owes at its step."""

EARLY_STOPPING = "early_stopping"
"""Key, among the same, of how many evaluations in a row were no better than the best."""

MOST_STEPS = 2**53
"""Beyond this, not every whole number is one of JSON's."""


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MOST_STEPS


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _is_list_of_numbers(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(_is_number(each) for each in value)


def _are_callbacks(value: Any) -> bool:
    if not isinstance(value, dict):
        return False
    due, stopping = value.get(UNFINISHED, {}), value.get(EARLY_STOPPING, {})
    if not isinstance(due, dict) or (due and not {"evaluation_due", "save_due"} <= due.keys()):
        return False
    return isinstance(stopping, dict) and (not stopping or _is_count(stopping.get("num_waited")))


def num_waited(callbacks: Mapping[str, Any]) -> int:
    """Return how many evaluations in a row were no better, from the records of callbacks in a checkpoint."""
    return int(callbacks.get(EARLY_STOPPING, {}).get("num_waited", 0))


class _Field(NamedTuple):
    expected: str
    holds: Callable[[Any], bool]


FIELDS: Mapping[str, Mapping[str, _Field]] = {
    ASKED: {"training_args": _Field("keys and values", lambda value: value is None or isinstance(value, dict))},
    STATE: {
        **dict.fromkeys(("global_step", "max_steps"), _Field("a whole number, 0 or more", _is_count)),
        "epoch": _Field("a number", lambda value: value is None or _is_number(value)),
        "best_model_checkpoint": _Field("a path", lambda value: value is None or isinstance(value, str)),
        "best_metric": _Field("a number", lambda value: value is None or _is_number(value)),
        "stateful_callbacks": _Field("keys and values", _are_callbacks),
        "log_history": _Field("a list of objects", lambda value: _is_list_of_objects(value)),
    },
    LOSS_WINDOW: {
        "first_step": _Field("a whole number, 0 or more", _is_count),
        "sums": _Field("a list of numbers", _is_list_of_numbers),
    },
}
"""By file: the keys that are read from it, and what they hold."""


def check_state(checkpoint: Path) -> None:
    """Raise where a record of a checkpoint is none, or is of another step than the checkpoint's name says."""
    for name, fields in FIELDS.items():
        path = checkpoint / name
        if not path.is_file():
            raise GlmtuneError(f"checkpoint `{checkpoint.name}` has no `{name}`", where=str(checkpoint))
        record = read_config(path)
        for key, field in fields.items():
            if not field.holds(record.get(key)):
                raise _wrong(path, f"`{key}` is {_shown(record.get(key))}; expected {field.expected}")
    state = read_config(checkpoint / STATE)
    unknown = state.keys() - {field.name for field in dataclasses.fields(TrainerState)}
    if unknown:
        raise _wrong(checkpoint / STATE, f"`{min(unknown)}` is no key of such a record")
    if state["global_step"] != step_of(checkpoint):
        raise _wrong(checkpoint / STATE, f"`global_step` is {state['global_step']}, in a checkpoint of another step")


@contextmanager
def state_explained(checkpoint: str | None, part: str) -> Iterator[None]:
    """Turn what torch and transformers raise at a checkpoint's state that is not this run's into one clear error."""
    try:
        yield
    except (pickle.UnpicklingError, EOFError, *WHILE_BUILDING) as error:
        if is_lack_of_memory(error) or checkpoint is None:
            raise
        raise GlmtuneError(
            f"the {part} of `{Path(checkpoint).name}` cannot be gone on with: {reason_of(error)}",
            where=checkpoint,
            fix="choose another with `--checkpoint STEP`",
        ) from error


def _is_list_of_objects(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(each, dict) for each in value)


def _wrong(path: Path, what: str) -> GlmtuneError:
    return GlmtuneError(
        f"`{path.name}` of `{path.parent.name}` cannot be gone on with: {what}",
        where=str(path),
        fix="choose another with `--checkpoint STEP`",
    )


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=True)
    return text if len(text) <= 60 else f"{text[:60]}..."
