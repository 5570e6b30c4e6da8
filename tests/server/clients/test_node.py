"""Clients for JavaScript: openai-node and the AI SDK, in a program of its own (`node/ask.mjs`)."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from serving_rows import ITEMS, PLAIN

pytestmark = pytest.mark.slow

FOLDER = Path(__file__).parent / "node"
NODE = shutil.which("node")
if NODE is None or not (FOLDER / "node_modules").is_dir():
    pytest.skip("needs Node.js, and `npm install` in tests/server/clients/node", allow_module_level=True)
ASKED, TOLD = next(iter(PLAIN.items()))
ITEM = next(iter(ITEMS))


def test_openai_node_and_the_ai_sdk_are_answered(url: str) -> None:
    run = subprocess.run(
        [str(NODE), "ask.mjs", url, ASKED, ITEM], cwd=FOLDER, capture_output=True, encoding="utf-8", timeout=120
    )
    assert run.returncode == 0, run.stderr
    told = json.loads(run.stdout)
    assert told["openai"] == {
        "told": TOLD,
        "streamed": TOLD,
        "parsed": True,
        "called": {"item": ITEM},
        "error": ["NotFoundError", 404],
        "response": TOLD,
    }
    assert told["ai"] == {"told": TOLD, "streamed": TOLD, "parsed": True, "called": [["query_price", "string"]]}
