"""Which type a CPU multiplies faster, float32 or bfloat16: tried for the shapes of a run, and remembered.

No rule holds for all of them. At hidden sizes of 128 to 2,048 and GLM-4's vocabulary an AMD EPYC with AVX512-BF16 took
0.4 to 0.6 of the time in bfloat16; a Xeon with the same instructions took up to twice as long; an EPYC that has AVX2
alone, ten to fifty times as long. So a run that computes in bfloat16 anyway (in float32 nothing is rounded unasked)
tries both on this machine, in some milliseconds.

The trial runs on one thread, and by the CPU time of that thread: what else the machine does meanwhile does not change
what a run computes in. With two threads and the wall clock, on a machine with four times as much work as cores,
bfloat16 attention was taken for the faster one where it takes two to ten times as long.
"""

from __future__ import annotations

import hashlib
import json
import math
import platform
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import PretrainedConfig

from glmtune.files.cache_files import cache_folder, write_file

from .fused_loss import LogitsBuffer, fused_cross_entropy
from .packed_attention import packed_sdpa
from .wide_linear import wide_linear

TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}

LOSS, ATTENTION, LAYERS = "loss", "attention", "layers"
CHOSEN = (LOSS, ATTENTION, LAYERS)

MARGIN = 1.2
"""How many times as fast the other type must be: a run's arithmetic must not hang on what else the machine does."""

HOPELESS = 4
"""Times as long: not tried at full size any more."""

ROUNDS = 5
TRIED_ROWS = 128
"""Of logits, or tokens of a layer: about what a micro-batch of short rows has."""
PRODUCT_FLOPS = 2.5e8
"""Of one product of the trial, which is done with a part of a large matrix: some milliseconds."""
ROW_TOKENS = (32, 256)
"""The shortest and longest row whose attention is tried."""

PROCESSOR_FACTS = (
    *("vendor_id", "cpu family", "model", "model name", "stepping", "flags"),
    *("CPU implementer", "CPU architecture", "CPU variant", "CPU part", "Features"),
)
"""Of `/proc/cpuinfo`, on x86 and on ARM: no frequency, which changes, and nothing of a single core."""

Seconds = Mapping[str, Mapping[str, float]]
"""By what is computed, and by the name of the type."""
Call = Callable[[], object]


@dataclass(frozen=True, kw_only=True)
class Arithmetic:
    """What a CPU multiplies in, where a run that computes in bfloat16 leaves it open."""

    loss: torch.dtype = torch.float32
    """Of the logits and their gradients; a frozen output layer is kept in it."""
    attention: torch.dtype = torch.float32
    layers: torch.dtype = torch.bfloat16
    """Of the linear layers' products; what they hand on is in bfloat16 all the same."""

    def names(self) -> dict[str, str]:
        """Return the types by what they are for, as `run.yaml` holds them."""
        return {part: str(dtype).removeprefix("torch.") for part, dtype in vars(self).items()}


@dataclass(frozen=True, kw_only=True)
class Shapes:
    """What the time of a run's products depends on."""

    hidden_size: int
    vocab_size: int
    num_heads: int
    num_key_value_heads: int
    head_size: int
    row_tokens: int
    """Of a typical row, a power of two."""
    head_dtype: str
    """Of the output layer as it is loaded."""
    is_head_trained: bool


def shapes_of(config: PretrainedConfig, *, row_tokens: float, head_dtype: torch.dtype, is_head_trained: bool) -> Shapes:
    """Return the shapes of a run.

    Args:
        config: Of the model.
        row_tokens: Of a typical row.
        head_dtype: That the output layer is loaded in.
        is_head_trained: Whether the output layer gets a gradient.
    """
    text: Any = config.get_text_config()
    shortest, longest = ROW_TOKENS
    return Shapes(
        hidden_size=text.hidden_size,
        vocab_size=text.vocab_size,
        num_heads=text.num_attention_heads,
        num_key_value_heads=getattr(text, "num_key_value_heads", None) or text.num_attention_heads,
        head_size=getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads,
        row_tokens=2 ** round(math.log2(min(max(row_tokens, shortest), longest))),
        head_dtype=str(head_dtype).removeprefix("torch."),
        is_head_trained=is_head_trained,
    )


