"""Options of `transformers.GenerationConfig` as a user writes them: what is wrong with them, before they are used.

transformers takes any name, states no types, and finds most contradictions while it generates: in the first evaluation
of a run, after hours, or never.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from glmtune.errors import GlmtuneError, nearest

from .field_types import Mismatch, fit
from .yaml_source import found

TYPES: dict[str, Any] = {
    **dict.fromkeys(
        (
            *("max_new_tokens", "min_new_tokens", "min_length", "num_beams", "top_k", "no_repeat_ngram_size"),
            *("bos_token_id", "pad_token_id", "forced_bos_token_id", "prefill_chunk_size", "max_cache_len"),
        ),
        int,
    ),
    **dict.fromkeys(
        (
            *("temperature", "top_p", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff"),
            *("repetition_penalty", "encoder_repetition_penalty", "length_penalty", "max_time", "guidance_scale"),
        ),
        float,
    ),
    **dict.fromkeys(("do_sample", "use_cache", "renormalize_logits", "remove_invalid_values", "disable_compile"), bool),
    **dict.fromkeys(("eos_token_id", "forced_eos_token_id"), int | list[int]),
    **dict.fromkeys(("suppress_tokens", "begin_suppress_tokens"), list[int]),
    **dict.fromkeys(("bad_words_ids", "exponential_decay_length_penalty"), list),
    **dict.fromkeys(("cache_implementation",), str),
    **dict.fromkeys(("early_stopping",), bool | str),
}
"""What the value of an option is; those that are not named here are left to transformers."""

TOKEN_IDS = ("eos_token_id", "forced_eos_token_id", "bos_token_id", "pad_token_id", "forced_bos_token_id")


LISTS_OF_IDS = ("suppress_tokens", "begin_suppress_tokens", "bad_words_ids")
"""Options that hold ids, or lists of ids."""


class _Range(NamedTuple):
    expected: str
    holds: Callable[[float], bool]


_AT_LEAST_ONE = _Range("1 or more", lambda value: value >= 1)
_AT_LEAST_ZERO = _Range("0 or more", lambda value: value >= 0)
_ABOVE_ZERO = _Range("a number above 0", lambda value: 0 < value < math.inf)
_SHARE = _Range("a number above 0, at most 1", lambda value: 0 < value <= 1)
_SHARE_OR_ZERO = _Range("a number from 0 to 1", lambda value: 0 <= value <= 1)

RANGES = {
    **dict.fromkeys(("max_new_tokens", "num_beams"), _AT_LEAST_ONE),
    **dict.fromkeys(("min_new_tokens", "min_length", "top_k", "no_repeat_ngram_size"), _AT_LEAST_ZERO),
    **dict.fromkeys(TOKEN_IDS, _AT_LEAST_ZERO),
    **dict.fromkeys(("repetition_penalty", "encoder_repetition_penalty", "max_time"), _ABOVE_ZERO),
    "temperature": _Range("a number of at least 0.00001", lambda value: 1e-5 <= value < math.inf),
    **dict.fromkeys(("top_p", "typical_p", "top_h"), _SHARE),
    **dict.fromkeys(("min_p", "epsilon_cutoff", "eta_cutoff"), _SHARE_OR_ZERO),
    "length_penalty": _Range("a finite number", math.isfinite),
}

MOST_NEW_TOKENS = 10_000_000
MOST_BEAMS = 1_000
MOST_OF_ANYTHING = 10**15

FILE_RANGES = {
    "max_new_tokens": _Range(f"a number from 1 to {MOST_NEW_TOKENS:,}", lambda value: 1 <= value <= MOST_NEW_TOKENS),
    **dict.fromkeys(
        ("no_repeat_ngram_size", "encoder_no_repeat_ngram_size"),
        _Range(f"a number from 0 to {MOST_BEAMS:,}", lambda value: 0 <= value <= MOST_BEAMS),
    ),
    **dict.fromkeys(
        ("min_new_tokens", "min_length"),
        _Range(f"a number from 0 to {MOST_NEW_TOKENS:,}", lambda value: 0 <= value <= MOST_NEW_TOKENS),
    ),
    "num_beams": _Range(f"a number from 1 to {MOST_BEAMS:,}", lambda value: 1 <= value <= MOST_BEAMS),
    **dict.fromkeys(("temperature", "top_k", "top_p", "max_time"), _AT_LEAST_ZERO),
    **dict.fromkeys(("repetition_penalty", "encoder_repetition_penalty"), _ABOVE_ZERO),
}
"""Of a model's own `generation_config.json`, which may hold neutral values that a user has no use for."""

