"""Batches on their way to token ids: while one is in the tokenizer, the next one is rendered.

plan (Python) ──▶ tokenize (Rust, on a thread of its own) ──▶ finish (Python)
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

Plan = TypeVar("Plan")
Ids = list[list[int]]


def tokenized(plans: Iterator[Plan], tokenize: Callable[[Plan], Ids]) -> Iterator[tuple[Plan, Ids]]:
    """Yield every batch with the ids of its texts.

    Args:
        plans: Batches; taking the next one plans it.
        tokenize: Returns the ids of a batch; other threads run meanwhile.
    """
    first = next(plans, None)
    if first is None:
        return
    with ThreadPoolExecutor(1) as thread:
        waiting, ids = first, thread.submit(tokenize, first)
        for plan in plans:
            following = thread.submit(tokenize, plan)
            yield waiting, ids.result()
            waiting, ids = plan, following
        yield waiting, ids.result()


@contextmanager
def garbage_collection_paused() -> Iterator[None]:
    """Keep Python from looking for cycles among the many small objects of a batch, which has none: a tenth quicker.

    For functions that take a pipeline's batches to the end, never for a generator: one that nobody takes further and
    nobody closes, such as behind an error that is kept, would leave the collection switched off.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
