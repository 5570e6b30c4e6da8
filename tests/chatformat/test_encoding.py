"""GLM-4's rules, one by one: which ids a conversation becomes, and which of them are trained."""

from __future__ import annotations

import json
from typing import Any

import pytest
from marked_text import Plain, assert_prompts_are_prefixes, marked
from transformers import PreTrainedTokenizerBase

from glmtune.chatformat.control_tokens import NONCHARACTERS
from glmtune.chatformat.encoding import Encoder
from glmtune.chatformat.examples import turns_of
from glmtune.config.run_config import DataConfig, RunConfig
from glmtune.data.conversation import Conversation, Message, RowError
from glmtune.data.formats import to_conversation
from glmtune.family import GLM, IGNORE_INDEX

WEATHER = {
    "type": "function",
    "function": {"name": "get_weather", "description": "查询天气", "parameters": {"type": "object", "properties": {}}},
}


def system(content: str = "", **more: Any) -> dict[str, Any]:
    return {"role": "system", "content": content, **more}


def user(content: str) -> dict[str, Any]:
    return {"role": "user", "content": content}


def assistant(content: str | None, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **more}


def observation(content: str) -> dict[str, Any]:
    return {"role": "observation", "content": content}


def call(name: str, arguments: Any) -> dict[str, Any]:
    return {"id": "call_1", "type": "function", "function": {"name": name, "arguments": arguments}}


@pytest.fixture(params=["demo_tokenizer", "glm_tokenizer"])
def tokenizer(request: pytest.FixtureRequest) -> PreTrainedTokenizerBase:
    return request.getfixturevalue(request.param)


@pytest.fixture
def encoder(tokenizer: PreTrainedTokenizerBase) -> Encoder:
    return Encoder(tokenizer, GLM)


def encoded(encoder: Encoder, messages: list[dict[str, Any]], **more: Any) -> tuple[list[int], list[int]]:
    example = encoder.encode(to_conversation({"messages": messages, **more}))
    return example.input_ids, example.labels


# In GLM-4's own form, so that the tokenizer's own template can render them, too.
NATIVE_ROWS = {
    "a question and its answer": (
        [user("你好"), assistant("您好")],
        "[gMASK]<sop><|user|>\n你好<|assistant|>«\n您好<|user|>»",
    ),
    "two turns": (
        [user("你好"), assistant("您好"), user("再见"), assistant("慢走")],
        "[gMASK]<sop><|user|>\n你好<|assistant|>«\n您好<|user|>»\n再见<|assistant|>«\n慢走<|user|>»",
    ),
    "a system message": (
        [system("简短地回答"), user("你好"), assistant("您好")],
        "[gMASK]<sop><|system|>\n简短地回答<|user|>\n你好<|assistant|>«\n您好<|user|>»",
    ),
    "a call at the end, name on the role line": (
        [user("天气"), assistant('{"city": "北京"}', metadata="get_weather")],
        '[gMASK]<sop><|user|>\n天气<|assistant|>«get_weather\n{"city": "北京"}<|observation|>»',
    ),
    "a call, its result and the answer": (
        [user("天气"), assistant("{}", metadata="get_weather"), observation("晴"), assistant("今天晴")],
        "[gMASK]<sop><|user|>\n天气<|assistant|>«get_weather\n{}<|observation|>»\n晴<|assistant|>«\n今天晴<|user|>»",
    ),
    "a call at the end, as JSON text": (
        [user("天气"), assistant('{"name": "get_weather", "arguments": {"city": "北京"}}')],
        '[gMASK]<sop><|user|>\n天气<|assistant|>«\n{"name": "get_weather", "arguments": {"city": "北京"}}'
        "<|observation|>»",
    ),
    "an answer that is JSON, but no call": (
        [user("json"), assistant('{"name": "北京"}')],
        '[gMASK]<sop><|user|>\njson<|assistant|>«\n{"name": "北京"}<|user|>»',
    ),
    "an answer that starts like JSON": (
        [user("json"), assistant("{name}")],
        "[gMASK]<sop><|user|>\njson<|assistant|>«\n{name}<|user|>»",
    ),
    "an answer after an answer": (
        [user("你好"), assistant("您好"), assistant("请讲")],
        "[gMASK]<sop><|user|>\n你好<|assistant|>«\n您好<|assistant|>\n请讲<|user|>»",
    ),
    "an answer first": (
        [assistant("您好"), user("你好"), assistant("请讲")],
        "[gMASK]<sop><|assistant|>«\n您好<|user|>»\n你好<|assistant|>«\n请讲<|user|>»",
    ),
    "a question without an answer at the end": (
        [user("你好"), assistant("您好"), user("再见")],
        "[gMASK]<sop><|user|>\n你好<|assistant|>«\n您好<|user|>»\n再见",
    ),
    "newlines and blanks around the texts": (
        [user("\n 你好 \n"), assistant("\n\n 您好 \n")],
        "[gMASK]<sop><|user|>\n\n 你好 \n<|assistant|>«\n\n\n 您好 \n<|user|>»",
    ),
    "an empty system message": (
        [system(""), user("你好"), assistant("您好")],
        "[gMASK]<sop><|user|>\n你好<|assistant|>«\n您好<|user|>»",
    ),
}

