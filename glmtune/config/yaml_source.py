"""YAML whose keys know where they were written, `--set` on top, and all complaints about them in one place."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import yaml

from glmtune.errors import GlmtuneError
from glmtune.files.missing import missing_configuration
from glmtune.files.shipped import shipped_name
from glmtune.files.text_encoding import read_utf8
from glmtune.files.user_paths import expand
from glmtune.python_terms import in_python_terms
from glmtune.text.secret_values import masked_argument, remember_all, remember_text
from glmtune.text.visible_text import printable

from .other_tools import foreign_configuration, recognise, tool_of_command

TOO_DEEP = "nested too deeply"
START = f"start from a copy of `{shipped_name('lora.yaml')}`"

FLOAT_TAG = "tag:yaml.org,2002:float"
INT_TAG = "tag:yaml.org,2002:int"
MERGE_TAG = "tag:yaml.org,2002:merge"
TIMESTAMP_TAG = "tag:yaml.org,2002:timestamp"
NO_PLAIN_DATA = tuple(f"tag:yaml.org,2002:{kind}" for kind in ("binary", "omap", "pairs", "set", "timestamp"))
"""Tags of what JSON has no type for; no key takes it."""
LONGEST_NUMBER = 64
"""Characters: Python takes minutes for a number of a million."""
DEEPEST = 32
"""Levels of keys and lists inside each other; transformers' and DeepSpeed's own have five."""
MOST_VALUES = 200_000
"""Keys and values, each counted as often as aliases repeat it."""
LARGEST_FILE = 1 << 20
"""Bytes of a configuration: some hundred times those that come along."""
# YAML 1.1 calls `5e-4` a string: it wants a dot before the `e` and a sign after it. People, and YAML 1.2, do not.
FLOAT_WITHOUT_DOT = re.compile(r"^[-+]?(?:[0-9][0-9_]*\.?[0-9_]*|\.[0-9][0-9_]*)[eE][-+]?[0-9]+$")
OTHER_NUMBER = re.compile(r"^[-+]?(?:0[0-7_]*[0-7][0-7_]*$|[0-9][0-9_]*:)")
FLOAT_STARTS = list("-+.0123456789")


class _Loader(yaml.SafeLoader):
    def construct_number(self, node: yaml.ScalarNode) -> int | float:
        """Return a number of a length, and a whole one of a size, that all who read the configuration can take."""
        is_whole = node.tag == INT_TAG
        try:
            if len(node.value) > LONGEST_NUMBER:
                raise OverflowError
            value = self.construct_yaml_int(node) if is_whole else self.construct_yaml_float(node)
            if is_whole and not -(2**63) <= value < 2**63:
                raise OverflowError
        except OverflowError:
            start = node.value if len(node.value) <= LONGEST_NUMBER else f"{node.value[:12]}..."
            problem = f"the number `{start}` is too large"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark) from None
        return value


class _Dumper(yaml.SafeDumper):
    pass


# A `run_name: 2024-01-01` is a name; no key takes a date.
_Loader.yaml_implicit_resolvers = {
    start: [(tag, pattern) for tag, pattern in rules if tag != TIMESTAMP_TAG]
    for start, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_constructor(INT_TAG, _Loader.construct_number)
_Loader.add_constructor(FLOAT_TAG, _Loader.construct_number)
_Loader.yaml_constructors = {
    tag: construct for tag, construct in _Loader.yaml_constructors.items() if tag not in NO_PLAIN_DATA
}
_Loader.add_implicit_resolver(FLOAT_TAG, FLOAT_WITHOUT_DOT, FLOAT_STARTS)
_Dumper.add_implicit_resolver(FLOAT_TAG, FLOAT_WITHOUT_DOT, FLOAT_STARTS)


def dump_yaml(values: Any) -> str:
    """Return `values` as YAML that reads back equal: the text "5e-4" gets quotes, which PyYAML would leave out."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def dump_value(value: Any) -> str:
    """Return a value as YAML on one line, quoted so that it may stand anywhere; it reads back equal."""
    listed = yaml.dump(
        [value], Dumper=_Dumper, sort_keys=False, allow_unicode=True, default_flow_style=True, width=math.inf
    )
    return listed.strip()[1:-1]


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One thing that is wrong with one key."""

    where: str
    key: str
    message: str
    fix: str | None
    meant: str = ""
    """The known key that an unknown one resembles most."""

    def as_line(self) -> str:
        return f"{self.where}: {self.key}: {self.message}" + (f"; {self.fix}" if self.fix else "")


@dataclass(kw_only=True)
class Source:
    """The values of one configuration, where each was written, and what is to be said about them."""

    origin: str
    """The file, as the user named it."""
    values: dict[str, Any]
    """Plain data: what YAML can hold."""
    places: dict[str, str] = field(default_factory=dict)
    """Dotted key to `file:line` or `--set key=value`."""
    problems: list[Problem] = field(default_factory=list)
    """Collected, so that a user mends a file once and not key by key."""
    notices: list[str] = field(default_factory=list)
    """Lines for the user about what was taken differently from how it was written."""

    @property
    def wrong_keys(self) -> set[str]:
        return {key for problem in self.problems for key in (problem.key, problem.meant) if key}

    def where(self, key: str) -> str:
        """Return where `key` was written; for a key that is not there, where its section begins."""
        while key and key not in self.places:
            key = key.rpartition(".")[0]
        return self.places.get(key, self.origin)

    def is_override(self, key: str) -> bool:
        """Return whether `key` has its value from `--set`."""
        return is_override_place(self.where(key))

    def complain(
        self, key: str, message: str, fix: str | None = None, *, where: str | None = None, meant: str = ""
    ) -> None:
        where = where or self.where(key)
        self.problems.append(Problem(where=where, key=key, message=message, fix=fix, meant=meant))

    def raise_problems(self) -> None:
        """Raise one error for all the problems so far; return if there is none."""
        if len(self.problems) == 1:
            only = self.problems[0]
            raise GlmtuneError(f"`{only.key}`: {only.message}", where=only.where, fix=only.fix)
        if self.problems:
            order = {place: line for line, place in enumerate(self.places.values())}
            self.problems.sort(key=lambda problem: order.get(problem.where, -1))
            raise GlmtuneError(
                f"{len(self.problems)} problems in `{self.origin}`", details=[each.as_line() for each in self.problems]
            )

    def section(self, key: str) -> Mapping[str, Any]:
        """Return the keys and values below `key`; nothing where it is absent, null or, with a complaint, no section."""
        value: Any = self.values
        for part in key.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        if value is None or isinstance(value, dict):
            return value or {}
        if key not in self.wrong_keys:
            self.complain(key, f"expected keys and values below it, found {found(value)}")
        return {}

    def set(self, key: str, value: Any, place: str) -> None:
        """Set one dotted key, making the sections on the way; what was written below it is forgotten."""
        parents = key.split(".")[:-1]
        for end in range(1, len(parents) + 1):
            section = ".".join(parents[:end])
            parent = self.section(".".join(parents[: end - 1])) if end > 1 else self.values
            if not isinstance(parent.get(parents[end - 1]), (dict, type(None))):
                self.complain(key, f"`{section}` is a value, not a section", where=place)
                return
            self.places.setdefault(section, place)
        self.values = _with(self.values, key.split("."), value)
        self.places = {name: at for name, at in self.places.items() if name != key and not name.startswith(f"{key}.")}
        self.places[key] = place

    def remove(self, key: str) -> Any:
        """Take one dotted key out and return the value that it had."""
        section, _, name = key.rpartition(".")
        rest = dict(self.section(section) if section else self.values)
        value = rest.pop(name)
        self.values = _with(self.values, section.split("."), rest) if section else rest
        return value

    def override(self, argument: str) -> None:
        """Apply one `--set a.b=value`; the value is read as YAML."""
        key, equals, text = argument.partition("=")
        key = key.strip()
        remember_text(argument)
        place = in_python_terms(f"--set {masked_argument(argument)}")
        if not equals or not all(key.split(".")):
            self.complain(
                key, "expected `key=value`", "write it like `--set training_args.learning_rate=1e-4`", where=place
            )
            return
        if printable(argument) != argument:
            fix = "rename the file or folder; a file of rows may also be named by its folder"
            self.complain(key, "the value is not UTF-8", fix, where=place)
            return
        try:
            value, _, problems = _parse(text, lambda line: place, above=key)
        except GlmtuneError as error:
            self.complain(key, error.what, "put quotes around the value", where=place)
            return
        self.problems += problems
        remember_all({key: value})
        self.set(key, value, place)


def is_override_place(place: str) -> bool:
    """Whether it is that of an override, on the command line or from Python."""
    return place.startswith(("--set ", "overrides=["))


def read_source(path: str | Path) -> Source:
    """Read a YAML file of keys and values; one that is missing, empty, broken or another tool's is a `GlmtuneError`."""
    source = read_keys(path)
    tool = recognise(source.values)
    if tool is not None:
        raise foreign_configuration(tool, source.origin, "one of glmtune")
    return source


