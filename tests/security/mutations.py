"""Real files with something changed in them, at random but repeatable."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

FRAGMENTS = [
    *(b"\0", b"\xff\xfe", b"\xed\xa0\x80", b"\x1b]0;x\x07", "\u202e".encode(), b"\n", b"\r\n", b"\t", b"\\u0000"),
    *(b"[" * 500, b"{" * 500, b"]", b"}", b'"', b"'", b":", b",", b"- ", b"#", b"|", b">", b"%", b"? "),
    *(b"&a ", b"*a", b"<<: *a", b"!!python/name:os.system ", b"!!int ", b"!!bool ", b"!!binary ", b"---\n"),
    *(b"NaN", b"1e999", b"9" * 5000, b"0x" + b"f" * 100, b"-1", b"null", b"true", b"{}", b"[]", b"1:1:1"),
]
VALUES: list[Any] = [
    *(None, True, False, 0, -1, 1, 2**31, 2**63, 2**64, 10**30, 0.5, -1.5, 1e300, "", "x", "x" * 3000, "\x1b[2J"),
    *(
        [],
        {},
        [None],
        [[]],
        {"": None},
        {"x": {"x": {}}},
        ["x", 1],
        "null",
        "../x",
        "/dev/zero",
        "(a+)+b",
        "{{",
        "\ud800",
    ),
]


def changed_bytes(content: bytes, rng: random.Random) -> bytes:
    """Return the content with up to five bytes or stretches of it changed."""
    changed = bytearray(content)
    for _ in range(rng.randint(1, 5)):
        at, length = rng.randint(0, len(changed)), rng.choice([1, 1, 2, 4, 20, 200])
        change = rng.choice(["flip", "insert", "cut", "copy", "end", "number"])
        if change == "flip" and at < len(changed):
            changed[at] ^= 1 << rng.randrange(8)
        elif change == "insert":
            changed[at:at] = rng.choice(FRAGMENTS)
        elif change == "cut":
            del changed[at : at + length]
        elif change == "copy":
            start = rng.randint(0, len(changed))
            changed[at:at] = changed[start : start + length]
        elif change == "end":
            del changed[rng.randint(len(changed) // 2, len(changed)) :]
        elif change == "number":
            changed[at : at + 4] = rng.randbytes(4)
    return bytes(changed)


def changed_value(value: Any, rng: random.Random) -> Any:
    """Return a copy of nested keys and values with one of them changed, taken out, or put twice."""
    if isinstance(value, dict) and value and rng.random() < 0.85:
        key = rng.choice(sorted(value, key=str))
        change = rng.choice(["value", "value", "deeper", "deeper", "deeper", "gone", "renamed"])
        rest = {name: each for name, each in value.items() if name != key}
        if change == "gone":
            return rest
        if change == "renamed":
            return {**rest, rng.choice(["", "x", f"{key}\x1b", f"{key}s"]): value[key]}
        return {**rest, key: rng.choice(VALUES) if change == "value" else changed_value(value[key], rng)}
    if isinstance(value, list) and value and rng.random() < 0.85:
        at = rng.randrange(len(value))
        return [*value[:at], changed_value(value[at], rng), *value[at + rng.randint(0, 1) :]]
    return rng.choice(VALUES)


def changed_json(content: bytes, rng: random.Random) -> bytes:
    """Return JSON, or lines of it, with a value or a byte changed."""
    if rng.random() < 0.5:
        return changed_bytes(content, rng)
    lines = content.splitlines() if b"\n{" in content else [content]
    at = rng.randrange(len(lines))
    lines[at] = json.dumps(changed_value(json.loads(lines[at]), rng)).encode()
    return b"\n".join(lines)


Change = Callable[[bytes, random.Random], bytes]
