"""Answers of a server that speaks OpenAI's protocol."""

from __future__ import annotations

import io
import json
import socket
import subprocess
import sys
import threading
from typing import Any

import pytest
from hostile_text import ORDERS, is_harmless
from written_server import OpenAIServer, chunk, texts

from glmtune.chat.chat_server import server_answers
from glmtune.chat.functions import Tools
from glmtune.chatformat.replies import CutOff, Delta, ToolCall
from glmtune.errors import GlmtuneError, RunFailure
from glmtune.text.visible_text import visible

ASK = [{"role": "user", "content": "hello"}]
TOOL = {"type": "function", "function": {"name": "f", "description": "Do.", "parameters": {"type": "object"}}}


class Terminal(io.StringIO):
    """A stdout that somebody looks at."""

    def isatty(self) -> bool:
        return True


def part(index: int | None, **function: str) -> dict[str, Any]:
    """Return the delta of a part of a tool call."""
    call: dict[str, Any] = {"index": index, "function": function}
    if "name" in function:
        call |= {"id": f"id-{index}", "type": "function"}
    return chunk(tool_calls=[call])


def test_a_chat_with_a_server_does_not_wait_for_torch() -> None:
    code = "import sys, glmtune.chat.run; print({'torch', 'peft', 'openai'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


def test_a_server_streams_text_and_reasoning(server: OpenAIServer) -> None:
    server.answers = [
        [chunk(role="assistant", content=""), chunk(reasoning_content="Hm."), *texts("\n", "\n雾 ", "里")]
    ]
    events = list(server_answers(server.url)(ASK, []))
    assert events == [Delta(text="Hm.", is_reasoning=True), Delta(text="雾 "), Delta(text="里")]
    assert server.requests == [{"model": "tiny", "messages": ASK, "stream": True}]


def test_the_parts_of_tool_calls_are_put_together(server: OpenAIServer) -> None:
    parts = [
        chunk(content="I look."),
        part(0, name="f", arguments=""), part(0, arguments='{"city": '), part(1, name="g", arguments=""),
        part(0, arguments='"Bath"}'), chunk("tool_calls"),
    ]  # fmt: skip
    server.answers = [parts]
    events = list(server_answers(server.url)(ASK, [TOOL]))
    assert events == [
        Delta(text="I look."),
        ToolCall(name="f", arguments='{"city": "Bath"}'),
        ToolCall(name="g", arguments="{}"),
    ]
    assert server.requests[0]["tools"] == [TOOL]


def test_a_call_with_broken_arguments_is_text(server: OpenAIServer) -> None:
    server.answers = [[part(0, name="f", arguments='{"city": '), chunk("tool_calls")]]
    assert list(server_answers(server.url)(ASK, [TOOL])) == [Delta(text='f\n{"city":')]


def test_an_answer_that_a_server_cuts_off_says_so(server: OpenAIServer) -> None:
    server.answers = [[chunk(content="once"), chunk("length")]]
    assert list(server_answers(server.url)(ASK, [])) == [Delta(text="once"), CutOff()]


def test_sampling_goes_along_under_the_names_of_servers(server: OpenAIServer) -> None:
    server.answers = [texts("a"), texts("b")]
    answers = server_answers(
        server.url, model="big", seed=7, thinking=False, max_new_tokens=5, temperature=0.5, top_p=0.9, top_k=3,
        repetition_penalty=1.1, do_sample=True,
    )  # fmt: skip
    list(answers(ASK, []))
    list(answers(ASK, []))
    expected = {
        "model": "big", "messages": ASK, "stream": True, "seed": 7, "max_tokens": 5, "temperature": 0.5,
        "top_p": 0.9, "top_k": 3, "repetition_penalty": 1.1, "chat_template_kwargs": {"enable_thinking": False},
    }  # fmt: skip
    assert server.requests == [expected, expected | {"seed": 8}]


def test_greedy_is_a_temperature_of_0(server: OpenAIServer) -> None:
    server.answers = [texts("a")]
    list(server_answers(server.url, do_sample=False)(ASK, []))
    assert server.requests[0]["temperature"] == 0


def test_a_server_gets_reasoning_of_the_present_turn_only_and_nothing_of_ours(server: OpenAIServer) -> None:
    server.answers = [texts("a")]
    earlier = {"role": "assistant", "content": "b", "reasoning_content": "c", "loss": 0}
    now = {"role": "assistant", "content": "d", "reasoning_content": "e"}
    list(server_answers(server.url)([*ASK, earlier, *ASK, now], []))
    assert server.requests[0]["messages"] == [*ASK, {"role": "assistant", "content": "b"}, *ASK, now]


