"""Which messages are trained and how much each counts: `train_on`, `loss`, the length limit, plain text."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from chat_layouts import encoder_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from marked_text import Plain, marked

from glmtune.chatformat.encoding import Encoder
from glmtune.chatformat.verification import verify
from glmtune.data.conversation import TEXT, Conversation, Message, RowError
from glmtune.data.formats import to_conversation
from glmtune.family import GLM, IGNORE_INDEX

TOOLS = '[{"type": "function", "function": {"name": "f"}}]'


def messages(*texts: str | tuple[str, Any]) -> list[dict[str, Any]]:
    """Return questions and answers in turn; an answer may be a pair of its text and its `loss`."""
    return [
        {"role": "assistant" if index % 2 else "user", "content": text}
        if isinstance(text, str)
        else {"role": "assistant" if index % 2 else "user", "content": text[0], "loss": text[1]}
        for index, text in enumerate(texts)
    ]


def conversation(*texts: str | tuple[str, Any]) -> Conversation:
    return to_conversation({"messages": messages(*texts)})


def weighted(encoder: Encoder, *parts: tuple[str, float]) -> tuple[list[int], list[int], list[float]]:
    """Return the ids, labels and weights of text with a weight for every part."""
    ids: list[int] = []
    weights: list[float] = []
    for text, weight in parts:
        piece = encoder.tokenizer(text, add_special_tokens=False)["input_ids"]
        ids += piece
        weights += [weight] * len(piece)
    return ids, [id if weight else IGNORE_INDEX for id, weight in zip(ids, weights)], weights


HEAD = "[gMASK]<sop><|user|>\nA<|assistant|>"

# train_on, the `loss` of three answers (None: none given), the expected text
TRAIN_ON: dict[str, tuple[str, tuple[Any, Any, Any], str]] = {
    "all": ("all", (None, None, None), "«\nB<|user|>»\nC<|assistant|>«\nD<|user|>»\nE<|assistant|>«\nF<|user|>»"),
    "all but one": (
        "all",
        (None, False, None),
        "«\nB<|user|>»\nC<|assistant|>\nD<|user|>\nE<|assistant|>«\nF<|user|>»",
    ),
    "all, one flagged": (
        "all",
        (None, True, None),
        "«\nB<|user|>»\nC<|assistant|>«\nD<|user|>»\nE<|assistant|>«\nF<|user|>»",
    ),
    "all, weights of 0 and 1": (
        "all",
        (0, 1, 0.0),
        "\nB<|user|>\nC<|assistant|>«\nD<|user|>»\nE<|assistant|>\nF<|user|>",
    ),
    "last": ("last", (None, None, None), "\nB<|user|>\nC<|assistant|>\nD<|user|>\nE<|assistant|>«\nF<|user|>»"),
    "last, an earlier one flagged": (
        "last",
        (True, True, None),
        "\nB<|user|>\nC<|assistant|>\nD<|user|>\nE<|assistant|>«\nF<|user|>»",
    ),
    "flagged alone": (
        "none-but-flagged",
        (True, None, False),
        "«\nB<|user|>»\nC<|assistant|>\nD<|user|>\nE<|assistant|>\nF<|user|>",
    ),
    "the last flagged": (
        "none-but-flagged",
        (None, None, 1),
        "\nB<|user|>\nC<|assistant|>\nD<|user|>\nE<|assistant|>«\nF<|user|>»",
    ),
}


@pytest.mark.parametrize("name", TRAIN_ON)
def test_train_on_and_the_flags_of_messages_say_what_is_trained(name: str, demo_tokenizer) -> None:
    train_on, (first, second, third), expected = TRAIN_ON[name]
    encoder = Encoder(demo_tokenizer, GLM, train_on=train_on)
    example = encoder.encode(conversation("A", ("B", first), "C", ("D", second), "E", ("F", third)))
    ids, labels = marked(demo_tokenizer, HEAD + expected)
    # A row that does not end with a trained answer has no stop token appended.
    if not expected.endswith("»"):
        ids, labels = ids[:-1], labels[:-1]
    assert (example.input_ids, example.labels, example.weights) == (ids, labels, None)


@pytest.mark.parametrize(
    ("train_on", "losses", "reason"),
    [
        ("all", (False, 0), "no message is trained: `train_on: all` finds none without a `loss` of 0"),
        ("last", (True, False), "no message is trained: `train_on: last` finds none without a `loss` of 0"),
        (
            "none-but-flagged",
            (None, False),
            "no message is trained: `train_on: none-but-flagged` finds none with a `loss` above 0",
        ),
    ],
)
def test_a_row_without_a_trained_message_is_refused(
    train_on: str, losses: tuple[Any, Any], reason: str, demo_tokenizer
) -> None:
    encoder = Encoder(demo_tokenizer, GLM, train_on=train_on)
    with pytest.raises(RowError) as caught:
        encoder.encode(conversation("A", ("B", losses[0]), "C", ("D", losses[1])))
    assert str(caught.value) == reason


def test_the_weight_of_a_message_is_that_of_its_tokens_and_of_its_stop(demo_tokenizer) -> None:
    encoder = Encoder(demo_tokenizer, GLM)
    example = encoder.encode(conversation("A", ("B", 0.25), "C", "D", "E", ("F", 2)))
    expected = weighted(
        encoder,
        (HEAD, 0), ("\nB<|user|>", 0.25), ("\nC<|assistant|>", 0), ("\nD<|user|>", 1), ("\nE<|assistant|>", 0),
        ("\nF<|user|>", 2),
    )  # fmt: skip
    assert (example.input_ids, example.labels, example.weights) == expected


def test_weights_change_no_id_and_no_label() -> None:
    for layout in ("chatml", "qwen", "llama", "glm-0414", "glm-4.5"):
        plain = encoder_of(layout).encode(conversation("A", "B", "C", "D"))
        example = encoder_of(layout).encode(conversation("A", ("B", 0.5), "C", ("D", 3)))
        assert replace(example, weights=None) == plain
        assert example.weights is not None
        assert [weight > 0 for weight in example.weights] == [label != IGNORE_INDEX for label in example.labels]
        assert {0.0, 0.5, 3.0} == set(example.weights)


def test_the_quick_way_gives_the_weights_of_each_row_and_not_of_its_shape(demo_tokenizer) -> None:
    encoder = Encoder(demo_tokenizer, GLM)
    rows = [conversation("A", ("B", loss)) for loss in (0.5, 1, 2, 0.5, None)]
    weights = [result.weights and max(result.weights) for result in encoder.encode_batch(rows)]
    assert weights == [0.5, None, 2.0, 0.5, None]


def test_a_text_and_the_call_of_its_message_share_its_weight_and_are_one_last_turn(demo_tokenizer) -> None:
    call = {"function": {"name": "f", "arguments": {}}}
    row = to_conversation(
        {
            "messages": [
                *messages("A", "B", "C"),
                {"role": "assistant", "content": "D", "tool_calls": [call], "loss": 0.5},
            ]
        }
    )
    encoder = Encoder(demo_tokenizer, GLM, train_on="last")
    example = encoder.encode(row)
    assert (example.input_ids, example.labels, example.weights) == weighted(
        encoder, (HEAD + "\nB<|user|>\nC<|assistant|>", 0), ("\nD<|assistant|>f\n{}<|observation|>", 0.5)
    )


@pytest.mark.parametrize("layout", ["glm-0414", "glm-4.5"])
def test_an_untrained_answer_right_behind_a_trained_one_refuses_the_row(layout: str) -> None:
    """The role token behind the trained one would be `<|assistant|>`, which ends nothing."""
    pair = [{"role": "assistant", "content": "B"}, {"role": "assistant", "content": "D", "loss": False}]
    row = to_conversation({"messages": [*messages("A"), *pair]})
    with pytest.raises(RowError) as caught:
        encoder_of(layout).encode(row)
    assert str(caught.value) == "a trained answer ends with ['<|assistant|>'], which is no stop token"


def test_an_untrained_answer_right_behind_a_trained_one_is_fine_where_the_template_writes_the_stop() -> None:
    pair = [{"role": "assistant", "content": "B"}, {"role": "assistant", "content": "D", "loss": False}]
    encoder = encoder_of("chatml")
    row = to_conversation({"messages": [*messages("A"), *pair]})
    example = encoder.encode(row)
    assert (example.input_ids, example.labels) == marked(
        encoder.tokenizer,
        "<|im_start|>user\nA<|im_end|>\n<|im_start|>assistant\n«B<|im_end|>»\n<|im_start|>assistant\nD<|im_end|>\n",
    )
    verify(encoder, [row])


# The length limit.


def limited(encoder: Encoder, limit: int, truncation: str, **more: Any) -> Encoder:
    options = encoder.settings() | {"max_length_tokens": limit, "truncation": truncation} | more
    return Encoder(encoder.tokenizer, encoder.family, **options)


CALLS = [
    {"role": "system", "content": "S", "tools": TOOLS},
    *messages("A"),
    {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": {}}}]},
    {"role": "tool", "content": "O"},
    {"role": "assistant", "content": "B"},
    *messages("C", "D"),
    {"role": "user", "content": "E"},
    {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": {}}}]},
    {"role": "tool", "content": "O"},
    {"role": "assistant", "content": "F"},
]
CALLS_STARTS = (1, 5, 7)
"""Of the three turns of `CALLS`."""


@pytest.mark.parametrize("train_on", ["all", "last", "none-but-flagged"])
def test_drop_turns_leaves_out_as_few_whole_turns_as_possible(train_on: str, demo_tokenizer) -> None:
    rows = [{**message, "loss": True} if message["role"] == "assistant" else message for message in CALLS]
    whole = Encoder(demo_tokenizer, GLM, train_on=train_on)
    first, second, third = CALLS_STARTS
    shorter = [rows[:third], rows[:second]]
    if train_on == "last":
        shorter = [rows[:first] + rows[second:], rows[:first] + rows[third:]]
    length = len(whole.encode(to_conversation({"messages": rows})).input_ids)
    expected = {length: (rows, 0)} | {
        len(whole.encode(to_conversation({"messages": kept})).input_ids): (kept, number)
        for number, kept in enumerate(shorter, start=1)
    }
    assert len(expected) == 3
    for limit in range(min(expected), length + 2):
        kept, number = expected[max(size for size in expected if size <= limit)]
        example = limited(whole, limit, "drop_turns").encode(to_conversation({"messages": rows}))
        alone = whole.encode(to_conversation({"messages": kept}))
        assert (example.input_ids, example.labels) == (alone.input_ids, alone.labels)
        assert (example.num_turns_left_out, example.num_tokens_left_out) == (number, length - len(alone.input_ids))
        assert not example.is_truncated
    limit = min(expected) - 1
    with pytest.raises(RowError, match=f"^{length} tokens, and not even one turn is within the limit of {limit}$"):
        limited(whole, limit, "drop_turns").encode(to_conversation({"messages": rows}))


def test_drop_turns_leaves_out_the_first_where_only_the_last_turn_is_trained(demo_tokenizer) -> None:
    encoder = Encoder(demo_tokenizer, GLM)
    row = conversation("A", ("B", False), "C", ("D", False), "E", "F")
    last_alone = encoder.encode(conversation("E", "F"))
    assert replace(
        limited(encoder, len(last_alone.input_ids), "drop_turns").encode(row),
        num_turns_left_out=0, num_tokens_left_out=0,
    ) == last_alone  # fmt: skip


def test_drop_turns_refuses_a_row_whose_trained_turns_are_too_far_back(demo_tokenizer) -> None:
    encoder = limited(Encoder(demo_tokenizer, GLM), 12, "drop_turns")
    with pytest.raises(RowError) as caught:
        encoder.encode(conversation("A", ("B", False), "C", "D", "E", "F"))
    assert str(caught.value) == (
        "21 tokens, over the limit; without 2 of its turns: "
        "no message is trained: `train_on: all` finds none without a `loss` of 0"
    )


def test_a_single_turn_that_is_too_long_is_refused_by_drop_turns(demo_tokenizer) -> None:
    with pytest.raises(RowError, match=r"^9 tokens, and not even one turn is within the limit of 8$"):
        limited(Encoder(demo_tokenizer, GLM), 8, "drop_turns").encode(conversation("A", "B"))


def test_a_cut_row_keeps_the_weights_of_what_is_left(demo_tokenizer) -> None:
    encoder = Encoder(demo_tokenizer, GLM)
    row = conversation("A", ("B", 0.5), "C", ("D", 2))
    whole = encoder.encode(row)
    cut = limited(encoder, len(whole.input_ids) - 1, "right").encode(row)
    assert whole.weights is not None
    assert (cut.input_ids, cut.labels, cut.weights) == (whole.input_ids[:-1], whole.labels[:-1], whole.weights[:-1])


texts = st.text(alphabet="AB 你\n", min_size=1, max_size=8)
losses = st.sampled_from([None, None, None, False, True, 0.5])


@st.composite
def conversations(draw: st.DrawFn) -> Conversation:
    rows: list[Message] = []
    if draw(st.booleans()):
        rows.append(Message(role="system", content=draw(texts), tools=TOOLS if draw(st.booleans()) else None))
    for _ in range(draw(st.integers(1, 4))):
        rows.append(Message(role="user", content=draw(texts)))
        if draw(st.booleans()):
            rows.append(Message(role="assistant", content="{}", metadata="f", loss=draw(losses)))
            rows.append(Message(role="observation", content=draw(texts)))
        rows.append(Message(role="assistant", content=draw(texts), loss=draw(losses)))
    return Conversation(messages=tuple(rows))


def turn_starts(row: Conversation) -> list[int]:
    return [index for index, message in enumerate(row.messages) if message.role == "user"]


@settings(
    max_examples=100, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    row=conversations(),
    limit=st.integers(1, 120),
    truncation=st.sampled_from(["right", "drop", "drop_turns", "error"]),
    train_on=st.sampled_from(["all", "last", "none-but-flagged"]),
)
def test_no_row_is_over_the_limit_and_no_stop_stands_behind_a_cut_answer(
    row: Conversation, limit: int, truncation: str, train_on: str, whole_encoders: dict[str, Encoder]
) -> None:
    whole_encoder = whole_encoders[train_on]
    [whole] = whole_encoder.encode_batch([row])
    [result] = limited(whole_encoder, limit, truncation, use_skeletons=False).encode_batch([row])
    if isinstance(whole, RowError):
        assert str(result) == str(whole)
        return
    if isinstance(result, RowError):
        assert len(whole.input_ids) > limit
        return
    assert len(result.input_ids) <= limit
    assert any(label != IGNORE_INDEX for label in result.labels)
    if truncation in ("right", "drop", "error"):
        # What is left is the row as it was: whatever stop token it holds stands behind a whole answer.
        size = len(result.input_ids)
        assert result.input_ids == whole.input_ids[:size]
        assert result.labels == whole.labels[:size]
        assert result.is_truncated == (size < len(whole.input_ids))
        assert not result.is_truncated or truncation == "right"
    else:
        first = turn_starts(row)[0]
        cuts = [row.messages[:start] for start in [*turn_starts(row)[1:], len(row.messages)]]
        cuts += [row.messages[:first] + row.messages[start:] for start in turn_starts(row)]
        shorter = whole_encoder.encode_batch([Conversation(messages=kept) for kept in cuts])
        alone = replace(result, num_turns_left_out=0, num_tokens_left_out=0)
        assert alone in shorter


@pytest.fixture(scope="module")
def whole_encoders(demo_tokenizer) -> dict[str, Encoder]:
    return {name: Encoder(demo_tokenizer, GLM, train_on=name) for name in ("all", "last", "none-but-flagged")}


# Text without roles.


def text(content: str, loss: float | None = None) -> Message:
    return Message(role=TEXT, content=content, loss=loss)


def test_plain_text_stands_behind_the_prefix_tokens_and_ends_with_the_end_token(glm_tokenizer) -> None:
    encoder = Encoder(glm_tokenizer, GLM)
    example = encoder.encode(to_conversation({"prompt": "你好", "response": "您好"}))
    assert (example.input_ids, example.labels) == marked(glm_tokenizer, "[gMASK]<sop>你好«您好<|endoftext|>»")
    example = encoder.encode(to_conversation({"text": "你好"}))
    assert (example.input_ids, example.labels) == marked(glm_tokenizer, "[gMASK]<sop>«你好<|endoftext|>»")


def test_the_weight_of_plain_text_is_that_of_its_end_token_too(demo_tokenizer) -> None:
    encoder = Encoder(demo_tokenizer, GLM)
    example = encoder.encode(Conversation(messages=(text("A", 0.0), text("B", 0.5))))
    start = demo_tokenizer("")["input_ids"]
    end = demo_tokenizer.eos_token_id
    [a], [b] = (demo_tokenizer(letter, add_special_tokens=False)["input_ids"] for letter in "AB")
    assert example.input_ids == [*start, a, b, end]
    assert example.labels == [*[IGNORE_INDEX] * len(start), IGNORE_INDEX, b, end]
    assert example.weights == [*[0.0] * len(start), 0.0, 0.5, 0.5]


def test_every_control_token_in_plain_text_stays_ordinary_text(demo_tokenizer) -> None:
    encoder = Encoder(demo_tokenizer, GLM)
    for token in demo_tokenizer.all_special_tokens:
        example = encoder.encode(to_conversation({"prompt": f"a{token}", "response": f"{token}b"}))
        start = demo_tokenizer.decode(demo_tokenizer("")["input_ids"])
        assert (example.input_ids, example.labels) == marked(
            demo_tokenizer, start, Plain(f"a{token}"), "«", Plain(f"{token}b"), "<|endoftext|>»"
        ), token


def test_plain_text_is_cut_without_its_end_token(demo_tokenizer) -> None:
    encoder = Encoder(demo_tokenizer, GLM)
    row = to_conversation({"prompt": "A", "response": "BCD"})
    whole = encoder.encode(row)
    for limit in range(len(whole.input_ids) - 3, len(whole.input_ids)):
        cut = limited(encoder, limit, "right").encode(row)
        assert (cut.input_ids, cut.labels, cut.is_truncated) == (whole.input_ids[:limit], whole.labels[:limit], True)


def test_plain_text_whose_only_trained_token_is_the_first_is_refused() -> None:
    """Nothing predicts the first token, so such a row would have no loss."""
    encoder = limited(encoder_of("qwen"), 1, "right")
    row = to_conversation({"text": "hello"})
    assert encoder_of("qwen").encode(row).labels[0] != IGNORE_INDEX
    with pytest.raises(RowError, match=r"^no trained token within the limit of 1 tokens \(the row has \d+\)$"):
        encoder.encode(row)


def test_flags_and_modes_hold_for_plain_text(demo_tokenizer) -> None:
    row = Conversation(messages=(text("A"), text("B")))
    last = Encoder(demo_tokenizer, GLM, train_on="last").encode(row)
    assert last == Encoder(demo_tokenizer, GLM).encode(Conversation(messages=(text("A", 0.0), text("B"))))
    with pytest.raises(RowError, match="finds none with a `loss` above 0"):
        Encoder(demo_tokenizer, GLM, train_on="none-but-flagged").encode(row)
