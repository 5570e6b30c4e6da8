"""Runs the Python that a model writes in a Jupyter kernel: a process of its own, without keys, terminal or network.

The kernel keeps its state from one call to the next, works in a folder of its own, and leaves its pictures there.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import os
import queue
import re
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Collection
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from glmtune.console import notice
from glmtune.errors import GlmtuneError, require
from glmtune.files.user_paths import user_path
from glmtune.processes.descendants import MARK, end_marked
from glmtune.processes.own_path import SAFE_PATH

from .function_isolation import tell_hidden

FOLDER = "interpreter-files"
"""Where the kernel works by default: nothing that is there of the user's is in its way, nor in danger."""
SECONDS_TO_START = 60.0
SECONDS_TO_HEED = 3.0
"""Time for what runs to end once it is interrupted; what goes on longer ends with its kernel."""
SECONDS_AT_ONCE = 0.5
"""After so long without a word the kernel is looked at: one that has died says nothing."""
LONGEST_SOCKET = 60
"""Characters of a folder for sockets: their paths may have about a hundred."""
WITHOUT_NETWORK = ("unshare", "--user", "--map-current-user", "--net")
"""Begins a command of Linux that has no network, not even this machine's own."""
FENCED = re.compile(r"\s*```[^\n]*\n(.*?)\n?```\s*", re.DOTALL)
COLOURS = re.compile(r"\x1b\[[0-9;]*m")
PICTURES = {"image/png": ".png", "image/jpeg": ".jpg", "image/svg+xml": ".svg"}


class Interpreter:
    """A kernel that starts with the first call, and anew where it was lost."""

    def __init__(
        self,
        folder: Path | None = None,
        *,
        time_limit_seconds: float = 30.0,
        max_characters: int = 20_000,
        keys: Collection[str] = (),
    ) -> None:
        """Prepare; nothing is started or written yet.

        Args:
            folder: Where the code runs, and where pictures are saved; made where it is missing.
            time_limit_seconds: Longest time that a call may take.
            max_characters: Longest output that the model reads; what is beyond is cut off, with a note in it.
            keys: Variables of the environment that the code does not get.
        """
        require("jupyter_client", extra="interpreter")
        require("ipykernel", extra="interpreter")
        self.folder = Path(FOLDER) if folder is None else user_path(folder)
        if self.folder.exists() and not self.folder.is_dir():
            raise GlmtuneError(f"`{self.folder}` is no folder; the interpreter needs one to work in")
        self.time_limit_seconds = time_limit_seconds
        self.max_characters = max_characters
        self._keys = keys
        self._manager: Any = None
        self._client: Any = None
        self._sockets: str | None = None
        self._mark = uuid.uuid4().hex
        self._num_pictures = 0

    def run(self, code: str) -> str:
        """Run code; returns what it shows, for the model to read. Nothing is raised but Ctrl-C.

        Args:
            code: Python, maybe between the fences of Markdown.
        """
        found = FENCED.fullmatch(code)
        try:
            if self._client is None or not self._manager.is_alive():
                self._start()
            return self._execute(found[1] if found else code)
        except GlmtuneError as error:
            return f"[{error.what}]"
        except KeyboardInterrupt:
            self._interrupt()
            raise

    def close(self) -> None:
        """End the kernel, and what its code has started with it."""
        client, manager, sockets = self._client, self._manager, self._sockets
        self._client = self._manager = self._sockets = None
        if client is not None:
            client.stop_channels()
        if manager is not None:
            with contextlib.suppress(RuntimeError, OSError):
                manager.shutdown_kernel(now=True)
        end_marked(self._mark)
        if sockets is not None:
            shutil.rmtree(sockets, ignore_errors=True)

    def _start(self) -> None:
        from jupyter_client.manager import KernelManager

        self.close()
        self.folder.mkdir(parents=True, exist_ok=True)
        tell_hidden(tuple(self._keys))
        self._sockets = tempfile.mkdtemp(prefix="glmtune-")
        is_apart = has_no_network() and len(self._sockets) < LONGEST_SOCKET
        _tell_network(is_apart=is_apart)
        transport = {"transport": "ipc"} if is_apart else {}
        manager = KernelManager(connection_file=os.path.join(self._sockets, "kernel.json"), **transport)
        specification = manager.kernel_spec
        if specification is None:
            raise GlmtuneError("the interpreter does not start: there is no kernel", fix="install `ipykernel` anew")
        argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        specification.argv = [*(WITHOUT_NETWORK if is_apart else ()), *argv]
        hidden = {*self._keys, SAFE_PATH}  # without the last one the code may import from its own folder
        environment = {name: value for name, value in os.environ.items() if name not in hidden}
        environment |= {MARK: self._mark, "IPYTHONDIR": self._sockets}
        nothing = subprocess.DEVNULL
        self._manager = manager
        try:
            manager.start_kernel(cwd=str(self.folder), env=environment, stdout=nothing, stderr=nothing)
            self._client = manager.blocking_client()
            self._client.start_channels()
            self._client.wait_for_ready(timeout=SECONDS_TO_START)
        except (RuntimeError, OSError) as error:
            self.close()
            raise GlmtuneError(f"the interpreter does not start: {error}") from None

    def _execute(self, code: str) -> str:
        """Run code; returns what it shows."""
        message = self._client.execute(code, allow_stdin=False)
        output = Output(self.max_characters)
        deadline = time.monotonic() + self.time_limit_seconds
        while time.monotonic() < deadline:
            try:
                found = self._client.get_iopub_msg(timeout=min(SECONDS_AT_ONCE, max(deadline - time.monotonic(), 0.01)))
            except queue.Empty:
                if not self._manager.is_alive():
                    self.close()
                    return output.ended("the interpreter has ended; it starts anew, with nothing of its state")
                continue
            if found["parent_header"].get("msg_id") != message:
                continue
            if found["msg_type"] == "status" and found["content"]["execution_state"] == "idle":
                return output.ended()
            self._show(found, output)
        is_kept = self._interrupt()
        state = "its state is kept" if is_kept else "it starts anew, with nothing of its state"
        return output.ended(f"stopped after {self.time_limit_seconds:g} s, the time limit; {state}")

    def _show(self, message: dict[str, Any], output: Output) -> None:
        """Add what a message of the kernel says to the output."""
        content, kind = message["content"], message["msg_type"]
        if kind == "stream":
            output.add(content["text"])
        elif kind == "error":
            output.add("\n" + COLOURS.sub("", "\n".join(content["traceback"])) + "\n")
        elif kind in ("display_data", "execute_result"):
            data = content["data"]
            picture = next((name for name in PICTURES if name in data), None)
            if picture is not None:
                output.add(f"\n[picture: {self._save(data[picture], picture)}]\n")
            elif "text/plain" in data:
                output.add("\n" + data["text/plain"] + "\n")

    def _save(self, data: str, kind: str) -> str:
        """Save a picture under a name that is free; returns the name."""
        try:
            content = data.encode() if kind == "image/svg+xml" else base64.b64decode(data, validate=True)
        except (binascii.Error, ValueError):
            return "which cannot be read"
        while True:
            self._num_pictures += 1
            path = self.folder / f"picture-{self._num_pictures}{PICTURES[kind]}"
            with contextlib.suppress(FileExistsError):
                with path.open("xb") as file:
                    file.write(content)
                notice(f"a picture: {path}")
                return path.name

    def _interrupt(self) -> bool:
        """Stop what runs; returns whether the kernel lives on."""
        if self._client is None:
            return False
        with contextlib.suppress(RuntimeError, OSError):
            self._manager.interrupt_kernel()
            deadline = time.monotonic() + SECONDS_TO_HEED
            while time.monotonic() < deadline:
                with contextlib.suppress(queue.Empty):
                    found = self._client.get_iopub_msg(timeout=SECONDS_AT_ONCE)
                    if found["msg_type"] == "status" and found["content"]["execution_state"] == "idle":
                        return True
        self.close()
        return False