OPENAI_ROWS = {
    "a call at the end": (
        [user("天气"), assistant(None, tool_calls=[call("get_weather", {"city": "北京"})])],
        '[gMASK]<sop><|user|>\n天气<|assistant|>«get_weather\n{"city": "北京"}<|observation|>»',
    ),
    "a call, its result and the answer": (
        [
            user("天气"),
            assistant("", tool_calls=[call("get_weather", "{}")]),
            {"role": "tool", "tool_call_id": "call_1", "content": "晴"},
            assistant("今天晴"),
        ],
        "[gMASK]<sop><|user|>\n天气<|assistant|>«get_weather\n{}<|observation|>»\n晴<|assistant|>«\n今天晴<|user|>»",
    ),
    "a text and a call in one message": (
        [user("天气"), assistant("我查一下", tool_calls=[call("get_weather", "{}")])],
        "[gMASK]<sop><|user|>\n天气<|assistant|>«\n我查一下<|assistant|>get_weather\n{}<|observation|>»",
    ),
    "several calls in one message": (
        [user("天气"), assistant(None, tool_calls=[call("a", "{}"), call("b", "{}")]), observation("晴")],
        "[gMASK]<sop><|user|>\n天气<|assistant|>«a\n{}<|assistant|>b\n{}<|observation|>»\n晴",
    ),
    "a call without the `function` level": (
        [user("天气"), assistant(None, tool_calls=[{"name": "a", "arguments": {"b": 1}}])],
        '[gMASK]<sop><|user|>\n天气<|assistant|>«a\n{"b": 1}<|observation|>»',
    ),
    "a call without arguments": (
        [user("天气"), assistant(None, tool_calls=[{"function": {"name": "a"}}])],
        "[gMASK]<sop><|user|>\n天气<|assistant|>«a\n{}<|observation|>»",
    ),
    "a call whose arguments are null": (
        [user("天气"), assistant(None, tool_calls=[call("a", None)])],
        "[gMASK]<sop><|user|>\n天气<|assistant|>«a\n{}<|observation|>»",
    ),
    "a call whose arguments are an empty text": (
        [user("天气"), assistant(None, tool_calls=[call("a", "")])],
        "[gMASK]<sop><|user|>\n天气<|assistant|>«a\n{}<|observation|>»",
    ),
    "a call in the form before `tool_calls`": (
        [
            user("天气"),
            assistant(None, function_call={"name": "a", "arguments": "{}"}),
            {"role": "function", "name": "a", "content": "晴"},
            assistant("今天晴"),
        ],
        "[gMASK]<sop><|user|>\n天气<|assistant|>«a\n{}<|observation|>»\n晴<|assistant|>«\n今天晴<|user|>»",
    ),
    "a developer message": (
        [{"role": "developer", "content": "简短"}, user("你好"), assistant("您好")],
        "[gMASK]<sop><|system|>\n简短<|user|>\n你好<|assistant|>«\n您好<|user|>»",
    ),
    "content in parts": (
        [
            {"role": "user", "content": [{"type": "text", "text": "你"}, {"type": "text", "text": "好"}]},
            assistant("您"),
        ],
        "[gMASK]<sop><|user|>\n你好<|assistant|>«\n您<|user|>»",
    ),
}


