"""The page of other tools in the reference: what of their rows is read, and what each of their keys is here."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from glmtune.data.conversation import RowError
from glmtune.data.reading.read_rows import read_rows
from glmtune.errors import GlmtuneError
from glmtune.starting.translation import axolotl, llamafactory, swift
from glmtune.starting.translation.draft import Key

FORMS = Path(__file__).parent / "forms.yaml"
PLACE = re.compile(r"[\w.]+(: [\w-]+|: \[[\w-]+\])?")
"""A key, or a key with its value."""
CODE = re.compile(r"`[^`]*`")
TOOLS: dict[str, tuple[Mapping[str, Key], Mapping[str, str]]] = {
    "LLaMA-Factory": (llamafactory.KEYS, llamafactory.LEFT),
    "ms-swift": (swift.KEYS, swift.LEFT),
    "axolotl": (axolotl.KEYS, axolotl.LEFT),
}


class Verdict(NamedTuple):
    """What becomes of the rows of an example."""

    formats: list[str]
    """In which they are read."""
    reason: str
    """Why a row is refused; empty where all are read."""


def forms() -> list[dict[str, Any]]:
    """Return the examples of `forms.yaml`."""
    examples: list[dict[str, Any]] = yaml.safe_load(FORMS.read_text(encoding="utf-8"))
    return examples


def verdict(example: Mapping[str, Any]) -> Verdict:
    """Return what the package's own reader makes of an example."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / example["file"]
        path.write_text(example["text"], encoding="utf-8")
        names, reason = [], ""
        try:
            for row in read_rows(path):
                read = row.read()
                names.append(read.format_name)
                for part in read.parts:
                    if isinstance(part, RowError):
                        raise part
                    part.check_trainable()
        except (RowError, GlmtuneError) as error:
            reason = error.what if isinstance(error, GlmtuneError) else str(error)
    return Verdict(list(dict.fromkeys(names)), reason)


def forms_table(say: Callable[[str], str]) -> tuple[list[str], list[list[str]]]:
    """Return heads and rows of the table of forms."""
    rows = []
    for example in forms():
        found = verdict(example)
        assert bool(found.reason) == ("lacks" in example), f"{example['form']}: {found.reason or 'is read'}"
        becomes = (
            f"{say('refused')}: {say(example['lacks'])}"
            if found.reason
            else ", ".join(f"`{each}`" for each in found.formats)
        )
        rows.append([example["tool"], _form(example["form"], say), becomes])
    return [say("tool"), say("form of a row"), say("read as")], rows


def keys_table(tool: str, say: Callable[[str], str]) -> tuple[list[str], list[list[str]]]:
    """Return heads and rows of the table of a tool's keys that have a place here."""
    keys, _ = TOOLS[tool]
    by_place: dict[str, list[str]] = {}
    for name, key in keys.items():
        by_place.setdefault(key.place, []).append(name)
    rows = [[_codes(names), _place(place, say)] for place, names in by_place.items()]
    return [tool, "glmtune"], rows


def left_table(tool: str, say: Callable[[str], str]) -> tuple[list[str], list[list[str]]]:
    """Return heads and rows of the table of a tool's keys that have none."""
    _, reasons = TOOLS[tool]
    by_reason: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        by_reason.setdefault(reason, []).append(name)
    return [say("without a place here"), say("keys")], [
        [say(reason), _codes(names)] for reason, names in by_reason.items()
    ]


def _place(place: str, say: Callable[[str], str]) -> str:
    """Return where a key stands here: keys as code, words in the language of the page."""
    for sign in (", ", " + "):
        if all(PLACE.fullmatch(part) for part in place.split(sign)):
            return sign.join(f"`{part}`" for part in place.split(sign))
    return say(place)


def _form(form: str, say: Callable[[str], str]) -> str:
    """Return the name of a form; what is code throughout is the same in every language."""
    return say(form) if re.search(r"\w", CODE.sub("", form)) else form


def _codes(names: list[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)
