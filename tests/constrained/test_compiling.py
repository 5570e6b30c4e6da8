"""Grammars are compiled once, within bounds; stop tokens come where an answer is whole; one that fails fails alone."""

from __future__ import annotations

import re
import time
from typing import Any

import pytest
import torch
from constrained_answers import RandomModel

from glmtune.constrained import compiling, matching
from glmtune.constrained.compiling import MAX_GRAMMARS
from glmtune.constrained.grammars import Grammar
from glmtune.constrained.matching import GrammarFailure, Matcher, as_scores, next_masks
from glmtune.constrained.schemas import GrammarError
from glmtune.constrained.wanted import content_grammar
from glmtune.generation.sampling import Sampler, Sampling, choose_tokens

TOO_COMPLEX = "((a{1,100}b?){1,100}c?){1,100}"
"""A pattern whose states become too many while an answer is written."""


@pytest.fixture
def model(demo_tokenizer: Any) -> RandomModel:
    return RandomModel(demo_tokenizer, ["<|endoftext|>", "<|user|>"])


def structure(**wanted: Any) -> Grammar:
    made = content_grammar(response_format=None, structured_outputs=wanted)
    assert made is not None
    return made


@pytest.mark.parametrize(
    "choices", [["yes", "no"], ["a", "ab", "abc"], ["北京", '"', "\\", "a\nb", "/x/", "# c", "", "'"], ["{", "}"]]
)
def test_a_choice_is_one_of_the_texts(choices: list[str], model: RandomModel) -> None:
    found = {model.answer(structure(choice=choices), seed)[0] for seed in range(40)}
    assert found <= set(choices)
    assert len(found) > 1


@pytest.mark.parametrize(
    "regex", [r"[0-9]{3}-[a-f/]{2,4}", r"^(yes|no)\/[A-Z]$", "a\nb+", r"[0-9]\.[0-9]{2} €", r"[a-z一-龥]{2}"]
)
def test_a_pattern_holds_for_the_whole_answer(regex: str, model: RandomModel) -> None:
    answers = [model.answer(structure(regex=regex), seed) for seed in range(5)]
    assert any(has_ended for _, has_ended in answers)
    assert all(re.fullmatch(regex, text) for text, has_ended in answers if has_ended)


@pytest.mark.parametrize(
    "grammar",
    ['start: "SELECT " NAME ("," NAME)* \nNAME: /[a-z]{1,5}/', 'root ::= "SELECT " name ("," name)*\nname ::= [a-z]+'],
    ids=["Lark", "GBNF"],
)
def test_a_grammar_is_followed(grammar: str, model: RandomModel) -> None:
    answers = [model.answer(structure(grammar=grammar), seed) for seed in range(8)]
    assert any(has_ended for _, has_ended in answers)
    assert all(re.fullmatch(r"SELECT [a-z]+(,[a-z]+)*", text) for text, has_ended in answers if has_ended)


@pytest.mark.parametrize(
    "wanted", [{"grammar": "start: absent"}, {"grammar": "::= ::="}, {"regex": "["}, {"regex": r"(a)\1"}], ids=str
)
def test_what_is_no_grammar_is_refused(wanted: dict[str, Any], model: RandomModel) -> None:
    with pytest.raises(GrammarError):
        model.compiled(structure(**wanted))


def test_compact_json_has_no_blanks(model: RandomModel) -> None:
    schema = {"type": "object", "properties": {"a": {"enum": [5, 2]}}, "required": ["a"], "additionalProperties": False}
    grammar = structure(json=schema, disable_any_whitespace=True)
    assert {model.answer(grammar, seed)[0] for seed in range(12)} == {'{"a":5}', '{"a":2}'}


def test_a_grammar_is_compiled_once_and_the_oldest_is_forgotten(model: RandomModel, monkeypatch: Any) -> None:
    compiled: list[str] = []
    compile_anew = compiling.compile_anew
    monkeypatch.setattr(
        compiling, "compile_anew", lambda *given: compiled.append(given[1].text) or compile_anew(*given)
    )
    grammars = [structure(choice=[str(number)]) for number in range(MAX_GRAMMARS + 1)]
    for grammar in [*grammars[:1] * 3, *grammars[1:MAX_GRAMMARS], grammars[0], grammars[MAX_GRAMMARS]]:
        model.compiled(grammar)
    assert compiled == [grammar.text for grammar in grammars]
    model.compiled(grammars[0])
    model.compiled(grammars[1])  # which was the longest without use
    assert compiled[len(grammars) :] == [grammars[1].text]


