"""`modelscope:OWNER/NAME`: from a stand-in for ModelScope's server by the library's own client, and without either."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from glmtune.demo.model import demo_model_path
from glmtune.errors import GlmtuneError
from glmtune.files import modelscope_hub
from glmtune.files.modelscope_hub import modelscope_model, modelscope_rows

needs_library = pytest.mark.skipif(
    importlib.util.find_spec("modelscope") is None, reason="modelscope is not installed (`glmtune[modelscope]`)"
)
ROW = '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}\n'
ASK = """
import json, sys
from glmtune.errors import GlmtuneError
from glmtune.data.reading.sources import find_data_files
from glmtune.modeling.finding.model_source import find_model
from pathlib import Path
for name in sys.argv[1:]:
    kind, _, name = name.partition("=")
    try:
        if kind == "model":
            print(sorted(path.name for path in Path(find_model(name).base).iterdir() if not path.name.startswith(".")))
        else:
            print([Path(file.path).name for file in find_data_files(Path(), name, "train_file")])
    except GlmtuneError as error:
        print(str(error).replace("\\n", " | "))
"""


@pytest.fixture
def stand_in(tmp_path: Path) -> Iterator[tuple[str, list[str]]]:
    """A server with a model, one whose weights are pickled, and rows; and the paths of files it was asked for."""
    shared = tmp_path / "server"
    model = {path.name: path.read_bytes() for path in demo_model_path().iterdir() if not path.name.startswith(".")}
    pickled = {**model, "pytorch_model.bin": b"a pickle"}
    del pickled["model.safetensors"]
    repositories = {
        "models/acme/tiny": {**model, "training_args.bin": b"a pickle"},
        "models/acme/pickled": pickled,
        "datasets/acme/rows": {"a.jsonl": ROW.encode(), "b.jsonl": ROW.encode(), "rows.py": b"raise SystemExit"},
    }
    asked: list[str] = []

    class Answers(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            parts = urlsplit(self.path)
            name = "/".join(parts.path.removeprefix("/api/v1/").split("/")[:3])
            files, query = repositories.get(name), parse_qs(parts.query)
            if files is None:
                self.answer(404, b"")
            elif parts.path.endswith(("/repo/files", "/repo/tree")):
                entries = [
                    {"Path": path, "Name": path, "Type": "blob", "Size": len(content),
                     "Sha256": hashlib.sha256(content).hexdigest()} for path, content in files.items()
                ]  # fmt: skip
                listing = {"Code": 200, "Success": True, "TotalCount": len(entries), "Data": {"Files": entries}}
                self.answer(200, json.dumps(listing).encode())
            elif "FilePath" in query:
                asked.append(query["FilePath"][0])
                self.answer(200, files[query["FilePath"][0]])
            else:
                self.answer(200, json.dumps({"Code": 200, "Data": {}}).encode())

        do_HEAD = do_GET

        def answer(self, status: int, content: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    shared.mkdir()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()


@pytest.fixture
def ask(tmp_path: Path) -> Callable[..., tuple[list[str], str]]:
    """Return a function that asks in a process of its own, and returns the lines of stdout, and stderr."""

    def ask(endpoint: str, *names: str) -> tuple[list[str], str]:
        environment = {key: value for key, value in os.environ.items() if not key.lower().endswith("_proxy")}
        environment |= {"MODELSCOPE_ENDPOINT": endpoint, "MODELSCOPE_CACHE": str(tmp_path / "cache")}
        done = subprocess.run(
            [sys.executable, "-c", ASK, *names], env=environment, capture_output=True, text=True, check=True
        )
        return [line for line in done.stdout.splitlines() if not line.startswith("20")], done.stderr

    return ask


@needs_library
def test_a_model_is_downloaded_without_pickles_and_found_again_without_the_server(stand_in, ask) -> None:
    endpoint, asked = stand_in
    [shown], _ = ask(endpoint, "model=modelscope:acme/tiny")
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= set(json.loads(shown.replace("'", '"')))
    assert not [name for name in asked if name.endswith(".bin")]
    [again], told = ask("http://127.0.0.1:9", "model=modelscope:acme/tiny")
    assert again == shown
    assert "note: ModelScope does not answer: the copy of `acme/tiny` on this machine is used\n" in told


@needs_library
def test_a_model_whose_weights_are_pickled_is_refused(stand_in, ask) -> None:
    [shown], _ = ask(stand_in[0], "model=modelscope:acme/pickled")
    assert shown.startswith("ModelScope's `acme/pickled` has no safetensors weights | ")
    assert "pytorch_model.bin" not in stand_in[1]


@needs_library
def test_rows_are_all_files_of_rows_or_one(stand_in, ask) -> None:
    endpoint, asked = stand_in
    lines, _ = ask(endpoint, "rows=modelscope:acme/rows", "rows=modelscope:acme/rows:b.jsonl")
    assert lines == ["['a.jsonl', 'b.jsonl']", "['b.jsonl']"]
    assert "rows.py" not in asked


@needs_library
def test_a_name_that_is_not_there_is_told(stand_in, ask) -> None:
    [shown], _ = ask(stand_in[0], "model=modelscope:acme/none")
    assert shown.startswith("ModelScope's model `acme/none` cannot be had: ")
    assert "`modelscope download --model acme/none --local_dir FOLDER`" in shown


@needs_library
@pytest.mark.parametrize("is_silent", [False, True], ids=["refuses", "never answers"])
def test_a_server_out_of_reach_is_told_soon(is_silent: bool, ask) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        endpoint = f"http://127.0.0.1:{server.getsockname()[1] if is_silent else 9}"
        started = time.monotonic()
        [shown], _ = ask(endpoint, "model=modelscope:acme/tiny")
    assert time.monotonic() - started < 20
    assert shown.startswith(f"ModelScope's model `acme/tiny` cannot be had: `{endpoint}` does not answer (")
    assert "and there is no copy here" in shown


def test_without_the_library_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "modelscope", None)
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "modelscope" else find(name))
    modelscope_hub._snapshot.cache_clear()
    with pytest.raises(GlmtuneError) as caught:
        modelscope_model("modelscope:acme/tiny")
    assert str(caught.value) == (
        "`modelscope` is not installed\nhint: run `pip install 'glmtune[modelscope]'` and try again"
    )


@pytest.mark.parametrize("name", ["modelscope:tiny", "modelscope:acme/tiny/x", "modelscope:", "modelscope:../.."])
def test_what_is_no_name_is_refused(name: str) -> None:
    with pytest.raises(GlmtuneError, match=r"is no model of ModelScope; expected `modelscope:OWNER/NAME`"):
        modelscope_model(name)
    with pytest.raises(GlmtuneError, match="is no data set of ModelScope"):
        modelscope_rows(name)
