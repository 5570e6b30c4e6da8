"""How many requests a second the server answers at 1, 8 and 32 clients, beside a loop that answers one after another.

python benchmarks/serving.py
python benchmarks/serving.py --vocabulary 151552 --peer --threads 1

The loop is what the original GLM-4 demo's server did under its lock: `model.generate` for one prompt at a time, here
without any HTTP, which favours it. The server is `glmtune serve` in a process of its own, asked through the official
client; each client asks its next question when it has the answer to the last. All get the same questions, greedy, and
exactly so many tokens, since a model with random weights would never stop; the answers must be the same. `--peer` asks
`transformers serve` in the same way, in the same round.

Behind that a conversation of 4,000 tokens: how long the first token of its first turn takes, and that of its second,
and how long another stream waits for a token while it is read. And a step of sampling, beside the sort of the whole
vocabulary that it did before.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import os
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
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
from glmtune.generation.sampling import Sampler, Sampling, choose_tokens

CLIENTS = (1, 8, 32)
NUM_TOKENS = 48
CONVERSATION_TOKENS = 4000
SHAPE: dict[str, Any] = {
    "hidden_size": 512,
    "intermediate_size": 1368,
    "num_hidden_layers": 6,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 64,
}
WORDS = ["裙", "风衣", "衬衫", "墨绿", "雾蓝", "羊毛", "亚麻", "修身", "通勤", "复古", "碎花", "约会"]


def build_model(folder: Path, shape: dict[str, Any], vocabulary: int | None = None) -> None:
    """Write a GLM with random weights that ends no answer by itself; its tokens are those of the tokenizer."""
    tokenizer = build_tokenizer()
    config = GlmConfig(
        **shape,
        vocab_size=vocabulary or len(tokenizer),
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
        model.lm_head.weight[len(tokenizer) :] = 0.0
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
def server(folder: Path, num_threads: int | None) -> Iterator[str]:
    """Run `glmtune serve` in a process of its own; yields its URL."""
    command = [sys.executable, "-m", "glmtune", "serve", str(folder), "--port", "0", "--name", str(folder)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=_environment(num_threads)) as process:
        try:
            assert process.stderr is not None
            for line in process.stderr:
                if found := re.search(r"listening at (\S+)", line):
                    threading.Thread(target=process.stderr.read, daemon=True).start()
                    yield found[1]
                    break
            else:
                raise RuntimeError("the server did not start")
        finally:
            process.terminate()


@contextmanager
def peer(folder: Path, num_threads: int | None) -> Iterator[str]:
    """Run `transformers serve` in a process of its own; yields its URL."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    program = Path(sys.executable).with_name("transformers")
    command = [str(program), "serve", str(folder), "--port", str(port), "--device", "cpu", "--log-level", "error"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    environment = _environment(num_threads) | {"HF_HUB_OFFLINE": "1"}
    with subprocess.Popen(command, env=environment, **quiet) as process:
        try:
            while process.poll() is None:
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                    break
                time.sleep(0.2)
            else:
                raise RuntimeError("`transformers serve` did not start")
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            process.terminate()


def _environment(num_threads: int | None) -> dict[str, str]:
    threads = {} if num_threads is None else {"OMP_NUM_THREADS": str(num_threads)}
    return os.environ | threads | {"PYTHONPATH": str(Path(__file__).parents[1])}


async def time_clients(url: str, model: str, asked: list[str], num_clients: int) -> tuple[float, list[str]]:
    """Return the seconds and answers of so many clients at once."""
    places = iter(range(len(asked)))
    answers = [""] * len(asked)
    async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0, timeout=3600) as client:

        async def ask_on() -> None:
            for place in places:
                done = await client.chat.completions.create(
                    model=model,
                    messages=[{"role": "user", "content": asked[place]}],
                    max_tokens=NUM_TOKENS,
                    temperature=0,
                )
                answers[place] = done.choices[0].message.content or ""

        await client.chat.completions.create(
            model=model, messages=[{"role": "user", "content": asked[0]}], max_tokens=2, temperature=0
        )
        start = time.perf_counter()
        await asyncio.gather(*(ask_on() for _ in range(num_clients)))
        return time.perf_counter() - start, answers


