"""Models of the hub, without it: what is here is used, and an error comes soon and says what to do."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from glmtune.demo.model import demo_model_path

NAME = "acme/glm-tiny"
FIX = (
    "hint: set `HF_ENDPOINT` to a mirror that you can reach; give `modelscope:OWNER/NAME` where ModelScope has the "
    f"model; or download it where there is a network (`hf download {NAME} --local-dir FOLDER`), and give the folder"
)
CODE = f"""
import time
from glmtune.errors import GlmtuneError
from glmtune.modeling.finding import hub_access
from glmtune.modeling.finding.hub_access import hub_options
assert hub_access.SECONDS_TO_ANSWER == 8
hub_access.SECONDS_TO_ANSWER = 2
start = time.monotonic()
try:
    print(hub_options({NAME!r}))
except GlmtuneError as error:
    print(error)
print(time.monotonic() - start)
"""
LOADING = f"""
import time
from glmtune.modeling.config_loading import load_family, load_tokenizer
from glmtune.modeling.finding.model_source import find_model
start = time.monotonic()
source = find_model({NAME!r})
print(len(load_tokenizer(source)), load_family(source).name)
print(time.monotonic() - start)
"""


def load(endpoint: str, home: Path, *, offline: bool = False, code: str = CODE) -> tuple[str, float, str]:
    """Return what is printed, the seconds, and what is noted, where the hub is at `endpoint`."""
    environment = {key: value for key, value in os.environ.items() if not key.lower().endswith("_proxy")}
    environment |= {"HF_ENDPOINT": endpoint, "HF_HUB_OFFLINE": str(int(offline)), "HF_HOME": str(home)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    *lines, seconds = done.stdout.strip().splitlines()
    return "\n".join(lines), float(seconds), done.stderr


@pytest.fixture
def copy_here(tmp_path: Path) -> Path:
    """A cache that holds a copy of the model."""
    repository = tmp_path / "hub" / f"models--{NAME.replace('/', '--')}"
    shutil.copytree(demo_model_path(), repository / "snapshots" / "abc")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc", encoding="utf-8")
    return tmp_path


def test_a_hub_that_never_answers_is_an_error_after_seconds(silent_hub: str, tmp_path: Path) -> None:
    message, seconds, _ = load(silent_hub, tmp_path)
    assert message.startswith(f"cannot load the model of `{NAME}`: the hub does not answer (")
    assert message.endswith(f"), and there is no copy on this machine\n{FIX}")
    assert seconds < 20


def test_a_hub_that_refuses_is_an_error_at_once(tmp_path: Path) -> None:
    message, seconds, _ = load("http://127.0.0.1:9", tmp_path)
    assert message.startswith(f"cannot load the model of `{NAME}`: the hub does not answer (")
    assert message.endswith(FIX)
    assert seconds < 10


def test_offline_the_error_says_so(silent_hub: str, tmp_path: Path) -> None:
    message, seconds, _ = load(silent_hub, tmp_path, offline=True)
    assert message == (
        f"cannot load the model of `{NAME}`: `HF_HUB_OFFLINE` is set, and there is no copy on this machine\n{FIX}"
    )
    assert seconds < 10


def test_a_copy_on_this_machine_is_used_without_the_hub(copy_here: Path) -> None:
    printed, seconds, noted = load("http://127.0.0.1:9", copy_here, code=LOADING)
    assert printed.endswith(" glm")
    assert noted.count(f"the copy of `{NAME}` on this machine is used") == 1
    assert seconds < 20


def test_offline_a_copy_on_this_machine_is_used_without_a_word(silent_hub: str, copy_here: Path) -> None:
    assert load(silent_hub, copy_here, offline=True)[::2] == ("{'local_files_only': True}", "")


def test_a_copy_on_this_machine_is_used_where_the_hub_never_answers(silent_hub: str, copy_here: Path) -> None:
    printed, seconds, noted = load(silent_hub, copy_here)
    assert printed == "{'local_files_only': True}"
    assert f"the copy of `{NAME}` on this machine is used" in noted
    assert seconds < 20


def test_a_name_that_the_hub_does_not_know_is_an_error(empty_hub: str, tmp_path: Path) -> None:
    message, _, _ = load(empty_hub, tmp_path)
    assert message == (
        f"the hub has no model `{NAME}`, or you may not see it\nhint: look at its name, or give a folder; where "
        "access is granted on request, log in with `hf auth login`"
    )


def test_a_web_server_that_is_no_hub_is_an_error_at_once(no_hub: str, tmp_path: Path) -> None:
    message, seconds, _ = load(no_hub, tmp_path)
    assert message == (
        f"cannot load the model of `{NAME}`: the hub answers with status 404, and there is no copy on this "
        f"machine\n{FIX}"
    )
    assert seconds < 10


def test_a_copy_on_this_machine_is_used_where_a_web_server_is_no_hub(no_hub: str, copy_here: Path) -> None:
    printed, seconds, noted = load(no_hub, copy_here, code=LOADING)
    assert printed.endswith(" glm")
    assert noted.count("note: the hub answers with status 404: the copy of") == 1
    assert seconds < 20
