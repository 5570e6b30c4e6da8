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

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase

from glmtune.config.run_config import RunConfig
from glmtune.data.conversation import TEXT, Conversation, Message, RowError
from glmtune.family import IGNORE_INDEX, Family

from .examples import Example, Part, join_parts
from .pieces import Piece, PieceTokenizer
from .pipeline import garbage_collection_paused, tokenized
from .rendering import ChatRenderer
from .skeletons import Skeletons
from .spans import ChangedTurn

ROWS_PER_BATCH = 256  # small enough for the first batch to reach the tokenizer soon
SAMPLE_EVERY = 256
"""One row in so many is rendered in both ways and compared."""
MAX_KNOWN_TEXTS = 4096
"""Texts that came more than once, such as a system message, whose ids are kept."""


class Planned(NamedTuple):
    """Rows whose text is known, on the way to the tokenizer."""

    conversations: Sequence[Conversation]
    rows: list[list[Piece] | RowError]
    texts: list[str]
    """The text of every piece that has any, in order."""


class TooLong(RowError):
    """A row over the length limit that is not cut, or of which nothing to train on would be left."""


class QuickWayFailed(Exception):
    """The quick rendering of a row is not the template's; all rows have to be rendered by the template itself."""


class Encoder:
    """Encodes conversations for one tokenizer."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        family: Family,
        *,
        train_on: str = "all",
        train_reasoning: bool = True,
        max_length_tokens: int | None = None,
        truncation: str = "right",
        use_skeletons: bool = True,
    ) -> None:
        """Check the tokenizer's chat template and get ready.

        Args:
            tokenizer: With a chat template.
            family: Of the model.
            train_on: Which assistant messages are trained: `all`, `last` or `none-but-flagged`.
            train_reasoning: Whether to train the reasoning that stands before an answer.
            max_length_tokens: Longest example; None for no limit.
            truncation: What happens to a longer one: `right` cuts it, `drop_turns` leaves out whole turns, `drop`
                and `error` refuse the row.
            use_skeletons: Whether to render a shape of conversation once where that is sure to be right.
        """
        self.tokenizer = tokenizer
        self.family = family
        self.train_on = train_on
        self.max_length_tokens = max_length_tokens
        self.truncation = truncation
        self.renderer = ChatRenderer(tokenizer, family, train_reasoning=train_reasoning)
        self._piece_tokenizer = PieceTokenizer(tokenizer, self.renderer.controls)
        names = {*family.stop_tokens, self.renderer.end_token or tokenizer.eos_token, tokenizer.eos_token}
        self.stop_ids = {id for name, id in self._piece_tokenizer.control_ids.items() if name in names}
        """Ids that may end what the model writes."""
        self._skeletons: Skeletons | None = None
        if use_skeletons:
            controls = self.renderer.control_tokens
            self._skeletons = Skeletons(tokenizer.chat_template, self._template_pieces, controls)
        self._num_planned = 0
        self._known_ids: dict[str, list[int]] = {}

    @classmethod
    def from_config(cls, tokenizer: PreTrainedTokenizerBase, family: Family, config: RunConfig) -> Encoder:
        """Return the encoder that a run's configuration asks for."""
        return cls(
            tokenizer,
            family,
            train_on="last" if config.combine else config.train_on,
            train_reasoning=config.train_reasoning,
            # One more than both lengths, as in the original: the stop token.
            max_length_tokens=config.max_input_length + config.max_output_length + 1,
            truncation=config.truncation,
        )

    def without_skeletons(self) -> Encoder:
        """Return an encoder that gives every row to the template."""
        return Encoder(self.tokenizer, self.family, **self.settings(), use_skeletons=False)

    def settings(self) -> dict[str, Any]:
        """Return what decides the labels beside tokenizer and family."""
        return {
            "train_on": self.train_on,
            "train_reasoning": self.renderer.train_reasoning,
            "max_length_tokens": self.max_length_tokens,
            "truncation": self.truncation,
        }

    def encode(self, conversation: Conversation) -> Example:
        """Return ids and labels of one conversation, or raise `RowError`."""
        [result] = self.encode_batch([conversation])
        if isinstance(result, RowError):
            raise result
        return result

    def encode_batch(self, conversations: Sequence[Conversation]) -> list[Example | RowError]:
        """Encode many conversations; a refused row gives its error."""
        starts = range(0, len(conversations), ROWS_PER_BATCH)
        batches = (self.plan(conversations[start : start + ROWS_PER_BATCH]) for start in starts)
        try:
            with garbage_collection_paused():
                pairs = tokenized(batches, self.tokenize)
                return [row for planned, text_ids in pairs for row in self.finish(planned, text_ids)]
        except QuickWayFailed:
            self._skeletons = None
            return self.encode_batch(conversations)

    def plan(self, conversations: Sequence[Conversation]) -> Planned:
        """Render rows: the first of the three parts of `encode_batch`."""
        rows: list[list[Piece] | RowError] = []
        for conversation in conversations:
            try:
                rows.append(self._pieces(conversation))
            except RowError as error:
                rows.append(error)
        texts = [piece.text for row in rows if isinstance(row, list) for piece in row if not piece.ids]
        return Planned(conversations, rows, texts)

    def tokenize(self, planned: Planned) -> list[list[int]]:
        """Return the ids of every text of the rows; other threads run meanwhile."""
        counts = Counter(planned.texts)
        known = self._known_ids
        new = [text for text in counts if text not in known]
        ids = dict(zip(new, self._piece_tokenizer.ids(new)))
        result = [ids[text] if text in ids else known[text] for text in planned.texts]
        if len(known) > MAX_KNOWN_TEXTS:
            known = self._known_ids = {}  # not emptied: another thread may be reading it
        known.update((text, ids[text]) for text in new if counts[text] > 1)
        return result

    def finish(self, planned: Planned, text_ids: Sequence[list[int]]) -> list[Example | RowError]:
        """Put the ids together and apply the length limit."""
        return [
            join_parts(result) if isinstance(result, list) else result
            for result in self.finish_parts(planned, text_ids)
        ]

    def finish_parts(
        self, planned: Planned, text_ids: Sequence[list[int]]
    ) -> Iterator[list[Part] | Example | RowError]:
        """Yield what becomes of every row: its ids with their weights where it is whole, an example where it is cut."""
        encoded: Iterator[Sequence[int]] = iter(text_ids)
        limit = self.max_length_tokens
        for conversation, row in zip(planned.conversations, planned.rows):
            if isinstance(row, RowError):
                yield row
                continue
            parts = [(piece.ids if piece.ids else next(encoded), piece.weight) for piece in row]
            length = sum([len(ids) for ids, _ in parts])
            yield parts if limit is None or length <= limit else self._shortened(parts, length, limit, conversation)

    def encode_prompt(
        self,
        conversation: Conversation,
        *,
        thinking: bool | None = None,
        variables: Mapping[str, Any] | None = None,
        continues: bool = False,
    ) -> list[int]:
        """Return the ids that inference starts from: the conversation and the template's generation prompt.

        `thinking` switches reasoning on or off where the template knows how, None leaves it alone; `variables` are
        others of the template's own. Where it `continues`, the last message is the beginning of the answer.
        """
        switch = {} if thinking is None else {"enable_thinking": thinking}
        variables = {**switch, **(variables or {})}
        if continues:
            stretches = self.renderer.continued_stretches(conversation, variables=variables)
        elif conversation.messages[-1].role == "assistant":
            raise RowError("the last message is the assistant's; a prompt ends with the user or an observation")
        else:
            stretches = self.renderer.prompt_stretches(conversation, variables=variables)
        pieces = self._piece_tokenizer.pieces(stretches)
        encoded: Iterator[Sequence[int]] = iter(
            self._piece_tokenizer.ids([piece.text for piece in pieces if not piece.ids])
        )
        return join_parts([(piece.ids if piece.ids else next(encoded), 0.0) for piece in pieces]).input_ids

    def unfold(self, conversation: Conversation) -> list[Conversation]:
        """Return one conversation for every question, where the template forgets what was thought about earlier ones.

        Each answer is then trained in the context in which inference shows it: behind earlier answers without their
        reasoning. Any other conversation stays whole.
        """
        messages = conversation.messages
        if conversation.is_plain_text or self.train_on == "last":
            return [conversation]
        try:
            weights = self.weights_of(conversation)
            if self.renderer.facts.hidden_reasoning:
                return [_trained_from(messages[: index + 1], index) for index, weight in enumerate(weights) if weight]
            questions = [index for index, message in enumerate(messages) if message.role == "user"]
            if len(questions) < 2 or not any(message.may_reason for message in messages[: questions[-1]]):
                return [conversation]
            self.renderer.stretches(conversation, weights)
        except ChangedTurn:
            parts = list(zip(questions, [*questions[1:], len(messages)]))
            return [_trained_from(messages[:end], start) for start, end in parts if any(weights[start:end])]
        except RowError:  # encoding tells why
            pass
        return [conversation]

    def special_tokens_in(self, conversation: Conversation) -> set[str]:
        """Return the tokenizer's special tokens that stand in texts of a conversation, where they are ordinary text."""
        return self.renderer.controls.names_in(conversation)

    def encode_whole(self, conversations: Sequence[Conversation]) -> list[Example | RowError]:
        """Encode without a length limit."""
        planned = self.plan(conversations)
        encoded: Iterator[Sequence[int]] = iter(self.tokenize(planned))
        return [
            row
            if isinstance(row, RowError)
            else join_parts([(piece.ids if piece.ids else next(encoded), piece.weight) for piece in row])
            for row in planned.rows
        ]

    def _pieces(self, conversation: Conversation) -> list[Piece]:
        """Return the pieces of a row, in the quick way where that is sure to be right."""
        conversation.check_trainable()
        weights = self.weights_of(conversation)
        if conversation.is_plain_text:
            return self._piece_tokenizer.plain_pieces([message.content for message in conversation.messages], weights)
        pieces = self._skeletons.pieces(conversation, weights) if self._skeletons else None
        if pieces is None:
            return self._template_pieces(conversation, weights)
        self._num_planned += 1
        if self._num_planned % SAMPLE_EVERY == 1:
            self.check_quick_way(conversation)
        return pieces

    def check_quick_way(self, conversation: Conversation) -> None:
        """Raise `QuickWayFailed` where the quick way differs from the template's own."""
        if self._skeletons is None or conversation.is_plain_text:
            return
        quick = None
        try:
            conversation.check_trainable()
            weights = self.weights_of(conversation)
            quick = self._skeletons.pieces(conversation, weights)
            agrees = quick is None or quick == self._template_pieces(conversation, weights)
        except RowError:  # of a row without a trained message, or of the template alone
            agrees = quick is None
        if not agrees:
            raise QuickWayFailed

    def _template_pieces(self, conversation: Conversation, weights: Sequence[float]) -> list[Piece]:
        """Return the pieces of a row that the template itself renders."""
        pieces = self._piece_tokenizer.pieces(self.renderer.stretches(conversation, weights))
        for piece, following in zip(pieces, [*pieces[1:], None]):
            is_last = piece.weight and not (following and following.weight)
            if is_last and (not piece.ids or piece.ids[-1] not in self.stop_ids):
                shown = self.tokenizer.convert_ids_to_tokens(list(piece.ids))
                raise RowError(f"a trained answer ends with {shown or repr(piece.text[-20:])}, which is no stop token")
        return pieces

    def weights_of(self, conversation: Conversation) -> list[float]:
        """Return the weight of every message in the loss."""
        messages = conversation.messages
        default = 0.0 if self.train_on == "none-but-flagged" else 1.0
        weights = [
            (default if message.loss is None else message.loss) if message.role in ("assistant", TEXT) else 0.0
            for message in messages
        ]
        if self.train_on == "last":
            last = max(index for index, message in enumerate(messages) if message.role in ("assistant", TEXT))
            number = messages[last].number
            for index, message in enumerate(messages[:last]):
                # A text and the call that came with it are one turn.
                if number is None or message.number != number:
                    weights[index] = 0.0
        if not any(weights):
            flags = " without a `loss` of 0" if self.train_on != "none-but-flagged" else " with a `loss` above 0"
            raise RowError(f"no message is trained: `train_on: {self.train_on}` finds none{flags}")
        return weights

    def _shortened(
        self, parts: Sequence[Part], length: int, limit: int, conversation: Conversation
    ) -> Example | RowError:
        """Return a row that is over the limit as the setting wants it; without a trained token it is refused."""
        if self.truncation == "drop_turns":
            return self._without_turns(conversation, length)
        if self.truncation != "right":
            return TooLong(f"{length} tokens, over the limit of {limit}")
        example = join_parts(parts)
        cut = replace(
            example,
            input_ids=example.input_ids[:limit],
            labels=example.labels[:limit],
            weights=example.weights and example.weights[:limit],
            is_truncated=True,
            num_tokens_left_out=length - limit,
        )
        if all(label == IGNORE_INDEX for label in cut.labels[1:]):  # nothing predicts the first token
            return TooLong(f"no trained token within the limit of {limit} tokens (the row has {length})")
        return cut

    def _without_turns(self, conversation: Conversation, length: int) -> Example | RowError:
        """Return the row with as few whole turns left out as fit it to the limit.

        They are its last ones, or the first where only the last one is trained.
        """
        messages = conversation.messages
        questions = [index for index, message in enumerate(messages) if message.role == "user"]
        before_last = self.weights_of(conversation)[: questions[-1]] if questions else []
        trains_last = self.train_on == "last" or not any(before_last)
        for num_left_out in range(1, len(questions)):
            if trains_last:
                kept = messages[: questions[0]] + messages[questions[num_left_out] :]
            else:
                kept = messages[: questions[-num_left_out]]
            [result] = self.encode_whole([Conversation(messages=kept)])
            if isinstance(result, RowError):
                return TooLong(f"{length} tokens, over the limit; without {num_left_out} of its turns: {result}")
            if len(result.input_ids) <= (self.max_length_tokens or 0):
                num_tokens = length - len(result.input_ids)
                return replace(result, num_turns_left_out=num_left_out, num_tokens_left_out=num_tokens)
        return TooLong(f"{length} tokens, and not even one turn is within the limit of {self.max_length_tokens}")


def _trained_from(messages: Sequence[Message], start: int) -> Conversation:
    """Return the conversation with all answers before `start` as mere context."""
    context = (replace(message, loss=0.0) if message.role == "assistant" else message for message in messages[:start])
    return Conversation(messages=(*context, *messages[start:]))