def choose(seconds: Seconds) -> Arithmetic:
    """Return what to multiply in: what `Arithmetic` says unless the other type is faster beyond doubt."""
    return Arithmetic(**{part: _faster(seconds[part], default) for part, default in vars(Arithmetic()).items()})


def _faster(seconds: Mapping[str, float], default: torch.dtype) -> torch.dtype:
    usual, other = sorted(TYPES, key=lambda name: TYPES[name] is not default)
    return TYPES[other if seconds[other] * MARGIN <= seconds[usual] else usual]


def seconds_here(shapes: Shapes, notify: Callable[[str], None]) -> Seconds:
    """Return how long the products of a run take on this machine: remembered, or tried now.

    Args:
        shapes: Of the run.
        notify: Told where it cannot be remembered.
    """
    facts = {
        "processor": processor(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
        "shapes": asdict(shapes),
    }
    key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]
    path = cache_folder() / "arithmetic" / f"{key}.json"
    seconds = _remembered(path)
    if seconds is None:
        seconds = measure(shapes)
        try:
            write_file(path, json.dumps({**facts, "seconds": seconds}, indent=1).encode())
        except OSError as error:
            notify(f"how fast this CPU multiplies cannot be remembered in `{path.parent}`: {error.strerror or error}")
    return seconds


def _remembered(path: Path) -> Seconds | None:
    """Return what an earlier run found; None where there is nothing, or nothing whole."""
    try:
        seconds = json.loads(path.read_text(encoding="utf-8"))["seconds"]
        found = {part: {name: float(seconds[part][name]) for name in TYPES} for part in CHOSEN}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    values = [value for part in found.values() for value in part.values()]
    return found if all(math.isfinite(value) and value > 0 for value in values) else None


def processor() -> dict[str, str]:
    """Return what tells this CPU from others; in a virtual machine its name alone says little."""
    file = Path("/proc/cpuinfo")
    if not file.is_file():
        return {"name": platform.processor(), "machine": platform.machine()}
    first = file.read_text(encoding="utf-8", errors="replace").split("\n\n")[0]
    lines = [line.partition(":")[::2] for line in first.splitlines()]
    return {name.strip(): value.strip() for name, value in lines if name.strip() in PROCESSOR_FACTS}


def measure(shapes: Shapes, clock: Callable[[], float] | None = None) -> dict[str, dict[str, float]]:
    """Return how long each kind of product takes, forward and backward, in each type.

    Args:
        shapes: Of the run.
        clock: Tells the seconds; None for the CPU time of this thread.
    """
    # Windows counts the time of a thread in steps of 16 ms.
    clock = clock or (time.perf_counter if sys.platform == "win32" else time.thread_time)
    trials = {LOSS: _loss, ATTENTION: _attention, LAYERS: _layer}
    with _one_thread(), torch.enable_grad(), torch.autocast("cpu", enabled=False):
        return {part: _compare(trial, shapes, clock) for part, trial in trials.items()}


@contextmanager
def _one_thread() -> Iterator[None]:
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(num_threads)


def _compare(
    trial: Callable[[Shapes, int], Mapping[str, Call]], shapes: Shapes, clock: Callable[[], float]
) -> dict[str, float]:
    """Return the seconds of the calls of a trial: at an eighth of its size, and at its size unless that is hopeless."""
    seconds: dict[str, float] = {}
    for divisor in (8, 1):
        seconds = _shortest(trial(shapes, divisor), clock)
        if _is_hopeless(seconds):
            break
    return seconds


def _shortest(calls: Mapping[str, Call], clock: Callable[[], float]) -> dict[str, float]:
    """Return the shortest time of each call; they take turns."""
    shortest = dict.fromkeys(calls, math.inf)
    for call in calls.values():
        call()  # what is made at the first call alone does not count
    for _ in range(ROUNDS):
        for name, call in calls.items():
            begin = clock()
            call()
            shortest[name] = min(shortest[name], clock() - begin)
        if _is_hopeless(shortest):
            break
    return shortest


