"""Prompts read in chunks, and behind what is known of them: the same answers and likelihoods as read at once."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from peft import get_peft_model
from peft.tuners import LoraConfig, PrefixTuningConfig
from transformers import GenerationConfig

from glmtune.generation import batch_cache, continuous_batching, prefill, prefix_store
from glmtune.generation.answering import generate_batch
from glmtune.generation.completion import Completion
from glmtune.generation.continuous_batching import ContinuousBatch
from glmtune.generation.prefix_store import PrefixStore
from glmtune.modeling.finding.model_source import find_model
from glmtune.modeling.loading import LoadedModel, load_model
from glmtune.server.models import Prefixed

ADAPTERS = {
    "none": None,
    "lora": LoraConfig(task_type="CAUSAL_LM", r=4, init_lora_weights=False, target_modules=["q_proj", "v_proj"]),
    "ptuning_v2": PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=5),
}
NUM_TOKENS = 12
BLOCK = 8


@pytest.fixture(scope="module")
def loaded(demo_model: str) -> LoadedModel:
    return load_model(find_model(demo_model), dtype=torch.float32)


@pytest.fixture(scope="module", params=ADAPTERS)
def model(request: pytest.FixtureRequest, loaded: LoadedModel) -> Any:
    base = copy.deepcopy(loaded.model)
    if ADAPTERS[request.param] is None:
        return base
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        return get_peft_model(base, ADAPTERS[request.param]).eval()


@pytest.fixture(scope="module")
def served(model: Any) -> Any:
    """The model as a server calls it."""
    is_prefixed = hasattr(model, "peft_config") and model.active_peft_config.is_prompt_learning
    return Prefixed(model.get_base_model(), model) if is_prefixed else model


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    """Prompts of 1 to 70 tokens; some of them begin alike, and one is there twice."""
    generator = torch.Generator().manual_seed(5)
    texts = [torch.randint(20, 300, (length,), generator=generator).tolist() for length in (70, 3, 33, 8, 1, 50)]
    return [*texts, texts[0][:40] + texts[2], texts[0], texts[5][:32], texts[5][:33]]


@pytest.fixture(scope="module")
def alone(model: Any, loaded: LoadedModel, prompts: list[list[int]]) -> list[list[int]]:
    config = GenerationConfig(max_new_tokens=NUM_TOKENS, do_sample=False, eos_token_id=[0])
    return [generate_batch(model, loaded.tokenizer, [prompt], config)[0] for prompt in prompts]


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small blocks, and memory that is used up often."""
    for module in (prefix_store, prefill, continuous_batching):
        monkeypatch.setattr(module, "BLOCK_TOKENS", BLOCK)
    monkeypatch.setattr(batch_cache, "COLUMNS_AHEAD", 3)


class Reader:
    """Answers as a server does: some of the prompts are read, then every answer gets a token."""

    def __init__(
        self, model: Any, *, max_rows: int = 8, max_tokens: int = 4000, store: PrefixStore | None = None
    ) -> None:
        self.scores: dict[int, list[torch.Tensor]] = {}
        self.batch = ContinuousBatch(
            model,
            [],
            self._choose,
            stops=[0],
            max_tokens=max_tokens,
            max_rows=max_rows,
            keeps_last_logits=True,
            prefixes=store,
        )

    def _choose(self, rows: Sequence[Completion], logits: torch.Tensor) -> torch.Tensor:
        for row, own in zip(rows, logits.log_softmax(-1)):
            if not row.is_done:
                self.scores.setdefault(row.index, []).append(own)
        return logits.argmax(-1)

    def answers(self, prompts: Sequence[Sequence[int]], chunk: int, arriving: int = 3) -> list[Completion]:
        """Answer prompts, of which some arrive in every round."""
        rows = [Completion(index, prompt, NUM_TOKENS) for index, prompt in enumerate(prompts)]
        coming = list(rows)
        self.scores.clear()
        with torch.no_grad():
            while coming or not self.batch.is_idle():
                self.batch.waiting.extend(coming[:arriving])
                del coming[:arriving]
                if self.batch.has_prompts_to_read():
                    self.batch.read_on(chunk)
                if any(not row.is_done for row in self.batch.rows):
                    self.batch.write()
            self.batch.let_go()
        return rows


@pytest.mark.parametrize(
    ("chunk", "max_rows", "max_tokens"), [(1, 8, 4000), (7, 2, 4000), (64, 8, 150), (999, 8, 4000)]
)
def test_answers_are_those_of_prompts_read_at_once(
    served: Any, prompts: list[list[int]], alone: list[list[int]], chunk: int, max_rows: int, max_tokens: int
) -> None:
    rows = Reader(served, max_rows=max_rows, max_tokens=max_tokens).answers(prompts, chunk)
    assert [row.written for row in rows] == alone
    assert {row.num_cached_tokens for row in rows} == {0}


