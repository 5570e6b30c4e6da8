"""What a request may hold: OpenAI's fields, those that vLLM's clients send besides, and bounds for every number."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from glmtune.constrained.call_syntax import is_strict

IGNORED = {
    "user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention",
    "verbosity", "prediction", "web_search_options", "request_id", "priority", "cache_salt", "guided_decoding_backend",
}  # fmt: skip
"""Fields about accounts and about machines of others: they change nothing of the answer."""

NEUTRAL: dict[str, Any] = {
    "modalities": ["text"],
    "suffix": "",
    "add_generation_prompt": True,
    "continue_final_message": False,
    "use_beam_search": False,
    "length_penalty": 1.0,
    "skip_special_tokens": True,
    "spaces_between_special_tokens": True,
    "include_stop_str_in_output": False,
}
"""Fields that are not answered, and the value that asks for nothing, which some clients send."""

NOT_ANSWERED = {"guided_whitespace_pattern", "logits_processors"}
"""Fields whose every value asks for something that an answer without it would not be."""

GUIDED = {f"guided_{kind}": kind for kind in ("json", "regex", "choice", "grammar")}
"""Older names of what `structured_outputs` holds."""

MAX_CHOICES = 128
MAX_TOP_LOGPROBS = 20
MAX_PROMPT_LOGPROBS = 2**21
"""Likelihoods that one request may have told of its prompts: an answer of some 100 MB."""
MAX_STOPS = 16
MAX_STOP_CHARACTERS = 1000
MAX_STOP_IDS = 128
MAX_BIASES = 1024
MAX_TEMPLATE_KEYS = 64
MOST = 2**31 - 1
"""Of a number whose own bound is the model's."""

Text = Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARACTERS)]
Stop = Annotated[list[Text], Field(max_length=MAX_STOPS, fail_fast=True)]
Ids = Annotated[list[int], Field(fail_fast=True)]
"""A list of wrong entries is told by its first one."""
ManyIds = Annotated[list[Ids], Field(fail_fast=True)]
Texts = Annotated[list[str], Field(fail_fast=True)]
StopIds = Annotated[list[Annotated[int, Field(ge=0, le=MOST)]], Field(max_length=MAX_STOP_IDS, fail_fast=True)]
Objects = Annotated[list[dict[str, Any]], Field(fail_fast=True)]
Count = Annotated[int, Field(ge=0, le=MOST)]


class StreamOptions(BaseModel):
    """How a stream ends."""

    model_config = ConfigDict(extra="ignore")
    include_usage: bool = False


class Request(BaseModel):
    """What both endpoints take."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    model: str
    stream: bool = False
    stream_options: StreamOptions | None = None
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] = 1
    max_tokens: Count | None = None
    temperature: Annotated[float, Field(ge=0, le=100)] | None = None
    """OpenAI's goes up to 2."""
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**64)] | None = None
    stop: Stop | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    logit_bias: dict[int, Annotated[float, Field(ge=-100, le=100)]] | None = None

    # Not OpenAI's; vLLM's names for them.
    top_k: Annotated[int, Field(ge=-1, le=MOST)] | None = None
    """0 and -1 set no limit."""
    min_p: Annotated[float, Field(ge=0, le=1)] = 0.0
    repetition_penalty: Annotated[float, Field(ge=0.01, le=100)] | None = None
    stop_token_ids: StopIds | None = None
    ignore_eos: bool = False
    min_tokens: Count = 0
    prompt_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    """Likely tokens to tell beside each of the prompt's, with their likelihoods."""
    structured_outputs: dict[str, Any] | None = None
    """What the answer has to follow; as `response_format`, it is read where its grammar is made."""
    response_format: dict[str, Any] | None = None

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
        guided = [key for key in GUIDED if key in kept]
        if len(guided) > 1 or (guided and "structured_outputs" in kept):
            raise ValueError(f"`{guided[0]}` is an older name of what `structured_outputs` holds: send one of them")
        for key in guided:
            kept["structured_outputs"] = {GUIDED[key]: kept.pop(key)}
        # Before each of them is looked at.
        for key, most in (("logit_bias", MAX_BIASES), ("chat_template_kwargs", MAX_TEMPLATE_KEYS)):
            if isinstance(kept.get(key), dict) and len(kept[key]) > most:
                raise ValueError(f"`{key}` has more than {most} entries")
        return kept

    @model_validator(mode="after")
    def check_prompt_logprobs(self) -> Request:
        """Refuse what no chunk of a stream has a place for."""
        if self.prompt_logprobs is not None and self.stream:
            raise ValueError("`prompt_logprobs` cannot be streamed")
        return self

    @property
    def num_candidates(self) -> int:
        """Answers that are written for each prompt."""
        return self.n

    @property
    def num_prompt_logprobs(self) -> int | None:
        """Likely tokens to tell beside each of the prompt's; None tells nothing of it."""
        return self.prompt_logprobs

    @property
    def may_follow_grammar(self) -> bool:
        """Whether the answers may have to follow something."""
        return self.response_format is not None or self.structured_outputs is not None


class NamedFunction(BaseModel):
    """The function that must be called."""

    model_config = ConfigDict(extra="ignore")
    name: str


class NamedToolChoice(BaseModel):
    """`tool_choice` that names a function."""

    model_config = ConfigDict(extra="ignore")
    type: Literal["function"]
    function: NamedFunction


