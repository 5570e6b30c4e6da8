"""How quickly rows become labels, how soon a second run can start, and how much memory a million rows take.

python benchmarks/encoding.py --tokenizer MODEL --advertisegen train.jsonl --glaive glaive_toolcall_zh_1k.json

The first table compares with the algorithm of the original GLM-4 `finetune.py`, written anew: each message is rendered
and tokenized alone, and loses its prefix. Like is compared with like, twice: from rows that are parsed and converted to
lists of ids and labels, the original's loop and glmtune's encoder; and from a file of rows to labels on disk, where the
original reads with `load_dataset` and goes through `map`, and glmtune detects the format and checks the rows as well.
The rows that the original reads are in GLM-4's form already. A third line holds all that glmtune does against the bare
loop. One process each, in turn.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from results import machine, table, write_section

NUM_ROUNDS = 9
NUM_MILLION = 1_000_000
NUM_CACHED = 100_000
WHEN = ("before", "after")


def main() -> None:
    """Run the parts asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", required=True, help="folder or hub name of a GLM-4 model")
    parser.add_argument("--advertisegen", type=Path, help="rows in GLM-4's form")
    parser.add_argument("--glaive", type=Path, help="rows with tools, in ShareGPT form")
    parser.add_argument("--parts", nargs="*", default=["speed", "cache", "memory"])
    parser.add_argument("--measure", nargs=2, metavar=("PART", "FILE"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(MEASURES[arguments.measure[0]](arguments.tokenizer, Path(arguments.measure[1]))))
        return
    for part in arguments.parts:
        {"speed": speed, "cache": cache, "memory": memory}[part](arguments)


def speed(arguments: argparse.Namespace) -> None:
    """Compare with the original's loop."""
    rows = []
    for name, path in (("AdvertiseGen", arguments.advertisegen), ("glaive, with tools", arguments.glaive)):
        if path is None:
            continue
        num_rows, rounds = _compare(arguments.tokenizer, path)
        for theirs, way in (("rows", "rows"), ("file", "file"), ("rows", "file")):
            original, ours = rounds[f"original, {theirs} to labels"], rounds[f"glmtune, {way} to labels"]
            ratios = [slow / quick for slow, quick in zip(original, ours)]
            rows.append(
                [
                    name,
                    f"{num_rows:,}",
                    f"{way} to labels" + ("" if way == theirs else "; the original from rows"),
                    f"{num_rows / statistics.median(original):,.0f}",
                    f"{num_rows / statistics.median(ours):,.0f}",
                    f"**{statistics.median(ratios):.1f}** ({min(ratios):.1f} to {max(ratios):.1f})",
                ]
            )
    header = ["rows", "number", "from", "original, rows/s", "glmtune, rows/s", "ratio"]
    text = f"## Encoding\n\n{table(header, rows)}\n\n"
    text += "From rows: parsed and converted ones, to ids and labels in memory. From a file: to labels on disk; "
    text += "the original reads with `load_dataset` and goes through `map`. "
    text += f"Medians of {NUM_ROUNDS} rounds, in turn; the ratio is that of each round. "
    text += machine("transformers", "tokenizers", "datasets") + "."
    write_section("encoding-speed", text + _how("speed", arguments))


def _compare(tokenizer_name: str, path: Path) -> tuple[int, dict[str, list[float]]]:
    """Return the number of rows, and the seconds of each round of all four."""
    from transformers import AutoTokenizer

    from glmtune.chatformat.encoding import Encoder
    from glmtune.data.formats import to_row
    from glmtune.data.reading.read_rows import read_rows
    from glmtune.encoded.dataset import encode_file
    from glmtune.family import GLM

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_name)
    conversations = [part for row in read_rows(path) for part in row.conversations()]
    messages = [to_row(conversation)["messages"] for conversation in conversations]
    expected = [_original(tokenizer, row) for row in messages[:50]]
    rounds: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        converted = Path(folder) / "rows.jsonl"
        lines = [json.dumps({"messages": row}, ensure_ascii=False) + "\n" for row in messages]
        converted.write_text("".join(lines), encoding="utf-8")
        for number in range(NUM_ROUNDS):
            cache = Path(folder) / str(number)
            encoder = Encoder(tokenizer, GLM)
            ways: dict[str, Callable[[], object]] = {
                "original, rows to labels": lambda: [_original(tokenizer, row) for row in messages],
                "glmtune, rows to labels": lambda: encoder.encode_batch(conversations),  # noqa: B023
                "original, file to labels": lambda: _original_from_file(tokenizer, converted, cache),  # noqa: B023
                "glmtune, file to labels": lambda: encode_file(path, Encoder(tokenizer, GLM)),
            }
            for way, work in ways.items():
                rounds.setdefault(way, []).append(_seconds(work))
    for conversation, (ids, labels) in zip(conversations, expected):
        example = encoder.encode(conversation)
        # The same ids; the original trains neither the newline behind the role token nor the token that stops.
        assert example.input_ids[: len(ids)] == ids
        assert len(labels) == len(ids)
    return len(conversations), rounds