@pytest.mark.parametrize("chunk", [5, 64])
@pytest.mark.parametrize("kept", [10_000, 10 * BLOCK])
def test_a_conversation_that_goes_on_is_answered_as_if_it_were_read_whole(
    served: Any,
    model: Any,
    loaded: LoadedModel,
    prompts: list[list[int]],
    alone: list[list[int]],
    chunk: int,
    kept: int,
) -> None:
    store = PrefixStore(kept)
    reader = Reader(served, store=store)
    assert [row.written for row in reader.answers(prompts, chunk)] == alone
    assert 0 < store.num_tokens <= kept
    longer = [[*prompt, *answer, 25, 26, 27] for prompt, answer in zip(prompts, alone)]
    config = GenerationConfig(max_new_tokens=NUM_TOKENS, do_sample=False, eos_token_id=[0])
    expected = [generate_batch(model, loaded.tokenizer, [prompt], config)[0] for prompt in longer]
    rows = reader.answers(longer, chunk)
    assert [row.written for row in rows] == expected
    if kept == 10_000:
        # All that was computed, in whole blocks: of the answer's last token it was not.
        whole = [(len(prompt) + len(answer) - 1) // BLOCK * BLOCK for prompt, answer in zip(prompts, alone)]
        assert [row.num_cached_tokens for row in reader.answers(longer[:1], chunk)] == [(len(longer[0]) - 1) // 8 * 8]
        assert sum(row.num_cached_tokens for row in rows) >= 0.5 * sum(whole)


def test_likelihoods_are_those_of_a_plain_forward_pass(served: Any, model: Any, prompts: list[list[int]]) -> None:
    reader = Reader(served, store=PrefixStore(10_000))
    for _ in range(2):  # the second time all is known but the end
        rows = reader.answers(prompts, 9)
        for row in rows:
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([[*row.prompt, *row.written]])).logits[0]
            expected = logits[len(row.prompt) - 1 :].log_softmax(-1)
            scores = torch.stack(reader.scores[row.index])
            torch.testing.assert_close(scores, expected[: len(scores)], atol=1e-4, rtol=0)
    assert rows[0].num_cached_tokens == 64


@pytest.mark.parametrize("chunk", [4, 1000])
def test_the_likelihoods_of_a_prompt_are_those_of_a_plain_forward_pass(
    served: Any, model: Any, prompts: list[list[int]], chunk: int
) -> None:
    reader = Reader(served, store=PrefixStore(10_000))
    reader.answers(prompts[:1], 64)
    rows = [Completion(index, prompt, 2, num_prompt_logprobs=2) for index, prompt in enumerate(prompts[:3])]
    reader.batch.waiting.extend(rows)
    with torch.no_grad():
        while not reader.batch.is_idle():
            reader.batch.read_on(chunk)
            if reader.batch.rows:
                reader.batch.write()
        for row in rows:
            assert row.num_cached_tokens == 0  # all of it has to be computed
            logprobs = model(input_ids=torch.tensor([row.prompt])).logits[0, :-1].log_softmax(-1)
            expected = logprobs.gather(1, torch.tensor(row.prompt[1:])[:, None]).squeeze(1)
            torch.testing.assert_close(row.prompt_logprobs.tokens, expected, atol=1e-4, rtol=0)


@pytest.fixture
def reads(loaded: LoadedModel) -> Iterator[list[tuple[int, int]]]:
    """Rows and tokens of every forward pass."""
    seen: list[tuple[int, int]] = []

    def note(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        seen.append(tuple(kwargs["input_ids"].shape))

    handle = loaded.model.register_forward_pre_hook(note, with_kwargs=True)
    yield seen
    handle.remove()


def test_no_pass_reads_more_than_it_may(loaded: LoadedModel, reads: list[Any]) -> None:
    Reader(loaded.model).answers([[30 + number] * (65 + number) for number in range(4)], 16)
    assert max(rows * tokens for rows, tokens in reads) == 16


def test_short_prompts_are_read_together_where_more_wait_than_are_answered(
    loaded: LoadedModel, reads: list[Any]
) -> None:
    reader = Reader(loaded.model)
    reader.batch.waiting.extend(Completion(number, [30 + number] * 20, 9) for number in range(6))
    with torch.no_grad():
        reader.batch.read_on(8)
        reader.batch.waiting.append(Completion(7, [40] * 20, 9))
        reader.batch.read_on(8)
    assert reads == [(6, 20), (1, 8)]


def test_short_prompts_do_not_wait_for_a_long_one(loaded: LoadedModel) -> None:
    reader = Reader(loaded.model)
    long, short = Completion(0, [30] * 200, 3), [Completion(number, [40 + number] * 5, 3) for number in (1, 2, 3)]
    other = Completion(4, [50] * 300, 3)
    reader.batch.waiting.extend([long, other, *short])
    with torch.no_grad():
        for _ in range(4):
            reader.batch.read_on(16)
    assert all(row.written for row in short)
    assert not any(row.written for row in (long, other))
    assert reader.batch.taken == [*short, long]


def test_what_is_given_up_while_it_is_read_is_read_no_more(loaded: LoadedModel, reads: list[Any]) -> None:
    reader = Reader(loaded.model)
    given_up, other = Completion(0, [30] * 100, 3), Completion(1, [40] * 100, 3)
    reader.batch.waiting.extend([given_up, other])
    with torch.no_grad():
        reader.batch.read_on(16)
        reader.batch.drop(given_up)
        for _ in range(7):
            reader.batch.read_on(16)
    assert len(reads) == 8
    assert other.written
    assert not given_up.written


def test_what_is_broken_is_not_kept(loaded: LoadedModel) -> None:
    store = PrefixStore(1000)
    reader = Reader(loaded.model, store=store)
    row = Completion(0, [30] * 100, 3, is_broken=True)
    reader.batch.waiting.append(row)
    with torch.no_grad():
        reader.batch.read_on(1000)
    assert store.num_tokens == 0