@pytest.mark.parametrize("name", NATIVE_ROWS)
def test_a_row_in_glm4s_form_becomes_these_ids_and_labels(name: str, tokenizer, encoder: Encoder) -> None:
    messages, expected = NATIVE_ROWS[name]
    assert encoded(encoder, messages) == marked(tokenizer, expected)


@pytest.mark.parametrize("name", NATIVE_ROWS)
def test_ids_equal_the_tokenizers_own_rendering_and_one_stop_token(name: str, tokenizer, encoder: Encoder) -> None:
    messages, _ = NATIVE_ROWS[name]
    own = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False)
    ids, _ = encoded(encoder, messages)
    stop = "<|observation|>" if name.startswith("a call at the end") else "<|user|>"
    appended = [tokenizer.convert_tokens_to_ids(stop)] if messages[-1]["role"] == "assistant" else []
    assert ids == own + appended


@pytest.mark.parametrize("name", OPENAI_ROWS)
def test_a_row_in_openais_form_becomes_these_ids_and_labels(name: str, tokenizer, encoder: Encoder) -> None:
    messages, expected = OPENAI_ROWS[name]
    assert encoded(encoder, messages) == marked(tokenizer, expected)


def test_ids_and_labels_of_the_real_tokenizer_number_by_number(glm_tokenizer) -> None:
    ids, labels = encoded(
        Encoder(glm_tokenizer, GLM),
        [user("你好"), assistant("{}", metadata="now"), observation("1"), assistant("您好")],
    )
    pairs = {
        "[gMASK] <sop>": ([151331, 151333], [-100, -100]),
        "<|user|> newline 你好": ([151336, 198, 109377], [-100, -100, -100]),
        "<|assistant|>": ([151337], [-100]),
        "now newline {}": ([3328, 198, 6257], [3328, 198, 6257]),
        "<|observation|>, the stop after a call": ([151338], [151338]),
        "newline 1": ([198, 16], [-100, -100]),
        "<|assistant|> again": ([151337], [-100]),
        "newline 您好": ([198, 121658], [198, 121658]),
        "<|user|>, the stop after an answer": ([151336], [151336]),
    }
    assert ids == [token for part, _ in pairs.values() for token in part]
    assert labels == [label for _, part in pairs.values() for label in part]


def test_arguments_that_are_text_are_kept_byte_for_byte(tokenizer, encoder: Encoder) -> None:
    arguments = '{ "city":"\\u5317京",\t"days" : 1.50,\n "days": 1e2}'
    assert encoded(encoder, [user("天气"), assistant(None, tool_calls=[call("w", arguments)])]) == marked(
        tokenizer, f"[gMASK]<sop><|user|>\n天气<|assistant|>«w\n{arguments}<|observation|>»"
    )


def test_arguments_that_are_an_object_become_json_and_never_pythons_repr(tokenizer, encoder: Encoder) -> None:
    arguments = {"city": "北京", "rain": True, "wind": None, "note": "it's"}
    assert encoded(encoder, [user("天气"), assistant(None, tool_calls=[call("w", arguments)])]) == marked(
        tokenizer,
        '[gMASK]<sop><|user|>\n天气<|assistant|>«w\n{"city": "北京", "rain": true, "wind": null, "note": "it\'s"}'
        "<|observation|>»",
    )