def conversation(folder: Path) -> str:
    """Return a text of as many tokens as a long conversation has."""
    encode = as_loaded(folder).tokenizer.encode
    words = itertools.cycle(WORDS[:start] + WORDS[start + 1 :] for start in range(len(WORDS)))
    text = ""
    while len(encode(text)) < CONVERSATION_TOKENS:
        text += "*".join(next(words)) + "*"
    return text


async def tokens_at(client: Any, model: str, messages: list[dict[str, str]], number: int, told: list[float]) -> Any:
    """Ask for so many tokens, and note when each piece of the answer came; returns the text and the usage."""
    stream = await client.chat.completions.create(
        model=model,
        messages=messages,
        max_tokens=number,
        temperature=0,
        logprobs=True,  # a piece for each token, also where it is a part of a character
        stream=True,
        stream_options={"include_usage": True},
    )
    text, usage = "", None
    async for chunk in stream:
        if chunk.choices and chunk.choices[0].logprobs is not None:
            told.append(time.perf_counter())
        text += (chunk.choices[0].delta.content or "") if chunk.choices else ""
        usage = chunk.usage or usage
    return text, usage


async def time_turns(url: str, model: str, text: str) -> list[str]:
    """Return a row of the table: two turns of a conversation, and what another stream notices of the first."""
    async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0, timeout=3600) as client:
        messages = [{"role": "user", "content": text}]

        async def first_token() -> tuple[float, Any]:
            told: list[float] = []
            start = time.perf_counter()
            answer, usage = await tokens_at(client, model, messages, 16, told)
            messages.extend([{"role": "assistant", "content": answer}, {"role": "user", "content": "裙*风衣"}])
            return told[0] - start, usage

        first, usage = await first_token()
        second, again = await first_token()
        others: list[float] = []
        stream = asyncio.create_task(tokens_at(client, model, [{"role": "user", "content": "裙"}], 1500, others))
        while len(others) < 40:
            await asyncio.sleep(0.05)
        began = time.perf_counter()
        long: list[float] = []
        await tokens_at(client, model, [{"role": "user", "content": "碎花*" + text}], 1, long)
        stream.cancel()
        usual = statistics.median(later - before for before, later in itertools.pairwise(others) if later < began)
        gaps = [later - before for before, later in itertools.pairwise(others) if began < later <= long[0]]
        return [
            f"{usage.prompt_tokens:,}",
            f"{first:.2f} s",
            f"{second:.2f} s ({again.prompt_tokens_details.cached_tokens:,} cached)",
            f"{second / first:.3f}",
            f"{usual * 1000:.0f} ms",
            f"{max(gaps) * 1000:.0f} ms (median {statistics.median(gaps) * 1000:.0f})",
            f"{max(gaps) / usual:.1f}",
        ]


def time_sampling() -> str:
    """Return how long 8 rows of GLM-4's vocabulary take to be sampled, and to be sorted with their places."""
    logits = torch.randn((8, 151_552))
    samplers = [Sampler(Sampling(temperature=1.0, top_p=0.9), ()) for _ in logits]

    def milliseconds(act: Callable[[], Any]) -> float:
        taken = []
        for _ in range(9):
            start = time.perf_counter()
            act()
            taken.append(time.perf_counter() - start)
        return statistics.median(taken) * 1000

    ours = milliseconds(lambda: choose_tokens(samplers, logits))
    sort = milliseconds(lambda: logits.sort(dim=-1, descending=True, stable=True))
    return f"Sampling 8 rows of 151,552 tokens (`top_p` 0.9) takes {ours:.0f} ms; sorting them as before {sort:.0f} ms."


