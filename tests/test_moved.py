"""Old names of modules are found until they go, with a warning that names the new one."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

from glmtune import __version__
from glmtune.moved import MOVED


@pytest.mark.parametrize(("old", "new"), MOVED.items())
def test_an_old_name_holds_what_the_new_one_does(old: str, new: str) -> None:
    sys.modules.pop(old, None)
    with pytest.warns(DeprecationWarning, match=f"`{new}` now"):
        found = importlib.import_module(old)
    expected = importlib.import_module(new)
    names = [name for name in vars(expected) if not name.startswith("__")]
    assert names
    assert all(vars(found)[name] is vars(expected)[name] for name in names)


def test_old_names_are_found_in_a_script() -> None:
    lines = ["from glmtune.evaluation import generate", "from glmtune.modeling.sources import find_model"]
    code = "\n".join([*lines, "print(callable(generate.as_loaded), callable(find_model))"])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "True True\n"


def test_no_other_name_is_found() -> None:
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("glmtune.modeling.nothing")


def test_old_names_have_not_outlived_their_time() -> None:
    """Fails where `moved.py` can go."""
    assert tuple(map(int, __version__.split(".")[:2])) < (0, 3)
