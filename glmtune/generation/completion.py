"""One answer that is being written, and all that is known of it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from .prompt_logprobs import PromptLogprobs


@dataclass(eq=False)
class Completion:
    """A prompt, and what is written behind it so far."""

    index: int
    prompt: Sequence[int]
    max_new_tokens: int
    stops: Collection[int] | None = None
    """Ids that end the answer; None for those of the batch."""
    written: list[int] = field(default_factory=list)
    """Ids, without the stop token."""
    num_prompt_logprobs: int | None = None
    """Most likely tokens to tell beside each of the prompt's, with their likelihoods; None tells nothing."""
    prompt_logprobs: PromptLogprobs | None = None
    """Known once the prompt has been read, where they are wanted."""
    stop_token: int | None = None
    """The id that ended the answer."""
    is_done: bool = False
    is_broken: bool = False
    """Whether what was computed of it may be no numbers: its keys and values are of no use to others."""
    num_cached_tokens: int = 0
    """Tokens of the prompt that were not read, since their keys and values were known."""
    is_to_be_read_alone: bool = False
    """Whether it could not be read together with others."""

    @property
    def length(self) -> int:
        """Tokens of prompt and answer; while it is in the batch, keys and values are kept of all but the last."""
        return len(self.prompt) + len(self.written)

    @property
    def is_to_score(self) -> bool:
        """Whether the likelihoods of its prompt are wanted and not yet known."""
        return self.num_prompt_logprobs is not None and self.prompt_logprobs is None