def _original_from_file(tokenizer: Any, path: Path, cache: Path) -> None:
    """Read and encode a file as the original does, on one process."""
    import datasets

    def encode(batch: dict[str, list[Any]]) -> dict[str, list[list[int]]]:
        encoded = [_original(tokenizer, row) for row in batch["messages"]]
        return {"input_ids": [ids for ids, _ in encoded], "labels": [labels for _, labels in encoded]}

    datasets.disable_progress_bars()
    rows = datasets.load_dataset("json", data_files=str(path), split="train", cache_dir=str(cache))
    rows.map(encode, batched=True, remove_columns=rows.column_names)


def _original(tokenizer: Any, messages: list[dict[str, Any]]) -> tuple[list[int], list[int]]:
    """Encode one row as the original does: message by message, with the two tokens of the prefix cut off."""
    prefix = tokenizer.convert_tokens_to_ids(["[gMASK]", "<sop>"])
    input_ids, labels = list(prefix), [-100] * len(prefix)
    for message in messages:
        ids = tokenizer.apply_chat_template([message], tokenize=True, return_dict=False)[len(prefix) :]
        is_trained = message["role"] not in ("system", "user", "observation")
        input_ids += ids
        labels += ids if is_trained else [-100] * len(ids)
    return input_ids, labels


def cache(arguments: argparse.Namespace) -> None:
    """Measure a first and a second start on the same rows."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.jsonl"
        _write_rows(path, NUM_CACHED)
        environment = {**os.environ, "GLMTUNE_CACHE": folder}
        first, second = (_measured("cache", arguments.tokenizer, path, environment) for _ in range(2))
    rows = [
        ["first", f"{first['seconds']:.2f} s", f"{first['tokenizer_seconds']:.2f} s"],
        ["second", f"**{second['seconds']:.2f} s**", f"{second['tokenizer_seconds']:.2f} s"],
    ]
    text = f"## A second start on {NUM_CACHED:,} rows\n\n"
    text += table(["start", "rows from file to dataset", "beside it: loading the tokenizer"], rows) + "\n\n"
    text += "Hashing the file and making the key of the cache are in the first column. "
    write_section(
        "encoding-cache", text + machine("transformers", "tokenizers", "datasets") + "." + _how("cache", arguments)
    )


def memory(arguments: argparse.Namespace) -> None:
    """Measure the resident memory while a million rows are encoded and while they are trained on."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "GLMTUNE_CACHE": folder}
        for num_rows in (10_000, NUM_MILLION):
            path = Path(folder) / f"rows-{num_rows}.jsonl"
            _write_rows(path, num_rows)
            encoding = _measured("encode", arguments.tokenizer, path, environment)
            training = _measured("visit", arguments.tokenizer, path, environment)
            rows.append(
                [
                    f"{num_rows:,}",
                    f"{path.stat().st_size / 1e6:,.0f} MB",
                    f"{encoding['seconds']:,.0f} s",
                    f"{encoding['peak'] / 1e6:,.0f} MB",
                    *(f"{training[when][kind] / 1e6:,.0f} MB" for kind in ("own", "mapped") for when in WHEN),
                ]
            )
    header = ["rows", "file", "time", "peak while encoding", "own, before training", "own, after 20,000 rows"]
    header += ["mapped files, before", "mapped files, after"]
    text = f"## Resident memory\n\n{table(header, rows)}\n\n"
    text += (
        "The peak is that of the whole process, the interpreter and its libraries included. Then 20,000 rows are read "
        "in random order, as training does: `own` is memory that belongs to the process, `mapped files` are pages of "
        "the libraries and of the encoded file that the kernel holds anyway, shares between processes and takes back "
        "when memory is short. "
    )
    write_section("encoding-memory", text + machine("transformers", "datasets") + "." + _how("memory", arguments))


