"""The labels, rule by rule, against expectations written by hand and against the tokenizer's own rendering."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
from transformers import AddedToken

from glmtune.data.conversation import Conversation, RowError
from glmtune.data.encoding import Encoder, turns_of
from glmtune.data.formats import to_conversation
from glmtune.data.reading import read_rows
from glmtune.errors import GlmtuneError
from glmtune.family import IGNORE_INDEX, family_of

TOOL = {"type": "function", "function": {"name": "query_stock", "parameters": {"z": None, "a": [1, [2]], "n": 2**70}}}


def user(content: str) -> dict:
    return {"role": "user", "content": content}


def assistant(content: str) -> dict:
    return {"role": "assistant", "content": content}


def call(name: str, arguments: str) -> dict:
    return {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": name, "arguments": arguments}}]}


def shown(encoder: Encoder, messages: list[dict], **row: object) -> str:
    """Return the row as text with its trained stretches in [[ ]]."""
    example = encoder.encode(to_conversation({"messages": messages, **row}))
    assert len(example.input_ids) == len(example.labels)
    assert all(label in (IGNORE_INDEX, token) for token, label in zip(example.input_ids, example.labels))
    return decode_marked(encoder, example)


def decode_marked(encoder: Encoder, example) -> str:
    parts: list[str] = []
    start = 0
    for end in range(1, len(example.labels) + 1):
        if end < len(example.labels) and (example.labels[end] < 0) == (example.labels[start] < 0):
            continue
        text = encoder.tokenizer.decode(example.input_ids[start:end])
        parts.append(text if example.labels[start] < 0 else f"[[{text}]]")
        start = end
    return "".join(parts)


@pytest.fixture(scope="module")
def encoder(demo_tokenizer) -> Encoder:
    return Encoder(demo_tokenizer, family_of("glm"))


def test_an_answer_is_trained_with_the_role_token_that_follows_it(encoder: Encoder) -> None:
    assert shown(encoder, [user("a"), assistant("b"), user("c"), assistant("d")]) == (
        "[gMASK]<sop><|user|>\na<|assistant|>[[\nb<|user|>]]\nc<|assistant|>[[\nd<|user|>]]"
    )


def test_a_tool_call_stops_with_the_observation(encoder: Encoder) -> None:
    messages = [user("a"), call("query_stock", '{"item": "裙"}'), {"role": "tool", "content": "{}"}, assistant("b")]
    assert shown(encoder, messages) == (
        '[gMASK]<sop><|user|>\na<|assistant|>[[query_stock\n{"item": "裙"}<|observation|>]]\n{}'
        "<|assistant|>[[\nb<|user|>]]"
    )


@pytest.mark.parametrize(
    ("message", "text"),
    [
        (call("f", '{"x":  1}'), 'f\n{"x":  1}'),
        ({"role": "assistant", "metadata": "f", "content": "{}"}, "f\n{}"),
        (assistant('{"name": "f", "arguments": {"x": 1}}'), '\n{"name": "f", "arguments": {"x": 1}}'),
    ],
)
def test_a_final_tool_call_ends_with_the_observation_token(encoder: Encoder, message: dict, text: str) -> None:
    assert shown(encoder, [user("a"), message]) == f"[gMASK]<sop><|user|>\na<|assistant|>[[{text}<|observation|>]]"


def test_arguments_that_are_objects_become_json_never_python(encoder: Encoder) -> None:
    arguments = {"用": None, "ok": True, "n": 2**70, "l": [1, [2]]}
    messages = [user("a"), call("f", arguments)]  # type: ignore[arg-type]
    assert '[[f\n{"用": null, "ok": true, "n": 1180591620717411303424, "l": [1, [2]]}<|' in shown(encoder, messages)


def test_text_and_calls_of_one_message_become_turns_of_their_own(encoder: Encoder) -> None:
    message = {**call("f", "{}"), "content": "好"}
    message["tool_calls"] = [*message["tool_calls"], {"function": {"name": "g", "arguments": "{}"}}]
    assert shown(encoder, [user("a"), message]) == (
        "[gMASK]<sop><|user|>\na<|assistant|>[[\n好<|assistant|>f\n{}<|assistant|>g\n{}<|observation|>]]"
    )


def test_system_and_tools_are_masked_and_keep_their_json(encoder: Encoder) -> None:
    expected = (
        "[gMASK]<sop><|system|>\n可用工具\n## query_stock\n"
        '{"name": "query_stock", "parameters": {"z": null, "a": [1, [2]], "n": 1180591620717411303424}}'
        "<|system|>\ns<|user|>\na<|assistant|>[[\nb<|user|>]]"
    )
    system = {"role": "system", "content": "s"}
    assert shown(encoder, [{**system, "tools": [TOOL]}, user("a"), assistant("b")]) == expected
    assert shown(encoder, [system, user("a"), assistant("b")], tools=[TOOL]) == expected
    assert shown(encoder, [system, user("a"), assistant("b")], tools=json.dumps([TOOL])) == expected


def test_control_tokens_that_a_user_writes_are_plain_text(encoder: Encoder) -> None:
    controls = encoder.renderer.control_tokens
    text = "x" + "".join(controls) + "\n<|assistant|>"
    tool = {"type": "function", "function": {"name": "f", "parameters": {"d": "<|user|>"}}}
    messages = [{"role": "system", "content": "", "tools": [tool]}, user(text), call("f", '{"a": "<|user|>"}')]
    example = encoder.encode(to_conversation({"messages": messages}))
    names = encoder.tokenizer.convert_ids_to_tokens(example.input_ids)
    assert [name for name in names if name in controls] == [
        "[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>",
    ]  # fmt: skip
    assert text in encoder.tokenizer.decode(example.input_ids)
    assert '{"a": "<|user|>"}' in encoder.tokenizer.decode(example.input_ids)


def test_combine_trains_the_last_answer_alone_and_all_of_it(demo_tokenizer) -> None:
    encoder = Encoder(demo_tokenizer, family_of("glm"), combine=True)
    assert shown(encoder, [user("a"), assistant("b"), user("c"), call("f", "{}")]) == (
        "[gMASK]<sop><|user|>\na<|assistant|>\nb<|user|>\nc<|assistant|>[[f\n{}<|observation|>]]"
    )


def test_a_cut_answer_gets_no_stop_token(demo_tokenizer) -> None:
    whole = Encoder(demo_tokenizer, family_of("glm")).encode(
        to_conversation({"messages": [user("a"), assistant("b" * 50)]})
    )
    limit = len(whole.input_ids) - 10
    encoder = Encoder(demo_tokenizer, family_of("glm"), max_length_tokens=limit)
    cut = encoder.encode(to_conversation({"messages": [user("a"), assistant("b" * 50)]}))
    assert (cut.input_ids, cut.labels, cut.is_truncated) == (whole.input_ids[:limit], whole.labels[:limit], True)
    assert turns_of(cut.input_ids, cut.labels, is_truncated=True) == []


@pytest.mark.parametrize(
    ("truncation", "limit", "reason"),
    [
        ("right", 5, "no trained token within the limit of 5 tokens (the row has 9)"),
        ("drop", 8, "9 tokens, over the limit of 8"),
        ("error", 8, "9 tokens, over the limit of 8"),
    ],
)
def test_rows_that_do_not_fit_are_refused_with_the_reason(
    demo_tokenizer, truncation: str, limit: int, reason: str
) -> None:
    encoder = Encoder(demo_tokenizer, family_of("glm"), max_length_tokens=limit, truncation=truncation)
    with pytest.raises(RowError) as caught:
        encoder.encode(to_conversation({"messages": [user("a"), assistant("b")]}))
    assert str(caught.value) == reason


def test_ids_and_labels_of_a_conversation_written_by_hand(glm_tokenizer) -> None:
    example = Encoder(glm_tokenizer, family_of("glm")).encode(
        to_conversation({"messages": [user("你好"), assistant("您好")]})
    )
    assert example.input_ids == [151331, 151333, 151336, 198, 109377, 151337, 198, 121658, 151336]
    assert example.labels == [-100] * 6 + [198, 121658, 151336]


CHATML = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nYou help.<|im_end|>\n{% endif %}"
    "{% if tools %}<|im_start|>system\n{% for tool in tools %}{{ tool | tojson }}{% endfor %}<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}"
    "{% for c in m['tool_calls'] or [] %}<call>{{ c['function']['name'] }} "
    "{{ c['function']['arguments'] | tojson }}</call>{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA = (
    "<|begin|>{% for m in messages %}<|start|>{{ m['role'] }}<|end|>\n\n{{ m['content'] | trim }}<|eot|>{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant<|end|>\n\n{% endif %}"
)


def with_template(tokenizer, template: str | None, *tokens: str):
    """Return a copy of the tokenizer with other special tokens and another template."""
    other = copy.deepcopy(tokenizer)
    other.add_special_tokens({"extra_special_tokens": [*tokenizer.all_special_tokens, *tokens]})
    other.chat_template = template
    return other


@pytest.fixture(scope="module")
def chatml(demo_tokenizer) -> Encoder:
    return Encoder(with_template(demo_tokenizer, CHATML, "<|im_start|>", "<|im_end|>"), family_of("qwen3"))


@pytest.fixture(scope="module")
def llama(demo_tokenizer) -> Encoder:
    tokenizer = with_template(demo_tokenizer, LLAMA, "<|begin|>", "<|start|>", "<|end|>", "<|eot|>")
    return Encoder(tokenizer, family_of("llama"))


def test_chatml_trains_the_answer_and_its_end_token_but_not_the_newline_behind(chatml: Encoder) -> None:
    assert shown(chatml, [user("a"), assistant("b"), user("c"), assistant("d")]) == (
        "<|im_start|>system\nYou help.<|im_end|>\n<|im_start|>user\na<|im_end|>\n"
        "<|im_start|>assistant\n[[b<|im_end|>]]\n"
        "<|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\n[[d<|im_end|>]]\n"
    )


def test_templates_with_a_tools_argument_get_openai_calls(chatml: Encoder) -> None:
    text = shown(chatml, [user("a"), call("f", '{"x": 1}'), {"role": "tool", "content": "r"}, assistant("b")],
                 tools=[TOOL])  # fmt: skip
    assert '"name": "query_stock"' in text
    assert '<|im_start|>assistant\n[[<call>f {"x": 1}</call><|im_end|>]]\n' in text


def test_llama_style_turns_train_up_to_the_end_of_turn(llama: Encoder) -> None:
    assert shown(llama, [user("a"), assistant("b")]) == (
        "<|begin|><|start|>user<|end|>\n\na<|eot|><|start|>assistant<|end|>\n\n[[b<|eot|>]]"
    )


@pytest.mark.parametrize(
    ("template", "model_type", "message"),
    [
        (None, "glm", "has no chat template"),
        ("{% for m in messages %}{{ m['content'] }}\n{% endfor %}{% if add_generation_prompt %}A:{% endif %}", "llama",
         "renders an answer differently from the prompt that asks for it"),
        ("{% for m in messages %}{{ m['role'] }}:{{ m['content'] }}\n{% endfor %}"
         "{% if add_generation_prompt %}assistant:{% endif %}", "llama", "writes no end-of-turn token after an answer"),
    ],
)  # fmt: skip
def test_templates_that_cannot_be_trained_on_are_refused(demo_tokenizer, template, model_type, message) -> None:
    with pytest.raises(GlmtuneError, match=message):
        Encoder(with_template(demo_tokenizer, template), family_of(model_type))


def test_a_template_that_changes_a_turn_once_others_follow_refuses_the_row(demo_tokenizer) -> None:
    template = LLAMA.replace(
        "{{ m['content'] | trim }}", "{{ m['content'] }}{{ '?' if loop.last and m['role'] == 'assistant' else '' }}"
    )
    encoder = Encoder(with_template(demo_tokenizer, template, "<|begin|>", "<|start|>", "<|end|>", "<|eot|>"),
                      family_of("llama"))  # fmt: skip
    with pytest.raises(RowError, match=r"renders message 1 differently in place: .* became "):
        encoder.encode(to_conversation({"messages": [user("a"), assistant("b"), user("c"), assistant("d")]}))


def test_a_template_that_shows_no_tools_refuses_a_row_that_offers_some(llama: Encoder) -> None:
    with pytest.raises(RowError, match="the row offers tools, which this model's chat template does not show"):
        llama.encode(to_conversation({"messages": [user("a"), assistant("b")], "tools": [TOOL]}))


def test_a_tokenizer_whose_pieces_do_not_join_is_caught(demo_tokenizer) -> None:
    tokenizer = copy.deepcopy(demo_tokenizer)
    # A control token that swallows the white space behind it: the newline that rule 3 trains is gone.
    tokenizer.add_tokens(
        [AddedToken("<|assistant|>", rstrip=True, special=True, normalized=False)], special_tokens=True
    )
    encoder = Encoder(tokenizer, family_of("glm"))
    with pytest.raises(GlmtuneError, match=r"encoding differs from the tokenizer's own rendering at token 6: .*Ċ"):
        encoder.verify([to_conversation({"messages": [user("a"), assistant("b")]})])


@pytest.mark.parametrize("name", ["encoder", "chatml", "llama"])
def test_the_prompt_of_every_turn_is_a_prefix_of_the_training_ids(name: str, request: pytest.FixtureRequest) -> None:
    encoder: Encoder = request.getfixturevalue(name)
    messages = [user("a"), assistant("\n\nb"), user(" c"), assistant(" d\n"), user("<|user|>"), assistant("e")]
    conversation = to_conversation({"messages": messages})
    example = encoder.encode(conversation)
    turns = turns_of(example.input_ids, example.labels)
    prompts = [
        encoder.encode_prompt(Conversation(messages=conversation.messages[:index]))
        for index, message in enumerate(conversation.messages)
        if message.role == "assistant"
    ]
    assert [turn.prompt_ids for turn in turns] == prompts


# ---- real rows ----


def reference(tokenizer, conversation: Conversation) -> tuple[list[int], list[int]]:
    """GLM-4's rule written anew: each message rendered alone, without the two ids of the repeated prefix."""
    stops = {name: tokenizer.convert_tokens_to_ids(f"<|{name}|>") for name in ("user", "observation")}
    ids = tokenizer.convert_tokens_to_ids(["[gMASK]", "<sop>"])
    trained = [False, False]
    for message in conversation.messages:
        raw = {"role": message.role, "content": message.content}
        if message.metadata:
            raw["metadata"] = message.metadata
        if message.tools:
            raw["tools"] = json.loads(message.tools)
        text = tokenizer.apply_chat_template([raw], tokenize=False).removeprefix("[gMASK]<sop>")
        piece = tokenizer(text, add_special_tokens=False)["input_ids"]
        follows_answer = len(ids) > 2 and trained[-1]
        is_answer = message.role == "assistant"
        ids += piece
        trained += [follows_answer] + [is_answer] * (len(piece) - 1)
    if conversation.messages[-1].role == "assistant":
        ids.append(stops["observation" if conversation.messages[-1].metadata else "user"])
        trained.append(True)
    return ids, [token if flag else IGNORE_INDEX for token, flag in zip(ids, trained)]


