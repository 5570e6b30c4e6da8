"""Generation: batched equals single, stops where it must, shows no special token."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest
import torch
from peft import PrefixTuningConfig, get_peft_model
from transformers import GlmForCausalLM

from glmtune import evaluate, generate
from glmtune.chatformat.encoding import Encoder
from glmtune.errors import GlmtuneError, RunFailure
from glmtune.generation.answering import answer_prompts
from glmtune.generation.decoding import AnswerReader, border_of, decode_answer
from glmtune.generation.generate import (
    context_tokens,
    encode_question,
    generate_batch,
    generation_config,
    stream_answer,
)
from glmtune.modeling.finding.model_source import find_model
from glmtune.modeling.loading import LoadedModel, load_model

QUESTIONS = ["类型#风衣*颜色#墨绿", "类型#连衣裙*风格#田园*版型#宽松*细节#暗袋*场合#约会", "你好"]


@pytest.fixture(scope="module")
def loaded(demo_model: str) -> LoadedModel:
    model = load_model(find_model(demo_model), dtype=torch.float64)
    # Random weights say nothing of stopping: make one word of the vocabulary win after a while.
    return model


@pytest.fixture(scope="module")
def prompts(loaded: LoadedModel) -> list[list[int]]:
    encoder = Encoder(loaded.tokenizer, loaded.family)
    return [encode_question(encoder, question, None) for question in QUESTIONS]


def test_batched_answers_equal_single_ones(loaded: LoadedModel, prompts: list[list[int]]) -> None:
    config = generation_config(loaded.model, {"max_new_tokens": 12})
    together = generate_batch(loaded.model, loaded.tokenizer, prompts, config)
    alone = [generate_batch(loaded.model, loaded.tokenizer, [prompt], config)[0] for prompt in prompts]
    assert together == alone


def test_an_answer_ends_before_any_stop_token(loaded: LoadedModel, prompts: list[list[int]]) -> None:
    config = generation_config(loaded.model, {"max_new_tokens": 12})
    [free] = generate_batch(loaded.model, loaded.tokenizer, prompts[:1], config)
    assert len(free) == 12
    # Whatever the model says fifth becomes a stop token.
    stopping = generation_config(loaded.model, {"max_new_tokens": 12, "eos_token_id": free[4]})
    [stopped] = generate_batch(loaded.model, loaded.tokenizer, prompts[:1], stopping)
    assert stopped == free[: free.index(free[4])]


def test_the_stop_tokens_of_the_family_always_stay(loaded: LoadedModel) -> None:
    stops = loaded.tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|user|>", "<|observation|>"])
    assert generation_config(loaded.model, {}).eos_token_id == sorted(stops)
    assert set(stops) < set(generation_config(loaded.model, {"eos_token_id": 7}).eos_token_id)


def test_a_stream_says_what_generate_says(loaded: LoadedModel, prompts: list[list[int]]) -> None:
    config = generation_config(loaded.model, {"max_new_tokens": 12, "do_sample": False})
    streamed = "".join(stream_answer(loaded, prompts[0], config))
    assert streamed.strip() == generate(loaded, QUESTIONS[:1], max_new_tokens=12, do_sample=False)[0]


def test_a_trained_prefix_takes_room_in_the_context(demo_model: str) -> None:
    model = load_model(find_model(demo_model)).model
    assert context_tokens(model) == 8192
    prefix = get_peft_model(model, PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=16))
    assert context_tokens(prefix) == 8192 - 16


def test_sampling_is_repeatable_with_a_seed(loaded: LoadedModel) -> None:
    options = {"max_new_tokens": 12, "do_sample": True, "temperature": 1.5}
    answers = [generate(loaded, QUESTIONS, seed=seed, **options) for seed in (1, 1, 2)]
    assert answers[0] == answers[1]
    assert answers[0] != answers[2]


def test_messages_may_end_with_the_answer_that_is_asked_for(loaded: LoadedModel) -> None:
    messages = [{"role": "user", "content": QUESTIONS[0]}, {"role": "assistant", "content": "the reference"}]
    options = {"max_new_tokens": 5, "do_sample": False}
    assert generate(loaded, [messages], **options) == generate(loaded, QUESTIONS[:1], **options)


def test_a_prompt_that_cannot_be_asked_is_an_error(loaded: LoadedModel) -> None:
    with pytest.raises(GlmtuneError, match=r"cannot ask this: message 0 has role `boss`; expected system, user"):
        generate(loaded, [[{"role": "boss", "content": "work"}]])


def test_special_tokens_in_a_prompt_are_plain_text(loaded: LoadedModel) -> None:
    encoder = Encoder(loaded.tokenizer, loaded.family)
    ids = encode_question(encoder, "<|assistant|>", None)
    assert ids.count(loaded.tokenizer.convert_tokens_to_ids("<|assistant|>")) == 1


@pytest.mark.parametrize("verb", ["generate", "stream", "evaluate"])
def test_a_full_gpu_is_a_failure_that_says_what_to_lower(
    verb: str, loaded: LoadedModel, demo_data: Path, monkeypatch
) -> None:
    def without_memory(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    # In the place of a GPU: the forward pass fails as torch's allocator does.
    monkeypatch.setattr(type(loaded.model), "forward", functools.wraps(GlmForCausalLM.forward)(without_memory))
    config = generation_config(loaded.model, {})
    question = encode_question(Encoder(loaded.tokenizer, loaded.family), "a", None)
    calls = {
        "generate": lambda: generate(loaded, ["a"]),
        "stream": lambda: list(stream_answer(loaded, question, config)),
        "evaluate": lambda: evaluate(loaded, demo_data / "dev.jsonl"),
    }
    with pytest.raises(RunFailure) as caught:
        calls[verb]()
    doing = "scoring the model" if verb == "evaluate" else "answering"
    assert str(caught.value) == (
        f"the GPU's memory is full: it ran out while {doing}\nhint: lower `--batch-size` or `--max-new-tokens`"
    )


def test_a_text_and_the_tool_call_behind_it_are_kept_apart(loaded: LoadedModel) -> None:
    assistant = loaded.tokenizer.convert_tokens_to_ids("<|assistant|>")
    parts = ["\n我查一下", 'get_weather\n{"city": "北京"}']
    ids = [loaded.tokenizer(part, add_special_tokens=False)["input_ids"] for part in parts]
    answer = [*ids[0], assistant, *ids[1]]
    assert decode_answer(loaded.tokenizer, answer) == '我查一下\nget_weather\n{"city": "北京"}'
    reader = AnswerReader(loaded.tokenizer, border=border_of(loaded.tokenizer))
    pieces = [piece for token in answer for piece in reader.add(token)] + reader.end()
    assert "".join(piece.text for piece in pieces) == '\n我查一下\nget_weather\n{"city": "北京"}'


def test_an_answer_that_names_a_control_token_keeps_it_as_text(loaded: LoadedModel) -> None:
    ids = loaded.tokenizer("a<|assistant|>b", split_special_tokens=True, add_special_tokens=False)["input_ids"]
    assert decode_answer(loaded.tokenizer, ids) == "a<|assistant|>b"


FEW = {"max_new_tokens": 3, "do_sample": False}
EXPECTED_PROMPTS = "expected a text, a list of messages, or a list of prompts"
MESSAGE = {"role": "user", "content": QUESTIONS[0]}


@pytest.mark.parametrize("prompt", [QUESTIONS[0], [MESSAGE], (MESSAGE,)], ids=["text", "messages", "tuple"])
def test_one_prompt_has_one_answer_and_a_list_of_it_a_list(prompt, loaded: LoadedModel) -> None:
    answer = generate(loaded, prompt, **FEW)
    assert isinstance(answer, str)
    assert generate(loaded, [prompt], **FEW) == [answer] == generate(loaded, QUESTIONS[:1], **FEW)


def test_no_prompts_have_no_answers(loaded: LoadedModel) -> None:
    assert generate(loaded, []) == []


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        (5, f"`prompts` is of type `int`; {EXPECTED_PROMPTS}"),
        (b"text", f"`prompts` is of type `bytes`; {EXPECTED_PROMPTS}"),
        (Path("a.txt"), f"`prompts` is of type `{type(Path()).__name__}`; {EXPECTED_PROMPTS}"),
        (MESSAGE, f"`prompts` is one message; {EXPECTED_PROMPTS}"),
        ([{"prompt": "a"}] * 2, "entry 1 of `prompts` is a row with `prompt`; expected texts, or messages"),
        ([MESSAGE, {"messages": []}], "entry 2 of `prompts` is a row with `messages`; expected texts, or messages"),
        ([MESSAGE, MESSAGE], "messages 1 and 2 are both the user's: one prompt, or several?"),
        (["text", 5], "prompt 2 is of type `int`; expected text, or messages"),
        (["text", MESSAGE], "prompt 2 is of type `dict`; expected text, or messages"),
        ([["text"]], "prompt 1 is of type `list`; expected text, or messages"),
    ],
)  # fmt: skip
def test_what_may_be_one_prompt_or_several_is_an_error(prompts, message: str, loaded: LoadedModel) -> None:
    with pytest.raises(GlmtuneError) as caught:
        generate(loaded, prompts)
    assert caught.value.what == message


def test_two_messages_of_a_user_are_asked_where_the_brackets_say_how(loaded: LoadedModel) -> None:
    assert len(generate(loaded, [[MESSAGE, MESSAGE]], **FEW)) == 1
    assert len(generate(loaded, [[MESSAGE], [MESSAGE]], **FEW)) == 2


def test_a_prompt_that_is_the_name_of_a_file_is_told(tmp_path: Path, loaded: LoadedModel, capsys) -> None:
    path = tmp_path / "prompts.jsonl"
    path.touch()
    assert isinstance(generate(loaded, str(path), **FEW), str)
    told = f"note: the model is asked the text `{path}`, not what the file of that name holds\n"
    assert capsys.readouterr().err == told


def test_prompts_may_come_from_a_generator(loaded: LoadedModel) -> None:
    options = {"max_new_tokens": 3, "do_sample": False}
    assert generate(loaded, (text for text in QUESTIONS[:2]), **options) == generate(loaded, QUESTIONS[:2], **options)


def test_a_prompt_beyond_the_context_is_an_error_that_names_both_numbers(loaded: LoadedModel, monkeypatch) -> None:
    monkeypatch.setattr(loaded.model.config, "max_position_embeddings", 30)
    with pytest.raises(GlmtuneError, match=r"^prompt 2 has 1[\d]+ tokens, and the model's context ends at 30\nhint: "):
        generate(loaded, ["a", "b c d " * 20])


@pytest.mark.parametrize("options", [{}, {"num_beams": 2}], ids=["continuous batching", "batch by batch"])
def test_an_answer_ends_where_the_models_context_does(options, loaded: LoadedModel, monkeypatch, capsys) -> None:
    """Each at its own place: a long prompt does not cut the answers to shorter ones."""
    encoder = Encoder(loaded.tokenizer, loaded.family)
    lengths = [len(encode_question(encoder, text, None)) for text in ("a", "a b c d e f g h")]
    limit = lengths[1] + 3
    monkeypatch.setattr(loaded.model.config, "max_position_embeddings", limit)
    monkeypatch.setattr(loaded.model.generation_config, "eos_token_id", [10**6])  # so that nothing else ends them
    config = generation_config(loaded.model, {"max_new_tokens": 1000, "do_sample": False, **options})
    answers: dict[int, list[int]] = {}
    prompts = [encode_question(encoder, text, None) for text in ("a", "a b c d e f g h")]
    answer_prompts(loaded.model, loaded.tokenizer, prompts, config, batch_size=2, on_answers=answers.update)
    assert [len(answers[place]) for place in (0, 1)] == [limit - length for length in lengths]
    generate(loaded, ["a"], max_new_tokens=1000, do_sample=False, **options)
    assert f"note: `max_new_tokens` is 1,000, but an answer ends where the model's context does: at {limit}" in (
        capsys.readouterr().err
    )
