"""A `glmtune` that starts at once, for the tests that need a process of its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import preloaded
import pytest


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("program")
    with preloaded.install(folder):
        yield folder / "glmtune"
