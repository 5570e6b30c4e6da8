"""Fields and paths that vLLM's clients and older ones use, and what becomes of fields that nothing reads."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from serving_rows import ITEMS, PLAIN, TOOLS, question
from transformers import AutoTokenizer

from glmtune import __version__
from glmtune.chatformat.replies import ReplyLayout, ReplyReader

ASKED, TOLD = next(iter(PLAIN.items()))
ITEM = next(iter(ITEMS))


@pytest.fixture(scope="module")
def http(url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=url, timeout=30) as client:
        yield client


@pytest.fixture(scope="module")
def tokenizer(tool_model: Path) -> Any:
    return AutoTokenizer.from_pretrained(tool_model)


def chat(http: httpx.Client, content: Any = ASKED, **fields: Any) -> Any:
    messages = [{"role": "user", "content": content}]
    response = http.post("/v1/chat/completions", json={"model": "tiny", "messages": messages, **fields})
    assert response.status_code == 200, response.text
    return response.json()


def text(http: httpx.Client, **fields: Any) -> Any:
    response = http.post("/v1/completions", json={"model": "tiny", **fields})
    assert response.status_code == 200, response.text
    return response.json()


def content(answer: Any) -> str:
    return answer["choices"][0]["message"]["content"]


def error(response: httpx.Response) -> tuple[int, str]:
    return response.status_code, response.json()["error"]["message"]


def test_min_p_leaves_the_likely_ones(http: httpx.Client) -> None:
    assert content(chat(http, temperature=2, min_p=1.0, seed=1)) == TOLD


def test_a_stop_token_ends_the_answer(http: httpx.Client, tokenizer: Any) -> None:
    ids = tokenizer(TOLD, add_special_tokens=False)["input_ids"]
    answer = chat(http, temperature=0, stop_token_ids=[ids[4]])
    assert TOLD.startswith(content(answer).rstrip("\ufffd"))  # of a character that it may have cut in two
    assert 0 < len(content(answer)) < len(TOLD)
    assert answer["choices"][0]["finish_reason"] == "stop"


def test_an_answer_goes_on_where_its_end_is_ignored(http: httpx.Client) -> None:
    answer = chat(http, temperature=0, ignore_eos=True, max_tokens=60)
    assert answer["usage"]["completion_tokens"] == 60
    assert answer["choices"][0]["finish_reason"] == "length"


def test_an_answer_has_as_many_tokens_as_it_must(http: httpx.Client) -> None:
    usual = chat(http, temperature=0)["usage"]["completion_tokens"]
    assert chat(http, temperature=0, min_tokens=usual + 5)["usage"]["completion_tokens"] >= usual + 5
    assert content(chat(http, temperature=0, min_tokens=usual)) == TOLD


@pytest.mark.parametrize("path", ["chat", "text"])
def test_an_answer_of_no_tokens_is_an_answer(http: httpx.Client, path: str) -> None:
    answer = chat(http, max_tokens=0) if path == "chat" else text(http, prompt="a", max_tokens=0)
    choice = answer["choices"][0]
    assert (choice["finish_reason"], answer["usage"]["completion_tokens"]) == ("length", 0)
    assert (choice["message"]["content"] if path == "chat" else choice["text"]) == ""


@pytest.mark.parametrize("empty", ["", None, [], [{"type": "text", "text": ""}]], ids=repr)
def test_an_empty_message_is_written_as_such(http: httpx.Client, empty: Any, tokenizer: Any) -> None:
    messages = [{"role": "user", "content": empty}]
    expected = tokenizer.apply_chat_template(
        [{"role": "user", "content": ""}], add_generation_prompt=True, return_dict=False
    )
    assert http.post("/tokenize", json={"messages": messages}).json()["tokens"] == expected
    assert chat(http, empty, max_tokens=1)["usage"]["prompt_tokens"] == len(expected)


CONTINUED = {"continue_final_message": True, "add_generation_prompt": False}


@pytest.mark.parametrize("num_tokens", [2, 8])
def test_an_answer_goes_on_where_the_last_message_ends(http: httpx.Client, tokenizer: Any, num_tokens: int) -> None:
    begun = tokenizer.decode(tokenizer("\n" + TOLD, add_special_tokens=False)["input_ids"][:num_tokens])[1:]
    messages = [{"role": "user", "content": ASKED}, {"role": "assistant", "content": begun}]
    done = http.post(
        "/v1/chat/completions", json={"model": "tiny", "messages": messages, "temperature": 0, **CONTINUED}
    )
    assert content(done.json()) == TOLD[len(begun) :]
    whole = chat(http, temperature=0)
    assert done.json()["usage"]["completion_tokens"] < whole["usage"]["completion_tokens"]


def test_what_goes_on_is_echoed_before_the_answer(http: httpx.Client) -> None:
    begun = TOLD[:4]
    messages = [{"role": "user", "content": ASKED}, {"role": "assistant", "content": begun}]
    body = {"model": "tiny", "messages": messages, "temperature": 0, "echo": True, **CONTINUED}
    assert content(http.post("/v1/chat/completions", json=body).json()) == TOLD
    events = http.post("/v1/chat/completions", json={**body, "stream": True}).text.split("\n\n")
    chunks = [json.loads(event.removeprefix("data: ")) for event in events if event.startswith("data: {")]
    texts = [chunk["choices"][0]["delta"].get("content", "") for chunk in chunks]
    assert texts[:2] == ["", begun]
    assert "".join(texts) == TOLD
    assert content(chat(http, temperature=0, echo=True)) == TOLD  # a question is no part of its answer


def test_the_white_space_of_what_goes_on_is_kept() -> None:
    reader = ReplyReader(ReplyLayout(calls="role line"), [], continued="a")
    told = [*reader.feed(" b\n"), *reader.feed("42"), *reader.finish()]
    assert "".join(delta.text for delta in told) == " b\n42"
    thinking = ReplyReader(ReplyLayout(has_reasoning=True), continued="<think>so")
    told = [*thinking.feed(" far</think>"), *thinking.feed("\n\nyes"), *thinking.finish()]
    assert [(delta.text, delta.is_reasoning) for delta in told] == [(" far", True), ("yes", False)]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            CONTINUED | {"response_format": {"type": "json_object"}},
            "`response_format` is for a whole answer: `continue_final_message` begins one without it",
        ),
        (
            CONTINUED | {"structured_outputs": {"choice": ["a"]}},
            "`structured_outputs` is for a whole answer: `continue_final_message` begins one without it",
        ),
        ({"continue_final_message": True}, "`continue_final_message` wants `add_generation_prompt: false`"),
        ({"add_generation_prompt": False}, "`add_generation_prompt: false` wants `continue_final_message: true`"),
        (CONTINUED, "the last message has role `user`; expected the assistant's, to be continued"),
    ],
)
def test_what_cannot_be_continued_is_refused(http: httpx.Client, fields: dict[str, Any], message: str) -> None:
    body = {"model": "tiny", "messages": [{"role": "user", "content": ASKED}], **fields}
    assert error(http.post("/v1/chat/completions", json=body)) == (400, message)


def test_variables_reach_the_chat_template(tool_model: Path, tmp_path: Path, serve_in_thread) -> None:
    folder = shutil.copytree(tool_model, tmp_path / "model")
    template = (folder / "chat_template.jinja").read_text(encoding="utf-8")
    shown = "{% if add_generation_prompt %}{{ style }}{{ reasoning_effort }}{% endif %}"
    (folder / "chat_template.jinja").write_text(template + shown, encoding="utf-8")
    with serve_in_thread(folder) as url, httpx.Client(base_url=url, timeout=30) as http:

        def prompt_tokens(**fields: Any) -> int:
            return int(chat(http, max_tokens=1, **fields)["usage"]["prompt_tokens"])

        plain = prompt_tokens()
        assert prompt_tokens(chat_template_kwargs={"thinking": False}) == plain
        assert prompt_tokens(chat_template_kwargs={"style": "@@@@@@"}) > plain
        assert prompt_tokens(reasoning_effort="high") > plain


@pytest.mark.parametrize("name", ["chat_template", "messages", "tokenize", "add_generation_prompt"])
def test_variables_do_not_take_the_place_of_arguments(http: httpx.Client, name: str) -> None:
    body = {"model": "tiny", "messages": [{"role": "user", "content": "a"}], "chat_template_kwargs": {name: "a"}}
    response = http.post("/v1/chat/completions", json=body)
    assert error(response) == (400, f"`chat_template_kwargs` may not hold `{name}`")


def mean(choice: Any) -> float:
    logprobs = choice["logprobs"]["token_logprobs"]
    return sum(logprobs) / len(logprobs) if logprobs else -math.inf


def test_the_likeliest_of_several_answers_is_told(http: httpx.Client) -> None:
    fields = {"prompt": "a", "max_tokens": 3, "temperature": 2, "seed": 1, "logprobs": 0}
    written = text(http, n=5, **fields)
    every = written["choices"]
    best = text(http, n=2, best_of=5, **fields)
    means = sorted(map(mean, every), reverse=True)
    assert list(map(mean, best["choices"])) == pytest.approx(means[:2])
    assert best["usage"] == written["usage"]
    plain = text(http, n=1, best_of=5, prompt="a", max_tokens=3, temperature=2, seed=1)["choices"]
    assert [each["logprobs"] for each in plain] == [None]
    assert plain[0]["text"] == best["choices"][0]["text"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"n": 3, "best_of": 2}, "`best_of` is 2, fewer than `n`, 3"),
        ({"best_of": 2, "stream": True}, "`best_of` is known at the end: it cannot be streamed"),
    ],
)
def test_what_cannot_be_chosen_from_is_refused(http: httpx.Client, fields: dict[str, Any], message: str) -> None:
    assert error(http.post("/v1/completions", json={"model": "tiny", "prompt": "a", **fields})) == (400, message)


def test_offsets_are_places_in_the_text_whole_and_streamed(http: httpx.Client) -> None:
    fields = {"prompt": f"<|user|>\n{ASKED}<|assistant|>", "max_tokens": 8, "temperature": 0, "logprobs": 0}
    choice = text(http, **fields)["choices"][0]
    offsets = choice["logprobs"]["text_offset"]
    lengths = list(map(len, choice["logprobs"]["tokens"]))
    assert offsets == [sum(lengths[:number]) for number in range(8)]
    assert choice["text"][offsets[1] :].startswith(choice["logprobs"]["tokens"][1])
    streamed: list[int] = []
    with http.stream("POST", "/v1/completions", json={"model": "tiny", "stream": True, **fields}) as response:
        for line in response.iter_lines():
            logprobs = json.loads(line[6:])["choices"][0]["logprobs"] if line.startswith("data: {") else None
            streamed += logprobs["text_offset"] if logprobs else []
    assert streamed == offsets


@pytest.mark.parametrize("choice", [None, "auto", {"name": "query_price"}])
def test_the_older_functions_are_called(http: httpx.Client, choice: Any) -> None:
    functions = [tool["function"] for tool in TOOLS]
    fields = {"functions": functions, "temperature": 0} | ({"function_call": choice} if choice else {})
    answered = chat(http, question(ITEM)["content"], **fields)["choices"][0]
    assert answered["finish_reason"] == "function_call"
    assert answered["message"]["function_call"]["name"] == "query_price"
    assert json.loads(answered["message"]["function_call"]["arguments"]) == {"item": ITEM}
    assert "tool_calls" not in answered["message"]


def test_the_older_functions_are_streamed_and_their_results_answered(url: str) -> None:
    functions: Any = [tool["function"] for tool in TOOLS]
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
    options: Any = {"model": "tiny", "functions": functions, "temperature": 0}
    chunks = list(client.chat.completions.create(messages=[question(ITEM)], stream=True, **options))
    calls = [chunk.choices[0].delta.function_call for chunk in chunks if chunk.choices[0].delta.function_call]
    assert calls[0].name == "query_price"
    arguments = "".join(call.arguments or "" for call in calls)
    assert json.loads(arguments) == {"item": ITEM}
    assert chunks[-1].choices[0].finish_reason == "function_call"
    called = {"role": "assistant", "content": None, "function_call": {"name": "query_price", "arguments": arguments}}
    told = {"role": "function", "name": "query_price", "content": json.dumps({"price": ITEMS[ITEM]})}
    done = client.chat.completions.create(messages=[question(ITEM), called, told], **options)
    assert done.choices[0].message.content == f"{ITEM}现价{ITEMS[ITEM]}元，欢迎选购。"


def test_texts_become_ids_and_texts_again(http: httpx.Client, tokenizer: Any) -> None:
    made = http.post("/tokenize", json={"model": "tiny", "prompt": "<|user|>\n裙", "return_token_strs": True}).json()
    ids = tokenizer("<|user|>\n裙")["input_ids"]
    assert made == {
        "count": len(ids),
        "max_model_len": 512,
        "tokens": ids,
        "token_strs": tokenizer.convert_ids_to_tokens(ids),
    }
    bare = http.post("/tokenize", json={"prompt": "裙", "add_special_tokens": False}).json()
    assert bare["tokens"] == tokenizer("裙", add_special_tokens=False)["input_ids"]
    assert http.post("/detokenize", json={"tokens": bare["tokens"]}).json() == {"prompt": "裙"}
    assert error(http.post("/detokenize", json={"tokens": [-1]}))[0] == 400
    assert error(http.post("/tokenize", json={})) == (400, "expected `prompt`, or `messages`")


def test_the_version_is_told_and_heads_are_answered(http: httpx.Client) -> None:
    assert http.get("/version").json() == {"version": __version__}
    for path in ("/health", "/version", "/v1/models", "/v1/models/tiny"):
        head = http.head(path)
        assert (head.status_code, head.content) == (200, b"")


def test_models_say_their_context_and_answers_what_they_come_from(http: httpx.Client) -> None:
    assert http.get("/v1/models/tiny").json()["max_model_len"] == 512
    one, two = chat(http, max_tokens=1), text(http, prompt="a", max_tokens=1)
    assert one["system_fingerprint"] == two["system_fingerprint"]
    assert one["system_fingerprint"].startswith("fp_")


@pytest.mark.parametrize(("sent", "is_kept"), [("request-1", True), ("a b", False), ("a" * 200, False), (None, False)])
def test_every_answer_says_which_request_it_is_to(http: httpx.Client, sent: str | None, is_kept: bool) -> None:
    headers = {} if sent is None else {"X-Request-Id": sent}
    ids = [http.get(path, headers=headers).headers["x-request-id"] for path in ("/health", "/nowhere")]
    assert all((each == sent) == is_kept and each for each in ids)


def test_a_field_that_nothing_reads_is_told_once(http: httpx.Client, capfd: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):
        chat(http, max_tokens=1, **{"a_new\n\x1b[31mfield": 1, "another": None})
    told = capfd.readouterr().err
    assert told.count("which nothing reads; `--strict-fields` refuses them") == 1
    assert "\x1b" not in told


def test_strict_fields_refuse_what_nothing_reads(tool_model: Path, serve_in_thread) -> None:
    with serve_in_thread(tool_model, strict_fields=True) as url:
        body = {"model": "tiny", "messages": [{"role": "user", "content": "a"}], "max_tokens": 1}
        refused = httpx.post(f"{url}/v1/chat/completions", json={**body, "foo": 1})
        assert error(refused) == (400, "Unrecognized request argument supplied: foo")
        assert httpx.post(f"{url}/v1/chat/completions", json={**body, "user": "a"}).status_code == 200


def test_what_an_answer_would_have_to_follow_is_refused(http: httpx.Client) -> None:
    body = {"model": "tiny", "messages": [{"role": "user", "content": "a"}], "logits_processors": ["a"]}
    response = http.post("/v1/chat/completions", json=body)
    assert error(response) == (400, "`logits_processors` is not answered here: leave it out")
