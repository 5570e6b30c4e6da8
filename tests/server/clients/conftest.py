"""Clients of others against a server whose model knows by heart what they ask."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from client_rows import rows_of_clients
from serving_fixtures import learnt, running


@pytest.fixture(scope="session")
def clients_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return learnt(tmp_path_factory.mktemp("clients-model"), rows_of_clients(), num_steps=100)


@pytest.fixture(scope="module")
def url(clients_model: Path) -> Iterator[str]:
    with running(clients_model) as url:
        yield url