def read_keys(path: str | Path) -> Source:
    """Read a YAML file of keys and values, whosever they are; a file that is none is a `GlmtuneError`."""
    origin = expand(str(path))
    path = Path(origin)
    try:
        text = read_utf8(path, at_most=LARGEST_FILE)
    except FileNotFoundError:
        raise missing_configuration(origin) from None
    except OSError as error:
        raise GlmtuneError(f"cannot read `{origin}`: {error}", where=origin) from error
    return source_of_text(text, origin)


def source_of_text(text: str, origin: str) -> Source:
    """Return the values of a YAML text that came from `origin`; one that is empty or broken is a `GlmtuneError`."""
    remember_text(text)
    try:
        values, places, problems = _parse(text, lambda line: f"{origin}:{line}")
    except GlmtuneError:
        _refuse_command(text, origin)
        raise
    remember_all(values)
    if values is None:
        raise GlmtuneError("the configuration is empty", where=origin, fix=START)
    if not isinstance(values, dict):
        _refuse_command(text, origin)
        raise GlmtuneError(
            f"expected keys and values, found {found(values)}",
            where=f"{origin}:1",
            fix=START,
        )
    return Source(origin=origin, values=values, places=places, problems=problems)


def _refuse_command(text: str, origin: str) -> None:
    """Raise where a file that is no YAML of keys and values holds the training command of another tool."""
    tool = tool_of_command(text)
    if tool is not None:
        raise foreign_configuration(tool, origin, "one of glmtune")


