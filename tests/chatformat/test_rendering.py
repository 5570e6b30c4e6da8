"""Chat templates of other models: what is trained under each, and which are refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
from chat_layouts import (
    CALLS,
    CHATML,
    CHATML_TOKENS,
    GLM_0414,
    GLM_TOKENS,
    LAST_CALL,
    LAYOUTS,
    QWEN,
    RENDERED,
    SYSTEM,
    TOOL,
    TURNS,
    assistant,
    encoder_of,
    tool,
    user,
    with_template,
)
from marked_text import Plain, assert_prompts_are_prefixes, marked
from tokenizers import normalizers

from glmtune.chatformat.encoding import Encoder
from glmtune.chatformat.examples import Example, turns_of
from glmtune.chatformat.verification import verify
from glmtune.data.conversation import Conversation, Message, RowError
from glmtune.data.formats import to_conversation
from glmtune.errors import GlmtuneError
from glmtune.family import GENERIC, GLM, Family


@pytest.mark.parametrize("name", RENDERED)
def test_only_what_the_model_writes_and_its_stop_is_trained(name: str) -> None:
    layout, messages, tools, expected = RENDERED[name]
    encoder = encoder_of(layout)
    example = encoder.encode(to_conversation({"messages": messages, "tools": tools}))
    assert (example.input_ids, example.labels) == marked(encoder.tokenizer, expected)


@pytest.mark.parametrize("name", RENDERED)
def test_ids_equal_the_tokenizers_own_rendering_of_the_row_as_it_stands(name: str) -> None:
    layout, messages, tools, _ = RENDERED[name]
    encoder = encoder_of(layout)
    own = encoder.tokenizer.apply_chat_template(messages, tools=tools, tokenize=True, return_dict=False)
    example = encoder.encode(to_conversation({"messages": messages, "tools": tools}))
    appended = example.input_ids[len(own) :]
    assert example.input_ids == own + appended
    stop = "<|observation|>" if "call at the end" in name else "<|user|>"
    assert encoder.tokenizer.convert_ids_to_tokens(appended) == ([stop] if layout.startswith("glm") else [])


@pytest.mark.parametrize("name", RENDERED)
def test_the_prompt_of_every_turn_is_a_prefix_of_what_training_saw_and_the_tokenizers_own(name: str) -> None:
    layout, messages, tools, _ = RENDERED[name]
    encoder = encoder_of(layout)
    assert_prompts_are_prefixes(to_conversation({"messages": messages, "tools": tools}), encoder)
    for index, message in enumerate(messages):
        if message["role"] == "assistant" and messages[index - 1]["role"] != "assistant":
            own = encoder.tokenizer.apply_chat_template(
                messages[:index], tools=tools, add_generation_prompt=True, tokenize=True, return_dict=False
            )
            assert encoder.encode_prompt(to_conversation({"messages": messages[:index], "tools": tools})) == own


def test_every_layout_passes_its_own_check() -> None:
    for layout, messages, tools, _ in RENDERED.values():
        rows = [to_conversation({"messages": messages, "tools": tools})]
        verify(encoder_of(layout), rows)
        assert isinstance(encoder_of(layout).encode_whole(rows)[0], Example)  # else it was passed over


def test_combine_trains_a_text_and_the_calls_of_its_message_together() -> None:
    encoder = encoder_of("qwen", train_on="last")
    example = encoder.encode(to_conversation({"messages": [*TURNS[:2], *CALLS[:2]]}))
    assert (example.input_ids, example.labels) == marked(
        encoder.tokenizer,
        "<|im_start|>system\nBe brief.<|im_end|>\n"
        "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\nhow are you<|im_end|>\n"
        "<|im_start|>user\nweather?<|im_end|>\n<|im_start|>assistant\n«I look.\n"
        '<call>weather {"in": "北京"}</call>\n<call>weather {"days": 2}</call><|im_end|>»\n',
    )


def test_arguments_that_are_json_text_reach_the_template_as_an_object() -> None:
    texts = [user("weather?"), assistant("", ("weather", '{"in":\n"\\u5317京"}'))]
    encoder = encoder_of("qwen")
    assert encoder.encode(to_conversation({"messages": texts})) == encoder.encode(
        to_conversation({"messages": LAST_CALL})
    )


def test_a_call_in_glm4s_form_is_given_to_other_templates_as_a_tool_call() -> None:
    native = [user("weather?"), assistant('{"in": "北京"}', metadata="weather")]
    for layout in ("qwen", "glm-4.5"):
        encoder = encoder_of(layout)
        expected = encoder.encode(to_conversation({"messages": LAST_CALL}))
        assert encoder.encode(to_conversation({"messages": native})) == expected


def test_an_answer_that_begins_with_a_newline_keeps_the_prompt_a_prefix() -> None:
    for layout in LAYOUTS:
        encoder = encoder_of(layout)
        conversation = to_conversation({"messages": [user("hello\n"), assistant("\n\nhello\n"), *TURNS]})
        assert_prompts_are_prefixes(conversation, encoder)
        verify(encoder, [conversation])


def test_turns_end_with_the_templates_end_of_turn() -> None:
    encoder = encoder_of("qwen")
    example = encoder.encode(to_conversation({"messages": TURNS}))
    turns = turns_of(example.input_ids, example.labels)
    decode = encoder.tokenizer.decode
    assert [decode(turn.answer_ids) for turn in turns] == ["how are you<|im_end|>", "good<|im_end|>"]
    assert [decode(turn.prompt_ids)[-22:] for turn in turns] == ["<|im_start|>assistant\n"] * 2


# Text inside a message is text.


@pytest.mark.parametrize(("layout", "end"), [("chatml", "<|im_end|>"), ("qwen", "<|im_end|>"), ("llama", "<|eot_id|>")])
def test_an_answer_that_names_the_end_of_a_turn_is_trained_to_its_own_end(layout: str, end: str) -> None:
    encoder = encoder_of(layout)
    text = f"a{end}b{end}c"
    example = encoder.encode(to_conversation({"messages": [user("hello"), assistant(text), *TURNS[2:]]}))
    turns = turns_of(example.input_ids, example.labels)
    answers = [encoder.tokenizer.convert_ids_to_tokens(turn.answer_ids) for turn in turns]
    assert [names.count(end) for names in answers] == [1, 1]
    assert [names[-1] for names in answers] == [end, end]
    assert encoder.tokenizer.decode(turns[0].answer_ids) == f"{text}{end}"


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_control_token_in_a_message_stays_ordinary_text_under_every_layout(layout: str) -> None:
    encoder = encoder_of(layout)
    for token in LAYOUTS[layout][1]:
        text = f"a{token}{token}b"
        messages = [user(text), assistant(text), user(text), assistant(text)]
        harmless = [{**message, "content": "PLACE"} for message in messages]
        whole = encoder.tokenizer.apply_chat_template(harmless, tokenize=False)
        parts = [part for piece in whole.split("PLACE") for part in (Plain(text), piece)][1:]
        example = encoder.encode(to_conversation({"messages": messages}))
        names = encoder.tokenizer.convert_ids_to_tokens(example.input_ids)
        appended = names[-1:] if layout.startswith("glm") else []
        assert names == encoder.tokenizer.convert_ids_to_tokens(marked(encoder.tokenizer, *parts)[0]) + appended


@pytest.mark.parametrize("escape", [False, True], ids=["plain", "escaped"])
@pytest.mark.parametrize("layout", ["qwen", "glm-0414", "glm-4.5"])
def test_every_control_token_in_tools_and_arguments_stays_ordinary_text(layout: str, escape: bool) -> None:
    encoder = encoder_of(layout)
    controls = LAYOUTS[layout][1]

    def names_of(word: str) -> list[str]:
        parameters = {"type": "object", "properties": {word: {"enum": [word]}}}
        function = {"name": "f", "description": word, "parameters": parameters}
        schema = json.dumps([{"type": "function", "function": function}])
        arguments = json.dumps({word: [word, 1, None], "in": word})
        if escape:
            schema, arguments = (text.replace("<", "\\u003c").replace("[g", "\\u005bg") for text in (schema, arguments))
        # Built by hand: what is read from a file has its schema written anew, without escapes.
        system = Message(role="system", content="", tools=schema)
        turns = to_conversation({"messages": [user("weather?"), assistant("", (f"f{word}", arguments))]}).messages
        example = encoder.encode(Conversation(messages=(system, *turns)))
        return [name for name in encoder.tokenizer.convert_ids_to_tokens(example.input_ids) if name in controls]

    for token in controls:
        assert names_of(token) == names_of("harmless")


# What cannot be trained on.


def refusal(template: Any, *, family: Family = GENERIC, tokens: tuple[str, ...] = CHATML_TOKENS) -> str:
    with pytest.raises(GlmtuneError) as caught:
        Encoder(with_template(template, tokens), family)
    return str(caught.value)


@pytest.mark.parametrize("template", [None, ""], ids=repr)
def test_a_tokenizer_without_a_chat_template_is_refused(template: str | None) -> None:
    assert refusal(template) == (
        "the tokenizer in `some/model` has no chat template\n"
        "hint: use a chat model, or add `chat_template.jinja` to the model folder"
    )


def test_a_template_without_an_end_of_turn_token_is_refused_outside_the_glm_family() -> None:
    assert refusal(CHATML.replace("<|im_end|>", "")) == (
        "the chat template writes no end-of-turn token after an answer, so the model could not learn to stop\n"
        "  --> some/model\n"
        "hint: use a tokenizer whose template ends assistant messages with a special token"
    )


def test_a_glm_template_without_glms_stop_tokens_is_refused() -> None:
    template = CHATML.replace("<|im_end|>", "")
    assert refusal(template, family=GLM) == (
        "the tokenizer has no special token `<|user|>`, with which this model family stops\n"
        "  --> some/model\n"
        "hint: use the tokenizer that belongs to the model"
    )


def test_a_template_whose_prompt_is_no_beginning_of_its_answer_is_refused() -> None:
    assert refusal(CHATML.replace("{{ '<|im_start|>assistant\\n' }}", "<|im_start|>model")) == (
        "the chat template renders an answer differently from the prompt that asks for it\n"
        "  --> some/model\n"
        "hint: rendered prompt: '<|im_start|>user\\na<|im_end|>\\n<|im_start|>model'; rendered answer: "
        "'<|im_start|>user\\na<|im_end|>\\n<|im_start|>assistant\\nglmtune_probe<|im_end|>\\n'"
    )


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{{ raise_exception('no') }}", "no"),
        ("{% for m in messages %}", "Unexpected end of template. Jinja was looking for the following tags: "
         "'endfor' or 'else'. The innermost block that needs to be closed is 'for'."),
        ("{{ 'a' + 1 }}", 'can only concatenate str (not "int") to str'),
        ("{{ messages[0].content.split('') }}", "empty separator"),
    ],
    ids=["raises", "syntax", "type", "value"],
)  # fmt: skip
def test_a_template_that_fails_on_a_question_and_its_answer_is_refused(template: str, reason: str) -> None:
    assert refusal(template) == (
        f"the chat template fails on a question and its answer: {reason}\n"
        "  --> some/model\n"
        "hint: mend `chat_template.jinja` in the model folder, or use another model"
    )


def row_refusal(layout: str | Encoder, messages: list[dict[str, Any]], **more: Any) -> str:
    encoder = layout if isinstance(layout, Encoder) else encoder_of(layout)
    with pytest.raises(RowError) as caught:
        encoder.encode(to_conversation({"messages": messages, **more}))
    return str(caught.value)


def chatml_with(old: str, new: str) -> Encoder:
    assert old in CHATML
    return Encoder(with_template(CHATML.replace(old, new), CHATML_TOKENS), GENERIC)


def test_a_turn_that_is_rendered_differently_once_others_follow_refuses_the_row() -> None:
    messages = [user("hello"), assistant("<think>hm</think>how"), *TURNS[2:]]
    assert row_refusal("glm-4.5", messages) == (
        "the chat template renders message 1 differently in place: 'nt|>\\n<think>hm</think>\\nh' became "
        "'nt|>\\n<think></think>\\nhow'"
    )


def test_a_refused_turn_is_named_by_its_place_in_the_row() -> None:
    messages = [*CALLS[:4], assistant("<think>hm</think>ok"), user("well"), assistant("good")]
    assert row_refusal("glm-4.5", messages, tools=[TOOL]).startswith("the chat template renders message 4 differently")


def test_tools_that_the_template_does_not_show_refuse_the_row() -> None:
    for layout in ("chatml", "llama"):
        assert row_refusal(layout, TURNS, tools=[TOOL]) == (
            "the row offers tools, which this model's chat template does not show"
        )


def test_calls_that_the_template_does_not_show_refuse_the_row() -> None:
    messages = [*TURNS, *LAST_CALL]
    assert row_refusal("chatml", messages) == (
        "message 5 is a tool call, which this model's chat template does not show"
    )


def test_results_that_the_template_does_not_show_refuse_the_row() -> None:
    encoder = chatml_with("{% for m in messages %}", "{% for m in messages if m.role in ['user', 'assistant'] %}")
    assert row_refusal(encoder, [user("hello"), assistant("how"), tool("sunny"), assistant("good")]) == (
        "message 2 is an observation, which this model's chat template does not show"
    )


def test_a_system_message_that_the_template_does_not_show_refuses_the_row() -> None:
    encoder = chatml_with("{% for m in messages %}", "{% for m in messages if m.role in ['user', 'assistant'] %}")
    assert (
        row_refusal(encoder, SYSTEM) == "message 0 is a system message, which this model's chat template does not show"
    )


def test_what_the_template_raises_on_a_row_is_its_refusal() -> None:
    refuse = "{% if m.role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    encoder = chatml_with("{% for m in messages %}", "{% for m in messages %}" + refuse)
    assert row_refusal(encoder, SYSTEM) == "the chat template refuses the messages: System role not supported"


def test_a_python_error_inside_the_template_is_its_refusal_too() -> None:
    encoder = chatml_with("m['content'] +", "m['content'] + (1 if m['content'] == 'well' else '') +")
    assert row_refusal(encoder, TURNS) == (
        'the chat template refuses the messages: can only concatenate str (not "int") to str'
    )


def test_a_template_that_refuses_an_answer_alone_still_trains() -> None:
    alone = "{% if messages[0].role == 'assistant' %}{{ raise_exception('No user query found') }}{% endif %}"
    encoder = chatml_with("{% for m in messages %}", alone + "{% for m in messages %}")
    assert encoder.encode(to_conversation({"messages": TURNS})) == encoder_of("chatml").encode(
        to_conversation({"messages": TURNS})
    )


def test_a_template_that_wants_questions_and_answers_to_take_turns_still_trains() -> None:
    check = "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('take turns') }}{% endif %}"
    encoder = chatml_with("{% for m in messages %}", "{% for m in messages %}" + check)
    conversation = to_conversation({"messages": TURNS})
    assert encoder.encode(conversation) == encoder_of("chatml").encode(conversation)
    assert_prompts_are_prefixes(conversation, encoder)
    assert row_refusal(encoder, SYSTEM) == "the chat template refuses the messages: take turns"


def test_a_prompt_that_is_rendered_differently_from_the_row_is_refused() -> None:
    more = "(' /no_think' if add_generation_prompt and m['content'] == 'hello' else '')"
    encoder = chatml_with("m['content']", f"m['content'] + {more}")
    with pytest.raises(RowError) as caught:
        encoder.encode_prompt(to_conversation({"messages": TURNS[:3]}))
    assert str(caught.value) == (
        "the chat template renders the prompt differently: "
        "'|>user\\nhello<|im_end|>\\n<' became '|>user\\nhello /no_think<|'"
    )


def test_an_answer_that_ends_otherwise_than_the_others_refuses_the_row() -> None:
    encoder = chatml_with("'<|im_end|>\\n'", "('' if m['content'] == 'good' else '<|im_end|>\\n')")
    assert row_refusal(encoder, TURNS) == "message 3 is rendered without `<|im_end|>` at its end"


def test_an_answer_that_no_role_token_follows_refuses_the_row() -> None:
    template = GLM_0414.replace(
        "'<|user|>\\n' + m.content", "(' ' if not loop.first else '') + '<|user|>\\n' + m.content"
    )
    encoder = Encoder(with_template(template, GLM_TOKENS), GLM)
    assert row_refusal(encoder, TURNS) == "no role token follows message 1: ' <|user|>\\nwell<|assi'"


def test_an_answer_behind_another_prompt_refuses_the_row() -> None:
    encoder = chatml_with("m['role'] + '\\n'", "m['role'] + ('!' if m['content'] == 'good' else '') + '\\n'")
    assert row_refusal(encoder, TURNS) == "message 3 is not rendered behind the prompt that asks for it"


def test_arguments_that_are_no_json_refuse_the_row_where_the_template_wants_an_object() -> None:
    messages = [user("weather?"), assistant("", ("weather", "北京"))]
    assert row_refusal("qwen", messages) == "the arguments of the call to `weather` are not JSON"


def test_other_tools_later_on_refuse_the_row_where_the_template_takes_one_list() -> None:
    first, later = {"role": "system", "content": "", "tools": [TOOL]}, {**user("well"), "tools": [{"name": "b"}]}
    reason = "the row offers other tools later on; this model's chat template takes one list for all"
    assert row_refusal("qwen", [first, *TURNS[:2], later, TURNS[3]]) == reason
    assert row_refusal("qwen", [*TURNS[:2], later, TURNS[3]]) == reason
    same = [first, *TURNS[:2], {**later, "tools": [TOOL]}, TURNS[3]]
    conversation = to_conversation({"messages": TURNS, "tools": [TOOL]})
    assert encoder_of("qwen").encode(to_conversation({"messages": same})) == encoder_of("qwen").encode(conversation)


def test_the_default_one_of_several_templates_is_used() -> None:
    several = Encoder(with_template({"default": CHATML, "other": QWEN}, CHATML_TOKENS), GENERIC)
    conversation = to_conversation({"messages": TURNS})
    assert several.encode(conversation) == encoder_of("chatml").encode(conversation)


# The check before a run.


def test_a_tokenizer_whose_pieces_do_not_join_is_caught_with_the_first_difference() -> None:
    tokenizer = with_template(CHATML, CHATML_TOKENS, merges=False)
    tokenizer.backend_tokenizer.normalizer = normalizers.Prepend("_")
    encoder = Encoder(tokenizer, GENERIC)
    with pytest.raises(GlmtuneError) as caught:
        verify(encoder, [to_conversation({"messages": [user("a"), assistant("b")]})])
    # 0 <|im_start|>, 1-8 "_user\na", 8 <|im_end|>, 9-10 "_\n", 11 <|im_start|>, 12-22 "_assistant\n", 23 "b" or "_b"
    assert str(caught.value) == (
        "encoding differs from the tokenizer's own rendering at token 23: ['t', 'Ċ', '_', 'b', '<|im_end|>'] instead "
        "of ['t', 'Ċ', 'b', '<|im_end|>', '_']\n"
        "  --> some/model\n"
        "hint: this chat template cannot be trained on message by message"
    )


def test_the_check_passes_over_rows_that_the_plain_rendering_gets_wrong() -> None:
    encoder = encoder_of("chatml")
    verify(encoder, [])
    for messages in ([user("<|im_end|>"), assistant("b")], [user("a"), assistant("\n\nb")]):
        row = to_conversation({"messages": messages})
        verify(encoder, [row])
        plain = encoder.tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False)
        assert encoder.encode(row).input_ids != plain
