"""DeepSpeed's part of a configuration: keys and values, or the name of a file of them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from glmtune.files.text_encoding import read_utf8


def read_deepspeed(given: str | Mapping[str, Any]) -> dict[str, Any]:
    """Return what `training_args.deepspeed` holds: keys and values, or the name of a file of them."""
    if not isinstance(given, str):
        return dict(given)
    content = json.loads(read_utf8(Path(given)))
    assert isinstance(content, dict), "the configuration was checked when it was read"
    return content