def parse_value(text: str) -> Any:
    """Return the value of a text that stands behind an option, read as YAML; a broken one is a `GlmtuneError`."""
    return _parse(text, lambda line: "")[0]


def source_of_mapping(values: Mapping[str, Any], origin: str) -> Source:
    """Return a copy of keys and values that a program has made; what YAML could not hold is a `GlmtuneError`."""
    source = Source(origin=origin, values={})
    source.values = {str(key): _plain(each, str(key), source, 1) for key, each in values.items()}
    source.raise_problems()
    remember_all(source.values)
    return source


def _plain(value: Any, key: str, source: Source, level: int) -> Any:
    """Return a value as YAML would have read it: paths and tuples as texts and lists, numpy's numbers as Python's."""
    if level >= DEEPEST:
        source.complain(key, TOO_DEEP)
        return None
    if isinstance(value, Mapping):
        return {str(own): _plain(each, f"{key}.{own}", source, level + 1) for own, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(each, key, source, level + 1) for each in value]
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str(value)  # a text of numpy's, or a member of an enumeration, is one of its own kind
    if isinstance(value, os.PathLike):
        return os.fsdecode(value)
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        return float(value)
    source.complain(key, f"is of type `{type(value).__name__}`", "give text, a number, a list, or keys and values")
    return None


def found(value: Any) -> str:
    """Return how a message names a value that the user wrote."""
    if isinstance(value, dict):
        return "keys and values"
    if isinstance(value, list):
        return "a list"
    if isinstance(value, str):
        return f"the text `{value if len(value) <= 60 else value[:57] + '...'}`"
    return f"`{str(value).lower()}`" if value is not None else "`null`"


def _with(values: Mapping[str, Any], parts: list[str], value: Any) -> dict[str, Any]:
    """Return a copy with one nested key set; copies, because a YAML alias makes two keys share one mapping."""
    if len(parts) == 1:
        return {**values, parts[0]: value}
    return {**values, parts[0]: _with(values.get(parts[0]) or {}, parts[1:], value)}