WITH_SAMPLING = {
    **dict.fromkeys(("temperature", "top_p", "typical_p"), 1.0),
    **dict.fromkeys(("epsilon_cutoff", "eta_cutoff"), 0.0),
    **dict.fromkeys(("top_k", "min_p", "top_h")),
}
"""Options that choose among tokens by chance, with the value that changes nothing."""

WITH_BEAMS: dict[str, Any] = {"early_stopping": False, "length_penalty": 1.0}
"""Options of beam search, with the value that changes nothing."""


def check_seed(seed: Any) -> None:
    """Raise where a seed is none that torch can take."""
    if seed is not None and (not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**63):
        raise GlmtuneError(f"`seed` is {seed!r}; expected a whole number from 0 to {2**63 - 1}")


class _Unsupported(NamedTuple):
    reason: str
    fix: str
    neutral: tuple[Any, ...] = (None, False)


_ASSISTED = _Unsupported("answers are written by the model alone, many at once", "leave it out")
_MOVED = _Unsupported("transformers has moved this way of generating out of its own code", "leave it out")
_MORE = _Unsupported("an answer is text, and nothing else is kept of it", "leave it out")
_TWO_PARTS = _Unsupported("it is for models of an encoder and a decoder", "leave it out")

UNSUPPORTED = {
    "num_return_sequences": _Unsupported(
        "every prompt has one answer", "leave it out; with `num_beams` the best sequence is taken", (None, 1)
    ),
    "max_length": _Unsupported(
        "the length of an answer is counted without its prompt", "set `max_new_tokens`", (None,)
    ),
    "stop_strings": _Unsupported(
        "answers end at the model's stop tokens, as the training teaches it", "leave it out, or add `eos_token_id`"
    ),
    "token_healing": _Unsupported("prompts are whole tokens of the chat template", "leave it out"),
    "continuous_batching_config": _Unsupported("answers have a batching of their own", "leave it out"),
    "compile_config": _Unsupported("answers are not compiled", "leave it out"),
    **dict.fromkeys(
        (
            *("assistant_confidence_threshold", "assistant_early_exit", "assistant_ensemble_weight"),
            *("assistant_lookbehind", "is_assistant", "max_matching_ngram_size", "num_assistant_tokens"),
            *("num_assistant_tokens_schedule", "prompt_lookup_num_tokens", "speculation_type", "target_lookbehind"),
            "use_mtp",
        ),
        _ASSISTED,
    ),
    **dict.fromkeys(
        (
            *("constraints", "diversity_penalty", "dola_layers", "force_words_ids", "low_memory", "penalty_alpha"),
            "num_beam_groups",
        ),
        _MOVED._replace(neutral=(None, False, 1, 0.0)),
    ),
    **dict.fromkeys(
        (
            *("output_attentions", "output_hidden_states", "output_logits", "output_scores"),
            "return_dict_in_generate",
        ),
        _MORE,
    ),
    **dict.fromkeys(("decoder_start_token_id", "encoder_no_repeat_ngram_size"), _TWO_PARTS),
}
"""Options that an answer cannot be made with."""


class OptionProblem(NamedTuple):
    """What is wrong with one option."""

    option: str
    message: str
    fix: str | None = None


def known_options() -> list[str]:
    """Return the options of the installed transformers."""
    from transformers import GenerationConfig

    return [name for name in vars(GenerationConfig()) if not name.startswith("_") and name != "transformers_version"]


def find_problems(
    options: Mapping[str, Any], *, do_sample: bool | None = None, vocabulary: int | None = None
) -> list[OptionProblem]:
    """Return all that is wrong with the options that were written.

    Args:
        options: By their names.
        do_sample: Whether the answers are sampled where the options do not say so.
        vocabulary: How many ids the model has, where it is known.
    """
    known = known_options()
    problems = [problem for name, value in options.items() if (problem := _problem(name, value, known))]
    if not problems and vocabulary is not None:
        problems = list(unknown_ids(options, vocabulary))
    if not problems:
        problems = list(_contradictions(options, do_sample=bool(options.get("do_sample", do_sample))))
    return problems or list(_refusals(options))


