"""How fast this machine multiplies matrices of the output layer's shape: the rate that a step can be held against.

python benchmarks/matrix_rate.py small
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from shapes import SHAPES, Shape

VOCABULARY = 151_552
NUM_KEY_VALUE_HEADS = 2
ROWS = 256
"""Of logits: about the labelled tokens of a step."""
REPETITIONS = 3
HOPELESS = 4
TYPES = ("float32", "bfloat16")


@dataclass(frozen=True, kw_only=True)
class Rates:
    """Multiplications and additions a second, by type."""

    float32: float
    bfloat16: float

    @property
    def best(self) -> float:
        """Return the higher one."""
        return max(self.float32, self.bfloat16)


def main() -> None:
    """Measure, and print the rates as JSON."""
    print(json.dumps(vars(measure(SHAPES[sys.argv[1]]))))


def measure(shape: Shape) -> Rates:
    """Return what the logits of some rows and their gradient reach, as one."""
    rates: dict[str, float] = {}
    for name in TYPES:
        dtype = getattr(torch, name)
        weight = torch.randn(VOCABULARY, shape.hidden_size).to(dtype)
        for num_rows in (ROWS // 16, ROWS):
            hidden = torch.randn(num_rows, shape.hidden_size).to(dtype)
            logits = torch.randn(num_rows, VOCABULARY).to(dtype)
            seconds = _shortest(lambda hidden=hidden, weight=weight: hidden @ weight.T)
            seconds += _shortest(lambda logits=logits, weight=weight: logits @ weight)
            rates[name] = 2 * 2 * num_rows * shape.hidden_size * VOCABULARY / seconds
            if rates[name] * HOPELESS < rates["float32"]:
                break  # whole rows would take minutes where the processor has no instructions for the type
    return Rates(**rates)


def operations(shape: Shape, *, num_tokens: int, num_labelled: int) -> float:
    """Return the multiplications and additions that training on so many tokens cannot do without.

    Forward, and backward to what goes in: the weights are frozen. Attention itself, LoRA and all that is no product of
    matrices are not counted.
    """
    size = shape.hidden_size
    heads = (2 * shape.num_attention_heads + 2 * NUM_KEY_VALUE_HEADS) * shape.head_dim  # queries, output, keys, values
    layers = shape.num_hidden_layers * size * (heads + 3 * shape.intermediate_size)
    return 2 * 2 * (num_tokens * layers + num_labelled * size * VOCABULARY)


def _shortest(product: Callable[[], torch.Tensor]) -> float:
    product()
    seconds = []
    for _ in range(REPETITIONS):
        begin = time.perf_counter()
        product()
        seconds.append(time.perf_counter() - begin)
    return min(seconds)


if __name__ == "__main__":
    main()
