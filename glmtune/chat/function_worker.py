"""The process in which a user's functions run: it imports their module once and answers calls until it is closed.

Nothing heavy is imported at the top: after a call that took too long, a new process has to be there soon.
"""

from __future__ import annotations

import enum
import importlib.util
import inspect
import json
import multiprocessing
import os
import signal
import sys
import threading
import traceback
import typing
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from types import ModuleType
from typing import Any

from glmtune.errors import GlmtuneError
from glmtune.operating_system import HAS_PROCESS_GROUPS
from glmtune.processes.descendants import MARK, adopt_orphans, end_descendants
from glmtune.processes.own_path import SAFE_PATH

LONGEST_MESSAGE = 2000
"""Characters of an exception."""

Functions = dict[str, Callable[..., Any]]


def serve_functions(
    connection: Connection, output: Connection | None, path: str, describe: bool, mark: str, max_characters: int
) -> None:
    """Import the module at `path`, then answer every `(name, arguments)` with the text of an observation.

    The first thing sent is JSON: the schemas of the functions where `describe`, or what is wrong with the module. What
    the functions print goes into `output`, or to stderr. All that they start bears the `mark`, and ends with this
    process. An observation has at most `max_characters`, and says so where it was longer.
    """
    _stand_apart(mark, output)
    try:
        _serve(connection, path, describe, max_characters)
    finally:
        end_descendants(os.getpid())


def _serve(connection: Connection, path: str, describe: bool, max_characters: int) -> None:
    try:
        module = import_file(path)
        functions = functions_of(module, path)
        schemas = [schema_of(function, path) for function in functions.values()] if describe else []
    except GlmtuneError as error:
        connection.send_bytes(json.dumps({"what": error.what, "where": error.where, "fix": error.fix}).encode())
        return
    connection.send_bytes(json.dumps({"schemas": schemas}).encode())
    while True:
        try:
            name, arguments = connection.recv()
            observation = observe(functions[name], json.loads(arguments), path)
            connection.send_bytes(cut(observation, max_characters).encode(errors="replace"))
        except (EOFError, OSError):  # the chat has ended, or a function has closed what was not its own
            return


