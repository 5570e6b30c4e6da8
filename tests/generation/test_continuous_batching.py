"""Answers in the batch: the same as one by one, in bounded memory, under every kind of adapter."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from peft import get_peft_model
from peft.tuners import LoraConfig, PrefixTuningConfig, PromptTuningConfig
from transformers import GenerationConfig, MistralConfig, MistralForCausalLM

from glmtune.generation.answering import answer_prompts, generate_batch, num_reports, say_once_that_batches_wait
from glmtune.generation.completion import Completion
from glmtune.generation.continuous_batching import (
    ContinuousBatch,
    can_batch_continuously,
    reason_against_continuous_batching,
)
from glmtune.generation.generate import generation_config
from glmtune.modeling.finding.model_source import find_model
from glmtune.modeling.loading import LoadedModel, load_model

ADAPTERS = {
    "none": None,
    "lora": LoraConfig(task_type="CAUSAL_LM", r=4, init_lora_weights=False, target_modules=["q_proj", "v_proj"]),
    "ptuning_v2": PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=5),
}


@pytest.fixture(scope="module")
def loaded(demo_model: str) -> LoadedModel:
    return load_model(find_model(demo_model), dtype=torch.float32)


@pytest.fixture(scope="module", params=ADAPTERS)
def model(request: pytest.FixtureRequest, loaded: LoadedModel) -> Any:
    """The demo model with an adapter that changes what it says."""
    base = copy.deepcopy(loaded.model)
    if ADAPTERS[request.param] is None:
        return base
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        return get_peft_model(base, ADAPTERS[request.param]).eval()


@pytest.fixture(scope="module")
def prompts(loaded: LoadedModel) -> list[list[int]]:
    """Thirteen prompts of 3 to 40 tokens."""
    generator = torch.Generator().manual_seed(5)
    lengths = torch.randint(3, 41, (13,), generator=generator).tolist()
    return [torch.randint(20, 300, (length,), generator=generator).tolist() for length in lengths]


def test_prompt_tuning_goes_row_by_row_and_answers_as_one_alone(
    loaded: LoadedModel, prompts: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(7)
    settings = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=5)
    model = get_peft_model(copy.deepcopy(loaded.model), settings).eval()
    config = generation_config(loaded.model, {"max_new_tokens": 8})
    assert not can_batch_continuously(model, config)
    answers: dict[int, list[int]] = {}
    answer_prompts(model, loaded.tokenizer, prompts, config, batch_size=4, on_answers=answers.update)
    for place, prompt in enumerate(prompts):
        ids = torch.tensor([prompt])
        with torch.no_grad():
            alone = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=config)
        stops = [*alone[0, len(prompt) :].tolist(), config.eos_token_id[0]]
        assert answers[place] == stops[: next(i for i, token in enumerate(stops) if token in config.eos_token_id)]


@pytest.fixture
def passes(model: Any) -> Iterator[list[tuple[int, int]]]:
    """Rows and tokens, those in the cache included, of every forward pass."""
    seen: list[tuple[int, int]] = []
    base = model.get_base_model() if hasattr(model, "peft_config") else model

    def note(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        if kwargs.get("attention_mask") is not None:
            seen.append(tuple(kwargs["attention_mask"].shape))

    handle = base.register_forward_pre_hook(note, with_kwargs=True)
    yield seen
    handle.remove()


@pytest.fixture(scope="module")
def config(model: Any, loaded: LoadedModel, prompts: list[list[int]]) -> GenerationConfig:
    """Options under which most answers end early, each at another length, and some never."""
    free = generation_config(model, {"max_new_tokens": 16, "do_sample": False})
    answers = generate_batch(model, loaded.tokenizer, prompts, free)

    def num_lengths(stops: set[int]) -> int:
        return len({next((place for place, token in enumerate(answer) if token in stops), 16) for answer in answers})

    stops: set[int] = set()
    for token in sorted({token for answer in answers for token in answer}):
        if num_lengths(stops | {token}) > num_lengths(stops):
            stops.add(token)
    return generation_config(model, {"max_new_tokens": 16, "do_sample": False, "eos_token_id": list(stops)})


@pytest.fixture(scope="module")
def alone(model: Any, loaded: LoadedModel, prompts: list[list[int]], config: GenerationConfig) -> list[list[int]]:
    """What transformers writes for each prompt alone."""
    return [generate_batch(model, loaded.tokenizer, [prompt], config)[0] for prompt in prompts]


def answers_of(
    model: Any, loaded: LoadedModel, prompts: list[list[int]], config: GenerationConfig, batch_size: int
) -> list[list[int]]:
    found: dict[int, list[int]] = {}
    answer_prompts(model, loaded.tokenizer, prompts, config, batch_size=batch_size, on_answers=found.update)
    return [found[place] for place in range(len(prompts))]


@pytest.mark.parametrize("batch_size", [1, 2, 5, 40])
def test_answers_of_continuous_batching_equal_single_ones(
    model: Any,
    loaded: LoadedModel,
    prompts: list[list[int]],
    config: GenerationConfig,
    alone: list[list[int]],
    batch_size: int,
) -> None:
    assert can_batch_continuously(model, config)
    assert len({len(answer) for answer in alone}) > 2
    assert answers_of(model, loaded, prompts, config, batch_size) == alone


def test_memory_stays_below_that_of_a_batch_of_the_longest(
    model: Any, loaded: LoadedModel, prompts: list[list[int]], config: GenerationConfig, passes: list[tuple[int, int]]
) -> None:
    answers_of(model, loaded, prompts, config, 3)
    prefix = 5 if hasattr(model, "peft_config") and model.active_peft_config.is_prompt_learning else 0
    limit = 3 * (max(map(len, prompts)) + 16)
    assert max(rows * (tokens - prefix) for rows, tokens in passes if rows > 1) <= limit
    assert max(rows for rows, _ in passes) > 3


def test_gradient_checkpointing_leaves_the_cache_on(
    model: Any, loaded: LoadedModel, prompts: list[list[int]], config: GenerationConfig, alone: list[list[int]]
) -> None:
    changed = copy.deepcopy(model)
    base = changed.get_base_model() if hasattr(changed, "peft_config") else changed
    # As transformers' trainer leaves a model.
    base.config.use_cache = False
    changed.gradient_checkpointing_enable({"use_reentrant": False})
    widths: list[int] = []
    base.get_input_embeddings().register_forward_pre_hook(lambda module, args: widths.append(args[0].shape[1]))
    assert answers_of(changed, loaded, prompts, config, 4) == alone
    # Each row is read once, or twice where it was put back; all else is one token a row.
    assert sum(width > 1 for width in widths) < widths.count(1)


def test_what_a_model_spells_out_without_effect_does_not_keep_it_down(loaded: LoadedModel) -> None:
    made = GenerationConfig.from_model_config(loaded.model.config)
    made.num_beams, made.repetition_penalty, made.min_new_tokens = 1, 1.0, 0
    assert can_batch_continuously(loaded.model, made)


def test_transformers_defaults_spelled_out_do_not_keep_a_model_down(loaded: LoadedModel) -> None:
    """As its trainer leaves them in a model after a prediction, and as older models' files have them."""
    model = copy.deepcopy(loaded.model)
    model.generation_config.update(
        num_beams=1, num_beam_groups=1, num_return_sequences=1, repetition_penalty=1.0, length_penalty=1.0,
        encoder_repetition_penalty=1.0, temperature=1.0, top_k=50, top_p=1.0, typical_p=1.0, max_length=20,
        num_assistant_tokens=20, num_assistant_tokens_schedule="constant", assistant_confidence_threshold=0.4,
        assistant_lookbehind=10, target_lookbehind=10,
    )  # fmt: skip
    assert can_batch_continuously(model, generation_config(model, {"do_sample": False, "max_new_tokens": 4}))


