"""Text files in another encoding than UTF-8: read as what they certainly are, with a note; others stay as they are.

Certain is what a hundred characters say, nearly each a common one of the encoding, or the mark at the beginning.
"""

from __future__ import annotations

import codecs
import io
import re
from collections.abc import Iterator
from contextlib import suppress
from functools import lru_cache
from itertools import chain, islice
from pathlib import Path
from typing import Any, BinaryIO

from glmtune.console import notice
from glmtune.errors import GlmtuneError
from glmtune.files.text_encoding import CODECS, ENCODINGS, MARKS, certain_encoding, is_utf8, marked_encoding

BLOCK_BYTES = 1 << 16
LOOKED_AT_BYTES, SAMPLE_BYTES = 4 << 20, 1 << 20
"""A file that is ASCII as far as the first is taken for UTF-8; of one that is not UTF-8, so much is judged by."""
MAX_LINE_BYTES = 32 << 20
_UTF8_CHARACTERS = re.compile(rb"[\xe0-\xef][\x80-\xbf]{2}")
"""Of three bytes, as Chinese has them: two of them, in a line that is UTF-8 as a whole, are no chance."""


def codec_of(stream: BinaryIO) -> str | None:
    """Return Python's name of what a text is certainly written in; None for UTF-8, and where nothing is certain.

    Args:
        stream: Of the text from its beginning on; so much of it is read as it takes to tell.
    """
    blocks = _blocks(stream)
    first = next(blocks, b"")
    marked = marked_encoding(first[:4])
    if marked is not None:
        # What only looks like UTF-16, without a mark, may be anything.
        return marked.lower() if first.startswith(tuple(MARKS)) else None
    sample = next(
        (block for block in chain([first], islice(blocks, LOOKED_AT_BYTES // BLOCK_BYTES)) if not block.isascii()), b""
    )
    if _is_utf8_so_far(sample):
        return None
    sample += b"".join(islice(blocks, SAMPLE_BYTES // BLOCK_BYTES))
    encoding = certain_encoding(sample)
    return CODECS[encoding] if encoding else None


def _blocks(stream: BinaryIO) -> Iterator[bytes]:
    """Yield what a stream holds, up to where it breaks off: whoever reads it line by line can tell the line."""
    with suppress(OSError):
        while block := stream.read(BLOCK_BYTES):
            yield block


def _is_utf8_so_far(block: bytes) -> bool:
    """Whether a block is UTF-8, but for a character that its end cuts off."""
    try:
        codecs.getincrementaldecoder("utf-8")().decode(block)
    except UnicodeDecodeError:
        return False
    return True


@lru_cache(maxsize=1024)
def note_codec(path: Path, codec: str) -> None:
    """Tell the user, once for a file, how it is read."""
    what = next((ENCODINGS[name] for name, own in CODECS.items() if own == codec), codec.upper())
    notice(f"`{path}` is not UTF-8 but {what}, and is read as such")


class Recoded(io.RawIOBase):
    """A text in another encoding as UTF-8; bytes that are no text pass as they are, so that they cost their own row.

    So do lines that are UTF-8 already: they may follow far behind what the encoding was judged by.
    """

    def __init__(self, stream: BinaryIO, codec: str, path: Path) -> None:
        self.stream = stream
        self.codec = codec
        self.path = path
        self._decoder = codecs.getincrementaldecoder(codec)(errors="surrogateescape")
        self._rest = b""
        """Of the last block: a line that is not at its end yet."""
        self._waiting = b""
        self._is_at_end = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._waiting and not self._is_at_end:
            block = self.stream.read(BLOCK_BYTES)
            self._is_at_end = not block
            self._waiting = self._wide(block) if self.codec.startswith("utf-") else self._lines(block)
        piece, self._waiting = self._waiting[: len(buffer)], self._waiting[len(buffer) :]
        buffer[: len(piece)] = piece
        return len(piece)

    def close(self) -> None:
        self.stream.close()
        super().close()

    def _wide(self, block: bytes) -> bytes:
        """Return a block of UTF-16 or UTF-32, in which no byte stands for itself, not even at the end of a line."""
        try:
            text = self._decoder.decode(block, final=self._is_at_end)
        except UnicodeDecodeError as error:
            raise GlmtuneError(
                f"the file is not {self.codec.upper()}, as its mark says: {error.reason}",
                where=str(self.path),
                fix="where it is cut off or damaged, copy or download it again; else save it as UTF-8",
            ) from None
        return text.encode("utf-8", errors="surrogateescape")

    def _lines(self, block: bytes) -> bytes:
        """Return the whole lines that a block ends, each decoded by itself; a line of any length is kept until then."""
        whole, end, rest = (self._rest + block).rpartition(b"\n")
        if self._is_at_end:
            whole, end, rest = self._rest, b"", b""
        elif len(rest) > MAX_LINE_BYTES:  # no row is so long: its end may be decoded apart from its beginning
            whole, end, rest = self._rest + block, b"", b""
        self._rest = rest
        return b"\n".join(map(self._line, whole.split(b"\n"))) + end

    def _line(self, line: bytes) -> bytes:
        if line.isascii() or (len(_UTF8_CHARACTERS.findall(line)) > 1 and is_utf8(line)):
            return line
        return line.decode(self.codec, errors="surrogateescape").encode("utf-8", errors="surrogateescape")
