"""The check at start-up: what it passes, and the full text of what it says."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from chat_layouts import (
    CALLS,
    CHATML,
    CHATML_TOKENS,
    LAYOUTS,
    TOOL,
    TURNS,
    assistant,
    encoder_of,
    user,
    with_template,
)
from transformers import AddedToken

from glmtune.chatformat.encoding import Encoder
from glmtune.chatformat.examples import Example
from glmtune.chatformat.verification import NUM_VERIFIED_ROWS, verify
from glmtune.data.conversation import Conversation, Message
from glmtune.data.formats import to_conversation
from glmtune.errors import GlmtuneError
from glmtune.family import GENERIC, GLM, IGNORE_INDEX


def row(*messages: dict[str, Any], **more: Any) -> Conversation:
    return to_conversation({"messages": list(messages), **more})


def complaint(encoder: Encoder, *rows: Conversation, places: tuple[str, ...] = ()) -> str:
    with pytest.raises(GlmtuneError) as caught:
        verify(encoder, rows, places)
    return str(caught.value)


UNTRAINED = {"loss": False}
PASSED = {
    "turns": row(*TURNS),
    "an answer behind an answer": row(user("a"), assistant("b"), assistant("c")),
    "an answer behind an answer, and a turn behind them": row(user("a"), assistant("b"), assistant("c"), *TURNS),
    "a trained answer behind an untrained one": row(user("a"), assistant("b", **UNTRAINED), assistant("c"), *TURNS),
    "an untrained answer between": row(*TURNS, user("a"), assistant("b", **UNTRAINED), *TURNS),
    "an answer first": row(assistant("a"), *TURNS),
    "a question last": row(*TURNS, user("a")),
    "no answer": row(user("a")),
    "weights": row(user("a"), assistant("b", loss=0.5), user("a"), assistant("b", loss=2)),
    "control tokens": row(user("<|user|><|im_end|>"), assistant("<|im_end|><|user|>")),
    "noncharacters": row(user("\ufdd0\ufdef0\ufdef"), assistant("\ufdd1")),
    "plain text": Conversation(messages=(Message(role="text", content="a"),)),
}


@pytest.mark.parametrize("train_on", ["all", "last", "none-but-flagged"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_can_be_trained_passes_the_check(layout: str, train_on: str) -> None:
    encoder = encoder_of(layout, train_on=train_on)
    for conversation in PASSED.values():
        verify(encoder, [conversation])
    verify(encoder, list(PASSED.values()), [f"rows.jsonl:{number}" for number in range(len(PASSED))])
    results = zip(PASSED, encoder.encode_whole(list(PASSED.values())))
    looked_at = {name for name, result in results if isinstance(result, Example)}
    assert looked_at == ({"weights"} if train_on == "none-but-flagged" else PASSED.keys() - {"no answer"})


@pytest.mark.parametrize("layout", ["qwen", "glm-4.5"])
def test_calls_and_their_results_pass_the_check(layout: str) -> None:
    rows = [row(*CALLS, *TURNS, tools=[TOOL])]
    verify(encoder_of(layout), rows)
    assert isinstance(encoder_of(layout).encode_whole(rows)[0], Example)


def swallowing(tokenizer: Any) -> Any:
    """Return the tokenizer with a control token that swallows the newline behind it."""
    tokenizer = copy.deepcopy(tokenizer)
    token = AddedToken("<|assistant|>", rstrip=True, special=True, normalized=False)
    tokenizer.add_tokens([token], special_tokens=True)
    return tokenizer


def test_ids_that_are_not_the_tokenizers_own_are_shown_around_the_first_difference(demo_tokenizer) -> None:
    encoder = Encoder(swallowing(demo_tokenizer), GLM)
    rows = [row(user("A")), row(user("A"), assistant("B"))]
    assert complaint(encoder, *rows, places=("rows.jsonl:4", "rows.jsonl:7")) == (
        "encoding differs from the tokenizer's own rendering at token 6: ['A', '<|assistant|>', 'Ċ', 'B', '<|user|>'] "
        "instead of ['A', '<|assistant|>', 'B']\n"
        "  --> rows.jsonl:7\n"
        "hint: this chat template cannot be trained on message by message"
    )


def test_only_the_first_rows_are_checked(demo_tokenizer) -> None:
    encoder = Encoder(swallowing(demo_tokenizer), GLM)
    harmless = [row(user("A"))] * NUM_VERIFIED_ROWS
    verify(encoder, [*harmless, row(user("A"), assistant("B"))])
    complaint(encoder, *harmless[1:], row(user("A"), assistant("B")))


class ShiftedEncoder(Encoder):
    """Trains from one token later than it should."""

    def encode_whole(self, conversations: Any) -> Any:
        examples = super().encode_whole(conversations)
        return [self._shifted(example) if isinstance(example, Example) else example for example in examples]

    def _shifted(self, example: Example) -> Example:
        first = next(index for index, label in enumerate(example.labels) if label != IGNORE_INDEX)
        labels = [*example.labels[:first], IGNORE_INDEX, *example.labels[first + 1 :]]
        return Example(input_ids=example.input_ids, labels=labels)


def test_a_turn_that_is_not_trained_from_the_prompt_on_is_shown(demo_tokenizer) -> None:
    assert complaint(ShiftedEncoder(demo_tokenizer, GLM), row(user("A"), assistant("B")), places=("rows.jsonl:1",)) == (
        "encoding differs from the prompt that inference builds at token 6: "
        "['A', '<|assistant|>', 'Ċ', 'B', '<|user|>'] instead of ['A', '<|assistant|>']\n"
        "  --> rows.jsonl:1\n"
        "hint: this chat template cannot be trained on message by message"
    )


def test_the_end_token_of_a_template_is_a_stop_beside_the_tokenizers() -> None:
    tokenizer = with_template(CHATML, ("<|endoftext|>", *CHATML_TOKENS, "</s>"))
    encoder = Encoder(tokenizer, GENERIC)
    assert tokenizer.eos_token == "</s>"
    assert encoder.tokenizer.convert_ids_to_tokens(sorted(encoder.stop_ids)) == ["<|im_end|>", "</s>"]
    example = encoder.encode(row(*TURNS))
    assert tokenizer.convert_tokens_to_ids("<|im_end|>") in example.labels


def test_the_stops_of_glm_are_its_three_whatever_the_tokenizer_says(demo_tokenizer) -> None:
    stops = {"<|endoftext|>", "<|user|>", "<|observation|>"}
    assert set(demo_tokenizer.convert_ids_to_tokens(sorted(Encoder(demo_tokenizer, GLM).stop_ids))) == stops


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_trained_answer_ends_with_a_stop_token(layout: str) -> None:
    encoder = encoder_of(layout)
    example = encoder.encode(row(*TURNS, *TURNS))
    behind = [*example.labels[1:], IGNORE_INDEX]
    ends = [label for label, after in zip(example.labels, behind) if label != IGNORE_INDEX and after == IGNORE_INDEX]
    assert len(ends) == 4
    assert set(ends) <= encoder.stop_ids


def test_an_answer_that_a_system_message_follows_is_refused_where_role_tokens_are_the_stops() -> None:
    later = {"role": "system", "content": "a"}
    [error] = encoder_of("glm-4.5").encode_batch([row(*TURNS, later, *TURNS)])
    assert str(error) == "a trained answer ends with ['<|system|>'], which is no stop token"