def _parse(text: str, place_of: Callable[[int], str], above: str = "") -> tuple[Any, dict[str, str], list[Problem]]:
    """Return the values of a YAML text, the place of every key, and a problem for each key that stands twice.

    `above` is the key that the text is the value of; it goes before every key found.
    """
    places: dict[str, str] = {}
    problems: list[Problem] = []
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None, places, problems
        _check_size(node)
        for key, line, first_line in _keys(node, above):
            places[key] = place_of(line)
            if first_line is not None:
                message = f"stands twice; the first one is on line {first_line}"
                problems.append(Problem(where=place_of(line), key=key, message=message, fix="remove one of the two"))
        problems += [_number_problem(scalar, place_of) for scalar in _scalars(node) if _is_other_number(scalar)]
        return loader.construct_document(node), places, problems
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        what = ", ".join(part for part in (error.context, error.problem) if part)
        fix = "check the indentation (spaces, no tabs), the colons and the quotes up to this line"
        # Without the error itself: it quotes the line, and cuts off its end, so that nothing in it can be hidden.
        raise GlmtuneError(f"broken YAML: {what}", where=place_of(line), fix=fix) from None
    except RecursionError:
        raise GlmtuneError(f"broken YAML: {TOO_DEEP}", where=place_of(1)) from None
    except (yaml.YAMLError, ValueError, LookupError, AttributeError) as error:
        # Bytes that no text holds; a number such as `0b_`; a tag such as `!!bool` before what is none.
        is_told = isinstance(error, (yaml.YAMLError, ValueError)) and str(error)
        reason = str(error).splitlines()[0] if is_told else "a value is not what its tag says"
        raise GlmtuneError(f"broken YAML: {reason}", where=place_of(1)) from None


def _check_size(root: yaml.Node) -> None:
    """Raise where a text holds more than it shows, by aliases of aliases, or nests deeper than others can follow."""
    measured: dict[int, tuple[int, int]] = {}

    def measure(node: yaml.Node) -> tuple[int, int]:
        """Return how many values stand at a node and below it, and on how many levels."""
        key = id(node)
        if key in measured and not measured[key][0]:
            raise yaml.MarkedYAMLError(problem="an alias contains itself", problem_mark=node.start_mark)
        if key not in measured:
            measured[key] = 0, 0  # in the making
            below = [measure(child) for child in _children(node)]
            count, levels = 1 + sum(each[0] for each in below), 1 + max((each[1] for each in below), default=0)
            measured[key] = count, levels
            if levels > DEEPEST:
                raise yaml.MarkedYAMLError(problem=TOO_DEEP, problem_mark=node.start_mark)
            if count > MOST_VALUES:
                problem = f"more than {MOST_VALUES:,} values stand here, those that aliases repeat among them"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)
        return measured[key]

    measure(root)


def _children(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [child for pair in node.value for child in pair]
    return list(node.value) if isinstance(node, yaml.SequenceNode) else []


def _scalars(node: yaml.Node, seen: set[int] | None = None) -> Iterator[yaml.ScalarNode]:
    """Yield every value that is neither a list nor a mapping, each once."""
    seen = set() if seen is None else seen
    if id(node) in seen:
        return
    seen.add(id(node))
    if isinstance(node, yaml.ScalarNode):
        yield node
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from _scalars(item, seen)
    elif isinstance(node, yaml.MappingNode):
        for _, value in node.value:
            yield from _scalars(value, seen)


def _is_other_number(node: yaml.ScalarNode) -> bool:
    """Whether YAML 1.1 reads another number than stands there: 0100 to the base of 8, 1:30 to that of 60."""
    return node.tag in (INT_TAG, FLOAT_TAG) and OTHER_NUMBER.match(node.value) is not None


def _number_problem(node: yaml.ScalarNode, place_of: Callable[[int], str]) -> Problem:
    base = "60" if ":" in node.value else "8"
    sign = node.value[:1] if node.value[:1] in "+-" else ""
    decimal = sign + (node.value.lstrip("+-0_") or "0")
    fix = f'write `"{node.value}"` for the text' + ("" if ":" in node.value else f", or `{decimal}` for the number")
    message = f"YAML reads it as a number to the base of {base}"
    return Problem(where=place_of(node.start_mark.line + 1), key=node.value, message=message, fix=fix)


def _keys(node: yaml.Node, above: str) -> Iterator[tuple[str, int, int | None]]:
    """Yield each key below `node`: dotted name, line, and the line of an earlier key of the same name, if any."""
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from _keys(item, above)
    if not isinstance(node, yaml.MappingNode):
        return
    lines: dict[str, int] = {}
    for name_node, value_node in node.value:
        if not isinstance(name_node, yaml.ScalarNode) or name_node.tag == MERGE_TAG:
            continue
        name, line = name_node.value, name_node.start_mark.line + 1
        key = f"{above}.{name}" if above else name
        yield key, line, lines.get(name)
        lines[name] = line
        yield from _keys(value_node, key)