class ChatRequest(Request):
    """`/v1/chat/completions`."""

    messages: Annotated[list[dict[str, Any]], Field(min_length=1, fail_fast=True)]
    max_completion_tokens: Count | None = None
    tools: Objects | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedToolChoice | None = None
    functions: Objects | None = None
    """What `tools` were called before; a call comes as `function_call` then, and there is one at most."""
    function_call: Literal["none", "auto"] | NamedFunction | None = None
    parallel_tool_calls: bool = True
    """Whether an answer may hold several calls; otherwise it ends with the first."""
    logprobs: bool = False
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    """Whether the last message, the assistant's, is the beginning of the answer."""
    echo: bool = False
    """Whether a message that the answer goes on with stands before it; vLLM's field."""
    reasoning_effort: Annotated[str, Field(max_length=100)] | None = None
    """A variable of the chat template."""
    chat_template_kwargs: dict[str, Any] | None = None
    """Not OpenAI's; vLLM's name for variables of the chat template."""

    @model_validator(mode="after")
    def read_older_names(self) -> ChatRequest:
        """Put `functions` into the place of `tools`."""
        if self.functions is not None:
            if self.tools is not None:
                raise ValueError("`functions` is an older name of `tools`: send one of them")
            self.tools = [{"type": "function", "function": function} for function in self.functions]
            self.parallel_tool_calls = False
            if isinstance(self.function_call, NamedFunction):
                self.tool_choice = NamedToolChoice(type="function", function=self.function_call)
            else:
                self.tool_choice = self.function_call
        return self

    @model_validator(mode="after")
    def check_continued(self) -> ChatRequest:
        """Refuse what no answer can go on with."""
        if self.continue_final_message and self.add_generation_prompt:
            raise ValueError("`continue_final_message` wants `add_generation_prompt: false`")
        if not (self.continue_final_message or self.add_generation_prompt):
            raise ValueError("`add_generation_prompt: false` wants `continue_final_message: true`")
        if self.continue_final_message and self.tool_choice not in (None, "none", "auto"):
            raise ValueError("`continue_final_message` goes on with a text: `tool_choice` cannot demand a call")
        is_text = self.response_format in (None, {"type": "text"})
        if self.continue_final_message and not (is_text and self.structured_outputs is None):
            field = "structured_outputs" if is_text else "response_format"
            raise ValueError(f"`{field}` is for a whole answer: `continue_final_message` begins one without it")
        return self

    @property
    def has_functions(self) -> bool:
        """Whether calls are to come in their older form."""
        return self.functions is not None

    @property
    def offered_tools(self) -> list[dict[str, Any]] | None:
        """The tools that the model is shown."""
        return None if self.tool_choice == "none" else self.tools

    @property
    def may_follow_grammar(self) -> bool:
        """Whether the answers may have to follow something: a call is demanded, or held to its schema if it comes."""
        if super().may_follow_grammar or self.tool_choice not in (None, "none", "auto"):
            return True
        return any(is_strict(tool) for tool in self.tools or ())

    @property
    def wanted_tokens(self) -> int | None:
        """The most tokens of an answer; None leaves it to the server."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @property
    def variables(self) -> dict[str, Any]:
        """What the chat template is told besides the messages."""
        effort = {} if self.reasoning_effort is None else {"reasoning_effort": self.reasoning_effort}
        return {**effort, **(self.chat_template_kwargs or {})}


class CompletionRequest(Request):
    """`/v1/completions`."""

    prompt: str | Texts | Ids | ManyIds
    logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    echo: bool = False
    """Whether the prompt stands before each answer."""
    best_of: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    """Answers that are written, of which the `n` likeliest are told."""

    @model_validator(mode="after")
    def check_best_of(self) -> CompletionRequest:
        """Refuse what cannot be chosen from."""
        if self.best_of is not None and self.best_of < self.n:
            raise ValueError(f"`best_of` is {self.best_of}, fewer than `n`, {self.n}")
        if self.best_of is not None and self.best_of > self.n and self.stream:
            raise ValueError("`best_of` is known at the end: it cannot be streamed")
        return self

    @property
    def num_candidates(self) -> int:
        """Answers that are written for each prompt."""
        return self.best_of or self.n

    @property
    def num_prompt_logprobs(self) -> int | None:
        """Likely tokens to tell beside each of the prompt's, whichever field wants them."""
        wanted = [self.prompt_logprobs, self.logprobs if self.echo else None]
        return max((number for number in wanted if number is not None), default=None)

    @property
    def prompts(self) -> list[str] | list[list[int]]:
        """The prompts one by one: texts, or ids."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if self.prompt and isinstance(self.prompt[0], int):
            return [self.prompt]
        return self.prompt  # type: ignore[return-value]


class TokenizeRequest(BaseModel):
    """`/tokenize`: a text, or a conversation as `/v1/chat/completions` takes it."""

    model_config = ConfigDict(extra="forbid")
    model: str | None = None
    prompt: str | None = None
    add_special_tokens: bool = True
    return_token_strs: bool = False
    messages: Objects | None = None
    tools: Objects | None = None
    add_generation_prompt: Literal[True] = True
    chat_template_kwargs: dict[str, Any] | None = None

    @model_validator(mode="after")
    def check_one(self) -> TokenizeRequest:
        """Refuse both, and none."""
        if (self.prompt is None) == (not self.messages):
            raise ValueError("expected `prompt`, or `messages`")
        return self


class DetokenizeRequest(BaseModel):
    """`/detokenize`."""

    model_config = ConfigDict(extra="forbid")
    model: str | None = None
    tokens: Ids
