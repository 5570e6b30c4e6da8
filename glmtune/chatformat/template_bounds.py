"""Chat templates are programs that come with a model: here they get an end, in time and in text.

transformers renders them in Jinja's sandbox, which keeps them from everything but the processor and the memory. This
sandbox counts: every turn of a loop, call of a macro and use of a filter looks at the clock, and whatever makes a text
(`~`, `+`, `*`, `%`, filters, methods, slices) pays for its length before it does. No thread and no signal is needed, so
that it is the same in threads, in worker processes and on every system.
"""

from __future__ import annotations

import itertools
import re
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from functools import wraps
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment, SandboxedFormatter
from jinja2.visitor import NodeTransformer
from transformers.utils import chat_template_utils

MAX_SECONDS = 10.0
"""For one rendering: ten thousand times what a template takes for an ordinary row."""
MAX_CHARACTERS = 64 << 20
"""Of a text that a template makes: four times the longest row that is read."""
MAX_MADE = 1 << 30
"""Characters of all texts that one rendering makes, those that it throws away among them."""
MAX_NUMBER = 100_000
"""Of a width, an indentation, a count: as many as the sandbox lets a `range` have."""
MAX_BITS = 4096
"""Of a whole number."""
TURN, ITEM = 256, 64
"""What a turn of a loop, and an item of a list, weigh in characters."""
PIECES_AT_ONCE = 256
WIDE = re.compile(r"\d{6}|%[^a-zA-Z%]*\*")
"""A width of more than `MAX_NUMBER`, or one that is a number of its own, in a format."""
TICK, JOIN, COPY = "glmtune_tick", "glmtune_join", "glmtune_copy"
WITH_NUMBERS = ("batch", "center", "filesizeformat", "indent", "round", "slice", "tojson", "truncate", "wordwrap")
"""Filters that are given a width or a count."""
ABSENT = ("lipsum", "pprint")
"""What makes texts of its own, or takes long over those of others; no chat needs it."""


class TemplateBound(jinja2.TemplateRuntimeError):
    """A template takes more time, or makes more text, than any conversation needs."""


class _Budget:
    """What is left to one rendering."""

    def __init__(self) -> None:
        self.deadline = time.monotonic() + MAX_SECONDS
        self.characters = MAX_MADE

    def pay(self, length: int) -> None:
        """Take a text that is about to be made."""
        self.characters -= length
        if length > MAX_CHARACTERS:
            raise TemplateBound(f"it makes a text of more than {MAX_CHARACTERS >> 20} million characters")
        if self.characters < 0:
            raise TemplateBound("it goes through more texts, or turns of loops, than any conversation needs")


_rendering = threading.local()


def _pay(length: int) -> None:
    budget: _Budget | None = getattr(_rendering, "budget", None)
    if budget is not None:
        budget.pay(length)


@jinja2.pass_context  # or else it would be called once, when the template is compiled
def _tick(context: Any, value: Any = None) -> Any:
    """Return the value, unless the time is up."""
    budget: _Budget | None = getattr(_rendering, "budget", None)
    if budget is not None:
        budget.pay(TURN)
        if time.monotonic() > budget.deadline:
            raise TemplateBound(f"it takes more than {MAX_SECONDS:.0f} seconds")
    return value


def _refuse_large(values: Iterable[Any]) -> None:
    if any(isinstance(value, int) and abs(value) > MAX_NUMBER for value in values):
        raise TemplateBound(f"it asks for a width or a count of more than {MAX_NUMBER:,}")


def _weight(value: Any, known: dict[int, int] | None = None) -> int:
    """Return how long the text of a value is, about; what stands in it several times counts as often."""
    if isinstance(value, (str, bytes)):
        return len(value)
    if not isinstance(value, (list, tuple, Mapping)):
        return ITEM
    known = {} if known is None else known
    if id(value) not in known:
        inner = (each for pair in value.items() for each in pair) if isinstance(value, Mapping) else value
        known[id(value)] = sum(ITEM + _weight(each, known) for each in inner)
    return known[id(value)]