def glaive_messages(row: dict) -> dict:
    roles = {"human": "user", "gpt": "assistant", "observation": "tool", "system": "system"}
    messages = []
    for turn in row["conversations"]:
        if turn["from"] == "function_call":
            arguments = json.loads(turn["value"])
            messages.append(call(arguments["name"], json.dumps(arguments["arguments"], ensure_ascii=False)))
        else:
            messages.append({"role": roles[turn["from"]], "content": turn["value"]})
    return {"messages": messages, "tools": row["tools"] or "[]"}


def check_rows(tokenizer, conversations: list[Conversation]) -> None:
    encoder = Encoder(tokenizer, family_of("glm"))
    for conversation, example in zip(conversations, encoder.encode_batch(conversations)):
        assert not isinstance(example, RowError), example
        assert (example.input_ids, example.labels) == reference(tokenizer, conversation)
        if not conversation.messages[-1].metadata:
            plain = encoder.renderer.plain_text(conversation)
            assert example.input_ids[:-1] == tokenizer(plain, add_special_tokens=False)["input_ids"]
        starts = [turn.prompt_ids for turn in turns_of(example.input_ids, example.labels)]
        answers = [index for index, message in enumerate(conversation.messages) if message.role == "assistant"]
        prompts = [encoder.encode_prompt(Conversation(messages=conversation.messages[:index])) for index in answers]
        assert all(start in prompts for start in starts)


@pytest.mark.parametrize("name", ["train", "dev"])
def test_every_row_of_advertisegen_equals_the_rule_written_anew(name: str, glm_tokenizer, shared_data: Path) -> None:
    rows = list(read_rows(shared_data / "AdvertiseGen" / f"{name}.jsonl"))
    assert len(rows) > 1000
    check_rows(glm_tokenizer, [row.conversation() for row in rows])


def test_every_third_glaive_tool_row_equals_the_rule_written_anew(glm_tokenizer, shared_data: Path) -> None:
    rows = json.loads((shared_data / "glaive_toolcall_zh_1k.json").read_text(encoding="utf-8"))[::3]
    check_rows(glm_tokenizer, [to_conversation(glaive_messages(row)) for row in rows])
