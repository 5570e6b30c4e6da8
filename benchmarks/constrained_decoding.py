"""What it costs to hold answers to a schema, with llguidance and with xgrammar, on GLM-4's 151,552 tokens.

python benchmarks/constrained_decoding.py --tokenizer GLM-4-9B-CHAT --write
python benchmarks/constrained_decoding.py --tokenizer GLM-4-9B-CHAT --parts steps --write

`libraries`: each library in a process of its own reads the vocabulary, compiles each schema and goes along a document
that follows it, as the server would: a mask before every token. It can be run where one of the two is installed alone.

`steps`: a server's step for 8 rows, with and without a schema, on a model of random weights; what the masks take of it.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from results import machine, table, write_section
from shapes import SEED, SHAPES, SHARED, config_values, describe

LIBRARIES = ("llguidance", "xgrammar")
PARTS = ("libraries", "steps")
VOCABULARY = 151552
NUM_ROWS = 8

ADDRESS = {
    "type": "object",
    "properties": {
        "street": {"type": "string"},
        "city": {"type": "string", "minLength": 1, "maxLength": 40},
        "zip": {"type": "string", "pattern": "^[0-9]{6}$"},
    },
    "required": ["street", "city", "zip"],
    "additionalProperties": False,
}
SCHEMAS: dict[str, tuple[dict[str, Any], Any]] = {
    "an integer": (
        {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False},
        {"a": 1234567},
    ),
    "a tool's arguments": (
        {
            "type": "object",
            "properties": {
                "city": {"type": "string"},
                "unit": {"enum": ["celsius", "fahrenheit"]},
                "days": {"type": "integer", "minimum": 1, "maximum": 14},
            },
            "required": ["city", "unit", "days"],
            "additionalProperties": False,
        },
        {"city": "北京市朝阳区", "unit": "celsius", "days": 7},
    ),
    "an order, nested": (
        {
            "$defs": {"address": ADDRESS},
            "type": "object",
            "properties": {
                "number": {"type": "string", "pattern": "^[A-Z]{2}-[0-9]{8}$"},
                "buyer": {
                    "type": "object",
                    "properties": {"name": {"type": "string"}, "address": {"$ref": "#/$defs/address"}},
                    "required": ["name", "address"],
                    "additionalProperties": False,
                },
                "items": {
                    "type": "array",
                    "minItems": 1,
                    "maxItems": 50,
                    "items": {
                        "type": "object",
                        "properties": {
                            "title": {"type": "string", "maxLength": 200},
                            "count": {"type": "integer", "minimum": 1},
                            "price": {"type": "number"},
                            "tags": {"type": "array", "items": {"type": "string"}},
                            "gift": {"anyOf": [{"type": "boolean"}, {"type": "null"}, {"type": "string"}]},
                        },
                        "required": ["title", "count", "price", "tags", "gift"],
                        "additionalProperties": False,
                    },
                },
            },
            "required": ["number", "buyer", "items"],
            "additionalProperties": False,
        },
        {
            "number": "AB-12345678",
            "buyer": {"name": "王小明", "address": {"street": "建国路 88 号", "city": "北京", "zip": "100022"}},
            "items": [
                {"title": "墨绿羊毛风衣，修身款", "count": 1, "price": 299.5, "tags": ["风衣", "羊毛"], "gift": None},
                {"title": "Linen shirt, misty blue", "count": 2, "price": 89, "tags": [], "gift": "for a friend"},
            ],
        },
    ),
    "200 fields": (
        {
            "type": "object",
            "properties": {f"field_{number}": {"type": ["string", "null"]} for number in range(200)},
            "required": [f"field_{number}" for number in range(200)],
            "additionalProperties": False,
        },
        {f"field_{number}": None if number % 3 else "值" for number in range(200)},
    ),
    "any object": ({"type": "object"}, {"a": [1, 2.5, {"b": "一段较长的文字，逐字写出。" * 4}], "c": {"d": None}}),
}


def resident_mib() -> float:
    """Return the process's memory in MiB."""
    import psutil

    return psutil.Process().memory_info().rss / 2**20


class WithLlguidance:
    """llguidance as the server uses it."""

    def __init__(self, tokenizer: Any) -> None:
        import llguidance
        import llguidance.hf
        import llguidance.numpy as masks

        self.masks = masks
        self.matcher = llguidance.LLMatcher
        self.tokenizer = llguidance.hf.from_tokenizer(tokenizer, n_vocab=VOCABULARY)
        self.executor = llguidance.LLExecutor()

    def compiled(self, schema: dict[str, Any]) -> Callable[[], Any]:
        compiled = self.matcher(self.tokenizer, self.matcher.grammar_from_json_schema(json.dumps(schema)))
        assert not compiled.is_error(), compiled.get_error()
        return compiled.deep_copy

    def allocated(self, num_rows: int) -> Any:
        return self.masks.allocate_token_bitmask(num_rows, VOCABULARY)

    def fill(self, rows: list[Any], mask: Any) -> None:
        self.masks.fill_next_token_bitmask_par(self.executor, [(row, place) for place, row in enumerate(rows)], mask)

    def accept(self, row: Any, token: int) -> bool:
        return bool(row.consume_token(token))