def _joined(first: Any, *others: Any) -> str:
    """Return texts one behind the other, as `~` does."""
    _pay(_weight(first) + sum(map(_weight, others)))
    return "".join(map(str, (first, *others)))


def _copied(value: Any) -> Any:
    """Return a value that a part of will be taken."""
    _pay(_weight(value))
    return value


def _written(value: Any) -> Any:
    """Return a value whose text will be written."""
    if value.__class__ is not str and not isinstance(value, (str, jinja2.Undefined)):
        _pay(_weight(value))
    return value


def _bounded_text(pieces: Iterable[str]) -> str:
    """Return the pieces of a rendering one behind the other."""
    kept: list[str] = []
    length = 0
    written = iter(pieces)
    while length <= MAX_CHARACTERS and (some := list(itertools.islice(written, PIECES_AT_ONCE))):
        kept += some
        length += sum(map(len, some))
    _pay(length)
    return "".join(kept)


class _Counted(NodeTransformer):
    """Puts a look at the clock into every loop and macro, and a payment before every `~` and slice."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        self.generic_visit(node)
        node.body.insert(0, nodes.ExprStmt(_filter(TICK, nodes.Const(None)), lineno=node.lineno))
        node.test = node.test and _filter(TICK, node.test)
        return node

    def visit_Macro(self, node: nodes.Macro) -> nodes.Node:
        self.generic_visit(node)
        node.body.insert(0, nodes.ExprStmt(_filter(TICK, nodes.Const(None)), lineno=node.lineno))
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return _filter(JOIN, *node.nodes)

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:
        self.generic_visit(node)
        if isinstance(node.arg, nodes.Slice):
            node.node = _filter(COPY, node.node)
        return node


def _filter(name: str, first: Any, *others: nodes.Expr) -> nodes.Filter:
    return nodes.Filter(first, name, list(others), [], None, None, lineno=first.lineno or 1)


class _BoundedTemplate(jinja2.Template):
    """A template whose every rendering has a budget of its own."""

    def render(self, *args: Any, **kwargs: Any) -> str:
        _rendering.budget = _Budget()
        try:
            return super().render(*args, **kwargs)
        finally:
            _rendering.budget = None


class _BoundedFormatter(SandboxedFormatter):
    def format_field(self, value: Any, format_spec: str) -> Any:
        if WIDE.search(format_spec):
            _refuse_large([MAX_NUMBER + 1])
        return super().format_field(value, format_spec)


class _Filters(dict):  # type: ignore[type-arg]
    """Filters by name; those that transformers adds later get bounds, too."""

    def __setitem__(self, name: str, value: Callable[..., Any]) -> None:
        super().__setitem__(name, _bounded_filter(name, value))


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """Jinja's sandbox with bounds on time and text; what a template writes within them is the same."""

    template_class = _BoundedTemplate
    intercepted_binops = frozenset(["+", "*", "**", "%"])
    concat = staticmethod(_bounded_text)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs, finalize=_written)
        plain = {name: each for name, each in self.filters.items() if name not in ABSENT}
        self.filters = _Filters({name: _bounded_filter(name, each) for name, each in plain.items()})
        self.filters.update({TICK: _tick, JOIN: _joined, COPY: _copied})
        self.globals = {name: each for name, each in self.globals.items() if name not in ABSENT}

    def _generate(self, source: nodes.Template, *args: Any, **kwargs: Any) -> str:
        return super()._generate(_Counted().visit(source), *args, **kwargs)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        _CHECKS[operator](left, right)
        return super().call_binop(context, operator, left, right)

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        owner = getattr(__obj, "__self__", None)
        if isinstance(owner, (str, bytes)):
            _check_method(owner, __obj.__name__, args, kwargs)
        return super().call(__context, __obj, *args, **kwargs)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        if super().wrap_str_format(value) is None:
            return None
        text, is_map = value.__self__, value.__name__ == "format_map"

        @wraps(value)
        def formatted(*args: Any, **kwargs: Any) -> str:
            named = args[0] if is_map else kwargs
            _pay(len(text) + (_weight(args) + _weight(named)) * text.count("{"))
            return _BoundedFormatter(self).vformat(text, () if is_map else args, named)

        return formatted