def _problem(name: str, value: Any, known: list[str]) -> OptionProblem | None:
    """Return what is wrong with one option by itself."""
    if name not in known:
        return OptionProblem(name, f"unknown key{nearest(name, known)}")
    if name in UNSUPPORTED:
        unsupported = UNSUPPORTED[name]
        if any(value == each and isinstance(value, bool) == isinstance(each, bool) for each in unsupported.neutral):
            return None
        return OptionProblem(name, f"is not supported: {unsupported.reason}", unsupported.fix)
    if value is None:
        return None
    try:
        fit(value, TYPES.get(name, Any))
    except Mismatch as mismatch:
        fix = "give a token's id; the stop tokens of the model always count" if name in TOKEN_IDS else None
        return OptionProblem(name, f"expected {mismatch}, found {found(value)}", fix)
    numbers = value if isinstance(value, list) else [value]
    if name in RANGES and not all(RANGES[name].holds(number) for number in numbers):
        return OptionProblem(name, f"expected {RANGES[name].expected}, found {found(value)}")
    return None


def absurd_values(options: Mapping[str, Any]) -> Iterator[OptionProblem]:
    """Yield the options of a model's own file that nothing can be answered with.

    What does nothing, or contradicts another option, is left alone: many a published file holds such values.
    """
    for name, value in options.items():
        numbers = value if isinstance(value, list) else [value]
        try:
            fit(value, Any if value is None else TYPES.get(name, Any))
        except Mismatch as mismatch:
            yield OptionProblem(name, f"expected {mismatch}, found {found(value)}")
            continue
        if any(isinstance(number, (int, float)) and not abs(number) < MOST_OF_ANYTHING for number in numbers):
            yield OptionProblem(name, f"expected a finite number below 10^15, found {found(value)}")
        elif name in FILE_RANGES and value is not None and not FILE_RANGES[name].holds(value):
            yield OptionProblem(name, f"expected {FILE_RANGES[name].expected}, found {found(value)}")


def unknown_ids(options: Mapping[str, Any], vocabulary: int) -> Iterator[OptionProblem]:
    """Yield the options that name a token which a model of so many ids does not have."""
    for name in (*TOKEN_IDS, *LISTS_OF_IDS):
        for token_id in _flat(options.get(name)):
            if not isinstance(token_id, int) or not 0 <= token_id < vocabulary:
                yield OptionProblem(
                    name,
                    f"has {found(token_id)}, and the model has the ids 0 to {vocabulary - 1:,}",
                    "give ids of the tokenizer, or leave it out",
                )
                break


def _flat(value: Any) -> Iterator[Any]:
    if isinstance(value, list):
        for entry in value:
            yield from _flat(entry)
    elif value is not None:
        yield value


def _contradictions(options: Mapping[str, Any], *, do_sample: bool) -> Iterator[OptionProblem]:
    """Yield the options that would do nothing, or cannot hold beside others."""
    if not do_sample:
        for name, neutral in WITH_SAMPLING.items():
            if options.get(name) not in (None, neutral):
                yield OptionProblem(
                    name, "does nothing where answers are not sampled", "set `do_sample: true`, too, or leave it out"
                )
    if (options.get("num_beams") or 1) == 1:
        for name, neutral in WITH_BEAMS.items():
            if options.get(name) not in (None, neutral):
                yield OptionProblem(name, "does nothing without beam search", "set `num_beams`, too, or leave it out")
    least, most = options.get("min_new_tokens"), options.get("max_new_tokens")
    if least is not None and most is not None and least > most:
        yield OptionProblem("min_new_tokens", f"`{least}` is more than `max_new_tokens`, `{most}`")


def _refusals(options: Mapping[str, Any]) -> Iterator[OptionProblem]:
    """Yield what transformers itself refuses."""
    from transformers import GenerationConfig

    try:
        GenerationConfig(**options)
    except (ValueError, TypeError, AttributeError) as error:
        option = next((name for name in options if f"`{name}`" in str(error)), "")
        yield OptionProblem(option, f"transformers refuses it: {error}")


def drop_idle_options(config: Any) -> None:
    """Take out of a model's `GenerationConfig` what does nothing: transformers would not save it with a checkpoint."""
    idle = {
        **({} if config.do_sample else WITH_SAMPLING),
        **({} if (config.num_beams or 1) > 1 else WITH_BEAMS),
        **({} if config.return_dict_in_generate else dict.fromkeys(config.extra_output_flags)),
        **({} if config.do_sample or (config.num_beams or 1) > 1 else {"num_return_sequences": None}),
        **({"cache_implementation": None, "cache_config": None} if config.use_cache is False else {}),
    }
    for name in idle.keys() & vars(config).keys():
        setattr(config, name, None)
