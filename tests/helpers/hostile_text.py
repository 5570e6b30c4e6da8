"""Characters that steer a terminal, or are not seen, and what must be shown in their place."""

from __future__ import annotations

import re

ORDERS = {
    "a title": ("\x1b]0;pwned\x07", "\\x1b]0;pwned\\x07"),
    "the clipboard": ("\x1b]52;c;cm0gLXJm\x07", "\\x1b]52;c;cm0gLXJm\\x07"),
    "a colour": ("\x1b[31m", "\\x1b[31m"),
    "a cleared screen": ("\x1b[2J", "\\x1b[2J"),
    "the 8-bit CSI": ("\x9b31m", "\\x9b31m"),
    "backspaces": ("\b\b\b", "\\x08\\x08\\x08"),
    "a carriage return": ("\rok", "\\rok"),
    "a delete": ("\x7f", "\\x7f"),
    "a vertical tab": ("\x0b", "\\x0b"),
    "a next line": ("\x85error: forged", "\\x85error: forged"),
    "a line separator": ("\u2028error: forged", "\\u2028error: forged"),
    "an override of the order": ("\u202egnp.exe", "\\u202egnp.exe"),
    "an isolate": ("\u2066x\u2069", "\\u2066x\\u2069"),
    "marks of an order": ("\u200e\u200f\u061c", "\\u200e\\u200f\\u061c"),
    "no width": ("a\u200bb\u2060\ufeff", "a\\u200bb\\u2060\\ufeff"),
    "tags": ("\U000e0041", "\\U000e0041"),
}
"""What it would do: the text, and what is shown."""

HARMFUL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e\u2066\u2069\u200b\u200e\u200f\u061c\u2028]")

FORGED = "x\nerror: forged"
"""A name whose second line would look like ours."""


def is_harmless(text: str) -> bool:
    """Whether no character of a text steers a terminal, and no line of it is forged."""
    return HARMFUL.search(text) is None and "\nerror: forged" not in text