def _bounded_filter(name: str, plain: Callable[..., Any]) -> Callable[..., Any]:
    """Return a filter that looks at the clock, and at what it is given and gives."""

    @wraps(plain)
    def bounded(*args: Any, **kwargs: Any) -> Any:
        _tick(None)
        if name in WITH_NUMBERS:
            _refuse_large((*args[1:], *kwargs.values()))
        if name == "format":
            _check_remainder(args[0], args[1:] or kwargs)
        if name == "join":
            args = tuple(list(each) if _is_series(each) else each for each in args)
        longest, second = sorted([0, 0, *map(_weight, (*args, *kwargs.values()))])[:-3:-1]
        if name == "replace":
            _check_replacement([each for each in args if isinstance(each, str)])
        # These put one text between the parts of another.
        _pay(longest * second if name in ("indent", "join", "wordwrap") and second > ITEM else longest)
        made = plain(*args, **kwargs)
        _pay(ITEM * len(made) if isinstance(made, list) else 0)
        return made

    return bounded


def _check_replacement(texts: list[str]) -> None:
    if len(texts) == 3:
        whole, old, new = texts
        _pay(whole.count(old) * len(new))


def _is_series(value: Any) -> bool:
    return isinstance(value, Iterable) and not isinstance(value, str)


def _check_method(owner: str | bytes, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Raise where a method of a text would make a text that is too long."""
    values = (*args, *kwargs.values())
    _refuse_large(values)
    length = len(owner)
    if name == "replace" and len(args) > 1:
        count = owner.count(args[0]) if isinstance(owner, str) and isinstance(args[0], str) else length
        length += count * _weight(args[1])
    elif name == "join" and args:
        length = length * _weight(args[0]) // ITEM + _weight(args[0])
    elif name == "expandtabs":
        length *= max([8, *(value for value in values if isinstance(value, int))])
    elif name in ("split", "rsplit", "splitlines"):
        length *= 4
    elif name == "translate":
        raise TemplateBound("it calls `translate`, which may make a text of any length")
    _pay(length)


def _check_sum(left: Any, right: Any) -> None:
    for value in (left, right):
        if isinstance(value, (str, bytes)):
            _pay(len(value))
        elif isinstance(value, (list, tuple)):
            _pay(ITEM * len(value))


def _check_product(left: Any, right: Any) -> None:
    for one, other in ((left, right), (right, left)):
        if isinstance(one, (str, bytes, list, tuple)) and isinstance(other, int):
            _pay(len(one) * max(0, other) * (1 if isinstance(one, (str, bytes)) else ITEM))
    if isinstance(left, int) and isinstance(right, int) and left.bit_length() + right.bit_length() > MAX_BITS:
        raise TemplateBound("it computes with numbers that are too large")


def _check_power(left: Any, right: Any) -> None:
    if isinstance(left, int) and isinstance(right, int) and left.bit_length() * max(0, right) > MAX_BITS:
        raise TemplateBound("it computes with numbers that are too large")


def _check_remainder(left: Any, right: Any) -> None:
    if isinstance(left, (str, bytes)):
        text = left if isinstance(left, str) else left.decode("latin-1")
        if WIDE.search(text):
            _refuse_large([MAX_NUMBER + 1])
        _pay(len(left) + _weight(right) * text.count("%"))


_CHECKS: dict[str, Callable[[Any, Any], None]] = {
    "+": _check_sum,
    "*": _check_product,
    "**": _check_power,
    "%": _check_remainder,
}


def bound_templates() -> None:
    """Have transformers render every chat template of this process with these bounds."""
    if chat_template_utils.ImmutableSandboxedEnvironment is not BoundedEnvironment:
        chat_template_utils.ImmutableSandboxedEnvironment = BoundedEnvironment  # type: ignore[misc]
        chat_template_utils._compile_jinja_template.cache_clear()
