"""glmtune: fine-tune GLM-4 chat models.

The names below are imported on first use, so that `import glmtune` stays free of torch.
"""

from __future__ import annotations

import importlib
import warnings
from typing import Any

from glmtune.library_logs import keep_stdout_for_results
from glmtune.moved import find_moved_modules

__version__ = "0.1.0"

_HOMES = {
    "Conversation": "glmtune.data.conversation",
    "GlmtuneError": "glmtune.errors",
    "RunConfig": "glmtune.config.run_config",
    "check_data": "glmtune.datatools.data_inspection",
    "compare": "glmtune.comparing.compare",
    "convert_data": "glmtune.data.conversion",
    "estimate": "glmtune.memory.run",
    "evaluate": "glmtune.evaluation.evaluate",
    "export": "glmtune.exporting.run",
    "first_config": "glmtune.starting.run",
    "generate": "glmtune.generation.generate",
    "list_runs": "glmtune.runs.listing",
    "load_config": "glmtune.config.run_config",
    "prepare_data": "glmtune.training.setup.preparation",
    "read_metrics": "glmtune.reports.logged_frame",
    "resume": "glmtune.training.run",
    "serve": "glmtune.server.run",
    "stop_run": "glmtune.runs.stop",
    "train": "glmtune.starting.fitted_run",
    "web": "glmtune.page.run",
}

__all__ = sorted(_HOMES)

keep_stdout_for_results()
find_moved_modules()


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'glmtune' has no attribute {name!r}")
    with warnings.catch_warnings():
        # Of tqdm, which libraries import: that a notebook has no widgets for bars, which are not shown either.
        warnings.filterwarnings("ignore", message="IProgress not found")
        return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
