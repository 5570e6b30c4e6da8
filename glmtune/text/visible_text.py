r"""Text that others wrote, made harmless to look at: what a terminal would obey, or nobody would see, is written out.

Names of files, roles, keys and contents of rows, templates and the messages of other libraries may hold any character:
ESC gives a terminal orders, U+202E turns the reading order around, and a newline begins a line that seems to be ours.
"""

from __future__ import annotations

import re

UNSEEN = re.compile(
    "[\x00-\x1f\x7f-\x9f"  # controls: C0, DEL, C1
    "\xad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"  # bidi, and what has no width
    "\U000e0000-\U000e007f]"  # tags: a text inside the text
)
"""Characters that are never shown as they are. The joiners U+200C and U+200D are letters' and emojis' own."""
RAW_BYTES = re.compile("[\udc80-\udcff]+")
"""How Python holds the bytes of a file's name that are not UTF-8."""
ANSWER_KEEPS = "\n\t"
"""What a text of several lines keeps."""


def visible(text: str, keep: str = "") -> str:
    r"""Return the text with `\x1b`, `\n` and `\u202e` in the place of such characters, but for those in `keep`."""
    if UNSEEN.search(text) is None:
        return text
    return UNSEEN.sub(lambda found: found[0] if found[0] in keep else escape(found[0]), text)


def visible_json(text: str) -> str:
    r"""Return JSON that means the same: the escapes of JSON, `\u001b`, in the place of such characters."""
    return UNSEEN.sub(lambda found: found[0] if found[0] in ANSWER_KEEPS else _json_escape(found[0]), text)


def escape(char: str) -> str:
    r"""Return a character as Python writes it: `\x1b`, `\n`, `\u202e`."""
    return char.encode("unicode_escape").decode()


def printable(text: str) -> str:
    r"""Return text that every UTF-8 file and stream can hold: bytes that are not UTF-8 as `\xff`, as shells show them.

    Names of files may have any bytes; those unpacked on another system are often in that one's encoding.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        return RAW_BYTES.sub(_hexadecimal, text).encode(errors="backslashreplace").decode()
    return text


def _hexadecimal(match: re.Match[str]) -> str:
    return match[0].encode(errors="surrogateescape").decode(errors="backslashreplace")


def _json_escape(char: str) -> str:
    units = char.encode("utf-16-be")
    return "".join(f"\\u{units[at]:02x}{units[at + 1]:02x}" for at in range(0, len(units), 2))