def test_a_mistake_is_remembered_too(model: RandomModel, monkeypatch: Any) -> None:
    told = []
    for _ in range(2):
        with pytest.raises(GrammarError) as raised:
            model.compiled(structure(json={"not": {}}))
        told.append(str(raised.value))
        monkeypatch.setattr(compiling, "compile_anew", None)
    assert told[0] == told[1]


def first_tokens(model: RandomModel, samplers: list[Sampler]) -> list[int]:
    return choose_tokens(samplers, torch.zeros(len(samplers), model.vocabulary)).tolist()


def test_the_mask_is_that_of_its_row_alone(model: RandomModel) -> None:
    logits = torch.randn(3, model.vocabulary, generator=torch.Generator().manual_seed(1))
    held = Sampling(temperature=1, seed=1, grammar=model.compiled(structure(choice=["北京"])), stops=model.stops)
    free = Sampling(temperature=1, seed=2, num_logprobs=3)
    alone = [Sampler(free, ()) for _ in range(2)]
    expected = choose_tokens(alone, logits[[0, 2]])
    samplers = [Sampler(free, ()), Sampler(held, ()), Sampler(free, ())]
    found = choose_tokens(samplers, logits.clone())
    assert found[[0, 2]].tolist() == expected.tolist()
    assert samplers[0].logprobs == alone[0].logprobs
    assert "北京".startswith(model.tokenizer.decode(found[1]).rstrip("\ufffd"))


def test_logprobs_are_the_models_own(model: RandomModel) -> None:
    logits = torch.randn(1, model.vocabulary, generator=torch.Generator().manual_seed(1))
    sampler = Sampler(Sampling(grammar=model.compiled(structure(choice=["x"])), stops=model.stops, num_logprobs=1), ())
    token = int(choose_tokens([sampler], logits)[0])
    assert sampler.logprobs[0].token == pytest.approx(float(logits.log_softmax(-1)[0, token]))
    assert sampler.logprobs[0].top[0][0] == int(logits.argmax())


def ended_after(model: RandomModel, grammar: Grammar, **wanted: Any) -> int:
    """Return how many tokens an answer has whose model would end it at once, at every place."""
    sampler = Sampler(Sampling(grammar=model.compiled(grammar), stops=model.stops, **wanted), ())
    logits = torch.zeros(1, model.vocabulary)
    logits[:, model.stops] = 50
    for number in range(40):
        token = int(choose_tokens([sampler], logits)[0])
        assert sampler.failure is None
        if token in model.stops:
            return number
    return 40


def test_an_answer_ends_where_it_is_whole_and_nowhere_else(model: RandomModel) -> None:
    assert ended_after(model, structure(regex="[0-9]{4,9}")) in (2, 3, 4)
    assert ended_after(model, structure(regex="[0-9]*")) == 0
    assert ended_after(model, structure(regex="(ab){3}"), ignores_stops=True) in range(1, 7)


def test_an_answer_that_is_to_be_longer_goes_on_as_long_as_it_can(model: RandomModel) -> None:
    assert ended_after(model, structure(regex="[0-9]*"), min_tokens=12) == 12
    assert ended_after(model, structure(regex="a{2}"), min_tokens=12) <= 2
    assert ended_after(model, structure(regex="[0-9]*"), ignores_stops=True) == 40


def test_a_bias_moves_what_is_allowed_and_nothing_else(model: RandomModel) -> None:
    [x] = model.tokenizer.encode("x", add_special_tokens=False)
    [y] = model.tokenizer.encode("y", add_special_tokens=False)
    [z] = model.tokenizer.encode("z", add_special_tokens=False)
    held = {"grammar": model.compiled(structure(choice=["x", "y"])), "stops": model.stops}
    samplers = [Sampler(Sampling(**held, logit_bias={chosen: 5.0, z: 100.0}), ()) for chosen in (x, y)]
    assert first_tokens(model, samplers) == [x, y]


def test_an_answer_that_becomes_too_complex_fails_alone(model: RandomModel) -> None:
    harmful, harmless = model.compiled(structure(regex=TOO_COMPLEX)), model.compiled(structure(regex="[a-c]*"))
    [a] = model.tokenizer.encode("a", add_special_tokens=False)
    wanted = {"logit_bias": {a: 50.0}}
    samplers = [Sampler(Sampling(grammar=each, **wanted), ()) for each in (harmless, harmful, harmless)]
    for _ in range(60):
        choose_tokens(samplers, torch.zeros(3, model.vocabulary))
    assert isinstance(samplers[1].failure, GrammarFailure)
    assert "too complex" in str(samplers[1].failure)
    assert samplers[0].failure is samplers[2].failure is None
    assert samplers[0].num_chosen == 60


