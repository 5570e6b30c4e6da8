"""Runs every verb in turn, in one process: `python verbs.py FOLDER` prints name, exit code and stderr of each as JSON.

The folder needs `data/train.jsonl`, `data/dev.jsonl` and `c.yaml`, which writes its run into `out`.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import socket
import sys
import threading
import time
import traceback
import urllib.request
from collections.abc import Iterator

TOKENS = ("--max-new-tokens", "4")
QUESTION = {"model": "out", "messages": [{"role": "user", "content": "你好"}], "max_tokens": 4}


def commands(port: int) -> Iterator[list[str]]:
    yield ["--help"]
    yield ["data", "check", "data", "demo", "--config", "c.yaml"]
    yield ["data", "convert", "data/train.jsonl", "converted.jsonl"]
    yield ["data", "inspect", "data/train.jsonl", "demo", "--html", "page.html"]
    yield ["data", "prepare", "data", "demo", "c.yaml", "--set", "data_config.num_proc=2"]
    yield ["estimate", "demo", "c.yaml"]
    yield ["train", "data", "demo", "c.yaml", "--set", "training_args.dataloader_num_workers=1"]
    yield ["resume", "out", "--accept-changes", "--set", "training_args.max_steps=3"]
    yield ["infer", "out", "--prompt", "你好", *TOKENS]
    yield ["chat", "out", *TOKENS]
    yield ["eval", "out", "data/dev.jsonl", "--limit", "1", *TOKENS]
    os.mkdir("empty")
    yield ["export", "out", "empty"]
    threading.Thread(target=ask_and_interrupt, args=(port,), daemon=True).start()
    yield ["serve", "out", "--port", str(port), "--name", "out"]


def ask_and_interrupt(port: int) -> None:
    """Ask the server that is about to start, and press Ctrl-C."""
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/chat/completions",
        json.dumps(QUESTION).encode(),
        {"Content-Type": "application/json"},
    )
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            break
        time.sleep(0.2)
    try:
        with urllib.request.urlopen(request, timeout=120) as reply:
            choice = json.load(reply)["choices"][0]
        print(
            json.dumps({"verb": "request", "code": choice["finish_reason"], "told": ""}),
            file=sys.__stdout__,
            flush=True,
        )
    finally:
        signal.raise_signal(signal.SIGINT)


def main(folder: str) -> None:
    from glmtune.cli import app as cli

    os.chdir(folder)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    for arguments in commands(port):
        sys.argv = ["glmtune", *arguments]
        stdin = io.TextIOWrapper(io.BytesIO("你好\n".encode()))
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as told:
            sys.stdin = stdin
            code: object = 0
            try:
                cli.main()
            except SystemExit as ended:
                code = ended.code or 0
            except Exception:
                traceback.print_exc(file=told)
                code = "traceback"
        line = {"verb": " ".join(arguments[:2]), "code": code, "told": told.getvalue()}
        print(json.dumps(line), file=sys.__stdout__, flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
