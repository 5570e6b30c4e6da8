"""Arguments that stand in each other's place: told with the command in its right order."""

from __future__ import annotations

import itertools
import os
import shlex
from pathlib import Path

from glmtune.errors import GlmtuneError
from glmtune.files.missing import RUN_FILE, is_missing
from glmtune.files.user_paths import expand

MODEL_FILES = ("config.json", "adapter_config.json", RUN_FILE)
CONFIGURATIONS = (".yaml", ".yml")


def check_order(verb: str, **places: str | Path | None) -> None:
    """Raise where an argument cannot be what its place asks for, and all of them fit in another order.

    Args:
        verb: As it is typed: `train`.
        places: What stands where, in the verb's order: a value for `rows`, `model` or `config`. None is left out.
    """
    if {"RANK", "WORLD_SIZE"} & os.environ.keys():  # a group of processes tells its errors once, later
        return
    names = [name for name, value in places.items() if value is not None]
    values = [str(value) for value in places.values() if value is not None]
    if all(_fits(name, value) for name, value in zip(names, values)):
        return
    for order in itertools.permutations(values):
        if all(_fits(name, value) and _is_there(name, value) for name, value in zip(names, order)):
            wrong, value = next(pair for pair in zip(names, values) if not _fits(*pair))
            raise GlmtuneError(
                f"`{value}` stands where {_EXPECTED[wrong]} expected",
                fix=f"`{shlex.join(['glmtune', *verb.split(), *order])}`",
            )


_EXPECTED = {"rows": "the rows are", "model": "the model is", "config": "the configuration is"}


def _fits(place: str, value: str) -> bool:
    path = Path(expand(value))
    if place == "rows":
        is_model = any((path / name).is_file() for name in MODEL_FILES)
        return not (is_model or path.suffix in CONFIGURATIONS or is_missing(expand(value)))
    if place == "model":
        return not path.is_file()
    return path.is_file() and path.suffix in CONFIGURATIONS


def _is_there(place: str, value: str) -> bool:
    """Whether a model is one that is made here, a folder, or may be a hub's; others have been looked at."""
    from glmtune.modeling.finding.model_source import EMBEDDED

    return place != "model" or value in EMBEDDED or "/" in value or Path(expand(value)).is_dir()
