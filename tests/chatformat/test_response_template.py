"""Plain transformers takes answers apart as glmtune does, wherever its template language can say so."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer
from transformers.utils.chat_parsing import ResponseParser, parse_response

from glmtune.chatformat.replies import (
    ARGUMENT_TAGS,
    JSON_TAGS,
    ROLE_LINE,
    Reply,
    ReplyLayout,
    ToolCall,
    parse_reply,
)
from glmtune.chatformat.response_template import give_response_template, response_template
from glmtune.family import GENERIC, GLM, GLM_MOE

GLM_STOPS = ("<|endoftext|>", "<|user|>", "<|observation|>")
LAYOUTS: dict[str, tuple[ReplyLayout, str, tuple[str, ...]]] = {
    "glm-4": (ReplyLayout(calls=ROLE_LINE), "<|assistant|>", GLM_STOPS),
    "glm-z1": (
        ReplyLayout(calls=ROLE_LINE, has_reasoning=True, prompt_opens_reasoning=True),
        "<|assistant|>\n<think>",
        GLM_STOPS,
    ),
    "glm-4.5": (ReplyLayout(calls=ARGUMENT_TAGS, has_reasoning=True), "<|assistant|>", GLM_STOPS),
    "chatml": (ReplyLayout(calls=JSON_TAGS, has_reasoning=True), "<|im_start|>assistant\n", ("<|im_end|>",)),
}
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"type": "integer"}, "tags": {"type": "array"}},
        },
    },
}
CALL = 'get_weather\n{"city": "Bath", "days": 2}'


def template_of(name: str) -> dict[str, Any]:
    layout, prompt, stops = LAYOUTS[name]
    template = response_template(layout, prompts=[prompt], stops=stops)
    assert template is not None
    return json.loads(json.dumps(template))


def as_reply(message: dict[str, Any]) -> Reply:
    """Return what transformers made of an answer, in our terms."""
    assert message["role"] == "assistant"
    calls = []
    for call in message.get("tool_calls", ()):
        arguments = call["function"]["arguments"]
        text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
        assert call["type"] == "function"
        calls.append(ToolCall(name=call["function"]["name"], arguments=text))
    return Reply(
        content=message.get("content", ""), reasoning=message.get("reasoning_content", ""), tool_calls=tuple(calls)
    )


def parsed(name: str, *sections: str, stop: str = "") -> Reply:
    """Return what transformers makes of an answer to a conversation, at once and character by character."""
    template = template_of(name)
    prompt = "[gMASK]<sop><|user|>\na<|assistant|>\nb<|user|>\nc" + LAYOUTS[name][1]
    text = "<|assistant|>".join(sections) + stop
    whole = parse_response(text, template, prefix=prompt, tools=[WEATHER])
    stream = ResponseParser(template, prefix=prompt, tools=[WEATHER])
    for character in text:
        stream.feed(character)
    assert stream.finalize()[0] == whole
    return as_reply(whole)


@pytest.mark.parametrize("stop", ["", "<|observation|>", "<|endoftext|>"])
@pytest.mark.parametrize(
    "sections",
    [
        (CALL,),
        ("\nI will look. ", CALL),
        ("\nI will look.\n", CALL, 'f\n{"x": [1.50, {"y": "雾\\n\\u0041"}, null, -1e9]}\n'),
        ("get_weather \n\n  {}",),
        ("\nHello\n\nyou \n",),
        ("\nThe first.\n\n", "\n\n The second."),
        ("\n" + CALL,),
    ],
)
def test_glm_4s_answers_are_taken_apart_alike(sections: tuple[str, ...], stop: str) -> None:
    assert parsed("glm-4", *sections, stop=stop) == parse_reply(sections, LAYOUTS["glm-4"][0], [WEATHER])


@pytest.mark.parametrize(
    "text",
    [
        "The answer is\n42",
        "get_weather",
        "get_weather\n",
        "get_weather\n[1, 2]",
        'get_weather\n{"city": "Bath"',
        'get_weather\n{"city": NaN}',
        'get_weather\n{"city": "Bath",}',
        "get_weather\n{'city': 'Bath'}",
        'get_weather\n{"days": 01}',
        'get_weather\n{"city": "Bath"} and more',
        'get_weather\n{"city": "a\nb"}',
        'get weather\n{"city": "Bath"}',
        '{"city": "Bath"}',
        "天气\n{}",
    ],
)
@pytest.mark.parametrize("stop", ["", "<|user|>"])
def test_what_is_not_exactly_a_call_is_text_there_too(text: str, stop: str) -> None:
    assert parsed("glm-4", text, stop=stop) == Reply(content=text.strip())


@pytest.mark.parametrize(
    "text",
    [
        "<think>Which city?</think>\nOne moment.<tool_call>get_weather\n<arg_key>city</arg_key>\n"
        "<arg_value>42</arg_value>\n<arg_key>days</arg_key>\n<arg_value>2</arg_value>\n</tool_call>",
        "\n<think></think>\n<tool_call>get_weather<arg_key>tags</arg_key><arg_value>[1, 2]</arg_value></tool_call>"
        "\n<tool_call>get_weather\n</tool_call>",
        "<tool_call>get_weather\n<arg_key>city</arg_key></tool_call>",
        "a <tool_call>two words</tool_call> b",
        "<think>It never ends",
        "Hello",
    ],
)
@pytest.mark.parametrize("stop", ["", "<|observation|>"])
def test_glm_45s_answers_are_taken_apart_alike(text: str, stop: str) -> None:
    assert parsed("glm-4.5", text, stop=stop) == parse_reply(text, LAYOUTS["glm-4.5"][0], [WEATHER])


@pytest.mark.parametrize(
    "text",
    [
        'Let me see.\n<tool_call>\n{"name": "f", "arguments": {"x": "雾"}}\n</tool_call>\n'
        '<tool_call>{"arguments": {}, "name": "g"}</tool_call>',
        "<think>\nHm.\n</think>\n\nYes.",
        "a <tool_call>{</tool_call> b",
        'a <tool_call>{"name": "f", "arguments": 3}</tool_call>',
        'a <tool_call>{"name": "f", "arguments": {"a": }}</tool_call>',
        "a <tool_call>{",
    ],
)
@pytest.mark.parametrize("stop", ["", "<|im_end|>"])
def test_chatml_answers_are_taken_apart_alike(text: str, stop: str) -> None:
    assert parsed("chatml", text, stop=stop) == parse_reply(text, LAYOUTS["chatml"][0])


@pytest.mark.parametrize("text", ["\nHm.\n</think>\n\nYes.", f"Hm.</think>\n\n{CALL}", "\nIt never ends"])
def test_reasoning_that_the_prompt_opened_is_found(text: str) -> None:
    assert parsed("glm-z1", text, stop="<|user|>") == parse_reply(text, LAYOUTS["glm-z1"][0], [WEATHER])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.sampled_from(["f", "\n", " ", '{"a": [1]}', "{", "}", "雾", "|"]), max_size=7), max_size=3))
def test_no_answer_of_glm_4_is_taken_apart_differently_or_breaks_the_parser(pieces: list[list[str]]) -> None:
    sections = ["".join(section) for section in pieces] or [""]
    assert parsed("glm-4", *sections, stop="<|user|>") == parse_reply(sections, LAYOUTS["glm-4"][0])


def test_a_call_nested_deeply_is_read_in_time() -> None:
    text = "f\n" + '{"a": ' * 900 + "1" + "}" * 900
    assert as_reply(parse_response(text, template_of("glm-4"), prefix="")).tool_calls[0].arguments == text[2:]


def test_the_template_travels_with_the_tokenizer(demo_tokenizer: Any, tmp_path) -> None:
    tokenizer = copy.deepcopy(demo_tokenizer)
    stop_ids = tokenizer.convert_tokens_to_ids(list(GLM_STOPS))
    give_response_template(tokenizer, GLM, stop_ids)
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    question = again.apply_chat_template([{"role": "user", "content": "a"}], add_generation_prompt=True)["input_ids"]
    written = again.encode(CALL + "<|observation|>", add_special_tokens=False)
    assert again.parse_response(written, prefix=question) == {
        "role": "assistant",
        "tool_calls": [
            {"type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Bath", "days": 2}'}}
        ],
    }


def test_a_template_that_the_tokenizer_has_already_stays(demo_tokenizer: Any) -> None:
    tokenizer = copy.deepcopy(demo_tokenizer)
    own = {"start_anchor": "a", "fields": {"content": {}}}
    tokenizer.response_template = own
    give_response_template(tokenizer, GLM, [0])
    assert tokenizer.response_template is own


GLM_45 = (
    "[gMASK]<sop>{% for m in messages %}{% if m.role == 'user' %}<|user|>\n{{ m.content }}{% else %}<|assistant|>\n"
    "<think>{{ m.reasoning_content or '' }}</think>{{ '\n' + m.content if m.content else '' }}"
    "{% for call in m.tool_calls or [] %}{{ '\n<tool_call>' + call.function.name + '\n' }}"
    "{% for key, value in call.function.arguments.items() %}"
    "<arg_key>{{ key }}</arg_key>\n<arg_value>{{ value }}</arg_value>\n{% endfor %}</tool_call>{% endfor %}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
CHATML = (
    "{% for m in messages %}<|user|>{{ m.role + '\n' }}{{ m.content }}{% for call in m.tool_calls or [] %}"
    "{{ '\n<tool_call>\n' }}{{ call.function | tojson }}{{ '\n</tool_call>' }}{% endfor %}<|endoftext|>{{ '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}<|user|>{{ 'assistant\n' }}{% endif %}"
)


@pytest.mark.parametrize(
    ("chat_template", "family", "anchor", "field"),
    [(GLM_45, GLM_MOE, "<|assistant|>", "xml-inline"), (CHATML, GENERIC, "<|user|>assistant\n", "json")],
    ids=["glm-4.5", "chatml"],
)
def test_the_layout_of_a_chat_template_is_found(demo_tokenizer, chat_template, family, anchor, field) -> None:
    tokenizer = copy.deepcopy(demo_tokenizer)
    tokenizer.chat_template = chat_template
    give_response_template(tokenizer, family, [0])
    assert tokenizer.response_template["start_anchor"] == anchor
    assert tokenizer.response_template["fields"]["tool_calls"]["content"] == field
    call = {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": {
        "name": "get_weather", "arguments": {"city": "Bath"}}}]}  # fmt: skip
    question = [{"role": "user", "content": "a"}]
    prompt = tokenizer.apply_chat_template(question, tokenize=False, add_generation_prompt=True)
    text = tokenizer.apply_chat_template([*question, call], tokenize=False).removeprefix(prompt)
    parsed = tokenizer.parse_response(text, prefix=prompt)
    assert parsed["tool_calls"] == call["tool_calls"]


def test_a_model_that_writes_no_calls_needs_no_template() -> None:
    assert response_template(ReplyLayout(), prompts=["a"], stops=["b"]) is None
