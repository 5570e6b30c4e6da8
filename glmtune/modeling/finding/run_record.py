"""`run.yaml` of a run that may be somebody else's: plain values of bounded size, or one clear line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from glmtune.errors import GlmtuneError

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


class _PlainLoader(yaml.SafeLoader):
    """Reads plain values alone: an alias could make a few lines stand for more than any memory holds."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """Return the next value."""
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("it has an alias (`*name`), and glmtune writes none")
        return super().compose_node(parent, index)
