"""How many requests a second the server answers at 1, 8 and 32 clients, beside a loop that answers one after another.

python benchmarks/serving.py

The loop is what the original GLM-4 demo's server did under its lock: `model.generate` for one prompt at a time, here
without any HTTP, which favours it. The server is `glmtune serve` in a process of its own, asked through the official
client; each client asks its next question when it has the answer to the last. All get the same questions, greedy, and
exactly so many tokens, since a model with random weights would never stop; the answers must be the same.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import openai
import torch
from results import machine, table, write_section
from transformers import GenerationConfig, GlmConfig, GlmForCausalLM

from glmtune import generate
from glmtune.demo.model import build_tokenizer
from glmtune.generation.generate import as_loaded

CLIENTS = (1, 8, 32)
NUM_TOKENS = 48
SHAPE: dict[str, Any] = {
    "hidden_size": 512,
    "intermediate_size": 1368,
    "num_hidden_layers": 6,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 64,
}
WORDS = ["裙", "风衣", "衬衫", "墨绿", "雾蓝", "羊毛", "亚麻", "修身", "通勤", "复古", "碎花", "约会"]


def build_model(folder: Path, shape: dict[str, Any]) -> None:
    """Write a GLM with random weights that ends no answer by itself."""
    tokenizer = build_tokenizer()
    config = GlmConfig(
        **shape,
        vocab_size=len(tokenizer),
        max_position_embeddings=8192,
        tie_word_embeddings=False,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(0)
    model = GlmForCausalLM(config)
    with torch.no_grad():
        # The control tokens, stop tokens among them, are never the likeliest.
        model.lm_head.weight[tokenizer.all_special_ids] = 0.0
    model.generation_config = GenerationConfig(do_sample=False, eos_token_id=tokenizer.pad_token_id)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def questions(number: int) -> list[str]:
    """Return questions of different lengths."""
    return ["*".join(WORDS[(start + place) % len(WORDS)] for place in range(1 + start % 9)) for start in range(number)]


def time_loop(folder: Path, asked: list[str]) -> tuple[float, list[str]]:
    """Return the seconds and answers of one after another."""
    loaded = as_loaded(folder)
    options = {"max_new_tokens": NUM_TOKENS, "do_sample": False}
    generate(loaded, asked[:1], batch_size=1, **options)
    start = time.perf_counter()
    answers = [generate(loaded, [question], batch_size=1, **options)[0] for question in asked]
    return time.perf_counter() - start, answers


@contextmanager
def server(folder: Path) -> Iterator[str]:
    """Run `glmtune serve` in a process of its own; yields its URL."""
    command = [sys.executable, "-m", "glmtune", "serve", str(folder), "--port", "0", "--name", "model"]
    root = Path(__file__).parents[1]
    environment = os.environ | {"PYTHONPATH": str(root)}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        try:
            assert process.stderr is not None
            for line in process.stderr:
                if found := re.search(r"listening at (\S+)", line):
                    yield found[1]
                    break
            else:
                raise RuntimeError("the server did not start")
        finally:
            process.terminate()


async def time_clients(url: str, asked: list[str], num_clients: int) -> tuple[float, list[str]]:
    """Return the seconds and answers of so many clients at once."""
    places = iter(range(len(asked)))
    answers = [""] * len(asked)
    async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client:

        async def ask_on() -> None:
            for place in places:
                done = await client.chat.completions.create(
                    model="model",
                    messages=[{"role": "user", "content": asked[place]}],
                    max_tokens=NUM_TOKENS,
                    temperature=0,
                )
                answers[place] = done.choices[0].message.content or ""

        await client.models.list()
        start = time.perf_counter()
        await asyncio.gather(*(ask_on() for _ in range(num_clients)))
        return time.perf_counter() - start, answers


def main() -> None:
    """Measure the loop and each number of clients in turn, some rounds, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tiny", action="store_true", help="a model of a few thousand parameters, to try the script")
    parser.add_argument("--write", action="store_true", help="put the table into RESULTS.md")
    options = parser.parse_args()
    shape = SHAPE | ({"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2} if options.tiny else {})
    asked = questions(options.requests)
    seconds: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as top:
        folder = Path(top) / "model"
        build_model(folder, shape)
        with server(folder) as url:
            for _ in range(options.rounds):
                taken, expected = time_loop(folder, asked)
                seconds.setdefault("loop, one at a time", []).append(taken)
                for num_clients in CLIENTS:
                    taken, answers = asyncio.run(time_clients(url, asked, num_clients))
                    same = sum(ours == theirs for ours, theirs in zip(answers, expected))
                    if same < len(asked):
                        print(f"{num_clients} clients: {same} of {len(asked)} answers equal the loop's")
                    seconds.setdefault(f"server, {num_clients} clients", []).append(taken)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    loop = medians["loop, one at a time"]
    rows = [
        [name, f"{len(asked) / taken:.2f}", f"{len(asked) * NUM_TOKENS / taken:.0f}", f"{loop / taken:.2f}"]
        for name, taken in medians.items()
    ]
    text = table(["", "requests/s", "tokens/s", "times the loop"], rows)
    where = machine("torch", "transformers", "fastapi", "uvicorn")
    about = (
        f"{where}. {len(asked)} requests of {NUM_TOKENS} tokens each, a GLM of {shape['num_hidden_layers']} layers of "
        f"{shape['hidden_size']}; median of {options.rounds} rounds, in turn."
    )
    text = f"## Serving\n\n`python benchmarks/serving.py`: {about}\n\n{text}"
    if options.write:
        write_section("serving", text)
    else:
        print(text)


if __name__ == "__main__":
    main()