def main() -> None:
    """Measure the loop and each number of clients in turn, some rounds, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, help="of each process that computes; all cores by default")
    parser.add_argument("--vocabulary", type=int, help="rows of the output layer; the tokenizer's by default")
    parser.add_argument("--peer", action="store_true", help="ask `transformers serve`, too")
    parser.add_argument("--tiny", action="store_true", help="a model of a few thousand parameters, to try the script")
    parser.add_argument("--write", action="store_true", help="put the table into RESULTS.md")
    options = parser.parse_args()
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    shape = SHAPE | ({"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2} if options.tiny else {})
    asked = questions(options.requests)
    seconds: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as top:
        folder = Path(top) / "model"
        build_model(folder, shape, options.vocabulary)
        servers = {"server": server} | ({"`transformers serve`": peer} if options.peer else {})
        with contextlib.ExitStack() as stack:
            urls = {name: stack.enter_context(start(folder, options.threads)) for name, start in servers.items()}
            for _ in range(options.rounds):
                taken, expected = time_loop(folder, asked)
                seconds.setdefault("loop, one at a time", []).append(taken)
                for num_clients, (name, url) in itertools.product(CLIENTS, urls.items()):
                    taken, answers = asyncio.run(time_clients(url, str(folder), asked, num_clients))
                    same = sum(ours == theirs for ours, theirs in zip(answers, expected))
                    if same < len(asked):
                        print(f"{name}, {num_clients} clients: {same} of {len(asked)} answers equal the loop's")
                    seconds.setdefault(f"{name}, {num_clients} clients", []).append(taken)
            text = conversation(folder)
            turns = [asyncio.run(time_turns(urls["server"], str(folder), f"{word}*{text}")) for word in WORDS[:2]]
    sections = [throughput_table(seconds, len(asked)), turns_table(turns), time_sampling()]
    told = (
        f"{machine('torch', 'transformers', 'fastapi', 'uvicorn')}, {torch.get_num_threads()} threads. {len(asked)} "
        f"requests of {NUM_TOKENS} tokens each, a GLM of {shape['num_hidden_layers']} layers of "
        f"{shape['hidden_size']} with {options.vocabulary or 'the embedded tokenizer'}"
        f"{' tokens' if options.vocabulary else chr(39) + 's vocabulary'}; median of {options.rounds} rounds, in turn."
    )
    given = " ".join(argument for argument in sys.argv[1:] if argument != "--write")
    text = "\n\n".join([f"## Serving\n\n`python benchmarks/serving.py {given}`: {told}", *sections])
    if options.write:
        write_section("serving", text)
    else:
        print(text)


def throughput_table(seconds: dict[str, list[float]], num_requests: int) -> str:
    """Return the requests a second of each, and how they compare."""
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    rows = []
    for name, taken in medians.items():
        theirs = seconds.get(name.replace("server", "`transformers serve`", 1)) if name.startswith("server") else None
        rows.append(
            [
                name,
                f"{num_requests / taken:.2f}",
                f"{num_requests * NUM_TOKENS / taken:.0f}",
                _ratio(seconds["loop, one at a time"], seconds[name]),
                _ratio(theirs, seconds[name]) if theirs else "",
            ]
        )
    return table(["", "requests/s", "tokens/s", "times the loop", "times `transformers serve`"], rows)


def _ratio(theirs: list[float], ours: list[float]) -> str:
    """Return the median of each round's ratio: the machine may be busy in one and idle in another."""
    return f"{statistics.median(their / our for their, our in zip(theirs, ours)):.2f}"


def turns_table(turns: list[list[str]]) -> str:
    """Return how long the turns of a long conversation take to begin, and how long others wait meanwhile."""
    header = ["tokens of the first turn", "its first token after", "that of the second turn", "part of the first's"]
    others = ["usual gap of another stream", "longest while 4,000 tokens are read", "times the usual"]
    return table([*header, *others], turns)


if __name__ == "__main__":
    main()