@pytest.mark.parametrize("option", [{"num_beams": 2}, {"repetition_penalty": 1.2}, {"min_new_tokens": 2}])
def test_options_that_look_at_the_whole_batch_go_batch_by_batch(
    loaded: LoadedModel, prompts: list[list[int]], option: dict[str, Any]
) -> None:
    config = generation_config(loaded.model, {"max_new_tokens": 4, "do_sample": False} | option)
    assert not can_batch_continuously(loaded.model, config)
    answers = answers_of(loaded.model, loaded, prompts, config, 4)
    assert len(answers) == len(prompts)
    longest = max(range(len(prompts)), key=lambda place: len(prompts[place]))
    assert answers[longest] == generate_batch(loaded.model, loaded.tokenizer, [prompts[longest]], config)[0]


def test_a_sliding_window_goes_batch_by_batch(loaded: LoadedModel, prompts: list[list[int]]) -> None:
    torch.manual_seed(1)
    config = MistralConfig(
        vocab_size=2048, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, sliding_window=8, pad_token_id=0, eos_token_id=[1],
    )  # fmt: skip
    window = MistralForCausalLM(config).eval()
    options = GenerationConfig(max_new_tokens=6, do_sample=False, eos_token_id=[1], pad_token_id=0)
    assert not can_batch_continuously(window, options)
    single = [generate_batch(window, loaded.tokenizer, [prompt], options)[0] for prompt in prompts]
    assert answers_of(window, loaded, prompts, options, 1) == single


