"""Whatever is in a file: the outcome is success or one clear line, never another error, and never a wait without end.

`GLMTUNE_FUZZ_SECONDS` says for how long (600 by default), `GLMTUNE_FUZZ_SEED` which changes are made; the seed is
printed, and so is the file that went wrong.
"""

from __future__ import annotations

import faulthandler
import gzip
import json
import os
import random
import shutil
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pytest
import torch
import yaml
from hostile_text import is_harmless
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from mutations import Change, changed_bytes, changed_json, changed_value
from pyarrow import parquet

from glmtune import load_config
from glmtune.chatformat.encoding import Encoder
from glmtune.config.run_config import config_from_mapping
from glmtune.data.conversion import convert_data
from glmtune.data.reading.read_rows import read_rows
from glmtune.demo.rows import LIVELY, PLAIN, build_rows, to_json
from glmtune.errors import GlmtuneError
from glmtune.family import GLM
from glmtune.files.shipped import shipped_folder
from glmtune.modeling.adapting.adapters import adapt
from glmtune.modeling.config_loading import load_model_config, load_tokenizer
from glmtune.modeling.finding.model_source import find_model
from glmtune.modeling.loading import load_base_model, load_model

pytestmark = [pytest.mark.slow, pytest.mark.long]

SECONDS = float(os.environ.get("GLMTUNE_FUZZ_SECONDS", "600"))
SEED = int(os.environ.get("GLMTUNE_FUZZ_SEED", str(random.SystemRandom().randrange(2**32))))
LONGEST_SECONDS = 30.0
"""For one file; one that takes twice as long ends the tests, with the place where it hangs."""

Use = Callable[[Path], Any]


def tried(use: Use, path: Path, what: str) -> None:
    """Use a file; anything but success and a clear line is a failure that names the seed and keeps the file."""
    faulthandler.dump_traceback_later(2 * LONGEST_SECONDS, exit=True)
    started, told = time.monotonic(), ""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            use(path)
    except GlmtuneError as error:
        told = str(error)
    except BaseException as error:
        kept = keep(path)
        raise AssertionError(f"{what}, seed {SEED}, {kept}: {type(error).__name__}: {error!s:.500}") from error
    finally:
        faulthandler.cancel_dump_traceback_later()
    assert is_harmless(told), f"{what}, seed {SEED}: {told:.500}"
    assert len(told) < 20_000, f"{what}, seed {SEED}: an error of {len(told)} characters"
    elapsed = time.monotonic() - started
    assert elapsed < LONGEST_SECONDS, f"{what}, seed {SEED}, {keep(path)}: it took {elapsed:.0f} s"


def keep(path: Path) -> Path:
    """Copy what went wrong to where it stays."""
    kept = Path(os.environ.get("GLMTUNE_FUZZ_KEPT", path.parent.parent)) / f"kept-{path.name}"
    if path.is_dir():
        shutil.copytree(path, kept, dirs_exist_ok=True)
    else:
        shutil.copy(path, kept)
    return kept


def until(seconds: float) -> Iterator[random.Random]:
    """Yield sources of chance for so long, each with a seed of its own that follows from the printed one."""
    print(f"GLMTUNE_FUZZ_SEED={SEED}")
    deadline, number = time.monotonic() + seconds, 0
    while time.monotonic() < deadline:
        yield random.Random(f"{SEED}-{number}")
        number += 1
    print(f"{number} files")


def demo_rows() -> list[dict[str, Any]]:
    rows = [json.loads(to_json(row)) for style in (PLAIN, LIVELY) for row in build_rows(style)["train"][:4]]
    tool = {"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object"}}}
    call = {"role": "assistant", "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": "{}"}}]}
    question, answer = {"role": "user", "content": "问"}, {"role": "assistant", "content": "答", "loss": True}
    return [
        *rows,
        {"messages": [question, call, {"role": "tool", "content": "{}"}, answer], "tools": [tool]},
        {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}], "system": "s"},
        {"instruction": "a", "input": "b", "output": "c", "history": [["d", "e"]]},
        {"prompt": "a", "chosen": "b", "rejected": "c"},
        {"text": "a text"},
    ]


def row_files() -> dict[str, tuple[bytes, Change]]:
    """Return by name what is changed, and how."""
    rows = demo_rows()
    lines = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows).encode()
    plain = [{"instruction": f"问{number}", "output": "答", "n": number} for number in range(20)]
    table = pyarrow.Table.from_pylist([{**row, "messages": rows[0]["messages"]} for row in plain])
    sink, stream = pyarrow.BufferOutputStream(), pyarrow.BufferOutputStream()
    parquet.write_table(table, sink)
    with pyarrow.ipc.new_stream(stream, table.schema) as writer:
        writer.write_table(table)
    cells = "instruction,output\n" + "\n".join(f'"{row["instruction"]}","[{{""a"": 1}}]"' for row in plain)
    return {
        "rows.jsonl": (lines, changed_json),
        "rows.json": (json.dumps(rows).encode(), changed_json),
        "object.json": (json.dumps({"version": 1, "data": rows[:3]}, indent=1).encode(), changed_bytes),
        "rows.csv": (cells.encode(), changed_bytes),
        "rows.parquet": (sink.getvalue().to_pybytes(), changed_bytes),
        "rows.arrow": (stream.getvalue().to_pybytes(), changed_bytes),
        "rows.jsonl.gz": (gzip.compress(lines), changed_bytes),
    }


