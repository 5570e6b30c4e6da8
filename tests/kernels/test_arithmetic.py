"""What a CPU multiplies in: chosen by timings, remembered, and the same sums in either type."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GlmConfig, GPT2Config, LlamaConfig

from glmtune.kernels import arithmetic
from glmtune.kernels.arithmetic import MARGIN, Arithmetic, Shapes, choose, measure, seconds_here, shapes_of

SHAPES = Shapes(
    hidden_size=64, vocab_size=3000, num_heads=4, num_key_value_heads=2, head_size=16, row_tokens=32,
    head_dtype="bfloat16", is_head_trained=False,
)  # fmt: skip


def seconds(**half: float) -> dict[str, dict[str, float]]:
    """Return timings where float32 takes a second everywhere, and bfloat16 what is given."""
    return {part: {"float32": 1.0, "bfloat16": half.get(part, 1.0)} for part in ("loss", "attention", "layers")}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GLMTUNE_CACHE", str(tmp_path))
    return tmp_path / "arithmetic"


@pytest.fixture
def trials(monkeypatch: pytest.MonkeyPatch) -> list[Shapes]:
    """The shapes that were tried; each trial finds bfloat16 to be fast in the loss."""
    tried: list[Shapes] = []

    def find(shapes: Shapes) -> Any:
        tried.append(shapes)
        return seconds(loss=0.5)

    monkeypatch.setattr(arithmetic, "measure", find)
    return tried


@pytest.mark.parametrize(
    ("half", "expected"),
    [
        ({}, ("float32", "float32", "bfloat16")),
        ({"loss": 0.5}, ("bfloat16", "float32", "bfloat16")),
        ({"attention": 0.5}, ("float32", "bfloat16", "bfloat16")),
        ({"loss": 0.5, "attention": 0.4, "layers": 0.1}, ("bfloat16", "bfloat16", "bfloat16")),
        ({"loss": 30, "attention": 0.9, "layers": 10}, ("float32", "float32", "float32")),
        ({"loss": 0.99 / MARGIN}, ("bfloat16", "float32", "bfloat16")),
        ({"loss": 1.01 / MARGIN}, ("float32", "float32", "bfloat16")),
        ({"layers": 0.99 * MARGIN}, ("float32", "float32", "bfloat16")),
        ({"layers": 1.01 * MARGIN}, ("float32", "float32", "float32")),
    ],
)
def test_another_type_is_chosen_part_by_part_and_only_where_it_is_clearly_faster(half: Any, expected: Any) -> None:
    assert tuple(choose(seconds(**half)).names().values()) == expected


def clock_of(costs: Callable[[], float]) -> Callable[[], float]:
    """Return a clock that tells, read before and after each call, that it took the next of the costs."""
    now, is_end = [0.0], itertools.cycle([False, True])

    def read() -> float:
        if next(is_end):
            now[0] += costs()
        return now[0]

    return read


@pytest.mark.parametrize("is_head_trained", [False, True])
@pytest.mark.parametrize("head_dtype", ["float32", "bfloat16"])
def test_every_part_is_timed_in_both_types_by_their_shortest_call(head_dtype: str, is_head_trained: bool) -> None:
    # In turn float32 and bfloat16; the first calls of either are disturbed.
    costs = itertools.cycle([9.0, 9.0, 2.0, 1.0, 3.0, 1.5, 2.0, 1.0, 2.5, 5.0])
    found = measure(
        replace(SHAPES, head_dtype=head_dtype, is_head_trained=is_head_trained), clock_of(lambda: next(costs))
    )
    assert found == {part: {"float32": 2.0, "bfloat16": 1.0} for part in ("loss", "attention", "layers")}


def test_what_is_hopeless_is_not_tried_at_full_size() -> None:
    readings = [0]
    costs = itertools.cycle([1.0, 1.0 + arithmetic.HOPELESS])

    def cost() -> float:
        readings[0] += 1
        return next(costs)

    found = measure(SHAPES, clock_of(cost))
    assert readings[0] == 3 * 2  # three parts, one call in each type
    assert choose(found) == Arithmetic(layers=torch.float32)


def test_the_trial_leaves_threads_and_random_numbers_as_they_were() -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        before = torch.random.get_rng_state()
        measure(SHAPES)
        assert torch.get_num_threads() == 3
        assert torch.random.get_rng_state().equal(before)
    finally:
        torch.set_num_threads(threads)


def test_a_real_trial_has_times_for_everything() -> None:
    found = measure(SHAPES)
    assert all(0 < value < 60 for part in found.values() for value in part.values())


def test_a_trial_is_remembered_for_its_shapes(cache: Path, trials: list[Shapes]) -> None:
    for _ in range(2):
        assert choose(seconds_here(SHAPES, pytest.fail)) == Arithmetic(loss=torch.bfloat16)
    assert trials == [SHAPES]
    assert [path.suffix for path in cache.iterdir()] == [".json"]  # nothing that was written aside is left


OTHER_FACTS: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "processor": lambda patch: patch.setattr(arithmetic, "processor", lambda: {"model name": "another"}),
    "instructions": lambda patch: patch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX1024"),
    "torch": lambda patch: patch.setattr(torch, "__version__", "9.9"),
}


@pytest.mark.parametrize("fact", OTHER_FACTS)
def test_another_machine_or_torch_is_tried_anew(
    fact: str, cache: Path, trials: list[Shapes], monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds_here(SHAPES, pytest.fail)
    OTHER_FACTS[fact](monkeypatch)
    seconds_here(SHAPES, pytest.fail)
    assert len(trials) == 2
    assert all(fact in json.loads(path.read_text(encoding="utf-8")) for path in cache.iterdir())


@pytest.mark.parametrize("name", list(vars(SHAPES)))
def test_other_shapes_are_tried_anew(name: str, cache: Path, trials: list[Shapes]) -> None:
    value = vars(SHAPES)[name]
    other = {"head_dtype": "float32", "is_head_trained": True}.get(name, 2 * value if isinstance(value, int) else value)
    for shapes in (SHAPES, replace(SHAPES, **{name: other})):
        seconds_here(shapes, pytest.fail)
    assert len(trials) == 2


DAMAGE = {
    "empty": "",
    "cut off": '{"seconds": {"loss": {"float32": 1.0, "bfl',
    "no object": "[1, 2]",
    "null": "null",
    "other keys": "{}",
    "a part is missing": json.dumps({"seconds": {"loss": {"float32": 1, "bfloat16": 2}}}),
    "a type is missing": json.dumps({"seconds": {part: {"float32": 1} for part in ("loss", "attention", "layers")}}),
    "text": json.dumps({"seconds": seconds() | {"loss": {"float32": "fast", "bfloat16": 2}}}),
    "zero": json.dumps({"seconds": seconds(loss=0.0)}),
    "negative": json.dumps({"seconds": seconds(loss=-1.0)}),
    "not a number": json.dumps({"seconds": seconds(loss=math.nan)}),
    "no UTF-8": b"\xff\xfe\x00",
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_made_anew(damage: str, cache: Path, trials: list[Shapes]) -> None:
    seconds_here(SHAPES, pytest.fail)
    (path,) = cache.iterdir()
    content = DAMAGE[damage]
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert seconds_here(SHAPES, pytest.fail) == seconds(loss=0.5)
    assert len(trials) == 2
    assert json.loads(path.read_text())["seconds"] == seconds(loss=0.5)


def test_a_cache_that_cannot_be_written_is_told_and_the_run_goes_on(
    tmp_path: Path, trials: list[Shapes], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "file"
    file.write_text("")
    monkeypatch.setenv("GLMTUNE_CACHE", str(file))
    told: list[str] = []
    assert seconds_here(SHAPES, told.append) == seconds(loss=0.5)
    assert len(told) == 1
    assert told[0].startswith(f"how fast this CPU multiplies cannot be remembered in `{file / 'arithmetic'}`: ")


def test_shapes_are_those_of_the_model_and_rows_of_like_length_share_them() -> None:
    config = GlmConfig(
        hidden_size=512, num_attention_heads=8, num_key_value_heads=2, head_dim=64, vocab_size=151552, pad_token_id=0
    )
    found = shapes_of(config, row_tokens=117.8, head_dtype=torch.bfloat16, is_head_trained=False)
    assert found == Shapes(
        hidden_size=512, vocab_size=151552, num_heads=8, num_key_value_heads=2, head_size=64, row_tokens=128,
        head_dtype="bfloat16", is_head_trained=False,
    )  # fmt: skip
    tokens = [
        shapes_of(config, row_tokens=length, head_dtype=torch.bfloat16, is_head_trained=False).row_tokens
        for length in (1, 40, 100, 150, 10_000)
    ]
    assert tokens == [32, 32, 128, 128, 256]


@pytest.mark.parametrize(
    "config", [GPT2Config(n_embd=64, n_head=4), LlamaConfig(hidden_size=64, num_attention_heads=4)]
)
def test_models_that_do_not_tell_their_head_size_have_one(config: Any) -> None:
    found = shapes_of(config, row_tokens=64, head_dtype=torch.float32, is_head_trained=True)
    assert (found.num_heads, found.num_key_value_heads, found.head_size) == (4, 4, 16)


def test_the_processor_is_told_apart_by_more_than_its_name() -> None:
    """Virtual machines call an EPYC with AVX512-BF16 and one without by the same name."""
    found = arithmetic.processor()
    if Path("/proc/cpuinfo").is_file():
        assert {"flags", "Features"} & found.keys()
        assert not {"cpu MHz", "processor", "core id"} & found.keys()
    assert all(found)
