"""Text that is to be UTF-8: what else it may be where it is not, and what to do about that."""

from __future__ import annotations

import codecs
from pathlib import Path

from glmtune.errors import GlmtuneError

MARKS = {
    codecs.BOM_UTF32_LE: "UTF-32",  # before UTF-16, whose mark begins in the same way
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}


def read_utf8(path: Path) -> str:
    """Return the text of a file, without a byte order mark; raises an error that names the encoding it seems to be.

    `OSError` passes: what a missing file means, the caller knows.
    """
    content = path.read_bytes()
    try:
        return _with_plain_newlines(content.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        encoding = likely_encoding(content)
        raise GlmtuneError(
            f"the file is not UTF-8{f': it seems to be {encoding}' if encoding else ''}",
            where=f"{path}:{line}",
            fix=f"save it as UTF-8, such as by `iconv -f {encoding or 'ENCODING'} -t UTF-8 {path.name}`",
        ) from None


def likely_encoding(content: bytes) -> str:
    """Return the name of the encoding that bytes which are not UTF-8 seem to have; empty where nothing speaks for one.

    GB18030 holds all of GBK and GB2312. Almost any bytes are some text in cp1252, and Big5 cannot be told from GBK, so
    that neither is ever guessed.
    """
    for mark, name in MARKS.items():
        if content.startswith(mark):
            return name
    try:
        content.decode("gb18030")
    except UnicodeDecodeError as error:
        # A piece of a text may end within a character.
        return "GBK" if error.start >= max(1, len(content) - 3) and error.end == len(content) else ""
    return "GBK"


def _with_plain_newlines(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n")
