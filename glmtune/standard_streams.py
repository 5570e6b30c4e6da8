"""stdin, stdout and stderr as a command needs them: in any encoding, and where one is closed, full, or read no longer.

stdout carries data. What its encoding cannot say is escaped as JSON escapes it; where it takes no more, the command
ends with a line that says so. stderr is for the user's eyes: where it takes no more, the work goes on.
"""

from __future__ import annotations

import codecs
import contextlib
import errno
import io
import os
import sys
from typing import Any

from glmtune.console import notice
from glmtune.errors import GlmtuneError, RunFailure
from glmtune.files.text_encoding import seeming

ESCAPE = "glmtune-escape"
"""An error handler of codecs: the escapes of JSON, so that JSON stays JSON."""

READER_GONE = (errno.EPIPE, errno.EINVAL)  # EINVAL is what Windows says of a pipe that nobody reads


class OutputLost(RunFailure):
    """stdout takes no more; nothing that was written before is undone."""

    def __init__(self, error: OSError) -> None:
        super().__init__(
            f"stdout cannot be written to: {error.strerror or error}",
            fix="write to another place; files that the command wrote by itself are whole",
        )
        self.is_reader_gone = error.errno in READER_GONE
        """Whether whoever read the output has had enough (`| head`), which is no mistake of anybody."""


def prepare_streams() -> None:
    """Make the streams of this process safe to write to; those that a program has put in their place are left alone.

    A closed one is opened on nothing: the next file that is opened would take its number otherwise, and be written to
    by everything that prints.
    """
    _open_closed_ones()
    codecs.register_error(ESCAPE, _escape)
    if sys.stdout is sys.__stdout__:
        sys.stdout = _rewrapped(sys.stdout, _Output, errors=ESCAPE)
    if sys.stderr is sys.__stderr__:
        sys.stderr = _rewrapped(sys.stderr, _Messages, errors="backslashreplace")


def read_input() -> str:
    """Return all of stdin as text."""
    if not isinstance(sys.stdin, io.TextIOWrapper):
        return sys.stdin.read()  # what a program has put in its place
    try:
        content = sys.stdin.buffer.read()
    except OSError as error:
        raise GlmtuneError(f"stdin cannot be read: {error.strerror or error}", where="stdin") from None
    return input_text(content)


def input_text(content: bytes, place: str = "stdin") -> str:
    """Return what was typed or piped in as text: UTF-8, or what this machine's locale says where that fits.

    UTF-8 first: text in other encodings is hardly ever valid UTF-8 by chance, but UTF-8 is often valid GBK.
    """
    with contextlib.suppress(UnicodeDecodeError):
        return content.decode("utf-8-sig")
    own = codecs.lookup(sys.stdin.encoding).name
    if own not in ("utf-8", "ascii"):
        with contextlib.suppress(UnicodeDecodeError):
            text = content.decode(own)
            notice(f"{place} is not UTF-8: it is read as {own}, which this machine's locale names")
            return text
    what, encoding = seeming(content)
    raise GlmtuneError(
        f"{place} is not UTF-8{what}",
        fix=f"convert the text, such as by `iconv -f {encoding} -t UTF-8`, or set the terminal to UTF-8",
    )


def argument_text(argument: str) -> str:
    """Return the text of a command line's argument; Python cannot read it where the locale is plain ASCII."""
    try:
        argument.encode()
    except UnicodeEncodeError:
        return input_text(os.fsencode(argument), "an argument of the command line")
    return argument


class _Guarded(io.RawIOBase):
    """The raw side of a stream, which says what happens where it cannot be written to."""

    def __init__(self, raw: Any) -> None:
        self.raw = raw

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return int(self.raw.fileno())

    def isatty(self) -> bool:
        return bool(self.raw.isatty())

    def write(self, content: Any) -> int | None:
        try:
            return self._write(content)
        except OSError as error:
            return self._fail(error, content)

    def _write(self, content: Any) -> int | None:
        return self.raw.write(content)  # type: ignore[no-any-return]

    def _fail(self, error: OSError, content: Any) -> int:
        raise NotImplementedError


class _Output(_Guarded):
    """stdout."""

    is_lost = False
    """Whether it has been said that nothing can be written: what is left in buffers is dropped without a word."""

    def _write(self, content: Any) -> int | None:
        return len(content) if self.is_lost else super()._write(content)

    def _fail(self, error: OSError, content: Any) -> int:
        self.is_lost = True
        raise OutputLost(error) from None


class _Messages(_Guarded):
    """stderr: a terminal that is gone, or a full disk, is no reason to end a run; and there is nowhere to say so."""

    def _fail(self, error: OSError, content: Any) -> int:
        return len(content)


def _rewrapped(stream: Any, guard: type[_Guarded], *, errors: str) -> io.TextIOWrapper:
    """Return a stream to the same place; the old one is left as it is, for those who hold it."""
    stream.flush()
    raw = stream.buffer.raw if isinstance(stream.buffer, io.BufferedWriter) else stream.buffer
    guarded = guard(raw)
    # python -u: every write is to be seen at once, which a buffer in between does not change.
    return io.TextIOWrapper(
        io.BufferedWriter(guarded),
        encoding=stream.encoding,
        errors=errors,
        newline="\n",
        line_buffering=stream.line_buffering or stream.write_through,
        write_through=stream.write_through,
    )


def _open_closed_ones() -> None:
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        if getattr(sys, name) is not None:
            continue
        opened = os.open(os.devnull, os.O_RDONLY if mode == "r" else os.O_WRONLY)
        if opened != number:
            os.dup2(opened, number)
            os.close(opened)
        os.set_inheritable(number, True)
        stream = open(number, mode, encoding="utf-8", closefd=False)  # noqa: SIM115 - it lives as long as the process
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)


def _escape(error: UnicodeError) -> tuple[str, int]:
    r"""Return `\uXXXX` for what an encoding cannot say, a pair of them beyond the 16 bits of one."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    units = error.object[error.start : error.end].encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[at]:02x}{units[at + 1]:02x}" for at in range(0, len(units), 2)), error.end