def test_tools_of_a_system_message_are_rendered_by_the_template(demo_tokenizer) -> None:
    ids_and_labels = encoded(
        Encoder(demo_tokenizer, GLM), [system("简短", tools=[WEATHER]), user("天气"), assistant("晴")]
    )
    assert ids_and_labels == marked(
        demo_tokenizer,
        '[gMASK]<sop><|system|>\n可用工具\n## get_weather\n{"name": "get_weather", "description": "查询天气", '
        '"parameters": {"type": "object", "properties": {}}}<|system|>\n简短<|user|>\n天气<|assistant|>«\n晴<|user|>»',
    )


@pytest.mark.parametrize(
    "tools", [[WEATHER], [WEATHER["function"]], json.dumps([WEATHER])], ids=["openai", "bare", "text"]
)
def test_tools_beside_the_messages_equal_tools_in_a_system_message(tools: Any, tokenizer, encoder: Encoder) -> None:
    inside = encoded(encoder, [system(tools=[WEATHER]), user("天气"), assistant("晴")])
    assert encoded(encoder, [user("天气"), assistant("晴")], tools=tools) == inside
    assert encoded(encoder, [system(), user("天气"), assistant("晴")], tools=tools) == inside
    messages = [system(tools=[WEATHER]), user("天气"), assistant("晴")]
    own = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False)
    assert inside[0] == [*own, tokenizer.convert_tokens_to_ids("<|user|>")]


@pytest.mark.parametrize("tools", [[], "[]", None, ""], ids=repr)
def test_an_empty_list_of_tools_is_no_tools(tools: Any, tokenizer, encoder: Encoder) -> None:
    assert encoded(encoder, [user("你好"), assistant("您好")], tools=tools) == marked(
        tokenizer, "[gMASK]<sop><|user|>\n你好<|assistant|>«\n您好<|user|>»"
    )


def test_the_order_of_keys_in_a_tool_schema_is_kept(tokenizer, encoder: Encoder) -> None:
    tool = {"type": "function", "function": {"parameters": {"b": 1, "a": None}, "name": "f", "description": "d"}}
    ids, _ = encoded(encoder, [user("天气"), assistant("晴")], tools=[tool])
    text = tokenizer.decode(ids)
    assert text.index('"parameters"') < text.index('"b"') < text.index('"a"') < text.index('"name": "f"')


# Text inside a message is text.


def test_every_control_token_in_a_message_stays_ordinary_text(tokenizer, encoder: Encoder) -> None:
    for token in tokenizer.all_special_tokens:
        text = Plain(f"a{token}{token}b {token[:-1]}")
        messages = [system(text), user(text), assistant(text), observation(text), assistant(text)]
        assert encoded(encoder, messages) == marked(
            tokenizer,
            "[gMASK]<sop><|system|>", Plain("\n" + text), "<|user|>", Plain("\n" + text), "<|assistant|>«",
            Plain("\n" + text), "<|observation|>»", Plain("\n" + text), "<|assistant|>«", Plain("\n" + text),
            "<|user|>»",
        ), token  # fmt: skip


def test_every_control_token_in_a_call_stays_ordinary_text(tokenizer, encoder: Encoder) -> None:
    for token in tokenizer.all_special_tokens:
        name, arguments = Plain(f"f{token}"), Plain(json.dumps({token: [token, {"a": token}]}))
        for message in (
            assistant(arguments, metadata=name),
            assistant(None, tool_calls=[call(name, arguments)]),
            assistant(None, tool_calls=[call(name, json.loads(arguments))]),
        ):
            assert encoded(encoder, [user("天气"), message]) == marked(
                tokenizer,
                "[gMASK]<sop><|user|>\n天气<|assistant|>«", Plain(f"{name}\n{arguments}"), "<|observation|>»",
            ), token  # fmt: skip


