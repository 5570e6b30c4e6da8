"""The check at start: rows are encoded as the tokenizer renders them, and as inference will ask for them."""

from __future__ import annotations

from collections.abc import Sequence

from glmtune.data.conversation import Conversation, RowError
from glmtune.errors import GlmtuneError

from .encoding import Encoder
from .examples import Example, turns_of

NUM_VERIFIED_ROWS = 8


def verify(encoder: Encoder, conversations: Sequence[Conversation], places: Sequence[str] = ()) -> None:
    """Raise unless the first rows are encoded as the tokenizer's own rendering and as inference will ask for them.

    Args:
        encoder: Of the run.
        conversations: The first of them are looked at.
        places: `file:line` of each, for the error.

    Raises:
        GlmtuneError: They are not; the chat template cannot be trained on.
        QuickWayFailed: They are, if the template renders them itself.
    """
    first = conversations[:NUM_VERIFIED_ROWS]
    for conversation in first:
        encoder.check_quick_way(conversation)
    for index, (conversation, result) in enumerate(zip(first, encoder.encode_whole(first))):
        if isinstance(result, RowError) or conversation.is_plain_text:
            continue
        where = places[index] if places else str(encoder.tokenizer.name_or_path)
        verify_ids(encoder, conversation, result, where)
        verify_prompts(encoder, conversation, result, where)


def verify_ids(encoder: Encoder, conversation: Conversation, example: Example, where: str) -> None:
    """Raise unless the ids equal the tokenizer's own rendering.

    Rows that the plain rendering gets wrong are left out: a control token in a message's text becomes the
    control token itself there, and a template that writes its own end of turn joins the prompt's last newline
    with one that an answer begins with, which no inference prompt can do.
    """
    answers = [message.content for message in conversation.messages if message.role == "assistant"]
    if encoder.renderer.facts.hidden_reasoning:
        return
    starts_with_space = encoder.renderer.end_token and any(answer[:1].isspace() for answer in answers)
    if starts_with_space or encoder.renderer.controls.guard_for(conversation):
        return
    text = encoder.renderer.plain_text(conversation)
    expected: list[int] = encoder.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    ids = example.input_ids
    # One appended stop token may stand behind the expected ones.
    if ids[: len(expected)] != expected or len(ids) - len(expected) > 1:
        raise _difference(encoder, "the tokenizer's own rendering", ids, expected, where)


def verify_prompts(encoder: Encoder, conversation: Conversation, example: Example, where: str) -> None:
    """Raise unless the prompt that inference builds for a turn is what training saw before it."""
    messages, ids = conversation.messages, example.input_ids
    trained_from = {len(turn.prompt_ids) for turn in turns_of(ids, example.labels)}
    modes = (None, False)[: len(encoder.renderer.facts.generation_prompts)]
    for index, weight in enumerate(encoder.weights_of(conversation)):
        # Inference asks for an answer behind a question or an observation.
        if not weight or not index or messages[index - 1].role == "assistant":
            continue
        context = Conversation(messages=messages[:index])
        prompts = [encoder.encode_prompt(context, thinking=thinking) for thinking in modes]
        # Reasoning that is not trained stands between the prompt and what is.
        has_reasoning = messages[index].may_reason or bool(encoder.renderer.facts.hidden_reasoning)
        is_masked = has_reasoning and not encoder.renderer.train_reasoning
        if not any(ids[: len(each)] == each and (is_masked or len(each) in trained_from) for each in prompts):
            raise _difference(encoder, "the prompt that inference builds", ids, prompts[0], where)


def _difference(encoder: Encoder, other: str, ids: Sequence[int], expected: Sequence[int], where: str) -> GlmtuneError:
    """Return the error that shows both sequences around the first difference."""
    pairs = enumerate(zip(ids, expected))
    at = next((index for index, (ours, theirs) in pairs if ours != theirs), min(len(ids), len(expected)))
    ours, theirs = (
        encoder.tokenizer.convert_ids_to_tokens(list(side[max(0, at - 2) : at + 3])) for side in (ids, expected)
    )
    return GlmtuneError(
        f"encoding differs from {other} at token {at}: {ours} instead of {theirs}",
        where=where,
        fix="this chat template cannot be trained on message by message",
    )
