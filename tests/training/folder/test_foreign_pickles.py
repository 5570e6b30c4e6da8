"""Every file of a checkpoint that torch would unpickle is looked at before it is loaded, whatever it ends with."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from glmtune.errors import GlmtuneError
from glmtune.training.folder.foreign_code import HARMLESS, PICKLED, refuse_code


class Runs:
    """Runs a command where it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("made-by-a-pickle",)


def saved(path: Path, value: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(value, path)
    return path


def test_the_endings_are_those_of_torchs_own_files() -> None:
    assert PICKLED == (".pt", ".pth", ".bin")


@pytest.mark.parametrize("folder", ["", "global_step2", "a/b"])
@pytest.mark.parametrize("ending", PICKLED)
def test_a_file_that_could_run_code_is_refused_whatever_it_ends_with(ending: str, folder: str, tmp_path: Path) -> None:
    saved(tmp_path / "checkpoint-2" / "optimizer.pt", {"a": torch.ones(1)})
    path = saved(tmp_path / "checkpoint-2" / folder / f"state{ending}", {"x": Runs()})
    with pytest.raises(GlmtuneError) as caught:
        refuse_code(tmp_path / "checkpoint-2")
    name = path.relative_to(tmp_path / "checkpoint-2")
    assert (
        caught.value.what == f"checkpoint `checkpoint-2` is refused: `{name}` names `posix.mkdir`, which could run code"
    )
    assert caught.value.where == str(path)
    assert not Path("made-by-a-pickle").exists()


@pytest.mark.parametrize("ending", PICKLED)
@pytest.mark.parametrize("content", [b"", b"not a pickle", b"PK\x03\x04", b"\x80\x04"])
def test_a_file_that_is_no_file_of_tensors_is_refused_whatever_it_ends_with(
    content: bytes, ending: str, tmp_path: Path
) -> None:
    (tmp_path / f"state{ending}").write_bytes(content)
    with pytest.raises(GlmtuneError, match=f"`state{ending}` is not a file of tensors"):
        refuse_code(tmp_path)


@pytest.mark.parametrize("ending", PICKLED)
def test_tensors_plain_values_and_numpys_state_are_let_through(ending: str, tmp_path: Path) -> None:
    np = pytest.importorskip("numpy")
    state = {"tensor": torch.ones(2), "value": [1, "a", None], "numpy": np.random.get_state()}
    saved(tmp_path / f"state{ending}", state)
    refuse_code(tmp_path)
    assert all(name.startswith("numpy.") for name in HARMLESS)