def _is_hopeless(seconds: Mapping[str, float]) -> bool:
    return seconds["bfloat16"] > HOPELESS * seconds["float32"]


def _loss(shapes: Shapes, divisor: int) -> Mapping[str, Call]:
    """Return the loss of some rows over a part of the vocabulary, and its gradients."""
    size = min(shapes.vocab_size, max(1024, round(PRODUCT_FLOPS / (2 * TRIED_ROWS * shapes.hidden_size)))) // divisor
    hidden = _random(TRIED_ROWS, shapes.hidden_size).bfloat16().requires_grad_()
    weight = _random(size, shapes.hidden_size).to(getattr(torch, shapes.head_dtype))
    targets = torch.arange(TRIED_ROWS) % size

    def call_in(dtype: torch.dtype) -> Call:
        buffer = LogitsBuffer()
        # A frozen layer is converted once in a run.
        own = weight.detach().requires_grad_() if shapes.is_head_trained else weight.to(dtype)
        return lambda: fused_cross_entropy(hidden, own, targets, buffer=buffer, cpu_dtype=dtype)

    return {name: call_in(dtype) for name, dtype in TYPES.items()}


def _attention(shapes: Shapes, divisor: int) -> Mapping[str, Call]:
    """Return the attention of one row, forward and backward; of all heads, or of some that share keys and values."""
    length = max(8, shapes.row_tokens // divisor)
    heads, groups = shapes.num_heads, shapes.num_key_value_heads
    if 4 * heads * length**2 * shapes.head_size > PRODUCT_FLOPS:
        heads, groups = max(1, heads // groups), 1
    # As they come out of the projections under autocast; the rotation makes float32 of queries and keys.
    query, key = (_random(1, number, length, shapes.head_size).requires_grad_() for number in (heads, groups))
    value = _random(1, groups, length, shapes.head_size).bfloat16().requires_grad_()
    starts = torch.tensor([0, length])
    gradient = _random(1, length, heads, shapes.head_size).bfloat16()

    def call(dtype: torch.dtype) -> None:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            output, _ = packed_sdpa(
                torch.nn.Identity(),
                query,
                key,
                value,
                None,
                cu_seq_lens_q=starts,
                max_length_q=length,
                cpu_dtype=dtype,
            )
        torch.autograd.grad(output, (query, key, value), gradient)

    return {name: partial(call, dtype) for name, dtype in TYPES.items()}


def _layer(shapes: Shapes, divisor: int) -> Mapping[str, Call]:
    """Return a linear layer under autocast, forward and backward; frozen, or trained with the whole model."""
    size = min(4 * shapes.hidden_size, round(PRODUCT_FLOPS / (2 * TRIED_ROWS * shapes.hidden_size))) // divisor
    dtype = torch.float32 if shapes.is_head_trained else torch.bfloat16
    layer = torch.nn.Linear(1, 1, bias=False, device="meta")  # no random numbers are drawn for it
    layer.weight = torch.nn.Parameter(_random(size, shapes.hidden_size).to(dtype), shapes.is_head_trained)
    states = _random(TRIED_ROWS, shapes.hidden_size).bfloat16().requires_grad_()
    gradient = _random(TRIED_ROWS, size).bfloat16()
    trained = [states, *(weight for weight in layer.parameters() if weight.requires_grad)]

    def call(forward: Callable[[torch.Tensor], torch.Tensor]) -> None:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            output = forward(states)
        torch.autograd.grad(output, trained, gradient)

    return {"float32": partial(call, partial(wide_linear, layer)), "bfloat16": partial(call, layer)}


def _random(*size: int) -> torch.Tensor:
    # A generator of its own: the run's random numbers must not depend on whether a trial was remembered.
    return torch.randn(size, generator=torch.Generator().manual_seed(0)) / 4