def test_the_code_of_an_interpreter_call_is_kept_and_its_control_tokens_stay_text(tokenizer, encoder: Encoder) -> None:
    code = Plain("print('<|user|>\\n')")
    assert encoded(encoder, [user("天气"), assistant(code, metadata="python")]) == marked(
        tokenizer,
        "[gMASK]<sop><|user|>\n天气<|assistant|>«", Plain(f"python\n{code}"), "<|observation|>»",
    )  # fmt: skip


def test_every_control_token_in_a_tool_schema_stays_ordinary_text(tokenizer, encoder: Encoder) -> None:
    def messages(word: str) -> list[dict[str, Any]]:
        parameters = {"type": "object", "properties": {word: {"enum": [word]}}}
        function = {"name": f"f{word}", "description": word, "parameters": parameters}
        return [system(tools=[{"type": "function", "function": function}]), user("天气"), assistant("晴")]

    harmless = tokenizer.apply_chat_template(messages("PLACE"), tokenize=False)
    schema = harmless.removeprefix("[gMASK]<sop><|system|>").removesuffix("<|user|>\n天气<|assistant|>\n晴")
    for token in tokenizer.all_special_tokens:
        assert encoded(encoder, messages(token)) == marked(
            tokenizer,
            "[gMASK]<sop><|system|>", Plain(schema.replace("PLACE", token)),
            "<|user|>\n天气<|assistant|>«\n晴<|user|>»",
        ), token  # fmt: skip


def test_control_tokens_in_a_schema_given_as_escaped_json_stay_ordinary_text(tokenizer, encoder: Encoder) -> None:
    plain = Message(role="system", content="", tools=json.dumps([WEATHER]).replace("get_weather", "<|user|>"))
    escaped = Message(role="system", content="", tools=plain.tools.replace("<|user|>", "\\u003c|user|>"))
    turn = (Message(role="user", content="天气"), Message(role="assistant", content="晴"))
    user_id = tokenizer.convert_tokens_to_ids("<|user|>")
    example = encoder.encode(Conversation(messages=(escaped, *turn)))
    assert example == encoder.encode(Conversation(messages=(plain, *turn)))
    assert example.input_ids.count(user_id) == 2


def test_a_message_keeps_the_noncharacters_that_mark_control_tokens_inside(tokenizer, encoder: Encoder) -> None:
    for text in ("a\ufdd0b", "a\ufdd0b<|user|>", "<\ufdd0|user|>", "<\ufdd0|user|><|user|>\ufdd1"):
        assert encoded(encoder, [user(text), assistant(text)]) == marked(
            tokenizer,
            "[gMASK]<sop><|user|>", Plain("\n" + text), "<|assistant|>«", Plain("\n" + text), "<|user|>»",
        )  # fmt: skip


def test_a_row_with_every_noncharacter_and_a_control_token_is_refused(demo_tokenizer) -> None:
    text = "".join(NONCHARACTERS)
    encoder = Encoder(demo_tokenizer, GLM)
    encoded(encoder, [user(text), assistant("您好")])
    with pytest.raises(RowError, match=r"^the text holds a control token and every Unicode noncharacter$"):
        encoded(encoder, [user(text + "<|user|>"), assistant("您好")])


# Which turns are trained, and how long an example may be.

TWO_TURNS = [user("你好"), assistant("您好"), user("天气"), assistant("{}", metadata="get_weather")]


def test_combine_trains_the_last_turn_alone_with_the_first_token_of_a_tools_name(tokenizer) -> None:
    encoder = Encoder(tokenizer, GLM, train_on="last")
    assert encoded(encoder, TWO_TURNS) == marked(
        tokenizer,
        "[gMASK]<sop><|user|>\n你好<|assistant|>\n您好<|user|>\n天气<|assistant|>«get_weather\n{}<|observation|>»",
    )
    assert encoded(encoder, [user("你好"), assistant("您好"), user("再见")]) == marked(
        tokenizer, "[gMASK]<sop><|user|>\n你好<|assistant|>«\n您好<|user|>»\n再见"
    )


