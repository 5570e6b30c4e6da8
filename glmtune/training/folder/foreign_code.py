"""Files of a checkpoint in torch's own format: pickles, which may name any function; nothing is called to find out."""

from __future__ import annotations

import pickle
from pathlib import Path

from torch.serialization import get_unsafe_globals_in_checkpoint

from glmtune.errors import GlmtuneError

PICKLED = (".pt", ".pth", ".bin")

HARMLESS = {
    "numpy.dtype",
    "numpy.ndarray",
    "numpy._core.multiarray._reconstruct",
    "numpy.core.multiarray._reconstruct",  # numpy 1
}
"""Beyond what torch loads as weights: numpy's random state, which transformers allows, too."""


def refuse_code(checkpoint: Path) -> None:
    """Raise where a file of a checkpoint names anything but tensors, plain values and numpy's arrays.

    torch would refuse such a file, too, as it loads weights only; here it is named before anything is loaded.
    """
    for path in sorted(path for path in checkpoint.rglob("*") if path.suffix in PICKLED):
        name = path.relative_to(checkpoint)
        try:
            foreign = sorted(set(get_unsafe_globals_in_checkpoint(str(path))) - HARMLESS)
        except (ValueError, RuntimeError, EOFError, IndexError, pickle.UnpicklingError):
            problem = f"`{name}` is not a file of tensors"
        else:
            if not foreign:
                continue
            problem = f"`{name}` names `{foreign[0]}`, which could run code"
        raise GlmtuneError(
            f"checkpoint `{checkpoint.name}` is refused: {problem}",
            where=str(path),
            fix="glmtune did not write it; choose another with `--checkpoint STEP`, and find out who changed it",
        )
