"""Training commands in files for the shell: `swift sft --model ... --dataset ...` to keys and values."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from glmtune.config.other_tools import LLAMAFACTORY, SWIFT
from glmtune.config.yaml_source import parse_value
from glmtune.errors import GlmtuneError

ENDS = frozenset(("&&", "||", ";", "|", "&", ">", ">>", "2>&1", "2>", "<"))
"""Words of the shell that end the arguments of a command."""
ASSIGNMENT = re.compile(r"([A-Za-z_]\w*)=(.*)", re.DOTALL)
VARIABLE = re.compile(r"\$(?:\{(\w+)(?::-([^}]*))?\}|(\w+))")
VERBS = {"sft": SWIFT, "pt": SWIFT, "rlhf": SWIFT, "train": LLAMAFACTORY}
"""Verbs of training commands, and whose they are."""


@dataclass(frozen=True, kw_only=True)
class TrainingCommand:
    """A training command."""

    tool: str
    verb: str
    values: dict[str, Any]
    """Its options: `--learning_rate 1e-4` is `learning_rate: 0.0001`, several words behind one are a list."""
    file: str | None = None
    """The YAML that it names, which its options stand on top of."""
    variables: dict[str, str] = field(default_factory=dict)
    """Of the environment, as they are set before it."""


def read_command(text: str, where: str) -> TrainingCommand:
    """Return the first training command of a file for the shell.

    Raises:
        GlmtuneError: There is none, or a quote is not closed.
    """
    try:
        commands = list(_commands(text))
    except ValueError as error:
        raise GlmtuneError(f"the command cannot be read: {error}", where=where, fix="close the quotes") from None
    variables: dict[str, str] = {}
    for words in commands:
        words = [_with_values(word, variables) for word in words]
        start = next((index for index, word in enumerate(words) if not ASSIGNMENT.fullmatch(word)), len(words))
        assigned = dict(word.split("=", 1) for word in words[:start])
        if words[:1] == ["export"]:
            assigned = dict(word.split("=", 1) for word in words[1:] if ASSIGNMENT.fullmatch(word))
        variables |= assigned
        found = _verb(words[start:])
        if found:
            verb, rest = found
            file, values = _options(rest)
            return TrainingCommand(tool=VERBS[verb], verb=verb, values=values, file=file, variables=variables)
    raise GlmtuneError(
        "the file has no training command that is known here",
        where=where,
        fix="expected `swift sft --model ... --dataset ...`, or `llamafactory-cli train FILE`",
    )


def _commands(text: str) -> Iterator[list[str]]:
    """Yield the words of every command."""
    joined = re.sub(r"\\[ \t]*\n", " ", text.replace("\r\n", "\n"))
    # A quote may go on behind the end of a line, so that lines are no commands yet.
    lexer = shlex.shlex(joined, posix=True, punctuation_chars=";&|<>\n")
    lexer.whitespace = " \t\r"
    lexer.whitespace_split = True
    words: list[str] = []
    for word in lexer:
        if set(word) <= set(";&|<>\n"):
            if words:
                yield words
            words = []
        else:
            words.append(word)
    if words:
        yield words


def _with_values(word: str, variables: dict[str, str]) -> str:
    """Return a word with what its variables stand for, as far as the file says it."""
    return VARIABLE.sub(lambda found: variables.get(found[1] or found[3], found[2] or found[0]), word)


def _verb(words: Sequence[str]) -> tuple[str, list[str]] | None:
    """Return the verb of a training command and the words behind it; None for any other command."""
    for index, word in enumerate(words):
        name = word.rpartition("/")[2]
        if name in ("swift", "llamafactory-cli", "lmf", "megatron") and index + 1 < len(words):
            verb = words[index + 1]
            is_known = verb in VERBS and (VERBS[verb] == SWIFT) == (name in ("swift", "megatron"))
            return (verb, list(words[index + 2 :])) if is_known else None
        script = re.search(r"swift/cli/(sft|pt|rlhf)\.py$", word)
        if script:
            return script[1], list(words[index + 1 :])
    return None


def _options(words: Sequence[str]) -> tuple[str | None, dict[str, Any]]:
    """Return the file that stands first, and the options."""
    file: str | None = None
    options: dict[str, list[str]] = {}
    name = ""
    for word in words:
        assigned = ASSIGNMENT.fullmatch(word)
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            name = name.replace("-", "_")
            options[name] = [value] if equals else []
        elif name:
            options[name].append(word)
        elif assigned:
            options[assigned[1]] = [assigned[2]]
        elif file is None:
            file = word
    return file, {name: _read(values) for name, values in options.items()}


def _read(words: Sequence[str]) -> Any:
    """Return the value of an option: a switch where nothing stands behind it, a list where several words do."""
    values = []
    for word in words:
        try:
            values.append(parse_value(word))
        except (GlmtuneError, yaml.YAMLError):
            values.append(word)
    return True if not values else values[0] if len(values) == 1 else values
