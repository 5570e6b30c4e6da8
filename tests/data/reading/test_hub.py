"""Rows of the hub, without it: copies that are there, and errors that come quickly and say what to do."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import datasets
import pytest

from glmtune.data.reading.read_rows import read_rows
from glmtune.errors import GlmtuneError

DOWNLOAD = (
    "hint: set `HF_ENDPOINT` to a mirror that you can reach; take `modelscope:OWNER/NAME` where ModelScope has it; or "
    "download it where there is a network (`hf download --repo-type dataset acme/rows --local-dir FOLDER`) and name "
    "the files of the folder instead"
)


@pytest.fixture
def copy_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy of `acme/rows`, where `datasets` looks before it asks the hub."""
    folder = tmp_path / "acme" / "rows"
    folder.mkdir(parents=True)
    (folder / "train.jsonl").write_text('{"text": "a"}\n{"text": "b"}\n', encoding="utf-8")
    (folder / "test.jsonl").write_text('{"text": "c"}\n', encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


@pytest.mark.usefixtures("copy_here")
def test_rows_of_a_split_are_numbered_from_1() -> None:
    for name in ("hub:acme/rows", "hub:acme/rows:train"):
        assert [(row.where, row.text) for row in read_rows(name)] == [
            ("hub:acme/rows:train:row 1", '{"text": "a"}'),
            ("hub:acme/rows:train:row 2", '{"text": "b"}'),
        ]
    assert [(row.where, row.text) for row in read_rows("hub:acme/rows:test")] == [
        ("hub:acme/rows:test:row 1", '{"text": "c"}')
    ]


@pytest.mark.usefixtures("copy_here")
def test_a_split_that_is_not_there_is_an_error_that_names_those_that_are() -> None:
    with pytest.raises(GlmtuneError) as caught:
        list(read_rows("hub:acme/rows:dev"))
    assert caught.value.what == (
        "the hub's `acme/rows` cannot be loaded: Unknown split \"dev\". Should be one of ['train', 'test']"
    )


@pytest.mark.usefixtures("copy_here")
def test_files_that_datasets_cannot_read_are_an_error_that_says_why() -> None:
    Path("acme/rows/test.jsonl").write_text('{"other": 1}\n', encoding="utf-8")
    with pytest.raises(GlmtuneError) as caught:
        list(read_rows("hub:acme/rows"))
    assert caught.value.what.startswith("the hub's `acme/rows` cannot be loaded: Couldn't cast")


def test_offline_the_error_says_how_to_bring_the_rows() -> None:
    with pytest.raises(GlmtuneError) as caught:
        list(read_rows("hub:acme/rows"))
    assert str(caught.value) == (
        "the hub's `acme/rows` cannot be loaded: `HF_HUB_OFFLINE` is set and there is no copy here\n"
        f"  --> hub:acme/rows:train\n{DOWNLOAD}"
    )


def error_with_hub(endpoint: str, home: Path) -> tuple[str, float]:
    """Return the error, and the seconds it took, where the hub is at `endpoint`: read once, when it is imported."""
    code = (
        "import time\nfrom glmtune.data.reading.read_rows import read_rows\nfrom glmtune.errors import GlmtuneError\n"
        "import datasets\nstart = time.monotonic()\n"
        "try:\n    list(read_rows('hub:acme/rows'))\n"
        "except GlmtuneError as error:\n    print(time.monotonic() - start, error, sep='\\n')"
    )
    environment = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HUB_OFFLINE": "0", "HF_HOME": str(home)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    seconds, message = done.stdout.split("\n", 1)
    return message.strip(), float(seconds)


def test_a_hub_that_does_not_answer_is_an_error_at_once(tmp_path: Path) -> None:
    message, seconds = error_with_hub("http://127.0.0.1:9", tmp_path)
    assert message.startswith("the hub's `acme/rows` cannot be loaded: ")
    assert message.endswith(f"\n  --> hub:acme/rows:train\n{DOWNLOAD}")
    assert seconds < 5


def test_a_hub_that_takes_questions_and_never_answers_is_an_error_after_seconds(
    silent_hub: str, tmp_path: Path
) -> None:
    message, seconds = error_with_hub(silent_hub, tmp_path)
    assert message.startswith("the hub's `acme/rows` cannot be loaded: ")
    assert message.endswith(DOWNLOAD)
    assert 5 < seconds < 20


def test_a_name_that_the_hub_does_not_know_is_an_error(empty_hub: str, tmp_path: Path) -> None:
    message, _ = error_with_hub(empty_hub, tmp_path)
    assert message == (
        "the hub has no data set `acme/rows`, or you may not see it\n  --> hub:acme/rows:train\n"
        "hint: look at its name; where access is granted on request, log in with `hf auth login`"
    )