def test_sampling_in_continuous_batching_draws_from_the_most_likely_tokens(
    loaded: LoadedModel, prompts: list[list[int]]
) -> None:
    greedy = generation_config(loaded.model, {"max_new_tokens": 6, "do_sample": False})
    almost = generation_config(loaded.model, {"max_new_tokens": 6, "do_sample": True, "top_k": 1})
    free = generation_config(loaded.model, {"max_new_tokens": 6, "do_sample": True, "temperature": 2.0, "top_k": 50})
    assert can_batch_continuously(loaded.model, free)
    expected = answers_of(loaded.model, loaded, prompts, greedy, 4)
    assert answers_of(loaded.model, loaded, prompts, almost, 4) == expected
    torch.manual_seed(0)
    assert answers_of(loaded.model, loaded, prompts, free, 4) != expected


@pytest.mark.parametrize("batch_size", [1, 4, 13, 50])
def test_answers_are_reported_while_they_come(loaded: LoadedModel, prompts: list[list[int]], batch_size: int) -> None:
    config = generation_config(loaded.model, {"max_new_tokens": 6, "do_sample": False})
    reports: list[list[int]] = []
    answer_prompts(
        loaded.model, loaded.tokenizer, prompts, config, batch_size=batch_size,
        on_answers=lambda answers: reports.append([place for place, _ in answers]),
    )  # fmt: skip
    assert len(reports) == num_reports(len(prompts), batch_size)
    assert sorted(place for report in reports for place in report) == list(range(len(prompts)))


def test_an_error_in_a_report_ends_the_answers(loaded: LoadedModel, prompts: list[list[int]]) -> None:
    config = generation_config(loaded.model, {"max_new_tokens": 6, "do_sample": False})
    reports: list[Any] = []

    def stop(answers: Any) -> None:
        reports.append(answers)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        answer_prompts(loaded.model, loaded.tokenizer, prompts, config, batch_size=2, on_answers=stop)
    assert len(reports) == 1


@pytest.mark.parametrize(
    ("options", "reason"),
    [({"num_beams": 2}, "`num_beams` may look at a batch as a whole"),
     ({"repetition_penalty": 1.2}, "`repetition_penalty` may look at a batch as a whole"),
     ({"use_cache": False}, "`use_cache: false` keeps no keys and values")],
    ids=["beams", "penalty", "no cache"],
)  # fmt: skip
def test_answers_batch_by_batch_are_told_once_with_the_reason(
    loaded: LoadedModel, capsys: pytest.CaptureFixture[str], options: dict[str, Any], reason: str
) -> None:
    say_once_that_batches_wait.cache_clear()
    settings = generation_config(loaded.model, {"max_new_tokens": 2, **options})
    for _ in range(2):
        answers_of(loaded.model, loaded, [[20, 21], [22]], settings, 2)
    told = f"note: answers are written batch by batch, each as slow as its longest: {reason}\n"
    assert capsys.readouterr().err == told


def test_a_model_that_keeps_more_than_keys_and_values_says_so() -> None:
    small = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2}
    model = MistralForCausalLM(MistralConfig(**small, num_attention_heads=2, num_key_value_heads=2, sliding_window=4))
    reason = reason_against_continuous_batching(model, GenerationConfig(max_new_tokens=2))
    assert reason == "`MistralForCausalLM` keeps more than keys and values while it answers"


def test_a_row_that_is_given_up_is_read_no_more_whether_it_waits_or_flies(loaded: LoadedModel) -> None:
    rows = [Completion(index, [20 + index] * (5 - index), 3) for index in range(4)]
    batch = ContinuousBatch(
        loaded.model,
        rows,
        lambda rows, logits: logits.argmax(dim=-1),
        stops=[],
        max_tokens=1000,
        max_rows=8,
        keeps_last_logits=False,
    )
    batch.drop(rows[1])
    batch.drop(rows[1])
    assert batch.num_unfinished == 3
    with torch.no_grad():
        batch.take_in()
        assert batch.rows == [rows[0], rows[2], rows[3]]
        batch.drop(rows[2])
        batch.write()
    assert (batch.num_unfinished, batch.rows) == (2, [rows[0], rows[3]])