def _stand_apart(mark: str, output: Connection | None) -> None:
    """Leave Ctrl-C, stdin and the terminal to the chat; lead a group, so that what a function starts ends, too."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if HAS_PROCESS_GROUPS:
        os.setsid()
    adopt_orphans()
    os.environ[MARK] = mark
    os.environ.pop(SAFE_PATH, None)  # what the functions start may import from its own folder
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    if nothing > 0:
        os.close(nothing)
    if output is not None:
        os.dup2(output.fileno(), 2)
        output.close()
    os.dup2(2, 1)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    threading.Thread(target=_end_with_the_chat, daemon=True).start()


def _end_with_the_chat() -> None:
    """End this process, and what its functions have started, where the chat was killed."""
    chat = multiprocessing.parent_process()
    assert chat is not None
    chat.join()
    end_descendants(os.getpid())
    if HAS_PROCESS_GROUPS:
        os.killpg(0, signal.SIGKILL)
    os._exit(1)


def import_file(path: str) -> ModuleType:
    """Return the module that a file holds; it may import its siblings."""
    sys.path.insert(0, str(Path(path).parent.resolve()))
    name = f"{Path(path).stem}_of_tools"  # a file `json.py` must not take the place of Python's own
    spec = importlib.util.spec_from_file_location(name, os.path.abspath(path))
    assert spec is not None, "the file's name ends with .py"
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except SyntaxError as error:
        raise GlmtuneError(f"not Python: {error.msg}", where=f"{error.filename}:{error.lineno}") from None
    except BaseException as error:
        fix = "install what it needs into this environment" if isinstance(error, ImportError) else None
        raise GlmtuneError(
            f"the module cannot be imported: {_words(error)}", where=_place(error, path) or path, fix=fix
        ) from None
    return module


def functions_of(module: ModuleType, path: str) -> Functions:
    """Return the public functions that the module itself defines, by name."""
    found = {}
    for name, value in vars(module).items():
        function = inspect.unwrap(value) if callable(value) else None
        if inspect.isfunction(function) and function.__module__ == module.__name__ and not name.startswith("_"):
            found[name] = value
    if not found:
        raise GlmtuneError(
            "the module defines no public function",
            where=path,
            fix="define one with a docstring and typed arguments; names that begin with `_` are not offered",
        )
    return found


def schema_of(function: Callable[..., Any], path: str) -> dict[str, Any]:
    """Return what a model is told of the function, from its signature and its docstring."""
    from transformers.utils import get_json_schema
    from transformers.utils.chat_template_utils import DocstringParsingException, TypeHintParsingException

    plain = inspect.unwrap(function)
    where = f"{path}:{plain.__code__.co_firstlineno}"
    name = plain.__name__
    if not inspect.getdoc(plain):
        raise GlmtuneError(
            f"`{name}` has no docstring, from which the model learns what it is for",
            where=where,
            fix='write `"""What it does."""` below its `def`, or begin its name with `_` if it is no tool',
        )
    for parameter in inspect.signature(plain).parameters.values():
        if parameter.annotation is parameter.empty:
            raise GlmtuneError(
                f"the argument `{parameter.name}` of `{name}` has no type",
                where=where,
                fix=f"write one, such as `{parameter.name}: str`",
            )
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            raise GlmtuneError(
                f"the argument `{parameter}` of `{name}` has no name to give it by; a model names all arguments",
                where=where,
            )
    try:
        schema = get_json_schema(plain)
    except (DocstringParsingException, TypeHintParsingException, NameError, TypeError, ValueError) as error:
        raise GlmtuneError(
            f"`{name}` cannot be described to the model: {str(error).splitlines()[0]}",
            where=where,
            fix="describe each argument in the docstring, below `Args:`, as `city: Name of the city.`",
        ) from None
    schema["function"].pop("return", None)
    return schema


def observe(function: Callable[..., Any], arguments: dict[str, Any], path: str) -> str:
    """Call the function; returns what the model is to read: its result as text or JSON, or the error."""
    try:
        result = function(**_with_members(function, arguments))
    except BaseException as error:
        if os.environ.get("GLMTUNE_DEBUG"):
            traceback.print_exc()
        place = _place(error, path)
        return error_text(_words(error) + (f" ({Path(place).name})" if place else ""))
    if isinstance(result, str) and result:
        return str(result)
    try:
        return json.dumps(result, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        return error_text(f"the result is no JSON: {error}")


def cut(text: str, max_characters: int) -> str:
    """Return an observation that fits into a conversation; where some of it is left out, the model reads that, too."""
    if len(text) <= max_characters:
        return text
    return f"{text[:max_characters]}\n[cut off: the first {max_characters:,} of {len(text):,} characters]"


def error_text(message: str) -> str:
    """Return the observation that tells a model of an error."""
    return json.dumps({"error": message}, ensure_ascii=False)


def _with_members(function: Callable[..., Any], arguments: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments with the values of enumerations turned into their members."""
    hints = typing.get_type_hints(inspect.unwrap(function))
    kinds = {name: hint for name, hint in hints.items() if inspect.isclass(hint) and issubclass(hint, enum.Enum)}
    return {name: kinds[name](value) if name in kinds else value for name, value in arguments.items()}


def _words(error: BaseException) -> str:
    words = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    return words if len(words) <= LONGEST_MESSAGE else f"{words[:LONGEST_MESSAGE]}..."


def _place(error: BaseException, path: str) -> str | None:
    """Return the last `file:line` of the module that the error went through."""
    name = os.path.abspath(path)
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == name]
    return f"{path}:{frames[-1].lineno}" if frames else None