@dataclass
class Output:
    """What code has shown, up to a length; how much more there was is known."""

    max_characters: int
    num_characters: int = 0
    """Of all that was shown."""
    _parts: list[str] = field(default_factory=list)

    def add(self, text: str) -> None:
        """Add a piece. The line break that one begins with is left out where it would only make an empty line."""
        if text.startswith("\n") and (not self._parts or self._parts[-1].endswith("\n")):
            text = text[1:]
        kept = text[: max(self.max_characters - self.num_characters, 0)]
        self.num_characters += len(text)
        if kept:
            self._parts.append(kept)

    def ended(self, remark: str = "") -> str:
        """Return what was shown, for the model to read, and behind it what else there is to say."""
        remarks = [remark] if remark else []
        if self.num_characters > self.max_characters:
            remarks.insert(0, f"cut off: the first {self.max_characters:,} of {self.num_characters:,} characters")
        text = "".join(self._parts).strip("\n")
        if not (text or remarks):
            remarks = ["no output"]
        return "\n".join([*([text] if text else []), *(f"[{each}]" for each in remarks)])


@cache
def has_no_network() -> bool:
    """Whether this system lets a process of the user's do without network."""
    if not sys.platform.startswith("linux") or shutil.which(WITHOUT_NETWORK[0]) is None:
        return False
    done = subprocess.run([*WITHOUT_NETWORK, "true"], capture_output=True, check=False, timeout=10)
    return done.returncode == 0


@cache
def _tell_network(*, is_apart: bool) -> None:
    """Say once what the code cannot be kept from."""
    if not is_apart:
        notice("this system cannot keep the interpreter from the network: look at what the code asks for")
