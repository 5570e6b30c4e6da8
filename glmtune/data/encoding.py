r"""Conversations to token ids and labels of equal length: the heart of glmtune.

The rules, for GLM-4 (`[gMASK]<sop><|user|>\n...<|assistant|>\n...`):

1. The ids equal the tokenizer's own rendering of the whole conversation.
2. Everything but the assistant is `IGNORE_INDEX`. An assistant message trains what follows its `<|assistant|>`
   token and the role token after it: that token is how the model learns to stop. At the end of the row it is
   appended: `<|user|>`, or `<|observation|>` after a tool call.
3. The newline after `<|assistant|>` is trained: it tells a plain answer from a tool call.
4. The prompt that inference builds for a turn is, token for token, a prefix of what training saw.
5. Text inside a message is text: a control token that a user writes gets ordinary tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from glmtune.config import RunConfig
from glmtune.errors import GlmtuneError
from glmtune.family import IGNORE_INDEX, Family

from .conversation import Conversation, RowError
from .rendering import ChatRenderer, Piece

NUM_VERIFIED_ROWS = 32


@dataclass(frozen=True, kw_only=True)
class Example:
    """One row ready for training."""

    input_ids: list[int]
    labels: list[int]
    """Equal to `input_ids` where trained, `IGNORE_INDEX` elsewhere."""
    is_truncated: bool = False


@dataclass(frozen=True, kw_only=True)
class Turn:
    """One stretch of an example that the model has to write: an answer, its stop token included."""

    prompt_ids: list[int]
    answer_ids: list[int]


class Encoder:
    """Encodes conversations for one tokenizer."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        family: Family,
        *,
        combine: bool = False,
        max_length_tokens: int | None = None,
        truncation: str = "right",
    ) -> None:
        """Check the tokenizer's chat template and get ready.

        Args:
            tokenizer: With a chat template.
            family: Of the model.
            combine: Train only the last assistant turn of each row.
            max_length_tokens: Longest example; None for no limit.
            truncation: What happens to a longer one: `right` cuts it, `drop` and `error` refuse the row.
        """
        self.tokenizer = tokenizer
        self.renderer = ChatRenderer(tokenizer, family)
        self.combine = combine
        self.max_length_tokens = max_length_tokens
        self.truncation = truncation
        tokens = self.renderer.control_tokens
        ids: list[int] = tokenizer.convert_tokens_to_ids(tokens)  # type: ignore[assignment]
        self._control_ids = dict(zip(tokens, ids))

    @classmethod
    def from_config(cls, tokenizer: PreTrainedTokenizerBase, family: Family, config: RunConfig) -> Encoder:
        """Return the encoder that a run's configuration asks for."""
        return cls(
            tokenizer,
            family,
            combine=config.combine,
            # One more than both lengths, as in the original: the stop token.
            max_length_tokens=config.max_input_length + config.max_output_length + 1,
            truncation=config.truncation,
        )

    def encode(self, conversation: Conversation) -> Example:
        """Return ids and labels of one conversation, or raise `RowError`."""
        [result] = self.encode_batch([conversation])
        if isinstance(result, RowError):
            raise result
        return result

    def encode_batch(self, conversations: Sequence[Conversation]) -> list[Example | RowError]:
        """Encode many conversations with one call into the tokenizer; a refused row gives its error."""
        results = self._encode_whole(conversations)
        return [result if isinstance(result, RowError) else self._limit(result) for result in results]

    def encode_prompt(self, conversation: Conversation) -> list[int]:
        """Return the ids that inference starts from: the conversation and the template's generation prompt."""
        if conversation.messages[-1].role == "assistant":
            raise RowError("the last message is the assistant's; a prompt ends with the user or an observation")
        return [token for ids in self._tokenize(self.renderer.prompt_pieces(conversation)) for token in ids]

    def verify(self, conversations: Sequence[Conversation]) -> None:
        """Raise unless the ids of the first rows equal the tokenizer's own rendering.

        Rows that the plain rendering gets wrong are left out: a control token in a message's text becomes the
        control token itself there, and a template that writes its own end of turn joins the prompt's last newline
        with one that an answer begins with, which no inference prompt can do.
        """
        for conversation, result in zip(
            conversations[:NUM_VERIFIED_ROWS], self._encode_whole(conversations[:NUM_VERIFIED_ROWS])
        ):
            answers = [message.content for message in conversation.messages if message.role == "assistant"]
            starts_with_space = self.renderer.end_token and any(answer[:1].isspace() for answer in answers)
            if isinstance(result, RowError) or starts_with_space or self.renderer.controls.guard_for(conversation):
                continue
            text = self.renderer.plain_text(conversation)
            expected: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]  # type: ignore[assignment]
            self._compare(result.input_ids, expected)

    def _compare(self, ids: list[int], expected: list[int]) -> None:
        """Raise at the first differing token; one appended stop token may stand behind the expected ones."""
        if ids[: len(expected)] == expected and len(ids) - len(expected) <= 1:
            return
        pairs = enumerate(zip(ids, expected))
        at = next((index for index, (ours, theirs) in pairs if ours != theirs), min(len(ids), len(expected)))
        ours, theirs = (self.tokenizer.convert_ids_to_tokens(side[max(0, at - 2) : at + 3]) for side in (ids, expected))
        raise GlmtuneError(
            f"encoding differs from the tokenizer's own rendering at token {at}: {ours} instead of {theirs}",
            where=str(self.tokenizer.name_or_path),
            fix="this chat template cannot be trained on message by message",
        )

    def _encode_whole(self, conversations: Sequence[Conversation]) -> list[Example | RowError]:
        """Encode without a length limit."""
        rows: list[list[Piece] | RowError] = []
        for conversation in conversations:
            try:
                conversation.check_trainable()
                rows.append(self.renderer.pieces(conversation, self._trained(conversation)))
            except RowError as error:
                rows.append(error)
        encoded = self._tokenize([piece for row in rows if not isinstance(row, RowError) for piece in row])
        return [
            row if isinstance(row, RowError) else _join((next(encoded), piece.trained) for piece in row) for row in rows
        ]

    def _trained(self, conversation: Conversation) -> list[bool]:
        """Say for every message whether it is trained."""
        trained = [message.role == "assistant" for message in conversation.messages]
        if self.combine:
            last = max(index for index, value in enumerate(trained) if value)
            trained = [index == last for index in range(len(trained))]
        return trained

    def _tokenize(self, pieces: Sequence[Piece]) -> Iterator[list[int]]:
        """Yield the ids of every piece: the template's control tokens by name, all other text as plain text."""
        plans: list[list[int | None]] = []
        texts: list[str] = []
        for piece in pieces:
            plan: list[int | None] = []
            for index, part in enumerate(self.renderer.controls.pattern.split(piece.text)):
                if index % 2:
                    plan.append(self._control_ids[part])
                elif part:
                    texts.append(part.replace(piece.guard, "") if piece.guard else part)
                    plan.append(None)
            plans.append(plan)
        batch = self.tokenizer(texts, add_special_tokens=False, split_special_tokens=True) if texts else {}
        encoded = iter(batch.get("input_ids", []))
        for plan in plans:
            yield [token for step in plan for token in (next(encoded) if step is None else [step])]

    def _limit(self, example: Example) -> Example | RowError:
        """Apply the length limit; an example without a trained token is refused, never fed."""
        limit = self.max_length_tokens
        length = len(example.input_ids)
        if limit is None or length <= limit:
            return example
        if self.truncation != "right":
            return RowError(f"{length} tokens, over the limit of {limit}")
        cut = Example(input_ids=example.input_ids[:limit], labels=example.labels[:limit], is_truncated=True)
        if all(label == IGNORE_INDEX for label in cut.labels):
            return RowError(f"no trained token within the limit of {limit} tokens (the row has {length})")
        return cut


def turns_of(input_ids: Sequence[int], labels: Sequence[int], *, is_truncated: bool = False) -> list[Turn]:
    """Return every stretch that the model has to write itself; one whose end was cut off is left out."""
    turns: list[Turn] = []
    position = 0
    while position < len(labels):
        if labels[position] == IGNORE_INDEX:
            position += 1
            continue
        end = position
        while end < len(labels) and labels[end] != IGNORE_INDEX:
            end += 1
        if not (is_truncated and end == len(labels)):
            turns.append(Turn(prompt_ids=list(input_ids[:position]), answer_ids=list(input_ids[position:end])))
        position = end
    return turns


def _join(pieces: Iterable[tuple[list[int], bool]]) -> Example:
    input_ids: list[int] = []
    labels: list[int] = []
    for ids, trained in pieces:
        input_ids.extend(ids)
        labels.extend(ids if trained else [IGNORE_INDEX] * len(ids))
    return Example(input_ids=input_ids, labels=labels)
