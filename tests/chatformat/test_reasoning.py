"""Templates that know reasoning: GLM-4.5's, GLM-4.7's, GLM-Z1's kind, and those that show none."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import pytest
from chat_layouts import CHATML, CHATML_TOKENS, GLM_TOKENS, with_template
from marked_text import marked

from glmtune.chatformat.encoding import Encoder
from glmtune.chatformat.examples import Example, turns_of
from glmtune.chatformat.verification import verify
from glmtune.data.conversation import Conversation, RowError
from glmtune.data.formats import to_conversation
from glmtune.data.reading.row import Reject
from glmtune.encoded.dataset import encode_file
from glmtune.errors import GlmtuneError
from glmtune.family import GENERIC, GLM, GLM_MOE, IGNORE_INDEX, Family

HEAD = """[gMASK]<sop>
{%- if tools %}
    {{- '<|system|>\\n# Tools' }}
    {%- for tool in tools %}
        {{- '\\n' + tool | tojson }}
    {%- endfor %}
{%- endif %}
{%- set last = namespace(question=-1) %}
{%- for m in messages if m.role == 'user' %}
    {%- set last.question = messages.index(m) %}
{%- endfor %}
{%- for m in messages %}
    {%- if m.role == 'system' %}
        {{- '<|system|>' + newline + m.content }}
    {%- elif m.role == 'user' %}
        {{- '<|user|>' + newline + m.content }}
        {{- '/nothink' if slash and enable_thinking is defined and not enable_thinking }}
    {%- elif m.role == 'assistant' %}
        {%- set reasoning = m.reasoning_content or '' %}
        {%- set content = m.content %}
        {%- if not reasoning and '</think>' in content %}
            {%- set reasoning = content.split('</think>')[0].split('<think>')[-1] %}
            {%- set content = content.split('</think>')[-1] %}
        {%- endif %}"""
CALLS = """
        {%- for call in m.tool_calls or [] %}
            {{- newline + '<tool_call>' + call.function.name }}
            {%- for key, value in call.function.arguments.items() %}
                {{- newline + '<arg_key>' + key + '</arg_key>' + newline + '<arg_value>' }}
                {{- (value if value is string else value | tojson) + '</arg_value>' }}
            {%- endfor %}
            {{- newline + '</tool_call>' }}
        {%- endfor %}
    {%- elif m.role == 'tool' %}
        {{- '<|observation|>' if loop.first or messages[loop.index0 - 1].role != 'tool' else '' }}
        {{- newline + '<tool_response>' + m.content + '</tool_response>' }}
    {%- endif %}
{%- endfor %}"""

# Reasoning is shown behind the last question, and an empty block stands in its place before it.
GLM_45 = (
    "{%- set newline, slash = '\\n', true %}"
    + HEAD
    + """
        {{- '<|assistant|>\\n<think>' + (reasoning.strip() if loop.index0 > last.question else '') + '</think>' }}
        {{- '\\n' + content.strip() if content.strip() else '' }}"""
    + CALLS
    + """
{%- if add_generation_prompt %}
    {{- '<|assistant|>' }}
    {{- '\\n<think></think>' if enable_thinking is defined and not enable_thinking else '' }}
{%- endif %}"""
)

# The prompt opens a block of reasoning, and an answer without any closes it at once.
GLM_47 = (
    "{%- set newline, slash = '', false %}"
    + HEAD
    + """
        {%- if reasoning and loop.index0 > last.question %}
            {{- '<|assistant|><think>' + reasoning.strip() + '</think>' }}
        {%- else %}
            {{- '<|assistant|></think>' }}
        {%- endif %}
        {{- content.strip() }}"""
    + CALLS
    + """
{%- if add_generation_prompt %}
    {{- '<|assistant|>' + ('</think>' if enable_thinking is defined and not enable_thinking else '<think>') }}
{%- endif %}"""
)

# The prompt opens a block of reasoning, and no answer shows what was thought.
GLM_Z1 = """[gMASK]<sop>
{%- for m in messages %}
    {%- if m.role == 'assistant' %}
        {{- '<|assistant|>\\n' + m.content.split('</think>')[-1].strip() }}
    {%- else %}
        {{- '<|' + m.role + '|>\\n' + m.content }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|assistant|>\\n<think>' }}
{%- endif %}"""

# As Qwen3's: an empty block for every answer behind the last question, also in the prompt where thinking is off.
QWEN_3 = """
{%- set last = namespace(question=-1) %}
{%- for m in messages if m.role == 'user' %}
    {%- set last.question = messages.index(m) %}
{%- endfor %}
{%- for m in messages %}
    {{- '<|im_start|>' + m.role + '\\n' }}
    {%- if m.role == 'assistant' and loop.index0 > last.question %}
        {{- '<think>\\n' + (m.reasoning_content or '') + '\\n</think>\\n\\n' }}
    {%- endif %}
    {{- m.content + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {{- '<think>\\n\\n</think>\\n\\n' if enable_thinking is defined and not enable_thinking else '' }}
{%- endif %}"""

LAYOUTS: dict[str, tuple[str, tuple[str, ...], Family]] = {
    "4.5": (GLM_45, GLM_TOKENS, GLM_MOE),
    "4.7": (GLM_47, GLM_TOKENS, GLM_MOE),
    "z1": (GLM_Z1, GLM_TOKENS, GLM),
    "qwen3": (QWEN_3, CHATML_TOKENS, GENERIC),
}


@functools.cache
def encoder_of(layout: str, **options: Any) -> Encoder:
    template, control_tokens, family = LAYOUTS[layout]
    return Encoder(with_template(template, control_tokens), family, **options)


def user(content: str) -> dict[str, Any]:
    return {"role": "user", "content": content}


def assistant(content: str | None, reasoning: str = "", **more: Any) -> dict[str, Any]:
    thought = {"reasoning_content": reasoning} if reasoning else {}
    return {"role": "assistant", "content": content, **thought, **more}


def call(name: str, arguments: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "arguments": arguments}}


TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
TOOLS_TEXT = '{"type": "function", "function": {"name": "f", "parameters": {}}}'
PLAIN = [user("hello"), assistant("A1")]
PLAIN_TURNS = [*PLAIN, user("well"), assistant("A2")]
REASONED = [user("hello"), assistant("A1", "R1")]
INSIDE = [user("hello"), assistant("<think>R1</think>A1")]
REASONED_TURNS = [*REASONED, user("well"), assistant("A2", "R2")]
EARLIER = [*REASONED, user("well"), assistant("A2")]
TOOL_TURN = [
    user("hello"),
    assistant(None, "R1", tool_calls=[call("f", {"k": "v"}), call("f", {"n": 1})]),
    {"role": "tool", "content": "O1"},
    {"role": "tool", "content": "O2"},
    assistant("A1", "R2"),
]

Z = "[gMASK]<sop><|user|>\nhello<|assistant|>"

# layout and messages; of every conversation that they unfold to, the marked text; and without training on reasoning
REASONING: dict[str, tuple[str, list[dict[str, Any]], list[str], list[str]]] = {
    "4.5: plain": (
        "4.5",
        PLAIN_TURNS,
        ["[gMASK]<sop><|user|>\nhello<|assistant|>«\n<think></think>\nA1<|user|>»\nwell<|assistant|>"
         "«\n<think></think>\nA2<|user|>»"],
        [],
    ),
    "4.5: reasoned": (
        "4.5",
        REASONED,
        [Z + "«\n<think>R1</think>\nA1<|user|>»"],
        [Z + "\n<think>R1</think>\n«A1<|user|>»"],
    ),
    "4.5: reasoned, inside the content": (
        "4.5",
        INSIDE,
        [Z + "«\n<think>R1</think>\nA1<|user|>»"],
        [Z + "\n<think>R1</think>\n«A1<|user|>»"],
    ),
    "4.5: two questions": (
        "4.5",
        REASONED_TURNS,
        [
            Z + "«\n<think>R1</think>\nA1<|user|>»",
            Z + "\n<think></think>\nA1<|user|>\nwell<|assistant|>«\n<think>R2</think>\nA2<|user|>»",
        ],
        [
            Z + "\n<think>R1</think>\n«A1<|user|>»",
            Z + "\n<think></think>\nA1<|user|>\nwell<|assistant|>\n<think>R2</think>\n«A2<|user|>»",
        ],
    ),
    "4.5: reasoned before the last question alone": (
        "4.5",
        EARLIER,
        [
            Z + "«\n<think>R1</think>\nA1<|user|>»",
            Z + "\n<think></think>\nA1<|user|>\nwell<|assistant|>«\n<think></think>\nA2<|user|>»",
        ],
        [
            Z + "\n<think>R1</think>\n«A1<|user|>»",
            Z + "\n<think></think>\nA1<|user|>\nwell<|assistant|>«\n<think></think>\nA2<|user|>»",
        ],
    ),
    "4.5: reasoned behind the last question alone": (
        "4.5",
        [*PLAIN, user("well"), assistant("A2", "R2")],
        [Z + "«\n<think></think>\nA1<|user|>»\nwell<|assistant|>«\n<think>R2</think>\nA2<|user|>»"],
        [Z + "«\n<think></think>\nA1<|user|>»\nwell<|assistant|>\n<think>R2</think>\n«A2<|user|>»"],
    ),
    "4.5: calls and their results": (
        "4.5",
        TOOL_TURN,
        [
            f"[gMASK]<sop><|system|>\n# Tools\n{TOOLS_TEXT}<|user|>\nhello<|assistant|>«\n<think>R1</think>"
            "\n<tool_call>f\n<arg_key>k</arg_key>\n<arg_value>v</arg_value>\n</tool_call>"
            "\n<tool_call>f\n<arg_key>n</arg_key>\n<arg_value>1</arg_value>\n</tool_call><|observation|>»"
            "\n<tool_response>O1</tool_response>\n<tool_response>O2</tool_response><|assistant|>"
            "«\n<think>R2</think>\nA1<|user|>»"
        ],
        [
            f"[gMASK]<sop><|system|>\n# Tools\n{TOOLS_TEXT}<|user|>\nhello<|assistant|>\n<think>R1</think>\n"
            "«<tool_call>f\n<arg_key>k</arg_key>\n<arg_value>v</arg_value>\n</tool_call>"
            "\n<tool_call>f\n<arg_key>n</arg_key>\n<arg_value>1</arg_value>\n</tool_call><|observation|>»"
            "\n<tool_response>O1</tool_response>\n<tool_response>O2</tool_response><|assistant|>"
            "\n<think>R2</think>\n«A1<|user|>»"
        ],
    ),
    "4.5: a text and a call": (
        "4.5",
        [user("hello"), assistant("T", "R1", tool_calls=[call("f", {})])],
        [f"[gMASK]<sop><|system|>\n# Tools\n{TOOLS_TEXT}<|user|>\nhello<|assistant|>«\n<think>R1</think>\nT"
         "\n<tool_call>f\n</tool_call><|observation|>»"],
        [f"[gMASK]<sop><|system|>\n# Tools\n{TOOLS_TEXT}<|user|>\nhello<|assistant|>\n<think>R1</think>\n«T"
         "\n<tool_call>f\n</tool_call><|observation|>»"],
    ),
    "4.5: reasoning that is a part of its tag": (
        "4.5",
        [user("hello"), assistant("A1", "think")],
        [Z + "«\n<think>think</think>\nA1<|user|>»"],
        [Z + "\n<think>think</think>\n«A1<|user|>»"],
    ),
    "4.7: plain": (
        "4.7",
        PLAIN_TURNS,
        ["[gMASK]<sop><|user|>hello<|assistant|></think>«A1<|user|>»well<|assistant|></think>«A2<|user|>»"],
        [],
    ),
    "4.7: reasoned": (
        "4.7",
        REASONED,
        ["[gMASK]<sop><|user|>hello<|assistant|><think>«R1</think>A1<|user|>»"],
        ["[gMASK]<sop><|user|>hello<|assistant|><think>R1</think>«A1<|user|>»"],
    ),
    "4.7: two questions": (
        "4.7",
        REASONED_TURNS,
        [
            "[gMASK]<sop><|user|>hello<|assistant|><think>«R1</think>A1<|user|>»",
            "[gMASK]<sop><|user|>hello<|assistant|></think>A1<|user|>well<|assistant|><think>«R2</think>A2<|user|>»",
        ],
        [
            "[gMASK]<sop><|user|>hello<|assistant|><think>R1</think>«A1<|user|>»",
            "[gMASK]<sop><|user|>hello<|assistant|></think>A1<|user|>well<|assistant|><think>R2</think>«A2<|user|>»",
        ],
    ),
    "4.7: calls and their results": (
        "4.7",
        TOOL_TURN,
        [
            f"[gMASK]<sop><|system|>\n# Tools\n{TOOLS_TEXT}<|user|>hello<|assistant|><think>«R1</think>"
            "<tool_call>f<arg_key>k</arg_key><arg_value>v</arg_value></tool_call>"
            "<tool_call>f<arg_key>n</arg_key><arg_value>1</arg_value></tool_call><|observation|>»"
            "<tool_response>O1</tool_response><tool_response>O2</tool_response><|assistant|>"
            "<think>«R2</think>A1<|user|>»"
        ],
        [],
    ),
    "z1: plain": (
        "z1",
        PLAIN,
        [Z + "\n<think>«\n\n</think>\n\nA1<|user|>»"],
        [Z + "\n<think>\n\n</think>\n\n«A1<|user|>»"],
    ),
    "z1: reasoned": (
        "z1",
        REASONED,
        [Z + "\n<think>«\nR1\n</think>\n\nA1<|user|>»"],
        [Z + "\n<think>\nR1\n</think>\n\n«A1<|user|>»"],
    ),
    "z1: reasoned, inside the content": (
        "z1",
        [user("hello"), assistant("<think>\nR1\n\n\n!\n</think>\n\nA1")],
        [Z + "\n<think>«\nR1\n\n\n!\n</think>\n\nA1<|user|>»"],
        [Z + "\n<think>\nR1\n\n\n!\n</think>«\n\nA1<|user|>»"],
    ),
    "z1: empty lines inside the reasoning": (
        "z1",
        [user("hello"), assistant("A1", "R1\n\n\n\nR2")],
        [Z + "\n<think>«\nR1\n\n\n\nR2\n</think>\n\nA1<|user|>»"],
        [],
    ),
    "z1: two questions": (
        "z1",
        REASONED_TURNS,
        [
            Z + "\n<think>«\nR1\n</think>\n\nA1<|user|>»",
            Z + "\nA1<|user|>\nwell<|assistant|>\n<think>«\nR2\n</think>\n\nA2<|user|>»",
        ],
        [
            Z + "\n<think>\nR1\n</think>\n\n«A1<|user|>»",
            Z + "\nA1<|user|>\nwell<|assistant|>\n<think>\nR2\n</think>\n\n«A2<|user|>»",
        ],
    ),
    "qwen3: reasoned": (
        "qwen3",
        REASONED,
        ["<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n«<think>\nR1\n</think>\n\nA1<|im_end|>»\n"],
        ["<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n<think>\nR1\n</think>\n\n«A1<|im_end|>»\n"],
    ),
    "qwen3: plain": (
        "qwen3",
        PLAIN,
        ["<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n«A1<|im_end|>»\n"],
        [],
    ),
}  # fmt: skip


def row_of(name: str) -> Conversation:
    messages = REASONING[name][1]
    return to_conversation({"messages": messages, "tools": TOOLS if "call" in name else None})


def encodings(encoder: Encoder, row: Conversation) -> list[tuple[list[int], list[int]]]:
    return [(example.input_ids, example.labels) for example in map(encoder.encode, encoder.unfold(row))]


@pytest.mark.parametrize("name", REASONING)
def test_each_question_is_trained_in_the_context_in_which_inference_shows_it(name: str) -> None:
    layout, _, expected, _ = REASONING[name]
    encoder = encoder_of(layout)
    assert encodings(encoder, row_of(name)) == [marked(encoder.tokenizer, text) for text in expected]


@pytest.mark.parametrize("name", REASONING)
def test_reasoning_and_the_tag_that_closes_it_can_be_left_untrained(name: str) -> None:
    layout, _, expected, without = REASONING[name]
    encoder = encoder_of(layout, train_reasoning=False)
    results = encodings(encoder, row_of(name))
    if without:
        assert results == [marked(encoder.tokenizer, text) for text in without]
    assert [ids for ids, _ in results] == [marked(encoder.tokenizer, text)[0] for text in expected]


@pytest.mark.parametrize("train_reasoning", [True, False])
@pytest.mark.parametrize("name", REASONING)
def test_rows_with_reasoning_pass_the_check(name: str, train_reasoning: bool) -> None:
    encoder = encoder_of(REASONING[name][0], train_reasoning=train_reasoning)
    rows = encoder.unfold(row_of(name))
    verify(encoder, rows)
    assert all(isinstance(result, Example) for result in encoder.encode_whole(rows))


@pytest.mark.parametrize("name", REASONING)
def test_the_prompt_of_every_trained_turn_is_a_prefix_of_what_training_saw(name: str) -> None:
    encoder = encoder_of(REASONING[name][0])
    modes = (None, False)[: len(encoder.renderer.facts.generation_prompts)]
    for part in encoder.unfold(row_of(name)):
        example = encoder.encode(part)
        starts = {len(turn.prompt_ids) for turn in turns_of(example.input_ids, example.labels)}
        found = set()
        for index, message in enumerate(part.messages):
            if message.role == "assistant" and message.loss != 0 and part.messages[index - 1].role != "assistant":
                context = Conversation(messages=part.messages[:index])
                prompts = [encoder.encode_prompt(context, thinking=thinking) for thinking in modes]
                found |= {len(prompt) for prompt in prompts if example.input_ids[: len(prompt)] == prompt} & starts
        assert found == starts


@pytest.mark.parametrize(
    ("layout", "thinking", "expected"),
    [
        ("4.5", None, "[gMASK]<sop><|user|>\nhello<|assistant|>\n<think></think>\nA1<|user|>\nwell<|assistant|>"),
        ("4.5", True, "[gMASK]<sop><|user|>\nhello<|assistant|>\n<think></think>\nA1<|user|>\nwell<|assistant|>"),
        (
            "4.5",
            False,
            "[gMASK]<sop><|user|>\nhello/nothink<|assistant|>\n<think></think>\nA1<|user|>\nwell/nothink"
            "<|assistant|>\n<think></think>",
        ),
        ("4.7", None, "[gMASK]<sop><|user|>hello<|assistant|></think>A1<|user|>well<|assistant|><think>"),
        ("4.7", False, "[gMASK]<sop><|user|>hello<|assistant|></think>A1<|user|>well<|assistant|></think>"),
        ("z1", None, "[gMASK]<sop><|user|>\nhello<|assistant|>\nA1<|user|>\nwell<|assistant|>\n<think>"),
        ("z1", False, "[gMASK]<sop><|user|>\nhello<|assistant|>\nA1<|user|>\nwell<|assistant|>\n<think>"),
    ],
)
def test_a_prompt_is_the_templates_own_with_thinking_on_or_off(
    layout: str, thinking: bool | None, expected: str
) -> None:
    encoder = encoder_of(layout)
    prompt = encoder.encode_prompt(to_conversation({"messages": [*PLAIN, user("well")]}), thinking=thinking)
    assert prompt == marked(encoder.tokenizer, expected)[0]


# Which of the unfolded conversations there are.


def unfolded(layout: str, messages: list[dict[str, Any]], **options: Any) -> list[str]:
    """Return the trained text of each."""
    encoder = encoder_of(layout, **options)
    texts = []
    for part in encoder.unfold(to_conversation({"messages": messages})):
        example = encoder.encode(part)
        trained = [token for token in example.labels if token != IGNORE_INDEX]
        texts.append(encoder.tokenizer.decode(trained))
    return texts


def flagged(*losses: Any) -> list[dict[str, Any]]:
    """Return questions whose answers have reasoning, and a `loss` where one is given."""
    messages: list[dict[str, Any]] = []
    for number, loss in enumerate(losses, start=1):
        messages += [
            user(f"Q{number}"),
            assistant(f"A{number}", f"R{number}", **({} if loss is None else {"loss": loss})),
        ]
    return messages


FLAGS = {
    "all": ("all", (None, None, None), [1, 2, 3]),
    "the first untrained": ("all", (False, None, None), [2, 3]),
    "the middle one untrained": ("all", (None, False, None), [1, 3]),
    "the last untrained": ("all", (None, None, False), [1, 2]),
    "one flagged": ("none-but-flagged", (None, True, None), [2]),
    "last": ("last", (None, None, None), [3]),
}


@pytest.mark.parametrize("name", FLAGS)
def test_only_questions_with_a_trained_answer_are_unfolded(name: str) -> None:
    train_on, losses, numbers = FLAGS[name]
    assert unfolded("z1", flagged(*losses), train_on=train_on) == [
        f"\nR{number}\n</think>\n\nA{number}<|user|>" for number in numbers
    ]
    assert unfolded("4.5", flagged(*losses), train_on=train_on) == [
        f"\n<think>R{number}</think>\nA{number}<|user|>" for number in numbers
    ]


@pytest.mark.parametrize("layout", ["4.5", "4.7", "z1", "qwen3"])
def test_a_row_without_a_trained_answer_stays_one_row_that_is_refused(layout: str) -> None:
    encoder = encoder_of(layout)
    [part] = encoder.unfold(to_conversation({"messages": flagged(False, 0)}))
    with pytest.raises(RowError, match=r"^no message is trained: "):
        encoder.encode(part)


def test_a_conversation_without_reasoning_stays_whole() -> None:
    row = to_conversation({"messages": PLAIN_TURNS})
    for layout in ("4.5", "4.7"):
        assert encoder_of(layout).unfold(row) == [row]


def test_drop_turns_leaves_out_what_stands_before_the_question_of_an_unfolded_row() -> None:
    for layout in ("4.5", "z1"):
        whole = encoder_of(layout)
        *_, last = whole.unfold(to_conversation({"messages": flagged(None, None, None)}))
        alone = whole.encode(to_conversation({"messages": [user("Q3"), assistant("A3", "R3")]}))
        encoder = encoder_of(layout, max_length_tokens=len(alone.input_ids), truncation="drop_turns")
        example = encoder.encode(last)
        assert (example.input_ids, example.labels) == (alone.input_ids, alone.labels)
        assert example.num_turns_left_out == 2


@pytest.mark.parametrize("layout", ["4.5", "z1"])
def test_the_conversations_of_one_row_have_its_place_and_its_digest(layout: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    rows = [{"messages": flagged(None, False, None)}, {"messages": flagged(False, 0)}, {"messages": flagged(None)}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    data = encode_file(path, encoder_of(layout))
    assert data.dataset["where"][:] == [f"{path}:1", f"{path}:1", f"{path}:3"]
    first, again, other = data.numbers("digest").tolist()
    assert first == again != other
    reason = "no message is trained: `train_on: all` finds none without a `loss` of 0"
    assert data.rejects == (Reject(where=f"{path}:2", reason=reason),)


# What a template has no place for.


def refusal(encoder: Encoder, messages: list[dict[str, Any]], **more: Any) -> str:
    with pytest.raises(RowError) as caught:
        encoder.encode(to_conversation({"messages": messages, **more}))
    return str(caught.value)


def test_reasoning_that_the_template_does_not_show_refuses_the_row() -> None:
    encoder = Encoder(with_template(CHATML, CHATML_TOKENS), GENERIC)
    reason = "message 1 is an answer with reasoning, which this model's chat template does not show"
    assert refusal(encoder, REASONED) == reason
    assert refusal(encoder, [*REASONED, *PLAIN]) == reason


def test_reasoning_inside_the_content_is_text_where_the_template_does_not_know_it() -> None:
    text = "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n«<think>R1</think>A1<|im_end|>»\n"
    for train_reasoning in (True, False):
        encoder = Encoder(with_template(CHATML, CHATML_TOKENS), GENERIC, train_reasoning=train_reasoning)
        example = encoder.encode(to_conversation({"messages": INSIDE}))
        expected = text if train_reasoning else text.replace("«<think>R1</think>", "<think>R1</think>«")
        assert (example.input_ids, example.labels) == marked(encoder.tokenizer, expected)


def test_a_call_refuses_the_row_where_every_prompt_opens_a_block_of_reasoning() -> None:
    template = GLM_Z1.replace("m.content.split", "m.get('metadata', '') + m.content.split")
    encoder = Encoder(with_template(template, GLM_TOKENS), GLM)
    assert refusal(encoder, [user("hello"), {"role": "assistant", "content": "{}", "metadata": "f"}]) == (
        "message 1 is a tool call, for which this chat template's prompt leaves no place"
    )


def test_control_tokens_in_reasoning_stay_text() -> None:
    for layout in ("4.5", "4.7", "z1", "qwen3"):
        encoder = encoder_of(layout)
        for token in LAYOUTS[layout][1]:
            messages = [user("hello"), assistant("A1", f"R{token}")]
            plain = encoder.encode(to_conversation({"messages": REASONED}))
            example = encoder.encode(to_conversation({"messages": messages}))
            token_id = encoder.tokenizer.convert_tokens_to_ids(token)
            assert example.input_ids.count(token_id) == plain.input_ids.count(token_id), (layout, token)
            assert f"R{token}" in encoder.tokenizer.decode(example.input_ids)


def test_control_tokens_in_reasoning_can_be_left_untrained() -> None:
    encoder = encoder_of("4.5", train_reasoning=False)
    messages = [user("hello"), assistant("A1", "<|user|>R")]
    example = encoder.encode(to_conversation({"messages": messages}))
    trained = [token for token in example.labels if token != IGNORE_INDEX]
    assert encoder.tokenizer.decode(trained) == "A1<|user|>"


def test_a_prompt_that_opens_something_else_is_refused() -> None:
    template = GLM_Z1.replace("<|assistant|>\\n<think>", "<|assistant|>\\n<plan>")
    with pytest.raises(GlmtuneError, match=r"^the chat template renders an answer differently from the prompt"):
        Encoder(with_template(template, GLM_TOKENS), GLM)
