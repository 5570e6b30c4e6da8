"""What answers of a model that is in memory have to follow: a schema, and those of functions that are `strict`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

from glmtune.chatformat.encoding import Encoder
from glmtune.chatformat.replies import reply_layout
from glmtune.console import notice
from glmtune.constrained.call_syntax import is_strict
from glmtune.constrained.compiling import CompiledGrammar, Compiler, is_installed
from glmtune.constrained.schemas import GrammarError
from glmtune.constrained.wanted import chat_grammar, reasoning_at_start, tags_of
from glmtune.errors import GlmtuneError
from glmtune.modeling.context import vocabulary_of
from glmtune.modeling.loading import LoadedModel

from .decoding import border_of


class Following:
    """Makes the grammars of one model's answers."""

    def __init__(self, loaded: LoadedModel, encoder: Encoder, *, schema: Any = None) -> None:
        """Keep the model, and the schema that its answers follow; calls of tools follow their own."""
        self._renderer = encoder.renderer
        self._layout = reply_layout(encoder.renderer)
        self._tokenizer = loaded.tokenizer
        self._schema = schema
        stops = loaded.model.generation_config.eos_token_id
        self._compiler = Compiler(loaded.tokenizer, vocabulary=vocabulary_of(loaded.model.config), stops=stops)

    def grammar(self, *, thinking: bool | None = None, tools: Sequence[Any] = ()) -> CompiledGrammar | None:
        """Return what an answer has to follow where these tools are offered; None where it is free."""
        if self._schema is None:
            if not any(map(is_strict, tools)):
                return None
            if not is_installed():
                _say_once_that_calls_are_free()
                return None
        wanted = {"type": "json_schema", "json_schema": {"schema": self._schema}}
        variables = {} if thinking is None else {"enable_thinking": thinking}
        try:
            made = chat_grammar(
                layout=self._layout,
                border=border_of(self._tokenizer),
                tags=tags_of(self._tokenizer),
                reasoning=reasoning_at_start(self._renderer, self._layout, variables),
                response_format=None if self._schema is None else wanted,
                tools=tools,
            )
            return None if made is None else self._compiler.compiled(made)
        except GrammarError as error:
            what = "schema" if self._schema is not None and not tools else "schemas"
            raise GlmtuneError(f"the {what} cannot be followed: {error}") from None


@cache
def _say_once_that_calls_are_free() -> None:
    notice("calls of `strict` functions are not held to their schemas: that needs `pip install 'glmtune[serve]'`")
