"""Python functions as tools: a model asks, a process of their own runs them, and an error is an answer, too.

    chat ──(name, arguments)──▶ worker: imports the module once, keeps its state
         ◀──── observation ──── result, exception; or, from here: took too long, died, was never there

What a call is checked against is the schema that the model was shown.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import signal
import uuid
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from glmtune.data import json_text
from glmtune.data.conversation import RowError
from glmtune.data.parts.tools import tools_text
from glmtune.errors import GlmtuneError
from glmtune.files.file_kinds import refuse_irregular
from glmtune.files.text_encoding import read_utf8
from glmtune.files.user_paths import user_path
from glmtune.operating_system import HAS_PROCESS_GROUPS, PIPES_ARE_FILES
from glmtune.processes.descendants import end_descendants, end_marked, suspend

from .function_isolation import FunctionOutput, key_variables, tell_hidden, without_variables
from .function_worker import error_text, serve_functions
from .offered_tools import as_function

MAX_RESULT_CHARACTERS = 20_000
"""Of a function. A result that is longer than the context ends every answer to it."""
MAX_BYTES = 1 << 26
"""Of what the process of the functions says at once: one that writes to where it must not may claim any length."""
SECONDS_TO_END = 2.0
"""Time for a module to clean up when the chat ends."""


@dataclass
class Tools:
    """What a model may call."""

    schemas: list[dict[str, Any]] = field(default_factory=list)
    """OpenAI's tools."""
    source: Path | None = None
    """The file that they come from."""
    worker: FunctionWorker | None = None
    """Runs them; None where a person tells what they answer."""

    def close(self) -> None:
        """End the process of the functions."""
        if self.worker is not None:
            self.worker.close()


def load_tools(
    path: Path,
    *,
    time_limit_seconds: float = 30.0,
    max_characters: int = MAX_RESULT_CHARACTERS,
    shown_variables: Collection[str] = (),
    hidden_variables: Collection[str] = (),
) -> Tools:
    """Return the functions of a Python module, or the schemas of a JSON file.

    To load a module is to run it: its public functions become the tools.

    Args:
        path: Of the module or file.
        time_limit_seconds: Longest time that a call may take.
        max_characters: Longest result; what is beyond is cut off, with a note in it.
        shown_variables: Of the environment, that the functions may have although they are named like keys.
        hidden_variables: That they may not have although they are not.
    """
    path = user_path(path)
    refuse_irregular(path, "write the tools to a file first, and name that")
    if not path.is_file():
        found = "is a folder" if path.is_dir() else "does not exist"
        raise GlmtuneError(f"`{path}` {found}; expected a Python module or a JSON file of tools")
    if path.suffix == ".py":
        keys = key_variables(kept=shown_variables, more=hidden_variables)
        worker = FunctionWorker(path, time_limit_seconds, max_characters=max_characters, keys=keys)
        tell_hidden(keys)
        return Tools(schemas=worker.start(describe=True), source=path, worker=worker)
    if path.suffix != ".json":
        raise GlmtuneError(f"`{path}` is neither a Python module (`.py`) nor a JSON file (`.json`) of tools")
    try:
        text = tools_text(json_text.parse(read_utf8(path)), "the file")
    except RowError as error:
        raise GlmtuneError(str(error), where=str(path)) from None
    return Tools(schemas=[as_function(tool) for tool in json.loads(text or "[]")], source=path)


class FunctionWorker:
    """The process in which the functions of a module run; where it is lost, the next call starts it anew."""

    def __init__(
        self,
        path: Path,
        time_limit_seconds: float,
        *,
        max_characters: int = MAX_RESULT_CHARACTERS,
        keys: Collection[str] = (),
    ) -> None:
        self.path = path
        self.time_limit_seconds = time_limit_seconds
        self.max_characters = max_characters
        self._keys = keys
        self._process: BaseProcess | None = None
        self._connection: Connection | None = None
        self._output: FunctionOutput | None = None
        self._mark = uuid.uuid4().hex

    def start(self, *, describe: bool = False) -> list[dict[str, Any]]:
        """Start the process, which imports the module; returns the schemas of its functions where `describe`."""
        context = multiprocessing.get_context("spawn")
        self._connection, other_end = context.Pipe()
        self._output = FunctionOutput(context) if PIPES_ARE_FILES else None
        writer = self._output.writer if self._output is not None else None
        arguments = (other_end, writer, str(self.path), describe, self._mark, self.max_characters)
        self._process = context.Process(target=serve_functions, args=arguments, name="glmtune-tools")
        heed = signal.signal(signal.SIGINT, signal.SIG_IGN)  # the new process inherits it: Ctrl-C is not meant for it
        try:
            with without_variables(self._keys):
                self._process.start()
        finally:
            signal.signal(signal.SIGINT, heed)
        other_end.close()
        if self._output is not None:
            self._output.begin()
        try:
            told = json.loads(self._connection.recv_bytes(MAX_BYTES))
        except (EOFError, OSError, ValueError):
            code = self._end()
            raise GlmtuneError(
                f"the module ended its process while it was imported (exit code {code})", where=str(self.path)
            ) from None
        except KeyboardInterrupt:
            self._end()
            raise
        if "schemas" not in told:
            self._end()
            raise GlmtuneError(told["what"], where=told["where"], fix=told["fix"])
        schemas: list[dict[str, Any]] = told["schemas"]
        return schemas

    def call(self, name: str, arguments: str) -> str:
        """Call a function; returns the observation. What goes wrong is told in it, nothing is raised but Ctrl-C.

        Args:
            name: Of the function.
            arguments: JSON text of an object.
        """
        try:
            if self._connection is not None and self._connection.poll(0):
                self._end()  # it has died, or says what it was not asked for
            if self._connection is None:
                self.start()
            assert self._connection is not None
            if self._output is not None:
                self._output.allow_more()
            self._connection.send((name, arguments))
            if self._connection.poll(self.time_limit_seconds):
                observation = self._connection.recv_bytes(MAX_BYTES).decode(errors="replace")
                if self._output is not None:
                    self._output.catch_up()
                return observation
        except GlmtuneError as error:
            return error_text(error.what)
        except (EOFError, OSError):
            code = self._end()
            return error_text(f"`{name}` ended its process (exit code {code}); it starts anew with the next call")
        except KeyboardInterrupt:
            self._end()
            raise
        self._end()
        limit = f"{self.time_limit_seconds:g} s"
        return error_text(f"`{name}` was stopped after {limit}, the time limit; its module starts anew")

    def close(self) -> None:
        """Let the process end, and what it has started with it."""
        if self._connection is not None and self._process is not None:
            self._connection.close()
            self._process.join(SECONDS_TO_END)
        self._end()

    def _end(self) -> int | None:
        """Kill the process and its children; returns the exit code that it had."""
        process, connection, output = self._process, self._connection, self._output
        self._process = self._connection = self._output = None
        if process is None or connection is None:
            return None
        connection.close()
        process.join(0.1)  # one that died by itself tells its own exit code
        code = process.exitcode
        if code is None and process.pid is not None:
            suspend(process.pid)
            end_descendants(process.pid)
        if HAS_PROCESS_GROUPS and process.pid is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
        process.kill()
        process.join()
        end_marked(self._mark)
        if output is not None:
            output.close()
        return code


