"""Does a value from YAML fit the annotation of a dataclass field? Knows no key by name."""

from __future__ import annotations

import types
from collections.abc import Container, Mapping, Sequence
from dataclasses import Field, fields
from enum import Enum
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from glmtune.errors import nearest
from glmtune.text.secret_values import is_secret

from .yaml_source import Source, found

LONGEST_LIST = 12
"""A message spells out this many choices; `optim` has three times as many."""

PLAIN_TYPES: dict[Any, tuple[type | tuple[type, ...], str]] = {
    bool: (bool, "true or false"),
    int: (int, "a whole number"),
    float: ((int, float), "a number"),
    str: (str, "text"),
    type(None): (type(None), "null"),
    list: (list, "a list"),
    tuple: (list, "a list"),
    set: (list, "a list"),
    dict: (dict, "keys and values"),
    Mapping: (dict, "keys and values"),
}
"""Annotation: what YAML gives for it, and what a message calls it."""


class Mismatch(Exception):
    """A value does not fit; the text says what would."""


def check_fields(
    source: Source,
    section: str,
    given: Mapping[str, Any],
    cls: type,
    *,
    hidden: Container[str] = (),
    homes: Mapping[str, str],
) -> dict[str, Any]:
    """Return the values of one section as the dataclass `cls` wants them; complain of unknown keys and wrong types.

    `hidden` fields of `cls` are not for the user. `homes` says of a key where it belongs, for those in a wrong section.
    """
    types_of = get_type_hints(cls)
    known = {each.name: each for each in fields(cls) if each.init and each.name not in hidden}
    fitting: dict[str, Any] = {}
    for name, value in given.items():
        key = f"{section}.{name}" if section else str(name)
        if name not in known:
            complain_unknown(source, key, list(known), homes)
            continue
        try:
            fitting[name] = _fit_field(value, known[name], types_of[name])
        except Mismatch as mismatch:
            shown = "something else" if is_secret(name) else found(value)
            source.complain(key, f"expected {mismatch}, found {shown}")
    return fitting


def complain_unknown(source: Source, key: str, known: Sequence[str], homes: Mapping[str, str]) -> None:
    """Complain of a key that a section does not have, with the section that has it or the nearest key."""
    section, dot, name = key.rpartition(".")
    hint = f" here (it belongs {homes[name]})" if name in homes else nearest(name, list(known))
    meant = next((f"{section}{dot}{candidate}" for candidate in known if f"`{candidate}`" in hint), "")
    source.complain(key, f"unknown key{hint}", meant=meant)


def fit(value: Any, annotation: Any) -> Any:
    """Return `value` as `annotation` wants it, raising `Mismatch` where that cannot be.

    A type that is not understood (a class of transformers, `Any`) takes every value: better late than wrongly refused.
    """
    origin = get_origin(annotation) or annotation
    if origin in (Union, types.UnionType):
        return _fit_union(value, get_args(annotation))
    if origin is Literal:
        return one_of(value, get_args(annotation))
    if isinstance(origin, type) and issubclass(origin, Enum):
        return one_of(value, [member.value for member in origin])
    if origin not in PLAIN_TYPES:
        return value
    if origin is int and isinstance(value, float) and value.is_integer() and abs(value) < 2**63:
        return int(value)  # `max_steps: 3e3`
    wanted, name = PLAIN_TYPES[origin]
    # In Python `True` is an int; in a config it is a mistake for one.
    if not isinstance(value, wanted) or (isinstance(value, bool) and origin is not bool):
        raise Mismatch(name)
    if origin is list and get_args(annotation):
        return _fit_items(value, get_args(annotation)[0])
    return value


def one_of(value: Any, options: Sequence[Any]) -> Any:
    """Return `value` if it is one of `options`, `"no"` for the false that YAML 1.1 makes of a bare `no`."""
    if any(value == option and type(value) is type(option) for option in options):
        return value
    if value is False and "no" in options:
        return "no"
    if isinstance(value, str) and any(isinstance(option, str) and "[" in option for option in options):
        return value  # PEFT writes a pattern among the words: `pissa_niter_[number of iters]`
    shown = ", ".join(f"`{option}`" for option in options[:LONGEST_LIST])
    more = f" or {len(options) - LONGEST_LIST} more" if len(options) > LONGEST_LIST else ""
    raise Mismatch(f"one of {shown}{more}{nearest(str(value), [str(option) for option in options])}")


def _fit_field(value: Any, field: Field[Any], annotation: Any) -> Any:
    if value is None and field.default is None:  # PEFT writes `token_dim: int = None`
        return None
    choices = field.metadata.get("choices")
    if choices and value is not None:
        return one_of(value, list(choices))
    return fit(value, annotation)


def _fit_union(value: Any, members: Sequence[Any]) -> Any:
    # `IntervalStrategy | str` means one of the words of the enum, not any text.
    has_enum = any(isinstance(member, type) and issubclass(member, Enum) for member in members)
    expected = []
    for member in members:
        if has_enum and member is str:
            continue
        try:
            return fit(value, member)
        except Mismatch as mismatch:
            expected.append(str(mismatch))
    # `null` is seldom what was meant. Sorted: `typing` hands out an equal union that somebody wrote in another order.
    raise Mismatch(" or ".join(sorted(name for name in expected if name != "null")))


def _fit_items(values: Any, annotation: Any) -> list[Any]:
    try:
        return [fit(value, annotation) for value in values]
    except Mismatch as mismatch:
        raise Mismatch(f"a list with {mismatch} in every place") from None
