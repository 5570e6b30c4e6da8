"""Generation options are checked by their names, whoever writes them: a run's evaluations, or a caller from Python."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from transformers import GenerationConfig

from glmtune import evaluate, generate
from glmtune.config.generation_options import (
    RANGES,
    TOKEN_IDS,
    TYPES,
    UNSUPPORTED,
    WITH_BEAMS,
    WITH_SAMPLING,
    drop_idle_options,
    find_problems,
    known_options,
)
from glmtune.config.run_config import config_from_mapping
from glmtune.errors import GlmtuneError

LEFT_TO_TRANSFORMERS = {"cache_config", "sequence_bias", "watermarking_config"}
"""Structures of transformers' own; the evaluation of two rows tries them."""

ASKING = {
    "max_length": 8, "stop_strings": ["货"], "num_return_sequences": 2, "penalty_alpha": 0.6, "diversity_penalty": 0.5,
    "num_beam_groups": 2, "prompt_lookup_num_tokens": 3, "compile_config": {}, "num_assistant_tokens": 5,
    "dola_layers": "high", "constraints": [1], "force_words_ids": [[1]], "decoder_start_token_id": 1,
}  # fmt: skip


def messages(options: dict[str, Any]) -> list[str]:
    return [f"{problem.option}: {problem.message}" for problem in find_problems(options)]


def test_every_option_of_the_installed_transformers_has_a_type_or_a_refusal() -> None:
    assert set(known_options()) - TYPES.keys() - UNSUPPORTED.keys() == LEFT_TO_TRANSFORMERS
    assert not TYPES.keys() & UNSUPPORTED.keys()
    assert RANGES.keys() | WITH_SAMPLING.keys() | WITH_BEAMS.keys() <= TYPES.keys()


@pytest.mark.parametrize("option", UNSUPPORTED)
def test_an_option_that_no_answer_can_be_made_with_is_refused(option: str) -> None:
    value = ASKING.get(option, True)
    assert messages({option: value}) == [f"{option}: is not supported: {UNSUPPORTED[option].reason}"]
    assert messages({option: None}) == []


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"max_new_token": 5}, "max_new_token: unknown key (did you mean `max_new_tokens`?)"),
        ({"max_tokens": 5}, "max_tokens: unknown key"),
        ({"max_new_tokens": 0}, "max_new_tokens: expected 1 or more, found `0`"),
        ({"max_new_tokens": "8"}, "max_new_tokens: expected a whole number, found the text `8`"),
        ({"num_beams": 0}, "num_beams: expected 1 or more, found `0`"),
        ({"num_beams": 2.5}, "num_beams: expected a whole number, found `2.5`"),
        ({"do_sample": "yes"}, "do_sample: expected true or false, found the text `yes`"),
        ({"do_sample": True, "temperature": 0}, "temperature: expected a number of at least 0.00001, found `0`"),
        (
            {"do_sample": True, "temperature": math.inf},
            "temperature: expected a number of at least 0.00001, found `inf`",
        ),
        (
            {"do_sample": True, "temperature": math.nan},
            "temperature: expected a number of at least 0.00001, found `nan`",
        ),
        ({"do_sample": True, "top_p": 1.5}, "top_p: expected a number above 0, at most 1, found `1.5`"),
        ({"do_sample": True, "top_k": -1}, "top_k: expected 0 or more, found `-1`"),
        ({"repetition_penalty": 0}, "repetition_penalty: expected a number above 0, found `0`"),
        (
            {"eos_token_id": "<|user|>"},
            "eos_token_id: expected a list or a whole number, found the text `<|user|>`",
        ),
        (
            {"eos_token_id": ["<|user|>"]},
            "eos_token_id: expected a list with a whole number in every place or a whole number, found a list",
        ),
        ({"eos_token_id": -1}, "eos_token_id: expected 0 or more, found `-1`"),
        ({"pad_token_id": "<pad>"}, "pad_token_id: expected a whole number, found the text `<pad>`"),
        ({"suppress_tokens": 5}, "suppress_tokens: expected a list, found `5`"),
        ({"temperature": 0.5}, "temperature: does nothing where answers are not sampled"),
        ({"do_sample": False, "top_p": 0.8}, "top_p: does nothing where answers are not sampled"),
        ({"min_p": 0.1}, "min_p: does nothing where answers are not sampled"),
        ({"length_penalty": 2.0}, "length_penalty: does nothing without beam search"),
        ({"early_stopping": True}, "early_stopping: does nothing without beam search"),
        ({"max_new_tokens": 4, "min_new_tokens": 9}, "min_new_tokens: `9` is more than `max_new_tokens`, `4`"),
        (
            {"cache_implementation": "fast"},
            "cache_implementation: transformers refuses it: Invalid `cache_implementation` (fast).",
        ),
    ],
)
def test_a_wrong_option_is_named(options: dict[str, Any], complaint: str) -> None:
    (message,) = messages(options)
    assert message.startswith(complaint)