def call_problem(name: str, arguments: str, schemas: Sequence[dict[str, Any]]) -> str | None:
    """Return why a call cannot be made, in words for the model; None where it can."""
    functions = {tool["function"]["name"]: tool["function"] for tool in schemas if "function" in tool}
    if name not in functions:
        return f"there is no function `{name}`; there are: " + (", ".join(f"`{each}`" for each in functions) or "none")
    try:
        values = json.loads(arguments)
    except (ValueError, RecursionError) as error:
        return f"the arguments of `{name}` are not JSON: {error}"
    if not isinstance(values, dict):
        return f"the arguments of `{name}` are no JSON object"
    schema = functions[name].get("parameters") or {}
    problem = value_problem(values, {"type": "object", **schema}, "")
    return problem and f"`{name}`: {problem}"


JSON_TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "array": (list, tuple),
    "object": (dict,),
    "null": (type(None),),
}


def value_problem(value: Any, schema: Any, place: str) -> str | None:
    """Return what is wrong with a value of JSON by its schema; what the schema says beyond types is not looked at.

    Args:
        value: Of an argument, or all arguments as an object.
        schema: Of JSON schema: types, `enum`, `anyOf`, properties and items are heeded.
        place: Path to the value, such as `days[0].name`; empty for all arguments.
    """
    if not isinstance(schema, dict) or (value is None and schema.get("nullable")):
        return None
    if "anyOf" in schema:
        problems = [value_problem(value, each, place) for each in schema["anyOf"]]
        return None if None in problems else next(iter(problems), None)
    types = schema.get("type", [])
    types = [types] if isinstance(types, str) else types
    if types and not any(_has_type(value, each) for each in types):
        return f"`{place}` is {json.dumps(value, ensure_ascii=False)}; expected {' or '.join(types)}"
    if "enum" in schema and value not in schema["enum"]:
        allowed = ", ".join(json.dumps(each, ensure_ascii=False) for each in schema["enum"])
        return f"`{place}` is {json.dumps(value, ensure_ascii=False)}; expected one of {allowed}"
    if isinstance(value, dict):
        return _object_problem(value, schema, place)
    if isinstance(value, list):
        places = (value_problem(each, schema.get("items"), f"{place}[{index}]") for index, each in enumerate(value))
        return next(filter(None, places), None)
    return None


def _object_problem(value: dict[str, Any], schema: dict[str, Any], place: str) -> str | None:
    """Return what is wrong with the keys of an object, or with the first wrong value in it."""
    dot = f"{place}." if place else ""
    properties = schema.get("properties") or {}
    for key in schema.get("required", ()):
        if key not in value:
            return f"`{dot}{key}` is missing"
    # JSON schema allows unnamed keys by default; what is no argument of a function it cannot take.
    others = schema.get("additionalProperties", bool(place) or "properties" not in schema)
    for key, each in value.items():
        if others is False and key not in properties:
            names = ", ".join(f"`{name}`" for name in properties) or "none"
            return f"`{dot}{key}` is unknown; expected: {names}"
        problem = value_problem(each, properties.get(key, others), f"{dot}{key}")
        if problem:
            return problem
    return None


def _has_type(value: Any, name: str) -> bool:
    """Whether a value has a type of JSON schema; booleans are no numbers, and `3.0` is an integer."""
    if isinstance(value, bool):
        return name == "boolean"
    if name == "integer" and isinstance(value, float):
        return value.is_integer()
    return name not in JSON_TYPES or isinstance(value, JSON_TYPES[name])
