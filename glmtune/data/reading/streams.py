"""Data files as streams of bytes and lines: compression, files that are not text, lines without an end."""

from __future__ import annotations

import io
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path, PurePath
from typing import Any

import pyarrow

from glmtune.console import notice
from glmtune.errors import GlmtuneError
from glmtune.files.text_encoding import ENCODINGS, guess_encoding, is_utf8, utf8_command
from glmtune.text.visible_text import printable

from .foreign_files import HEAD_BYTES, refuse_foreign
from .recoding import Recoded, codec_of, note_codec
from .row import MAX_ROW_BYTES

BOM = b"\xef\xbb\xbf"
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
PACKED_BYTES = {"gzip": b"\x1f\x8b", "zstd": b"\x28\xb5\x2f\xfd"}
UNPACKED_AT_ONCE = 1 << 18
SMALL_BYTES, MAX_RATIO = 512 << 20, 200
"""A file may unpack to the first, or to so many times its size: text is packed to a fifth, seldom to a fiftieth."""
SAMPLE_BYTES = 4 << 20
SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".arrow")
"""What the files of a folder are known by; a file that is given by its name may have any other, and holds lines."""


def suffix_of(path: PurePath) -> str:
    """Return the suffix that tells the format, in small letters: `.jsonl` for `Rows.JSONL.gz`."""
    name = PurePath(path.name.lower())
    return PurePath(name.stem).suffix if name.suffix in COMPRESSIONS else name.suffix


def open_data(path: Path) -> io.BufferedReader:
    """Open a text file for reading: unpacked where its name says that it is compressed, as UTF-8 whatever it is in.

    What it is in has to be certain; otherwise the bytes are those of the file.
    """
    stream = _open(path)
    try:
        found = path.stat()
        codec = _codec_of(path, found.st_mtime_ns, found.st_size)
        if codec is None:
            refuse_foreign(stream.peek(HEAD_BYTES)[:HEAD_BYTES], path)
            return stream
        note_codec(path, codec)
        recoded: Any = Recoded(stream, codec, path)
        return io.BufferedReader(recoded, UNPACKED_AT_ONCE)
    except OSError as error:
        stream.close()
        raise unreadable(str(path), error) from None
    except GlmtuneError:
        stream.close()
        raise


def _open(path: Path) -> io.BufferedReader:
    """Open a text file, unpacked where its name says that it is compressed."""
    compression = COMPRESSIONS.get(path.suffix.lower())
    try:
        if compression:
            unpacked: Any = _Unpacked(pyarrow.input_stream(for_arrow(path), compression=compression), path)
            stream = io.BufferedReader(unpacked, UNPACKED_AT_ONCE)
        else:
            stream = path.open("rb")
        stream.peek(HEAD_BYTES)
    except OSError as error:
        if compression and not first_bytes(path).startswith(PACKED_BYTES[compression]):
            refuse_foreign(first_bytes(path), path)  # such as a page that says that the file is elsewhere
            raise GlmtuneError(
                f"the file is not compressed with {compression}, as its name says",
                where=str(path),
                fix=f"take `{path.suffix}` off its name; or, where it is damaged, copy or download it again",
            ) from None
        raise unreadable(str(path), error) from None
    return stream


@lru_cache(maxsize=1024)
def _codec_of(path: Path, modified_ns: int, num_bytes: int) -> str | None:
    """Return what a file is certainly written in, if not in UTF-8; a file is opened several times, and looked at once.

    Args:
        path: Of the file.
        modified_ns: When it was written; like the next, this tells one content of the file from another.
        num_bytes: Of the file.
    """
    with _open(path) as stream:
        return codec_of(stream)


class _Unpacked(io.RawIOBase):
    """What a compressed file holds, as far as it can have been meant."""

    def __init__(self, stream: pyarrow.NativeFile, path: Path) -> None:
        self.stream = stream
        self.path = path
        self.num_left = max(SMALL_BYTES, MAX_RATIO * path.stat().st_size)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        content = self.stream.read(len(buffer))
        self.num_left -= len(content)
        if self.num_left < 0:
            raise GlmtuneError(
                f"the file unpacks to more than {MAX_RATIO} times its size: hardly anything stands in it",
                where=str(self.path),
                fix="look into it; where it is meant to be so, unpack it and name what comes of it",
            )
        buffer[: len(content)] = content
        return len(content)

    def close(self) -> None:
        self.stream.close()
        super().close()


def for_arrow(path: Path) -> str | pyarrow.NativeFile:
    """Return what Arrow opens: the name, or the open file where the name is not UTF-8, which Arrow cannot take."""
    return str(path) if printable(str(path)) == str(path) else pyarrow.PythonFile(path.open("rb"), "r")


def first_bytes(path: Path) -> bytes:
    """Return the beginning of a file as it lies on the disk."""
    try:
        with path.open("rb") as file:
            return file.read(HEAD_BYTES)
    except OSError as error:
        raise unreadable(str(path), error) from None


def read_lines(stream: io.BufferedReader, path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield every line with its number; a line over `MAX_ROW_BYTES` is cut to one byte more and the rest skipped.

    Of blank lines one behind the other most are not yielded: a small compressed file may hold millions of them.
    """
    number = 0
    while True:
        number += 1
        try:
            line = stream.readline(MAX_ROW_BYTES + 1)
            rest = line if len(line) > MAX_ROW_BYTES else b""
            while rest and not rest.endswith(b"\n"):
                rest = stream.readline(1 << 20)
        except OSError as error:
            raise unreadable(f"{path}:{number}", error) from None
        if not line:
            return
        if line.isspace():
            number += _skip_blank_lines(stream)
        # Behind the first line, too: that is where the second of two files begins that were joined into one.
        yield number, line.removeprefix(BOM)


def _skip_blank_lines(stream: io.BufferedReader) -> int:
    """Pass over the blank lines that are in the buffer already, and return how many."""
    waiting = stream.peek()
    num_blanks = len(waiting) - len(waiting.lstrip())
    return stream.read(waiting.rfind(b"\n", 0, num_blanks) + 1).count(b"\n")


def note_encoding(path: Path, number: int, line: bytes) -> None:
    """Say in which encoding a line is that is not UTF-8, judged by all such lines in the first part of the file."""
    sample, has_utf8, num_bytes = [line], False, 0
    with open_data(path) as stream:
        for other, raw in read_lines(stream, path):
            num_bytes += len(raw)
            if num_bytes > SAMPLE_BYTES:
                break
            if other == number or raw.isascii():
                continue
            if is_utf8(raw):
                has_utf8 = True
            else:
                sample.append(raw)
    encoding = guess_encoding(b"".join(sample)[:SAMPLE_BYTES])
    if encoding is None:
        return
    advice = f"save the file as UTF-8: `{utf8_command(path, encoding)}`"
    if has_utf8:
        advice = "other lines of the file are UTF-8: save each of the files that it was joined from as UTF-8"
    notice(f"`{path}:{number}` is not UTF-8; it reads as {ENCODINGS[encoding]}; {advice}")


def unreadable(where: str, error: Exception) -> GlmtuneError:
    """Return the error for a file that breaks off or is damaged."""
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    fix = "where it is cut off or damaged, copy or download it again"
    if isinstance(error, PermissionError):
        fix = "let its owner give you the right to read it, or copy it to a place of your own"
    return GlmtuneError(f"the file cannot be read: {' '.join(reason.split()).rstrip('.')}", where=where, fix=fix)