def _measured(part: str, tokenizer: str, path: Path, environment: dict[str, str]) -> dict[str, Any]:
    """Measure in a fresh process."""
    command = [sys.executable, __file__, "--tokenizer", tokenizer, "--measure", part, str(path)]
    output = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
    return json.loads(output.splitlines()[-1])


def _measure_cache(tokenizer_name: str, path: Path) -> dict[str, float]:
    from transformers import AutoTokenizer

    from glmtune.chatformat.encoding import Encoder
    from glmtune.encoded.dataset import encode_file
    from glmtune.encoded.store import file_hash
    from glmtune.family import GLM

    begin = time.perf_counter()
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_name)
    tokenizer_seconds = time.perf_counter() - begin
    seconds = _seconds(lambda: encode_file(path, Encoder(tokenizer, GLM), content_hash=file_hash(path)).summary())
    return {"seconds": seconds, "tokenizer_seconds": tokenizer_seconds}


def _measure_encode(tokenizer_name: str, path: Path) -> dict[str, float]:
    seconds = _measure_cache(tokenizer_name, path)["seconds"]
    return {"seconds": seconds, "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}


def _measure_visit(tokenizer_name: str, path: Path) -> dict[str, dict[str, int]]:
    """Go through rows in a random order, as training does."""
    import torch
    from torch.utils.data import DataLoader
    from transformers import AutoTokenizer

    from glmtune.chatformat.encoding import Encoder
    from glmtune.encoded.collating import collate
    from glmtune.encoded.dataset import encode_file
    from glmtune.encoded.store import file_hash
    from glmtune.family import GLM

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_name)
    data = encode_file(path, Encoder(tokenizer, GLM), content_hash=file_hash(path))
    torch.manual_seed(0)
    loader = DataLoader(
        data.dataset, batch_size=8, shuffle=True, collate_fn=lambda rows: collate(rows, tokenizer.pad_token_id)
    )
    batches = iter(loader)
    next(batches)
    before = _resident()
    for number, _ in enumerate(batches):
        if number == 20_000 // 8:
            break
    return {"before": before, "after": _resident()}


def _resident() -> dict[str, int]:
    """Return the bytes of memory of this process: its own, and mapped files."""
    status = Path("/proc/self/status").read_text()
    kilobytes = {line.split(":")[0]: line.split()[1] for line in status.splitlines() if line.startswith("Rss")}
    return {"own": int(kilobytes["RssAnon"]) * 1024, "mapped": int(kilobytes["RssFile"]) * 1024}


def _write_rows(path: Path, num_rows: int) -> None:
    """Write rows of the demo's kind, all of them different."""
    from glmtune.demo.rows import PLAIN, build_rows

    templates = [json.dumps(row, ensure_ascii=False) for row in build_rows(PLAIN)["train"][:1000]]
    with path.open("w", encoding="utf-8") as file:
        for number in range(num_rows):
            row = json.loads(templates[number % len(templates)])
            row["messages"][-1]["content"] += f"（第{number}条）"
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def _seconds(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def _how(part: str, arguments: argparse.Namespace) -> str:
    files = " --advertisegen train.jsonl --glaive glaive_toolcall_zh_1k.json" if part == "speed" else ""
    return f"\n\nAgain: `python benchmarks/encoding.py --tokenizer GLM-4-9B-CHAT{files} --parts {part}`"


MEASURES = {"cache": _measure_cache, "encode": _measure_encode, "visit": _measure_visit}

if __name__ == "__main__":
    main()
