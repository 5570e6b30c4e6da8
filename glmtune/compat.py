"""Where the versions of other libraries that `pyproject.toml` allows differ: the only place that asks for a version.

Every difference says which version brought it and which ends it; `tests/test_compat.py` fails where one can go.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, wraps
from importlib.metadata import version
from typing import Any

TRANSFORMERS = tuple(int(part) for part in version("transformers").split(".")[:2])
"""The installed version, such as (5, 24), previews of it included."""

RENAMED_CACHE = (5, 24)
"""transformers calls the argument `cache` from here on, `past_key_values` before. Until 5.40 decorators take the old
name from whoever passes it, but the layers, and what `prepare_inputs_for_generation` returns, have the new one alone.
`CACHE` can go, with the name itself in its place, where the lowest version of transformers is this one."""

CACHE = "cache" if TRANSFORMERS >= RENAMED_CACHE else "past_key_values"
"""The name under which models and layers take keys and values."""

RENAMED_CHECKPOINTING = (5, 18)
CHECKPOINTING = {
    "gradient_checkpointing": "activation_checkpointing",
    "gradient_checkpointing_kwargs": "activation_checkpointing_kwargs",
}
"""Keys of `training_args`: transformers 5.17 has the left names alone, later ones have both, and warn of the left until
6. The right ones can stand alone where the lowest version of transformers is 5.18."""

PEFT_CACHE = "past_key_values"
"""The name under which PEFT (0.21) passes a trained prefix, whatever transformers calls it."""


def shared_heads(attention: Callable[..., Any]) -> dict[str, Any]:
    """Return the option that lets query heads share key heads; none where the keys have to be repeated.

    torch 2.11's `varlen_attn` has no such option, and that of 2.13 has. It stands alone where 2.13 is the lowest.
    """
    return {"enable_gqa": True} if "enable_gqa" in inspect.signature(attention).parameters else {}


FORCE_GQA = "TRANSFORMERS_SDPA_FORCE_GQA"
"""By this variable of the environment transformers lets query heads share key heads in torch's attention: 5.23 does,
5.17 does not know it yet. It changes no answer."""


@contextmanager
def key_heads_shared(device_type: str) -> Iterator[None]:
    """Have attention on a CPU read each key head once, instead of a copy for each of the query heads that share it.

    transformers makes these copies, of all keys and values, where several tokens are read behind others: on two cores
    16 tokens behind 3,500 took three times as long. For one token, and on other devices, it has better ways.
    """
    if device_type != "cpu" or FORCE_GQA in os.environ:
        yield
        return
    os.environ[FORCE_GQA] = "1"
    try:
        yield
    finally:
        del os.environ[FORCE_GQA]


PLAIN_PEFT_LOSES_PREFIX = (
    "With transformers 5.24 or newer, `generate` of plain PEFT (up to 0.21) answers as the base model does, without "
    "the prefix: the cache has another name there. Use `pip install 'transformers<5.24'`, or glmtune "
    "itself (`glmtune infer`, `glmtune serve`), which hands the prefix on with every version."
)
"""What is told beside an exported prefix; see `let_peft_find_the_cache`, with which it can go."""


@cache
def let_peft_find_the_cache() -> None:
    """Let PEFT's preparation of inputs for `generate` meet the cache under the name that it knows.

    PEFT up to 0.21 looks for `past_key_values` in what the base model prepares. From transformers 5.24 on it finds
    none, takes every token for the first one, and hands its prefix over beside `cache`, which wins: the model answers
    without its prefix, or with an attention mask of another width. This can go where the lowest version of PEFT looks
    for `cache`.
    """
    from peft import PeftModelForCausalLM

    if CACHE == PEFT_CACHE:
        return
    theirs: Any = PeftModelForCausalLM.prepare_inputs_for_generation

    @wraps(theirs)
    def prepare(self: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        of_base = self.base_model_prepare_inputs_for_generation
        self.base_model_prepare_inputs_for_generation = lambda *a, **k: _renamed(of_base(*a, **k), CACHE, PEFT_CACHE)
        try:
            return _renamed(theirs(self, *args, **kwargs), PEFT_CACHE, CACHE)
        finally:
            self.base_model_prepare_inputs_for_generation = of_base

    PeftModelForCausalLM.prepare_inputs_for_generation = prepare  # type: ignore[method-assign]


def _renamed(inputs: dict[str, Any], old: str, new: str) -> dict[str, Any]:
    return {new if name == old else name: value for name, value in inputs.items()}
