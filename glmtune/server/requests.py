"""What a request may hold: OpenAI's fields that are answered, and nothing else is let through in silence."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

IGNORED = {
    "user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention",
    "verbosity",
}  # fmt: skip
"""Fields about accounts and OpenAI's own machines: they change nothing of the answer."""

NEUTRAL: dict[str, Any] = {
    "response_format": {"type": "text"},
    "modalities": ["text"],
    "parallel_tool_calls": True,
    "best_of": 1,
    "echo": False,
    "suffix": "",
}
"""Fields that are not answered, and the value that asks for nothing, which some clients send."""

MAX_CHOICES = 128
MAX_TOP_LOGPROBS = 20
MAX_STOPS = 16

Stop = Annotated[list[Annotated[str, Field(min_length=1)]], Field(max_length=MAX_STOPS)]


class StreamOptions(BaseModel):
    """How a stream ends."""

    model_config = ConfigDict(extra="ignore")
    include_usage: bool = False


class Request(BaseModel):
    """What both endpoints take."""

    model_config = ConfigDict(extra="forbid")

    model: str
    stream: bool = False
    stream_options: StreamOptions | None = None
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] = 1
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1)] | None = None
    """Not OpenAI's; vLLM's name for it. 0 and -1 set no limit."""
    seed: int | None = None
    stop: Stop | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    repetition_penalty: Annotated[float, Field(gt=0)] | None = None
    """Not OpenAI's; vLLM's name for it."""
    logit_bias: dict[int, Annotated[float, Field(ge=-100, le=100)]] | None = None

    @model_validator(mode="before")
    @classmethod
    def leave_out_what_asks_for_nothing(cls, body: Any) -> Any:
        """Drop nulls, fields that change nothing, and those whose value asks for nothing."""
        if not isinstance(body, dict):
            return body
        kept = {
            key: value
            for key, value in body.items()
            if value is not None and key not in IGNORED and not (key in NEUTRAL and value == NEUTRAL[key])
        }
        if isinstance(kept.get("stop"), str):
            kept["stop"] = [kept["stop"]]
        return kept


class NamedFunction(BaseModel):
    """The function that must be called."""

    model_config = ConfigDict(extra="forbid")
    name: str


class NamedToolChoice(BaseModel):
    """`tool_choice` that names a function."""

    model_config = ConfigDict(extra="forbid")
    type: Literal["function"]
    function: NamedFunction


class ChatRequest(Request):
    """`/v1/chat/completions`."""

    messages: Annotated[list[dict[str, Any]], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedToolChoice | None = None
    parallel_tool_calls: bool = True
    """Whether an answer may hold several calls; otherwise it ends with the first."""
    logprobs: bool = False
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    chat_template_kwargs: dict[Literal["enable_thinking"], bool] | None = None
    """Not OpenAI's; vLLM's name for it."""


class CompletionRequest(Request):
    """`/v1/completions`."""

    prompt: str | list[str] | list[int] | list[list[int]]
    logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None

    @property
    def prompts(self) -> list[str] | list[list[int]]:
        """The prompts one by one: texts, or ids."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if self.prompt and isinstance(self.prompt[0], int):
            return [self.prompt]
        return self.prompt  # type: ignore[return-value]
