"""Messages name verbs and options of the command line; a Python program reads its functions and arguments instead.

`glmtune resume runs/a --checkpoint 5` becomes `resume("runs/a", checkpoint_step=5)`, `--batch-size` becomes
`batch_size`. What there is on the command line alone stays as it is: it is typed in a terminal.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

FUNCTIONS = {
    "train": "train",
    "resume": "resume",
    "estimate": "estimate",
    "eval": "evaluate",
    "compare": "compare",
    "infer": "generate",
    "export": "export",
    "serve": "serve",
    "runs": "list_runs",
    "stop": "stop_run",
    "web": "web",
    "init": "first_config",
    "data check": "check_data",
    "data convert": "convert_data",
    "data prepare": "prepare_data",
}
"""Verbs that have a function of `glmtune`."""

ARGUMENTS = {
    "--accept-changes": "accept_changes",
    "--adapter": "adapters",
    "--allow-adapter-changes": "allow_adapter_changes",
    "--allow-sending": "allow_sending",
    "--allowed-host": "allowed_hosts",
    "--api-key": "api_key",
    "--backend": "backend",
    "--base-model": "base_model",
    "--batch-size": "batch_size",
    "--checkpoint": "checkpoint_step",
    "--column": "columns",
    "--combine": "combine",
    "--cors-origin": "cors_origins",
    "--deepspeed": "overrides",
    "--dry-run": "dry_run",
    "--dtype": "dtype",
    "--from": "from_format",
    "--gguf": "gguf",
    "--init-from": "init_from",
    "--limit": "limit",
    "--max-length": "max_length",
    "--max-new-tokens": "max_new_tokens",
    "--method": "method",
    "--metrics": "metrics",
    "--model": "model",
    "--name": "name",
    "--output": "output",
    "--port": "port",
    "--prompts": "prompts",
    "--push": "push_to",
    "--read-only": "read_only",
    "--quantization": "quantization",
    "--set": "overrides",
    "--strict": "strict",
    "--strict-fields": "strict_fields",
    "--timeout": "timeout",
    "--trust-remote-code": "trust_remote_code",
    "--verify": "verify",
    "--vllm-args": "vllm_args",
}
"""Options that are arguments of these functions, or fields of `Limits` and `GenerationConfig`."""

FLAGS = (
    "--accept-changes",
    "--allow-sending",
    "--combine",
    "--dry-run",
    "--read-only",
    "--strict",
    "--strict-fields",
    "--trust-remote-code",
    "--verify",
)
LISTS = ("--adapter", "--allowed-host", "--cors-origin", "--set")
"""Options that may stand several times, for an argument that is a list."""

TERMINAL_ONLY = {("init", "--from")}
"""Options of a verb that its function does not have."""

DEBUG = "GLMTUNE_DEBUG=1"
"""Variable of the environment: what `--debug` stands for."""

SPAN = re.compile(r"`((?:glmtune [a-z]|--[a-z])[^`]*)`")
PLACEHOLDER = re.compile(r"\.\.\.|[A-Z][A-Z_]*|\d+")

_is_command_line = False


@contextmanager
def spoken_on_the_command_line() -> Iterator[None]:
    """Leave messages as they are for as long as the command line runs."""
    global _is_command_line
    former, _is_command_line = _is_command_line, True
    try:
        yield
    finally:
        _is_command_line = former


def in_python_terms(text: str) -> str:
    """Return a message as a Python program reads it; on the command line as it is."""
    if _is_command_line:
        return text
    if text.startswith("--set "):  # the place of a mistake
        return f"overrides=[{_quoted(text.removeprefix('--set '))}]"
    return SPAN.sub(lambda span: f"`{translated(span[1])}`", text)


def translated(code: str) -> str:
    """Return a command, or options of one, in Python's terms; as it is where there are none for all of it."""
    try:
        words = _words(code)
    except ValueError:
        return code
    if words == ["--debug"]:
        return DEBUG
    function = ""
    if words[0] == "glmtune":
        length = 2 if " ".join(words[1:3]) in FUNCTIONS else 1
        verb = " ".join(words[1 : 1 + length])
        if verb not in FUNCTIONS:
            return code
        function, words = FUNCTIONS[verb], words[1 + length :]
        if any((verb, word.partition("=")[0]) in TERMINAL_ONLY for word in words):
            return code
    elif len(words) == 1 and words[0] in ARGUMENTS and words[0] not in FLAGS:
        return ARGUMENTS[words[0]]
    arguments = _arguments(words)
    if arguments is None:
        return code
    if not function:
        return ", ".join(arguments)
    if not words or words[0].startswith("--"):
        arguments = ["...", *arguments]  # what it works on is not named
    return f"{function}({', '.join(arguments)})"


def _arguments(words: Sequence[str]) -> list[str] | None:
    """Return what stands between the brackets of a call; None where an option is none of Python's."""
    positional: list[str] = []
    named: dict[str, str | list[str] | dict[str, str]] = {}
    rest = iter(words)
    for word in rest:
        option, equals, value = word.partition("=")
        if not option.startswith("--"):
            positional.append(_literal(word))
            continue
        if option not in ARGUMENTS:
            return None
        name = ARGUMENTS[option]
        if option in FLAGS:
            named[name] = "True"
            continue
        value = value if equals else next(rest, "...")
        if option == "--column":
            columns = named.setdefault(name, {})
            key, _, own = value.partition("=")
            if isinstance(columns, dict):
                columns[key] = own
        elif option in LISTS or option == "--deepspeed":
            listed = named.setdefault(name, [])
            if isinstance(listed, list):
                listed.append(f"training_args.deepspeed={value}" if option == "--deepspeed" else value)
        else:
            named[name] = _literal(value)
    told = {name: value if isinstance(value, str) else _quoted(value) for name, value in named.items()}
    return positional + [f"{name}={value}" for name, value in told.items()]


def _words(code: str) -> list[str]:
    """Return the words of a command; a backslash is part of a path on Windows, not a mark of the shell's."""
    lexer = shlex.shlex(code, posix=True)
    lexer.whitespace_split = True
    lexer.commenters = lexer.escape = ""
    return list(lexer)


def _literal(word: str) -> str:
    return word if PLACEHOLDER.fullmatch(word) else _quoted(word)


def _quoted(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)
