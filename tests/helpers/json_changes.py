"""Changes to the JSON files of a copied model or checkpoint."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any


def changed(name: str, **values: Any) -> Callable[[Path], None]:
    """Return what sets keys of a JSON file in the folder that it is given."""

    def change(folder: Path) -> None:
        config = json.loads((folder / name).read_text(encoding="utf-8")) | values
        (folder / name).write_text(json.dumps(config), encoding="utf-8")

    return change
