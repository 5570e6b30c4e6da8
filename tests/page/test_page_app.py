"""The page's server: who is let in, what is told, and that nothing outside of the runs' folder is."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from command_line import command_line

from glmtune.reports.run_status import STATUS_FILE, STOP_FILE, RunStatus, status_text

pytest.importorskip("fastapi")
from starlette.testclient import TestClient

from glmtune.page.page_app import HEADERS, create_page_app, page_files
from glmtune.page.run_files import RunFolders
from glmtune.server.middleware.hosts import guard

KEY = "a-key-of-the-test-000"
STATUS = RunStatus(phase="training", step=5, total_steps=9, host="elsewhere", started=1.0, updated=4e9)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Return a folder with a run, `a/run 1`, and a secret beside it."""
    folder = tmp_path / "runs" / "a" / "run 1"
    (folder / "predictions").mkdir(parents=True)
    (folder / "checkpoint-5").mkdir()
    (folder / "checkpoint-5" / "manifest.json").write_text("{}", "utf-8")
    config = {"peft_config": None}
    (folder / "run.yaml").write_text(yaml.safe_dump({"asked": {"model": "demo", "config": config}}), "utf-8")
    (folder / STATUS_FILE).write_text(status_text(STATUS), "utf-8")
    (folder / "metrics.jsonl").write_text('{"step": 1, "loss": 2.5}\n{"step": 2, "loss": NaN}\nhalf', "utf-8")
    lines = [{"where": f"rows:{n}", "turn": 0, "prediction": "<b>"} for n in range(120)]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "predictions" / "step-5.jsonl").write_text(text, "utf-8")
    (tmp_path / "secret.jsonl").write_text('{"step": 1, "loss": 666}\n', "utf-8")
    return tmp_path / "runs"


@pytest.fixture
def client(root: Path) -> Callable[..., TestClient]:
    """Return a function that makes a client with the key, or what the options say."""

    def make(*, key: str | None = KEY, read_only: bool = False, **headers: str) -> TestClient:
        app = guard(host="127.0.0.1")(create_page_app(RunFolders(root), key=KEY, is_read_only=read_only))
        given = {"Authorization": f"Bearer {key}"} if key is not None else {}
        return TestClient(app, base_url="http://127.0.0.1:8800", headers=given | headers)

    return make


def test_runs_are_told(client) -> None:
    [run] = client().get("/api/runs").json()
    assert (run["name"], run["state"], run["step"], run["total_steps"]) == ("a/run 1", "running", 5, 9)
    found = client().get("/api/run", params={"name": "a/run 1"}).json()
    assert [each["name"] for each in found["checkpoints"]] == ["checkpoint-5"]
    assert found["predictions"] == ["step-5.jsonl"]
    assert "asked" in found["record"]


def test_metrics_go_on_where_they_were_read_up_to(client, root: Path) -> None:
    page, path = client(), root / "a" / "run 1" / "metrics.jsonl"

    def part(before: dict[str, Any] | None = None) -> dict[str, Any]:
        asked = {"name": "a/run 1"} | ({k: before[k] for k in ("file", "offset")} if before else {})
        found: dict[str, Any] = page.get("/api/metrics", params=asked).json()
        return found

    first = part()
    assert (first["reset"], first["logs"]) == (True, [{"step": 1, "loss": 2.5}, {"step": 2, "loss": None}])
    assert part(first)["logs"] == []
    with path.open("a", encoding="utf-8") as file:
        file.write('\n{"step": 3, "loss": 1.0}\n{"no": "step"}\n')
    second = part(first)
    assert (second["reset"], second["logs"]) == (False, [{"step": 3, "loss": 1.0}])
    # A resumed run writes the file anew, shorter.
    path.with_name("new").write_text('{"step": 1, "loss": 2.5}\n', "utf-8")
    path.with_name("new").replace(path)
    third = part(second)
    assert (third["reset"], len(third["logs"])) == (True, 1)
    path.unlink()
    assert part(third) == {"file": "", "offset": 0, "reset": True, "logs": []}


def test_predictions_come_in_parts(client) -> None:
    page = client()
    rows: list[Any] = []
    start = 0
    for _ in range(3):
        asked = {"name": "a/run 1", "file": "step-5.jsonl", "start": start}
        part = page.get("/api/predictions", params=asked).json()
        rows += part["rows"]
        start = part["next"]
    assert (len(rows), start) == (120, None)


@pytest.mark.parametrize("path", ["/api/about", "/api/runs", "/api/run?name=a", "/api/metrics?name=a", "/api/nothing"])
@pytest.mark.parametrize("key", [None, "", "wrong", KEY[:-1], f"{KEY}x"])
def test_nothing_is_told_without_the_key(path: str, key: str | None, client) -> None:
    answer = client(key=key).get(path)
    assert answer.status_code == 401
    assert "demo" not in answer.text


