"""A configuration as a file that a person reads: every value with what it does, or where it comes from, behind it.

Comments may hold what other people's files say: a line break in them is written out, so that nothing of it is a key.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from glmtune.config.yaml_source import dump_value
from glmtune.errors import shown

INDENT = "  "


def yaml_text(values: Mapping[str, Any], comments: Mapping[str, str], heading: Sequence[str]) -> str:
    """Return YAML of settings.

    Args:
        values: By section; sections are mappings.
        comments: By dotted key: what stands behind the value.
        heading: Lines that stand above all.
    """
    lines = [f"# {shown(line)}".rstrip() for line in heading]
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            lines.append("")
        lines += _lines(key, value, comments, key, "")
    return "\n".join(lines) + "\n"


def _lines(name: str, value: Any, comments: Mapping[str, str], key: str, indent: str) -> Iterator[str]:
    """Yield the lines of one key, `key` with all sections above it."""
    comment = f"  # {shown(comments[key])}" if key in comments else ""
    if isinstance(value, Mapping) and value:
        yield f"{indent}{dump_value(name)}:{comment}"
        for own, each in value.items():
            yield from _lines(own, each, comments, f"{key}.{own}", indent + INDENT)
    else:
        yield f"{indent}{dump_value(name)}: {dump_value(value)}{comment}"