def test_combine_changes_no_id(tokenizer, encoder: Encoder) -> None:
    for messages, _ in NATIVE_ROWS.values():
        assert encoded(Encoder(tokenizer, GLM, train_on="last"), messages)[0] == encoded(encoder, messages)[0]


def limited(tokenizer, limit: int | None, truncation: str = "right") -> Encoder:
    return Encoder(tokenizer, GLM, max_length_tokens=limit, truncation=truncation)


def test_an_example_as_long_as_the_limit_is_left_whole(tokenizer, encoder: Encoder) -> None:
    whole = encoder.encode(to_conversation({"messages": TWO_TURNS}))
    for truncation in ("right", "drop", "error"):
        exact = limited(tokenizer, len(whole.input_ids), truncation)
        assert exact.encode(to_conversation({"messages": TWO_TURNS})) == whole
    assert not whole.is_truncated


def test_a_cut_answer_gets_no_stop_token(tokenizer, encoder: Encoder) -> None:
    ids, labels = encoded(encoder, TWO_TURNS)
    for limit in range(len(ids) - 2, len(ids)):
        cut = limited(tokenizer, limit).encode(to_conversation({"messages": TWO_TURNS}))
        assert (cut.input_ids, cut.labels, cut.is_truncated) == (ids[:limit], labels[:limit], True)
        assert cut.num_tokens_left_out == len(ids) - limit
        assert tokenizer.convert_tokens_to_ids("<|observation|>") not in cut.input_ids


@pytest.mark.parametrize("truncation", ["drop", "error"])
def test_a_row_over_the_limit_is_refused_with_both_lengths(truncation: str, tokenizer) -> None:
    length = len(encoded(Encoder(tokenizer, GLM), TWO_TURNS)[0])
    with pytest.raises(RowError, match=f"^{length} tokens, over the limit of {length - 1}$"):
        encoded(limited(tokenizer, length - 1, truncation), TWO_TURNS)


def test_a_row_without_a_trained_token_within_the_limit_is_refused(tokenizer) -> None:
    ids, labels = encoded(Encoder(tokenizer, GLM), TWO_TURNS)
    first = next(index for index, label in enumerate(labels) if label != IGNORE_INDEX)
    with pytest.raises(RowError) as caught:
        encoded(limited(tokenizer, first), TWO_TURNS)
    assert str(caught.value) == f"no trained token within the limit of {first} tokens (the row has {len(ids)})"
    assert encoded(limited(tokenizer, first + 1), TWO_TURNS)[1] == labels[: first + 1]


def test_the_limit_of_a_configuration_is_both_lengths_and_the_stop_token(demo_tokenizer) -> None:
    config = RunConfig(
        data_config=DataConfig(train_file="train.jsonl"), training_args={}, generation_config={}, peft_config=None,
        source="config.yaml", notices=(), max_input_length=10, max_output_length=5, combine=True, truncation="drop",
    )  # fmt: skip
    encoder = Encoder.from_config(demo_tokenizer, GLM, config)
    assert (encoder.max_length_tokens, encoder.train_on, encoder.truncation) == (16, "last", "drop")


def test_a_batch_keeps_its_order_and_refuses_row_by_row(tokenizer, encoder: Encoder) -> None:
    rows = [messages for messages, _ in NATIVE_ROWS.values()]
    conversations = [to_conversation({"messages": messages}) for messages in rows]
    bad = Conversation(messages=(Message(role="user", content="你好"),))
    results = encoder.encode_batch([bad, *conversations, bad])
    assert [(result.input_ids, result.labels) for result in results[1:-1]] == [encoded(encoder, row) for row in rows]
    refusal = "no assistant message, so there is nothing to train on"
    assert [str(results[0]), str(results[-1])] == [refusal, refusal]
    assert encoder.encode_batch([]) == []


def test_a_row_without_an_answer_is_refused(encoder: Encoder) -> None:
    with pytest.raises(RowError, match=r"^no assistant message, so there is nothing to train on$"):
        encoded(encoder, [user("你好")])