def use_rows(encoder: Encoder) -> Use:
    def use(path: Path) -> None:
        for row in read_rows(path):
            for part in row.parts():
                if not isinstance(part, ValueError):
                    encoder.encode_batch(encoder.unfold(part))

    return use


def test_changed_rows(tmp_path: Path, demo_tokenizer) -> None:
    files, use = row_files(), use_rows(Encoder(demo_tokenizer, GLM, max_length_tokens=200))
    for rng in until(SECONDS / 4):
        name = rng.choice(sorted(files))
        content, change = files[name]
        path = tmp_path / name
        path.write_bytes(change(content, rng))
        tried(use, path, name)
        if rng.random() < 0.1:
            out = tmp_path / "out.jsonl"
            out.unlink(missing_ok=True)
            tried(lambda path, out=out: convert_data(path, out), path, f"data convert {name}")


def test_changed_configurations(tmp_path: Path) -> None:
    texts = [path.read_bytes() for path in sorted(shipped_folder().glob("*.yaml"))]
    values = [yaml.safe_load(text) for text in texts]

    for rng in until(SECONDS / 4):
        path, number = tmp_path / "c.yaml", rng.randrange(len(texts))
        if rng.random() < 0.5:
            path.write_bytes(changed_bytes(texts[number], rng))
            tried(load_config, path, "YAML")
        else:
            value = changed_value(values[number], rng)
            path.write_text(yaml.safe_dump(value), encoding="utf-8")
            tried(load_config, path, "YAML")
            tried(lambda path, value=value: config_from_mapping(value, where="run.yaml"), path, "a record")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
ROLES = st.sampled_from(["system", "user", "assistant", "tool", "observation", "function", "", "human"]) | JSON
MESSAGE = st.fixed_dictionaries(
    {"role": ROLES, "content": st.text(max_size=40) | JSON},
    optional={
        "tool_calls": JSON,
        "metadata": JSON,
        "loss": JSON,
        "weight": JSON,
        "reasoning_content": JSON,
        "name": JSON,
        "tools": JSON,
    },
)
KEYS = ("messages", "conversations", "instruction", "input", "output", "history", "prompt", "response", "text", "tools")
MADE = st.fixed_dictionaries({"messages": st.lists(MESSAGE, max_size=5)}, optional={"tools": JSON}) | st.dictionaries(
    st.sampled_from(KEYS), JSON, max_size=5
)


def test_made_rows(tmp_path: Path, demo_tokenizer) -> None:
    use, path = use_rows(Encoder(demo_tokenizer, GLM, max_length_tokens=200)), tmp_path / "made.jsonl"
    quiet = settings(
        max_examples=200,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    for rng in until(SECONDS / 4):

        @seed(rng.randrange(2**32))
        @quiet
        @given(st.lists(MADE, min_size=1, max_size=3))
        def try_rows(rows: list[Any]) -> None:
            path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
            tried(use, path, "made rows")

        try_rows()


def test_changed_models(tmp_path: Path, demo_model: str) -> None:
    from glmtune.family import GLM

    honest = tmp_path / "honest"
    shutil.copytree(demo_model, honest)
    base = load_base_model(find_model(str(honest)), dtype=torch.float32)
    lora = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 2}
    adapted = adapt(base, lora, GLM, gradient_checkpointing=False, notify=str)
    adapter = tmp_path / "adapter"
    adapted.save_pretrained(str(adapter))
    load_tokenizer(find_model(str(honest))).save_pretrained(str(adapter))
    parts = [(honest, name) for name in ("config.json", "generation_config.json", "tokenizer_config.json")]
    parts += [(honest, "model.safetensors"), (adapter, "adapter_config.json"), (adapter, "adapter_model.safetensors")]

    def use(path: Path) -> None:
        source = find_model(str(path), base_model=str(honest) if (path / "adapter_config.json").is_file() else None)
        load_model_config(source)
        load_model(source, dtype=torch.float32, device=torch.device("cpu"))

    for rng in until(SECONDS / 4):
        folder, name = rng.choice(parts)
        path = tmp_path / "changed"
        shutil.rmtree(path, ignore_errors=True)
        shutil.copytree(folder, path)
        content = (path / name).read_bytes()
        if name.endswith(".json"):
            (path / name).write_bytes(changed_json(content, rng))
        else:  # the header, which says what is where, and is hardly a thousandth of the file
            length = 8 + int.from_bytes(content[:8], "little")
            (path / name).write_bytes(changed_bytes(content[:length], rng) + content[length:])
        tried(use, path, name)
