"""From a grammar's text to what masks are computed with: by llguidance, once for all answers that follow the same.

llguidance bounds what a grammar may cost, in compiling and at each token; what goes beyond fails. A compiled grammar
and all matchers made of it share the states that they have met, which makes them fast, and fail together: where one
fails, the next are made of a grammar that is compiled anew.
"""

from __future__ import annotations

import importlib.util
import re
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedTokenizerBase

from glmtune.errors import require

from .closing import Closers
from .grammars import Grammar
from .schemas import GrammarError

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

MAX_GRAMMARS = 32
"""Kept, the least recently used of them forgotten: at most 20 to 40 MB each."""
MAX_AT_ONCE = 2
"""Compiled at the same time; nothing that takes long in it holds up other threads."""
MAX_REASON = 500
SHOWN_GRAMMAR = re.compile(r"\d* ?\||<")
"""Lines of an error that show where in the grammar it is."""
LIMITS: dict[str, Any] = {
    "initial_lexer_fuel": 1_000_000,  # 20 ms
    "step_lexer_fuel": 100_000,  # 7 ms
    "step_max_items": 50_000,  # 2.5 ms
    "max_lexer_states": 20_000,  # 1 to 2 kB each
    "max_grammar_size": 100_000,
    "verbose_errors": False,
}


def is_installed() -> bool:
    """Whether the library is there, which comes with an extra."""
    return importlib.util.find_spec("llguidance") is not None


class Compiler:
    """Compiles grammars for one tokenizer; several threads may ask."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, vocabulary: int | None, stops: list[int]) -> None:
        """Keep what the grammars are compiled for.

        Args:
            tokenizer: Of the model.
            vocabulary: Entries of the model's logits, which may be more than the tokenizer has; as many where it is
                None.
            stops: Ids that end an answer: no text holds them.
        """
        self._tokenizer = tokenizer
        self.vocabulary = vocabulary or len(tokenizer)
        self._stops = stops
        self._vocabulary_read: LLTokenizer | None = None
        self._closers: Closers | None = None
        self._reading = threading.Lock()
        self._compiling = threading.Semaphore(MAX_AT_ONCE)
        self._kept: OrderedDict[str, CompiledGrammar | GrammarError] = OrderedDict()
        self._keeping = threading.Lock()

    def read_vocabulary(self) -> Any:
        """Return the tokenizer as llguidance knows it; the first time takes 2 s where there are 151,552 tokens."""
        with self._reading:
            if self._vocabulary_read is None:
                require("llguidance", extra="schema")
                from llguidance.hf import from_tokenizer

                tokenizer: Any = self._tokenizer
                if not tokenizer.is_fast:
                    raise GrammarError("this model's tokenizer is none of the `tokenizers` library, as it takes")
                self._vocabulary_read = from_tokenizer(
                    tokenizer, n_vocab=self.vocabulary, eos_token=self._stops or None
                )
                self._closers = Closers.of(tokenizer, self.vocabulary)
            return self._vocabulary_read

    @property
    def closers(self) -> Closers:
        """The tokens by which answers end."""
        if self._closers is None:
            self._closers = Closers.of(self._tokenizer, self.vocabulary)
        return self._closers

    def compiled(self, grammar: Grammar) -> CompiledGrammar:
        """Return the grammar, compiled now or before.

        Raises:
            GrammarError: It is wrong, or asks for what is not supported; also where that was found before.
        """
        with self._keeping:
            found = self._kept.get(grammar.text)
            if found is not None:
                self._kept.move_to_end(grammar.text)
        if found is None:
            vocabulary = self.read_vocabulary()
            with self._compiling:
                started = time.monotonic()
                try:
                    first = compile_anew(vocabulary, grammar)
                    found = CompiledGrammar(self, grammar, first, time.monotonic() - started)
                except GrammarError as error:
                    found = error
            with self._keeping:
                self._kept[grammar.text] = found
                while len(self._kept) > MAX_GRAMMARS:
                    self._kept.popitem(last=False)
        if isinstance(found, GrammarError):
            raise GrammarError(str(found))
        return found

    def forget(self, grammar: Grammar) -> None:
        """Compile the grammar anew when it is asked for again."""
        with self._keeping:
            self._kept.pop(grammar.text, None)


@dataclass(frozen=True)
class CompiledGrammar:
    """What answers follow, ready for any number of them."""

    compiler: Compiler = field(repr=False)
    grammar: Grammar
    first: LLMatcher = field(repr=False)
    """Stands at the beginning of an answer; never moved."""
    seconds: float
    """That compiling took."""


def compile_anew(vocabulary: LLTokenizer, grammar: Grammar) -> LLMatcher:
    """Return what stands at the beginning of an answer; its first mask is computed, since that may fail, too."""
    from llguidance import LLMatcher, LLParserLimits

    first = LLMatcher(vocabulary, grammar.text, log_level=0, limits=LLParserLimits(**LIMITS))
    if not first.is_error():
        probe = first.deep_copy()
        probe.compute_bitmask()
        if not probe.is_error():
            return first
        first = probe
    raise GrammarError(_reason(first))


def _reason(matcher: LLMatcher) -> str:
    """Return what the library says, on one line, without the grammar that we have made of the request."""
    lines = [line.strip() for line in str(matcher.get_error()).split("\n")]
    told = [line for line in lines if line and not SHOWN_GRAMMAR.match(line)]
    return " ".join(told)[:MAX_REASON] or "the grammar is refused"