@pytest.mark.parametrize("row", [{}, {"tools": [WEATHER]}], ids=["plain", "tools"])
def test_a_row_with_an_empty_answer_is_refused_by_its_number_in_the_row(row: dict[str, Any], encoder: Encoder) -> None:
    split = assistant("您好", tool_calls=[call("a", "{}")])
    with pytest.raises(RowError, match=r"^message 3 is an assistant message without content$"):
        encoded(encoder, [user("你好"), split, observation("晴"), assistant("")], **row)


# Inference.


@pytest.mark.parametrize("name", [*NATIVE_ROWS, *OPENAI_ROWS])
def test_the_prompt_of_every_turn_is_a_prefix_of_what_training_saw(name: str, encoder: Encoder) -> None:
    messages, _ = (NATIVE_ROWS | OPENAI_ROWS)[name]
    assert_prompts_are_prefixes(to_conversation({"messages": messages, "tools": [WEATHER]}), encoder)


def test_a_prompt_is_the_tokenizers_own_with_its_generation_prompt(tokenizer, encoder: Encoder) -> None:
    for messages, _ in NATIVE_ROWS.values():
        question = messages[:-1] if messages[-1]["role"] == "assistant" else messages
        if question[-1]["role"] == "assistant":
            continue
        own = tokenizer.apply_chat_template(question, add_generation_prompt=True, tokenize=True, return_dict=False)
        assert encoder.encode_prompt(to_conversation({"messages": question})) == own


def test_control_tokens_in_a_prompt_stay_ordinary_text(tokenizer, encoder: Encoder) -> None:
    prompt = encoder.encode_prompt(to_conversation({"messages": [user("a<|assistant|>b")]}))
    assert prompt == marked(tokenizer, "[gMASK]<sop><|user|>", Plain("\na<|assistant|>b"), "<|assistant|>")[0]


def test_a_prompt_cannot_end_with_an_answer(encoder: Encoder) -> None:
    with pytest.raises(RowError) as caught:
        encoder.encode_prompt(to_conversation({"messages": [user("你好"), assistant("您好")]}))
    assert str(caught.value) == "the last message is the assistant's; a prompt ends with the user or an observation"


def test_the_turns_of_an_example_are_its_prompts_and_its_answers(tokenizer, encoder: Encoder) -> None:
    turns = turns_of(*encoded(encoder, TWO_TURNS))
    assert [(tokenizer.decode(turn.prompt_ids), tokenizer.decode(turn.answer_ids)) for turn in turns] == [
        ("[gMASK]<sop><|user|>\n你好<|assistant|>", "\n您好<|user|>"),
        ("[gMASK]<sop><|user|>\n你好<|assistant|>\n您好<|user|>\n天气<|assistant|>", "get_weather\n{}<|observation|>"),
    ]


def test_no_turn_has_its_answer_in_its_prompt(encoder: Encoder) -> None:
    for messages, _ in (NATIVE_ROWS | OPENAI_ROWS).values():
        ids, labels = encoded(encoder, messages)
        turns = turns_of(ids, labels)
        assert turns
        for turn in turns:
            start, end = len(turn.prompt_ids), len(turn.prompt_ids) + len(turn.answer_ids)
            assert (turn.prompt_ids, turn.answer_ids) == (ids[:start], ids[start:end])
            assert labels[start:end] == turn.answer_ids
            assert end == len(ids) or labels[end] == IGNORE_INDEX


def test_a_turn_whose_end_was_cut_off_is_left_out(tokenizer, encoder: Encoder) -> None:
    ids, labels = encoded(encoder, TWO_TURNS)
    cut = len(ids) - 1
    assert turns_of(ids[:cut], labels[:cut], is_truncated=True) == turns_of(ids, labels)[:1]
    assert turns_of(ids[:cut], [IGNORE_INDEX] * cut, is_truncated=True) == []
