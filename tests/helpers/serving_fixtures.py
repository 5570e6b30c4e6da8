"""A tiny model that has learnt to call a tool, a server that runs in this process; typed lines, whole chats."""

from __future__ import annotations

import contextlib
import io
import json
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from serving_rows import rows_by_heart
from written_server import OpenAIServer

from glmtune import train
from glmtune.chat.chat_session import Chat
from glmtune.chat.chat_terminal import ChatTerminal
from glmtune.chat.run import run_chat
from glmtune.modeling.finding.model_source import find_model


def learnt(folder: Path, rows: list[dict[str, Any]], *, num_steps: int = 60, learning_rate: float = 3e-3) -> Path:
    """Return a checkpoint in the folder that knows these rows by heart."""
    (folder / "train.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    config = {
        "data_config": {"train_file": "train.jsonl"},
        "max_input_length": 512,
        "max_output_length": 128,
        "training_args": {
            "output_dir": str(folder / "run"),
            "max_steps": num_steps,
            "save_steps": num_steps,
            "per_device_train_batch_size": len(rows),
            "learning_rate": learning_rate,
            "lr_scheduler_type": "linear",
            "warmup_steps": 3,
            "save_only_model": True,
        },
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    return train(folder, "demo", folder / "config.yaml") / f"checkpoint-{num_steps}"


@pytest.fixture(scope="session")
def tool_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that knows a few rows by heart: plain answers, and a call, its result and the answer."""
    folder = tmp_path_factory.mktemp("tool-model")
    return learnt(folder, rows_by_heart())


@contextlib.contextmanager
def running(
    checkpoint: str | Path,
    *,
    adapters: list[str] | None = None,
    api_key: str | None = None,
    origins: Sequence[str] = (),
    log_requests: bool = False,
    adapter_folder: Path | None = None,
    quantization: str | None = None,
    **limits: Any,
) -> Iterator[str]:
    """Serve in this process as `glmtune serve` does; yields the URL."""
    pytest.importorskip("fastapi", reason="needs the `serve` extra")
    uvicorn = pytest.importorskip("uvicorn", reason="needs the `serve` extra")
    from glmtune.generation.prefix_store import PrefixStore
    from glmtune.server.api import create_app
    from glmtune.server.engine import Engine
    from glmtune.server.middleware.connections import server_settings
    from glmtune.server.middleware.hosts import guard
    from glmtune.server.middleware.request_log import logged
    from glmtune.server.models import find_adapters, load_models
    from glmtune.server.service import Service

    source = find_model(checkpoint)
    models = load_models(source, "tiny", find_adapters(adapters or [], source), quantization=quantization)
    chosen = {
        "max_rows": 64,
        "max_batch_tokens": 65536,
        "max_waiting": 256,
        "prefixes": PrefixStore(65536),
        "max_length": 512,
        "max_request_bytes": 10**6,
    }
    chosen |= limits
    stops = models.base.generation_config.eos_token_id
    max_length, max_request_bytes = chosen.pop("max_length"), chosen.pop("max_request_bytes")
    is_strict = chosen.pop("strict_fields", False)
    engine = Engine(models.lanes, stops, keeps_last_logits=models.keeps_last_logits, **chosen)
    service = Service(models, engine, max_length=max_length)
    app = create_app(
        service,
        api_key=api_key,
        max_request_bytes=max_request_bytes,
        created=0,
        is_strict=is_strict,
        adapter_folder=adapter_folder,
    )
    guarded = guard(host="127.0.0.1", origins=origins)(app)
    listener = socket.create_server(("127.0.0.1", 0))
    with logged(guarded, is_on=log_requests) as application:
        server = uvicorn.Server(server_settings(application))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        engine.start()
        thread.start()
        deadline = time.monotonic() + 20
        while not server.started and time.monotonic() < deadline:
            time.sleep(0.01)
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(20)
            engine.stop()
            listener.close()


@pytest.fixture(scope="module")
def url(tool_model: Path) -> Iterator[str]:
    with running(tool_model) as url:
        yield url


@pytest.fixture(scope="session")
def serve_in_thread() -> Callable[..., contextlib.AbstractContextManager[str]]:
    return running


@pytest.fixture
def type_lines(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Put lines on stdin, which is no terminal."""

    def put(*lines: str | bytes) -> None:
        raw = b"".join((line if isinstance(line, bytes) else line.encode()) + b"\n" for line in lines)
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(raw), encoding="utf-8"))

    return put


@pytest.fixture
def talk(type_lines) -> Callable[..., Chat]:
    """Hold a whole chat of the given lines; returns it as it is at its end."""

    def hold(answers: Any, *lines: str | bytes, **settings: Any) -> Chat:
        type_lines(*lines)
        chat = Chat(answers=answers, terminal=ChatTerminal(), **settings)
        run_chat(chat)
        chat.close()
        return chat

    return hold


@pytest.fixture
def server() -> Iterator[OpenAIServer]:
    with OpenAIServer() as running:
        threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield running
        running.shutdown()