def test_the_page_s_files_need_no_key(client) -> None:
    page = client(key=None)
    for path in ["", *page_files()]:
        answer = page.get(f"/{path}")
        assert answer.status_code == 200
        assert {name: answer.headers[name] for name in HEADERS} == HEADERS
    assert page.get("/nothing.js").status_code == 404


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "evil.example:8800"}, 421),
        ({"Host": "localhost:8800"}, 200),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "http://127.0.0.1:8801"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://127.0.0.1:8800"}, 200),
        ({"Content-Length": "9999999"}, 413),
        ({"Content-Length": "x"}, 413),
    ],
)
def test_strangers_are_refused(headers: dict[str, str], status: int, client) -> None:
    assert client(**headers).get("/api/runs").status_code == status


@pytest.mark.parametrize(
    "name",
    [
        "..",
        "../..",
        "/",
        "/etc",
        "a/../..",
        "a/run 1/../../..",
        "a",
        "a/run 1/checkpoint-5",
        "nothing",
        "\x00",
        "a" * 5000,
    ],
)
def test_nothing_outside_of_runs_is_told(name: str, client) -> None:
    page = client()
    for path in ("run", "metrics", "predictions"):
        answer = page.get(f"/api/{path}", params={"name": name, "file": "secret.jsonl"})
        assert answer.status_code == 404
    assert page.post("/api/stop", params={"name": name}).status_code == 404


@pytest.mark.parametrize(
    "file", ["../metrics.jsonl", "../../../../secret.jsonl", "/etc/passwd", "step-5", "", "link.jsonl"]
)
def test_only_predictions_are_read_as_such(file: str, client, root: Path) -> None:
    (root / "a" / "run 1" / "predictions" / "link.jsonl").symlink_to(root.parent / "secret.jsonl")
    asked = {"name": "a/run 1", "file": file}
    assert client().get("/api/predictions", params=asked).status_code == 404


def test_links_out_of_the_folder_are_not_followed(client, root: Path) -> None:
    path = root / "a" / "run 1" / "metrics.jsonl"
    path.unlink()
    path.symlink_to(root.parent / "secret.jsonl")
    assert client().get("/api/metrics", params={"name": "a/run 1"}).json()["logs"] == []
    outside = root.parent / "outside"
    outside.mkdir()
    (outside / "run.yaml").write_text("", "utf-8")
    (root / "linked").symlink_to(outside)
    assert client().get("/api/run", params={"name": "linked"}).status_code == 404
    assert [run["name"] for run in client().get("/api/runs").json()] == ["a/run 1"]


def test_a_run_is_asked_to_stop_unless_the_page_is_read_only(client, root: Path) -> None:
    stop = root / "a" / "run 1" / STOP_FILE
    assert client(read_only=True).post("/api/stop", params={"name": "a/run 1"}).status_code == 403
    assert client().get("/api/stop", params={"name": "a/run 1"}).status_code != 200
    assert not stop.exists()
    assert client().post("/api/stop", params={"name": "a/run 1"}).status_code == 200
    assert stop.exists()
    ended = replace(STATUS, phase="ended", outcome="finished")
    (root / "a" / "run 1" / STATUS_FILE).write_text(status_text(ended), "utf-8")
    answer = client().post("/api/stop", params={"name": "a/run 1"})
    assert (answer.status_code, answer.json()["what"]) == (409, "the run has ended already: finished")


def test_the_texts_are_the_same_in_both_languages() -> None:
    text = page_files()["texts.js"][0].decode()
    english, chinese = re.search(r"en: \{(.*?)\n  \},\n  zh: \{(.*?)\n  \},\n", text, re.DOTALL).groups()  # type: ignore[union-attr]

    def keys(part: str) -> list[str]:
        return re.findall(r'(?:^|[{,])\s*"?([\w][\w ]*?)"?: ["{]', part, re.MULTILINE)

    assert keys(english) == keys(chinese)
    assert len(keys(english)) > 60


def test_the_page_loads_nothing_from_elsewhere() -> None:
    for name, (content, _) in page_files().items():
        if not name.endswith(".txt") and name != "icon.svg":
            assert not re.search(rb"""(?:src|href|import|from|url\()\s*[=(]?\s*["']?(?:https?:)?//""", content), name
    assert sum(len(content) for content, _ in page_files().values()) < 250_000


def test_mistakes_are_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", "utf-8")
    for arguments, told in (
        (["nowhere"], "there is no folder `nowhere`"),
        (["file"], "there is no folder `file`"),
        ([".", "--host", "999.1.1.1"], "cannot listen at 999.1.1.1:8800"),
        ([".", "--allowed-host", "a b"], "`--allowed-host` is `a b`"),
    ):
        done = command_line("web", *arguments, cwd=tmp_path)
        assert (done.returncode, told in done.stderr) == (2, True), done.stderr
