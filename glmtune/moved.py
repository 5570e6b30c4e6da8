"""Modules that scripts may know by the names that they had up to version 0.1: found under these until 0.3.

What `from glmtune import ...` offers has not moved; all else is our own, and may move again.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import sys
import warnings
from collections.abc import Sequence
from types import ModuleType

MOVED = {
    "glmtune.data.encoding": "glmtune.chatformat.encoding",
    "glmtune.data.rendering": "glmtune.chatformat.rendering",
    "glmtune.data.replies": "glmtune.chatformat.replies",
    "glmtune.evaluation.ask": "glmtune.generation.ask",
    "glmtune.evaluation.generate": "glmtune.generation.generate",
    "glmtune.modeling.adapters": "glmtune.modeling.adapting.adapters",
    "glmtune.modeling.fused_loss": "glmtune.kernels.fused_loss",
    "glmtune.modeling.loss": "glmtune.kernels.loss",
    "glmtune.modeling.packed_attention": "glmtune.kernels.packed_attention",
    "glmtune.modeling.sources": "glmtune.modeling.finding.model_source",
}
"""Those that the documentation named, or that others' scripts were seen to import, and where they are now."""


class _Moved(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Makes a module under its old name that holds what the new one does."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        return importlib.machinery.ModuleSpec(fullname, self) if fullname in MOVED else None

    def exec_module(self, module: ModuleType) -> None:
        old, new = module.__name__, MOVED[module.__name__]
        warnings.warn(f"`{old}` is `{new}` now; the old name goes with glmtune 0.3", DeprecationWarning, stacklevel=2)
        found = importlib.import_module(new)
        vars(module).update({name: value for name, value in vars(found).items() if not name.startswith("__")})


def find_moved_modules() -> None:
    """Have old names found, after all others have been looked for."""
    if not any(isinstance(finder, _Moved) for finder in sys.meta_path):
        sys.meta_path.append(_Moved())
