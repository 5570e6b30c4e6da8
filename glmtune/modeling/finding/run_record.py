"""`run.yaml` of a run that may be somebody else's: plain values of bounded size, or one clear line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from glmtune.errors import GlmtuneError
from glmtune.files.missing import RUN_FILE
from glmtune.files.user_paths import expand

from .links import refuse_links
from .model_source import MANIFEST

MAX_RUN_FILE_BYTES = 16_000_000
"""A file that a run was trained on takes about 150 bytes of it."""


def read_run_file(path: Path) -> Any:
    """Return what `run.yaml` holds; raises where glmtune cannot have written it."""
    if path.stat().st_size > MAX_RUN_FILE_BYTES:
        raise GlmtuneError(f"`{path.name}` has {path.stat().st_size:,} bytes; glmtune writes less", where=str(path))
    try:
        return yaml.load(path.read_bytes().decode("utf-8"), _PlainLoader)
    except UnicodeDecodeError as error:
        problem = f"it is not UTF-8: {error.reason}"
    except RecursionError:
        problem = "it is nested too deeply"
    except (yaml.YAMLError, ValueError) as error:
        problem = " ".join(str(error).split())
    raise GlmtuneError(f"`{path.name}` cannot be read: {problem}", where=str(path))


def columns_of_run(model: str | Path) -> tuple[str | None, dict[str, str]]:
    """Return the format and the columns that a run reads its rows by; none for a model that is no run's.

    Args:
        model: A run's folder, or a checkpoint in one; what else it may be says nothing of rows.
    """
    folder = Path(expand(str(model)))
    path = next((each / RUN_FILE for each in (folder, folder.parent) if (each / RUN_FILE).is_file()), None)
    if path is None or (folder != path.parent and not (folder / MANIFEST).is_file()):
        return None, {}
    refuse_links(path.parent, [RUN_FILE])
    record = read_run_file(path)
    try:
        settings = record["asked"]["config"]["data_config"]
        name, columns = settings.get("format"), settings.get("columns") or {}
        return name, {str(key): str(own) for key, own in columns.items()}
    except (KeyError, TypeError, AttributeError):
        raise GlmtuneError(f"`{RUN_FILE}` does not say how the run reads its rows", where=str(path)) from None


class _PlainLoader(yaml.SafeLoader):
    """Reads plain values alone: an alias could make a few lines stand for more than any memory holds."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """Return the next value."""
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("it has an alias (`*name`), and glmtune writes none")
        return super().compose_node(parent, index)