def test_the_key_comes_from_the_environment(server: OpenAIServer, monkeypatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setenv("MY_KEY", "secret")
    server_answers(server.url, api_key_env="MY_KEY")
    server_answers(server.url)
    assert server.keys == ["Bearer secret", "Bearer none"]
    with pytest.raises(GlmtuneError, match="the environment variable `YOUR_KEY` of `--api-key-env` is not set"):
        server_answers(server.url, api_key_env="YOUR_KEY")


def test_a_server_that_is_not_there_is_told(monkeypatch) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/v1"
        with pytest.raises(RunFailure) as caught:
            server_answers(url)
    assert str(caught.value) == (
        f"the connection to the server at `{url}` failed: [Errno 111] Connection refused\n"
        "hint: see that it runs, or mend `--url`; `/retry` asks again"
    )


@pytest.mark.parametrize(
    ("url", "reason"), [("http://a\x1b[2J/v1", "Invalid non-printable"), ("http://a:b", "Invalid port")]
)
def test_an_address_that_is_none_is_told(url: str, reason: str) -> None:
    with pytest.raises(GlmtuneError) as caught:
        server_answers(url)
    assert str(caught.value).startswith(f"`--url` is `{visible(url)}`, which is no address: {reason}")
    assert str(caught.value).endswith("\nhint: such as `--url http://localhost:8000/v1`")


def test_a_server_without_models_is_told(server: OpenAIServer) -> None:
    server.models = {"object": "list", "data": []}
    with pytest.raises(GlmtuneError) as caught:
        server_answers(server.url)
    assert str(caught.value) == f"the server at `{server.url}` lists no model\nhint: name one with `--model`"


@pytest.mark.parametrize(
    ("status", "error", "message"),
    [
        (
            400,
            {"message": "too many tokens", "code": "context_length_exceeded"},
            "(400): too many tokens\nhint: `clear` begins a new conversation",
        ),
        (
            401,
            {"message": "wrong key"},
            "(401): wrong key\nhint: set the key in the environment variable that `--api-key-env` names",
        ),
        (422, {"message": "no tools here"}, "(422): no tools here"),
    ],
)
def test_what_a_server_refuses_is_told(status: int, error: dict[str, Any], message: str, server: OpenAIServer) -> None:
    server.answers = [(status, {"error": error})]
    with pytest.raises(RunFailure) as caught:
        list(server_answers(server.url)(ASK, []))
    assert str(caught.value) == f"the server at `{server.url}` refuses {message}"


def test_a_page_in_the_place_of_an_error_leaves_the_screen_alone(server: OpenAIServer) -> None:
    server.answers = [(403, {"error": {"message": "<html>" + "x" * 100_000}})]
    with pytest.raises(RunFailure) as caught:
        list(server_answers(server.url)(ASK, []))
    assert str(caught.value).endswith(f"refuses (403): <html>{'x' * 994}... (100,006 characters)")


@pytest.mark.parametrize(
    "error",
    [(413, {"message": "too large"}), (400, {"message": "This model's maximum context length is 8192 tokens."})],
)
def test_a_conversation_that_a_server_finds_too_long_has_a_way_out(error: Any, server: OpenAIServer) -> None:
    server.answers = [(error[0], {"error": error[1]})]
    with pytest.raises(RunFailure) as caught:
        list(server_answers(server.url)(ASK, []))
    assert caught.value.fix == "`clear` begins a new conversation"


@pytest.mark.parametrize(("order", "shown"), ORDERS.values(), ids=ORDERS)
def test_what_a_server_sends_steers_no_terminal(
    order: str, shown: str, talk, server: OpenAIServer, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    server.answers = [
        (400, {"error": {"message": order}}),
        (400, f"<p>{order}".encode()),
        [{"error": {"message": order}}],
        texts(f"a{order}"),
        [chunk(reasoning_content=order), *texts("a")],
        [part(0, name=order, arguments=json.dumps({order: order}, ensure_ascii=False)), chunk("tool_calls")],
        texts("b"),
        [part(0, name="f", arguments=f"a{order}"), chunk("tool_calls")],
    ]
    talk(server_answers(server.url), *"abcdefg", tools=Tools(schemas=[TOOL]))
    told = capsys.readouterr().err
    assert server.answers == []
    assert is_harmless(terminal.getvalue())
    assert is_harmless(told)
    assert f"refuses (400): {shown}\n" in told
    assert terminal.getvalue().startswith(f"a{shown}\n")
    assert f"-> {shown} " in told


REDIRECTS = {"another port": "http://127.0.0.1:{port}/v1", "another name": "http://localhost:{own}/v1"}
REDIRECTS |= {"another scheme": "https://127.0.0.1:{own}/v1", "no address": "http://[::1", "no host": "//x\x1b[2J/v1"}


@pytest.mark.parametrize("target", REDIRECTS.values(), ids=REDIRECTS)
def test_a_redirect_to_another_server_is_told_and_not_followed(target: str, server: OpenAIServer) -> None:
    with OpenAIServer() as other:
        threading.Thread(target=other.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        target = target.format(port=other.server_address[1], own=server.server_address[1])
        answers = server_answers(server.url)
        server.answers = [(307, {}, target)]
        with pytest.raises(RunFailure) as caught:
            list(answers(ASK, []))
        server.models_are_at = target
        with pytest.raises(RunFailure, match="which is not asked"):
            server_answers(server.url)
        other.shutdown()
    assert str(caught.value) == (
        f"the server at `{server.url}` sends us to another one, `{visible(target)}`, which is not asked\n"
        "hint: where you trust that one, give its address up to `/v1` as `--url`"
    )
    assert (other.requests, other.keys) == ([], [])
    assert len(server.requests) == 1


def test_a_redirect_to_the_same_server_is_followed(server: OpenAIServer) -> None:
    server.models_are_at = "/elsewhere"
    server.answers = [(307, {}, "/v1/chat/completions"), texts("a")]
    assert list(server_answers(server.url)(ASK, [])) == [Delta(text="a")]


WRONG_TYPES = {
    "no delta": None,
    "content in parts": {"content": [{"text": "a"}]},
    "a numbered content": {"content": 5},
    "calls of no type": {"tool_calls": 5},
    "a call at no place": {"tool_calls": [{"index": {}, "function": {"name": "f"}}]},
    "a name that is a number": {"tool_calls": [{"index": 0, "function": {"name": 5}}]},
}
"""What stands in the place of a delta."""


@pytest.mark.parametrize("choices", ["abc", 5, *([{"index": 0, "delta": wrong}] for wrong in WRONG_TYPES.values())])
def test_a_server_that_sends_other_types_is_told_and_the_chat_goes_on(
    choices: Any, talk, server: OpenAIServer, capsys
) -> None:
    server.answers = [[chunk() | {"choices": choices}, chunk("stop")], texts("here I am")]
    chat = talk(server_answers(server.url), "hello", "hello")
    assert [message["content"] for message in chat.history] == ["hello", "here I am"]
    assert f"error: what the server at `{server.url}` sends is not OpenAI's protocol: " in capsys.readouterr().err


@pytest.mark.parametrize("models", [{"data": [{"id": None}]}, {"data": [{"id": 5}]}, {"data": []}])
def test_models_without_names_are_none(models: Any, server: OpenAIServer) -> None:
    server.models = models
    with pytest.raises(GlmtuneError, match="lists no model"):
        server_answers(server.url)


def test_halves_of_characters_do_not_stay_in_the_conversation(talk, server: OpenAIServer) -> None:
    call = part(0, name="\ud83d", arguments='{"a": "\ud83d"}')
    server.answers = [[chunk(content="\ud83d"), call, chunk("tool_calls")], texts("a"), texts("b")]
    chat = talk(server_answers(server.url), "hello", "hello")
    assert chat.history[-1]["content"] == "b"


def test_a_page_in_the_place_of_a_list_of_models_is_told(server: OpenAIServer) -> None:
    server.models = b"<html>Hello</html>"
    with pytest.raises(GlmtuneError) as caught:
        server_answers(server.url)
    assert caught.value.what == f"the server at `{server.url}` does not speak OpenAI's protocol"


def test_a_server_that_breaks_off_is_told_and_the_chat_goes_on(talk, server: OpenAIServer, capsys) -> None:
    server.answers = [[chunk(content="once"), "break off"], texts("here I am")]
    chat = talk(server_answers(server.url), "hello", "/retry")
    assert [message["content"] for message in chat.history] == ["hello", "here I am"]
    written = capsys.readouterr()
    assert written.out == "once\nhere I am\n"
    assert (
        f"error: the server at `{server.url}` broke off: the answer has no end\nhint: `/retry` asks again\n"
    ) in written.err


def test_an_error_in_the_midst_of_an_answer_is_told(server: OpenAIServer) -> None:
    server.answers = [[chunk(content="once"), {"error": {"message": "out of memory", "code": 500}}]]
    with pytest.raises(RunFailure, match="broke off: out of memory"):
        list(server_answers(server.url)(ASK, []))


def test_who_stops_an_answer_hangs_up(server: OpenAIServer) -> None:
    server.answers = [[chunk(content="once"), "wait"]]
    answer = server_answers(server.url)(ASK, [])
    assert next(answer) == Delta(text="once")
    answer.close()
    assert server.has_hung_up.wait(5)


def test_tools_go_round_between_server_and_person(talk, server: OpenAIServer) -> None:
    server.answers = [[part(0, name="f", arguments='{"x": 1}'), chunk("tool_calls")], texts("done")]
    chat = talk(server_answers(server.url), "do it", "the result", tools=Tools(schemas=[TOOL]))
    call = {"id": "call00001", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
    assert server.requests[1]["messages"] == [
        {"role": "user", "content": "do it"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call00001", "content": "the result"},
    ]
    assert chat.history[-1] == {"role": "assistant", "content": "done"}
    assert json.loads(json.dumps(chat.history)) == chat.history