@pytest.mark.parametrize(
    "options",
    [
        {"max_new_tokens": 8, "min_new_tokens": 2},
        {"do_sample": True, "temperature": 0.5, "top_p": 0.8, "top_k": 5, "min_p": 0.1},
        {"do_sample": False, "temperature": 1.0, "top_p": 1.0, "top_k": None},
        {"num_beams": 3, "length_penalty": 2.0, "early_stopping": True},
        {"num_beams": 3, "early_stopping": "never"},
        {"num_return_sequences": 1},
        {"eos_token_id": 5},
        {"eos_token_id": [5, 6]},
        {"repetition_penalty": 1.1, "no_repeat_ngram_size": 3},
    ],
)
def test_a_right_option_passes(options: dict[str, Any]) -> None:
    assert messages(options) == []


def test_all_wrong_options_of_a_file_are_named_at_once_with_their_keys() -> None:
    options = {"max_new_tokens": 0, "num_return_sequences": 3, "temprature": 0.5}
    with pytest.raises(GlmtuneError) as caught:
        config_from_mapping(
            {"data_config": {"train_file": "a"}, "training_args": {"generation_config": options}}, where="run.yaml"
        )
    for name in options:
        assert f"training_args.generation_config.{name}: " in caught.value.what


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"num_return_sequences": 3, "do_sample": True}, "num_return_sequences"),
        ({"max_length": 8}, "max_length"),
        ({"stop_strings": ["。"]}, "stop_strings"),
        ({"max_tokens": 8}, "max_tokens"),
        ({"do_sample": False, "temperature": 0.5}, "temperature"),
        ({"output_scores": True, "return_dict_in_generate": True}, "output_scores"),
    ],
)
def test_python_callers_are_told_as_well(options: dict[str, Any], named: str, demo_data: Path) -> None:
    with pytest.raises(GlmtuneError, match=f"`{named}`"):
        generate("demo", ["你好"], **options)
    with pytest.raises(GlmtuneError, match=f"`{named}`"):
        evaluate("demo", demo_data / "dev.jsonl", **options)


def test_what_a_models_own_file_asks_for_in_vain_is_taken_out_of_it() -> None:
    config = GenerationConfig(do_sample=False)
    for name, value in {"temperature": 0.9, "top_k": 3, "length_penalty": 2.0, "early_stopping": True}.items():
        setattr(config, name, value)
    config.num_return_sequences, config.output_scores = 3, True
    with pytest.raises(ValueError, match="num_return_sequences"):
        config.validate(strict=True)
    drop_idle_options(config)
    config.validate(strict=True)


def test_what_a_models_own_file_asks_for_with_effect_stays() -> None:
    config = GenerationConfig(do_sample=True, temperature=0.9, top_k=3, num_beams=2, length_penalty=2.0)
    before = config.to_dict()
    drop_idle_options(config)
    assert config.to_dict() == before


@pytest.mark.parametrize(
    "options",
    [
        *({name: 1024} for name in TOKEN_IDS),
        *({name: [3, 1024]} for name in ("eos_token_id", "forced_eos_token_id", "suppress_tokens")),
        {"begin_suppress_tokens": [-1]},
        {"bad_words_ids": [[3], [4, 1_000_000_000]]},
    ],
)
def test_an_id_that_the_model_does_not_have_is_named(options: dict[str, Any]) -> None:
    (problem,) = find_problems(options, vocabulary=1024)
    assert problem.option == next(iter(options))
    assert "the model has the ids 0 to 1,023" in problem.message
    assert not find_problems({name: _lowered(value) for name, value in options.items()}, vocabulary=1024)


def _lowered(value: Any) -> Any:
    return [_lowered(entry) for entry in value] if isinstance(value, list) else 1023
