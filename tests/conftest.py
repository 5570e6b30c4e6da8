"""Fixtures shared by all tests: the embedded model, real material where it is there, and no network."""

from __future__ import annotations

import gc
import ipaddress
import os
import signal
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import preloaded
import pytest

from glmtune.python_terms import spoken_on_the_command_line

pytest_plugins = ["hub_fixtures", "serving_fixtures"]

# Before transformers is imported: nothing may even look for a hub.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("DS_ACCELERATOR", "cpu")
os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
# Encoded rows and the embedded model: not into the cache of whoever runs the tests.
_cache = tempfile.TemporaryDirectory(prefix="glmtune-tests-")
os.environ["GLMTUNE_CACHE"] = _cache.name

# Where the tests run in the background a shell has Ctrl-C ignored, by every program that is started from here, too.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
# And under `nohup` SIGHUP.
if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

SHARED = Path(__file__).parents[2] / "shared"
"""Real material beside the checkout: GLM-4's tokenizer and published rows. Not part of the project."""


def pytest_collection_finish() -> None:
    """Set apart what the imports have made: every run collects garbage, and would look through all of it again."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    """Let go of it: what stays at the end Triton's bindings, where they are installed, call leaks."""
    gc.unfreeze()


LONGEST = ("test_documentation.py", "test_matrix.py", "test_tour.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the longest files first: processes that share the others end at about the same time.

    And leave the long tests an hour before they count as hanging.
    """
    items.sort(key=lambda item: item.path.name not in LONGEST)
    for item in items:
        if item.get_closest_marker("long"):
            item.add_marker(pytest.mark.timeout(3600))


@pytest.fixture(scope="session", autouse=True)
def _command_lines_terms() -> Iterator[None]:
    """Messages are compared as the command line tells them; `tests/test_python_terms.py` has Python's terms."""
    with spoken_on_the_command_line():
        yield


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refuse every connection that would leave this machine."""
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: object) -> None:
        host = address[0] if isinstance(address, tuple) else None
        if host is not None and host != "localhost" and not ipaddress.ip_address(host).is_loopback:
            raise AssertionError(f"a test tried to connect to {address}")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)


@pytest.fixture(scope="session")
def demo_model() -> str:
    """The folder of the embedded tiny GLM."""
    from glmtune.demo.model import demo_model_path

    return str(demo_model_path())


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A `glmtune` in a process of its own that starts at once."""
    folder = tmp_path_factory.mktemp("program")
    with preloaded.install(folder):
        yield folder / "glmtune"


@pytest.fixture(scope="session")
def demo_tokenizer(demo_model: str):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(demo_model)


@pytest.fixture(scope="session")
def glm_tokenizer():
    """GLM-4-9B-Chat's real tokenizer."""
    folder = SHARED / "glm-4-9b-chat"
    if not folder.is_dir():
        pytest.skip("the real GLM-4 tokenizer is not there (../shared/glm-4-9b-chat)")
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Published rows."""
    if not (SHARED / "data").is_dir():
        pytest.skip("the published rows are not there (../shared/data)")
    return SHARED / "data"


@pytest.fixture(scope="session")
def demo_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small data folder in the demo's format: `train.jsonl` (40 rows), `dev.jsonl` and `test.jsonl` (6 each)."""
    from glmtune.demo.rows import PLAIN, build_rows, to_json

    folder = tmp_path_factory.mktemp("rows")
    for split, count in (("train", 40), ("dev", 6), ("test", 6)):
        rows = build_rows(PLAIN)[split][:count]
        (folder / f"{split}.jsonl").write_text("".join(to_json(row) + "\n" for row in rows), encoding="utf-8")
    return folder
