"""Prompts that are echoed with how likely they are, as `lm-eval` asks for them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
import torch
from serving_rows import PLAIN

from glmtune.generation.prompt_logprobs import TOKENS_AT_ONCE, score

ASKED, TOLD = next(iter(PLAIN.items()))
LINE = f"<|user|>\n{ASKED}<|assistant|>\n{TOLD}"


@pytest.fixture(scope="module")
def client(url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)


@pytest.fixture(scope="module")
def ids(tool_model: Path) -> list[int]:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tool_model)(LINE)["input_ids"]


@pytest.fixture(scope="module")
def model(tool_model: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(tool_model)


def likelihoods(model: Any, ids: list[int]) -> torch.Tensor:
    """Return the logprobs of all tokens behind each of the ids, by one plain forward pass."""
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0].float().log_softmax(-1)


def of_tokens(model: Any, ids: list[int]) -> list[float]:
    return likelihoods(model, ids)[:-1].gather(1, torch.tensor(ids[1:])[:, None]).squeeze(1).tolist()


def complete(client: openai.OpenAI, prompt: Any, **options: Any) -> Any:
    return client.completions.create(model="tiny", prompt=prompt, temperature=0, **options)


@pytest.mark.parametrize("max_tokens", [0, 1])
def test_an_echoed_prompt_is_as_likely_as_by_a_plain_forward_pass(
    max_tokens: int, client: openai.OpenAI, model: Any, ids: list[int]
) -> None:
    # Of different lengths, and together longer than what is read at once.
    prompts = [ids * 12, ids, ids * 7 + ids[:5]]
    done = complete(client, prompts, echo=True, logprobs=1, max_tokens=max_tokens, seed=1234)
    for choice, prompt in zip(done.choices, prompts):
        told = choice.logprobs
        assert len(told.tokens) == len(told.token_logprobs) == len(told.text_offset) == len(prompt) + max_tokens
        assert told.token_logprobs[0] is None
        assert told.top_logprobs[0] is None
        assert told.token_logprobs[1 : len(prompt)] == pytest.approx(of_tokens(model, prompt), abs=1e-4)
        best = likelihoods(model, prompt)[:-1].max(-1).values.tolist()
        tops = [max(top.values()) for top in told.top_logprobs[1 : len(prompt)]]
        assert tops == pytest.approx(best, abs=1e-4)
    assert done.usage.prompt_tokens == sum(map(len, prompts))
    assert {choice.finish_reason for choice in done.choices} <= {"length", "stop"}


def test_one_token_behind_the_prompt_is_told_even_where_it_ends_the_answer(
    client: openai.OpenAI, ids: list[int]
) -> None:
    done = complete(client, ids, echo=True, logprobs=1, max_tokens=1)
    assert done.choices[0].finish_reason == "stop"  # all of it is known by heart
    assert done.choices[0].text == "[gMASK]<sop>" + LINE
    assert done.choices[0].logprobs.tokens[-1] in ("<|user|>", "<|endoftext|>")
    assert len(done.choices[0].logprobs.tokens) == len(ids) + 1
    assert done.usage.completion_tokens == 0


def test_offsets_lead_to_the_tokens_in_the_text(client: openai.OpenAI) -> None:
    done = complete(client, "price of coats", echo=True, logprobs=0, max_tokens=2)
    told = done.choices[0].logprobs
    assert done.choices[0].text.startswith("price of coats")
    shown = [
        (token, offset) for token, offset in zip(told.tokens, told.text_offset) if token not in ("[gMASK]", "<sop>")
    ]
    assert all(done.choices[0].text[offset:].startswith(token) for token, offset in shown[:-2])
    assert shown[0][1] == 0
    assert "".join(token for token, _ in shown[:-2]) == "price of coats"


@pytest.mark.parametrize("logprobs", [None, 1])
@pytest.mark.parametrize("max_tokens", [0, 3])
def test_a_stream_begins_with_the_prompt(logprobs: int | None, max_tokens: int, client: openai.OpenAI) -> None:
    options: dict[str, Any] = {"echo": True, "max_tokens": max_tokens, "n": 2, "logprobs": logprobs}
    whole = complete(client, [LINE[:20], LINE[:30]], **options)
    chunks = [each.choices[0] for each in complete(client, [LINE[:20], LINE[:30]], stream=True, **options)]
    for choice in whole.choices:
        own = [chunk for chunk in chunks if chunk.index == choice.index]
        assert own[0].text == LINE[: 20 if choice.index < 2 else 30]
        assert "".join(chunk.text for chunk in own) == choice.text
        assert own[-1].finish_reason == choice.finish_reason
        told = [chunk.logprobs for chunk in own if chunk.logprobs]
        if logprobs is None:
            assert not told
            continue
        for field in ("tokens", "text_offset", "top_logprobs"):
            assert [each for chunk in told for each in getattr(chunk, field)] == getattr(choice.logprobs, field)


def test_prompt_logprobs_are_told_as_vllm_tells_them(
    client: openai.OpenAI, url: str, model: Any, ids: list[int]
) -> None:
    done = complete(client, ids, max_tokens=1, extra_body={"prompt_logprobs": 2})
    told = done.choices[0].model_extra["prompt_logprobs"]
    assert done.choices[0].text == ""  # not echoed
    assert told[0] is None
    assert [each[str(token)]["logprob"] for each, token in zip(told[1:], ids[1:])] == pytest.approx(
        of_tokens(model, ids), abs=1e-4
    )
    order = likelihoods(model, ids)[:-1].argsort(-1, descending=True).tolist()
    assert [each[str(token)]["rank"] for each, token in zip(told[1:], ids[1:])] == [
        row.index(token) + 1 for row, token in zip(order, ids[1:])
    ]
    assert all(set(map(str, row[:2])) <= each.keys() for each, row in zip(told[1:], order))
    body = {"model": "tiny", "messages": [{"role": "user", "content": ASKED}], "max_tokens": 1, "prompt_logprobs": 0}
    answered = httpx2.post(f"{url}/v1/chat/completions", json=body).json()
    assert len(answered["prompt_logprobs"]) == answered["usage"]["prompt_tokens"]
    assert answered["prompt_logprobs"][1]
    refused = httpx2.post(f"{url}/v1/chat/completions", json={**body, "stream": True})
    assert (refused.status_code, refused.json()["error"]["message"]) == (400, "`prompt_logprobs` cannot be streamed")


def test_more_likelihoods_than_an_answer_should_hold_are_refused(url: str) -> None:
    body = {"model": "tiny", "prompt": [[1] * 500] * 100, "echo": True, "logprobs": 20, "n": 2, "max_tokens": 0}
    refused = httpx2.post(f"{url}/v1/completions", json=body)
    message = "the request wants 2100000 logprobs of its prompts; expected 2097152 at most"
    assert (refused.status_code, refused.json()["error"]["message"]) == (400, message)


def test_likelihoods_are_computed_for_a_few_tokens_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    log_softmax = torch.Tensor.log_softmax

    def watched(self: torch.Tensor, dim: int) -> torch.Tensor:
        sizes.append(len(self))
        return log_softmax(self, dim=dim)

    monkeypatch.setattr(torch.Tensor, "log_softmax", watched)
    logits = torch.randn(300, 50, dtype=torch.bfloat16)
    tokens = torch.randint(50, (300,))
    told = score(logits, tokens, 1)
    assert max(sizes) <= TOKENS_AT_ONCE < 300
    expected = torch.log_softmax(logits.float(), -1).gather(1, tokens[:, None]).squeeze(1)
    assert torch.equal(told.tokens, expected)


def test_lm_eval_reads_log_likelihoods(client: openai.OpenAI, model: Any, ids: list[int]) -> None:
    # What its `local-completions` does with an answer: the context's tokens at the front and one at the end are cut.
    prompts, context = [ids, ids + ids[2:9]], 6
    answered = complete(client, prompts, echo=True, logprobs=1, max_tokens=1, seed=1234).model_dump()
    for choice, prompt in zip(answered["choices"], prompts):
        logprobs = choice["logprobs"]["token_logprobs"][context:-1]
        tops = choice["logprobs"]["top_logprobs"][context:-1]
        tokens = choice["logprobs"]["tokens"][context:-1]
        is_greedy = all(token == max(top, key=top.get) for token, top in zip(tokens, tops))
        rows = likelihoods(model, prompt)[context - 1 : -1]
        assert sum(logprobs) == pytest.approx(sum(of_tokens(model, prompt)[context - 1 :]), abs=1e-3)
        assert is_greedy == (rows.argmax(-1).tolist() == prompt[context:])
    assert json.dumps(answered, allow_nan=False)