class WithXgrammar:
    """xgrammar as its documentation shows it."""

    def __init__(self, tokenizer: Any) -> None:
        import xgrammar

        self.xgrammar = xgrammar
        info = xgrammar.TokenizerInfo.from_huggingface(tokenizer, vocab_size=VOCABULARY)
        self.compiler = xgrammar.GrammarCompiler(info, cache_enabled=False)
        self.batch = xgrammar.BatchGrammarMatcher()

    def compiled(self, schema: dict[str, Any]) -> Callable[[], Any]:
        compiled = self.compiler.compile_json_schema(json.dumps(schema))
        return lambda: self.xgrammar.GrammarMatcher(compiled)

    def allocated(self, num_rows: int) -> Any:
        return self.xgrammar.allocate_token_bitmask(num_rows, VOCABULARY)

    def fill(self, rows: list[Any], mask: Any) -> None:
        self.batch.batch_fill_next_token_bitmask(rows, mask)

    def accept(self, row: Any, token: int) -> bool:
        return bool(row.accept_token(token))


def measure_library(name: str, folder: str) -> dict[str, Any]:
    """Return the figures of one library; in a process of its own."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    __import__(name)
    before = resident_mib()
    started = time.perf_counter()
    library = {"llguidance": WithLlguidance, "xgrammar": WithXgrammar}[name](tokenizer)
    told: dict[str, Any] = {"start": time.perf_counter() - started, "vocabulary": resident_mib() - before}
    for title, (schema, document) in SCHEMAS.items():
        ids = tokenizer.encode(json.dumps(document, ensure_ascii=False), add_special_tokens=False)
        before = resident_mib()
        started = time.perf_counter()
        compiled = library.compiled(schema)
        rows = [compiled()]
        mask = library.allocated(1)
        library.fill(rows, mask)
        first = time.perf_counter() - started
        alone = along(library, rows, mask, ids)
        rows, mask = [compiled() for _ in range(NUM_ROWS)], library.allocated(NUM_ROWS)
        together = along(library, rows, mask, ids)
        told[title] = {
            "first": first,
            "tokens": len(ids),
            "alone": statistics.mean(alone),
            "worst": max(alone),
            "together": statistics.mean(together),
            "memory": resident_mib() - before,
        }
    return told


def along(library: Any, rows: list[Any], mask: Any, ids: list[int]) -> list[float]:
    """Return the seconds for mask and taking in, of each token of a document, in all rows."""
    seconds = []
    for token in ids:
        started = time.perf_counter()
        library.fill(rows, mask)
        for row in rows:
            assert library.accept(row, token), "the document does not follow the schema"
        seconds.append(time.perf_counter() - started)
    return seconds


def compare_libraries(folder: Path) -> str:
    """Measure each library that is installed, in a process of its own; returns the section's text."""
    told = {}
    for name in LIBRARIES:
        if importlib.util.find_spec(name) is None:
            print(f"{name} is not installed: left out")
            continue
        command = [sys.executable, __file__, "--tokenizer", str(folder), "--library", name]
        told[name] = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout)
    start = [[name, f"{figures['start']:.2f} s", f"{figures['vocabulary']:.0f} MiB"] for name, figures in told.items()]
    rows = [
        [
            title,
            name,
            f"{figures[title]['first'] * 1000:.1f}",
            f"{figures[title]['alone'] * 1000:.3f}",
            f"{figures[title]['worst'] * 1000:.2f}",
            f"{figures[title]['together'] * 1000:.3f}",
            f"{figures[title]['memory']:.1f}",
        ]
        for title in SCHEMAS
        for name, figures in told.items()
    ]
    header = ["schema", "library", "first mask, ms", "a token, ms", "slowest token, ms", f"{NUM_ROWS} rows, ms", "MiB"]
    about = (
        "The first mask comes with compiling; a token is its mask and taking it in, along a document that follows the "
        f"schema, the mean; {NUM_ROWS} rows take their masks in one call. A process for each library. "
        f"{machine(*told, 'transformers')}."
    )
    return (
        "## Constrained decoding: llguidance and xgrammar, 151,552 tokens\n\n"
        f"{table(['library', 'reading the vocabulary', 'memory of it'], start)}\n\n{table(header, rows)}\n\n{about}\n\n"
        "Again: `python benchmarks/constrained_decoding.py --tokenizer GLM-4-9B-CHAT`"
    )


