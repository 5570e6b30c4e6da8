"""Uploads: private, of the exported files alone, and never a token in what is shown."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from peft import PrefixTuningConfig, get_peft_model
from transformers import AutoModelForCausalLM

TOKEN = "hf_neverToBeShown"


class Hub(BaseHTTPRequestHandler):
    """As much of a hub as takes small files; it remembers what it was asked."""

    asked: list[tuple[str, Any]]
    knows_user = True

    def do_GET(self) -> None:
        self._answer({"name": "me", "type": "user"} if self.knows_user else None)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
        lines = [json.loads(line) for line in body.splitlines() if line.strip()]
        type(self).asked.append((self.path, lines))
        address = f"http://{self.headers['Host']}/me/model"
        if self.path.endswith("/preupload/main"):
            files = [{**file, "uploadMode": "regular", "shouldIgnore": False} for file in lines[0]["files"]]
            self._answer({"files": files})
        elif "/commit/" in self.path:
            self._answer({"success": True, "commitOid": "0" * 40, "commitUrl": f"{address}/commit/{'0' * 40}"})
        else:
            self._answer({"url": address, "name": "me/model", "errors": [], "warnings": []})

    def _answer(self, value: Any) -> None:
        data = json.dumps(value or {"error": "Invalid username or password."}).encode()
        self.send_response(200 if value else 401)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.fixture
def hub() -> Iterator[tuple[type[Hub], dict[str, str]]]:
    """A hub on this machine, and the environment that makes it the only one."""
    handler = type("ThisHub", (Hub,), {"asked": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_address[1]}"
    yield handler, os.environ | {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": address, "HF_TOKEN": TOKEN, "NO_PROXY": "*"}
    server.shutdown()
    server.server_close()


def run(folder: Path, environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "glmtune", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_an_export_is_uploaded_privately_and_whole(hub, tmp_path: Path) -> None:
    handler, environment = hub
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "你好"}\n', encoding="utf-8")
    done = run(tmp_path, environment, "export", "demo", "out", "--prompts", "prompts.jsonl", "--push", "me/model")
    assert done.returncode == 0, done.stderr
    assert TOKEN not in done.stdout + done.stderr
    [created] = [lines[0] for path, lines in handler.asked if path == "/api/repos/create"]
    assert created["visibility"] == "private"
    [commit] = [lines for path, lines in handler.asked if "/commit/" in path]
    sent = {line["value"]["path"]: line["value"]["content"] for line in commit if line["key"] == "file"}
    assert set(sent) == set(os.listdir(tmp_path / "out"))
    for name, content in sent.items():
        assert base64.b64decode(content) == (tmp_path / "out" / name).read_bytes()
    assert f"uploaded to {environment['HF_ENDPOINT']}/me/model (private unless it was there before)" in done.stdout


@pytest.mark.slow
def test_an_uploaded_adapter_names_no_folder_of_the_machine(hub, demo_model: str, tmp_path: Path) -> None:
    prefix = PrefixTuningConfig(
        num_virtual_tokens=2,
        num_layers=4,
        num_attention_heads=2,
        token_dim=64,
        num_transformer_submodules=1,
        task_type="CAUSAL_LM",
    )
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(demo_model), prefix)
    model.save_pretrained(tmp_path / "prefix")
    _, environment = hub
    done = run(tmp_path, environment, "export", "prefix", "out", "--push", "me/model")
    assert done.returncode == 0, done.stderr
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text(encoding="utf-8"))
    name = Path(demo_model).name
    assert config["base_model_name_or_path"] == name
    told = f"note: `adapter_config.json` names the base model `{name}`: its path is this machine's alone\n"
    assert told in done.stderr


@pytest.mark.slow
def test_a_hub_that_does_not_know_the_user_is_told_before_any_work(hub, tmp_path: Path) -> None:
    handler, environment = hub
    handler.knows_user = False
    done = run(tmp_path, environment, "export", "demo", "out", "--push", "me/model")
    assert done.returncode == 2
    assert done.stderr.endswith(
        "error: cannot push to `me/model`: the hub answers 401\n"
        "hint: log in with a token that may write: `hf auth login`\n"
    )
    assert TOKEN not in done.stdout + done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_hub_that_cannot_be_reached_is_told_before_any_work(hub, tmp_path: Path) -> None:
    _, environment = hub
    done = run(tmp_path, environment | {"HF_ENDPOINT": "http://127.0.0.1:9"}, "export", "demo", "out", "--push", "me/x")
    assert done.returncode == 2
    assert "error: cannot push to `me/x`: the hub cannot be reached (ConnectError)\n" in done.stderr
    assert list(tmp_path.iterdir()) == []