def test_what_others_have_met_does_not_fail_the_next(model: RandomModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matching, "MAX_RENEWAL_SECONDS", 60)  # on busy cores compiling takes longer than usual
    grammar = structure(regex=TOO_COMPLEX)

    def num_tokens(matcher: Matcher) -> int:
        [a] = model.tokenizer.encode("a", add_special_tokens=False)
        for number in range(40):
            [failure] = next_masks([matcher])[1]
            if failure is not None:
                return number
            matcher.advance(a)
        return 40

    compiled = model.compiled(grammar)
    worn, beside = Matcher(compiled), Matcher(compiled)
    lone = num_tokens(worn)
    assert 0 < lone < 40
    assert num_tokens(beside) >= lone // 2
    assert model.compiled(grammar) is not compiled


def test_a_grammar_without_an_answer_is_refused_at_once(model: RandomModel) -> None:
    with pytest.raises(GrammarError):
        model.compiled(structure(json={"$defs": {"a": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}))


def test_scores_are_zero_exactly_where_a_token_may_come(model: RandomModel) -> None:
    masks, _ = next_masks([Matcher(model.compiled(structure(choice=["x", "y"])))])
    scores = as_scores(masks, model.vocabulary, torch.device("cpu"))
    assert scores.shape == (1, model.vocabulary)
    allowed = {model.tokenizer.decode([token]) for token in (scores[0] == 0).nonzero().flatten().tolist()}
    assert allowed == {"x", "y"}
    assert set(scores.unique().tolist()) == {0.0, -torch.inf}


EXPENSIVE: dict[str, dict[str, Any]] = {
    "many fields that may be absent": {
        "json": {"type": "object", "properties": {f"field{number}": {"type": "string"} for number in range(2000)}}
    },
    "many kinds of objects": {
        "json": {"anyOf": [{"type": "object", "properties": {f"p{n % 7}": {"minimum": n}}} for n in range(300)]}
    },
    "choices that multiply": {
        "json": {"allOf": [{"anyOf": [{"required": [f"a{n}"]}, {"required": [f"b{n}"]}]} for n in range(40)]}
    },
    "references that double": {
        "json": {
            "$defs": {f"d{n}": {"anyOf": [{"$ref": f"#/$defs/d{n + 1}"}, {"items": {"$ref": f"#/$defs/d{n + 1}"}}]}
                      for n in range(30)} | {"d30": {"type": "null"}},
            "$ref": "#/$defs/d0",
        }
    },
    "a multiple of much": {"json": {"type": "integer", "multipleOf": 99991}},
    "repeated repetitions": {"regex": "(((a{1,1000}){1,1000}){1,1000}b?){1,1000}"},
    "a window": {"regex": "(a|b)*a(a|b){300}"},
    "an ambiguous grammar": {"grammar": 'start: e\ne: e e | e e e | "a" | "" | /[a-z]+/'},
    "a long choice": {"choice": [f"word {number}" for number in range(9000)]},
}  # fmt: skip


@pytest.mark.parametrize("name", EXPENSIVE)
def test_what_is_expensive_is_refused_or_bounded(name: str, model: RandomModel) -> None:
    model.compiled(structure(choice=["a"]))  # the vocabulary has been read
    started = time.monotonic()
    seconds = []
    try:
        matcher = Matcher(model.compiled(structure(**EXPENSIVE[name])))
        compiled = time.monotonic()
        for _ in range(30):
            begun = time.monotonic()
            masks, failures = next_masks([matcher])
            if failures[0] is not None:
                break
            scores = as_scores(masks, model.vocabulary, torch.device("cpu"))[0]
            allowed = [each for each in (scores == 0).nonzero().flatten().tolist() if each not in model.stops]
            if not allowed:
                break
            matcher.advance(allowed[len(allowed) // 2])
            seconds.append(time.monotonic() - begun)
    except (GrammarError, GrammarFailure):
        compiled = time.monotonic()
    assert compiled - started < 10
    assert sorted(seconds)[len(seconds) // 2] < 0.1 if seconds else True