def measure_steps(folder: Path, shape: str, num_steps: int, num_runs: int) -> str:
    """Return the section of a server's steps with and without a schema, in turn, on a model of random weights."""
    import torch
    from transformers import AutoTokenizer, GlmConfig, GlmForCausalLM

    from glmtune.constrained.compiling import Compiler
    from glmtune.constrained.wanted import content_grammar
    from glmtune.generation.continuous_batching import Completion, ContinuousBatch
    from glmtune.generation.sampling import Sampler, Sampling, choose_tokens

    tokenizer = AutoTokenizer.from_pretrained(folder)
    torch.manual_seed(SEED)
    config = GlmConfig(**{key: value for key, value in config_values(SHAPES[shape]).items() if key != "architectures"})
    model = GlmForCausalLM(config).to(torch.bfloat16).eval()
    stops = config.eos_token_id
    compiler = Compiler(tokenizer, vocabulary=VOCABULARY, stops=stops)
    prompt = tokenizer.encode("写一份订单，包含买家、地址和商品。" * 8, add_special_tokens=False)
    rows, seconds = [], {}

    def step_seconds(schema: dict[str, Any] | None, temperature: float) -> tuple[list[float], list[float]]:
        """Return how long whole steps took, and the choosing of tokens in each."""
        wanted = {"type": "json_schema", "json_schema": {"schema": schema}}
        made = content_grammar(response_format=wanted, structured_outputs=None) if schema else None
        held = None if made is None else compiler.compiled(made)
        sampling = Sampling(temperature=temperature, grammar=held, stops=stops, ignores_stops=True, seed=1)
        samplers = [Sampler(sampling, prompt) for _ in range(NUM_ROWS)]
        chosen: list[float] = []

        def choose(answers: Any, logits: Any) -> Any:
            started = time.perf_counter()
            tokens = choose_tokens([samplers[answer.index] for answer in answers], logits)
            chosen.append(time.perf_counter() - started)
            return tokens

        answers = [Completion(index, prompt, num_steps + 9) for index in range(NUM_ROWS)]
        batch = ContinuousBatch(
            model, answers, choose, stops=[], max_tokens=65536, max_rows=NUM_ROWS, keeps_last_logits=True
        )
        whole: list[float] = []
        with torch.no_grad():
            batch.take_in()
            for _ in range(num_steps):
                started = time.perf_counter()
                batch.write()
                whole.append(time.perf_counter() - started)
        assert all(sampler.failure is None for sampler in samplers)
        return whole[2:], chosen[3:]

    endless = {"an order, nested": SCHEMAS["an order, nested"][0], "any object": SCHEMAS["any object"][0]}
    for temperature in (0.0, 1.0):
        for title, schema in ({"no schema": None} | endless).items():
            for _ in range(num_runs):
                whole, chosen = step_seconds(schema, temperature)
                kept = seconds.setdefault((title, temperature), ([], []))
                kept[0].extend(whole)
                kept[1].extend(chosen)
        free = statistics.median(seconds["no schema", temperature][1])
        for title in ("no schema", *endless):
            whole, chosen = (statistics.median(each) for each in seconds[title, temperature])
            more = chosen - free
            share = "" if title == "no schema" else f"**{100 * more / (whole - more):.1f} %**"
            rows.append([title, f"{temperature:.0f}", f"{whole * 1000:.1f}", f"{chosen * 1000:.2f}", share])
    header = ["schema", "temperature", "step, ms", "choosing in it, ms", "more than without a schema"]
    about = (
        f"{NUM_ROWS} rows, {describe(shape)}, bfloat16, medians of {num_runs} runs of {num_steps} tokens. What a "
        f"schema takes is nearly the same on any model. {machine('llguidance', 'torch', 'transformers')}."
    )
    return (
        f"## Constrained decoding: what the masks take of a step\n\n{table(header, rows)}\n\n{about}\n\n"
        "Again: `python benchmarks/constrained_decoding.py --tokenizer GLM-4-9B-CHAT --parts steps`"
    )


def main() -> None:
    """Measure what is asked for, and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", type=Path, default=SHARED / "glm-4-9b-chat")
    parser.add_argument("--library", choices=LIBRARIES, help=argparse.SUPPRESS)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--shape", choices=SHAPES, default="medium")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--write", action="store_true", help="put the tables into RESULTS.md")
    options = parser.parse_args()
    if options.library:
        print(json.dumps(measure_library(options.library, str(options.tokenizer))))
        return
    sections = {
        "libraries": lambda: compare_libraries(options.tokenizer),
        "steps": lambda: measure_steps(options.tokenizer, options.shape, options.steps, options.runs),
    }
    for part in options.parts:
        text = sections[part]()
        if options.write:
            write_section(f"constrained-decoding-{part}", text)
        else:
            print(text)


if __name__ == "__main__":
    main()
