"""The report of a comparison: Markdown for a terminal or a pull request, JSON for programs, a web page for people."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from glmtune.errors import GlmtuneError, shown
from glmtune.text.plain_json import plain_json
from glmtune.text.visible_text import ANSWER_KEEPS

from .comparison import AnswerChange, Comparison, FileComparison
from .html_report import html_report
from .wording import difference_text, figures_of, number_text, summary

MOST_SHOWN = 10
"""Turns that got better, and as many that got worse, in Markdown and on the page; JSON has all."""
MOST_CHARACTERS = 600
"""Of a text in Markdown."""
ENDINGS = (".md", ".json", ".html")


def check_ending(path: Path) -> None:
    """Raise where a name does not say what to write."""
    if path.suffix.lower() not in ENDINGS:
        raise GlmtuneError(f"`{path}` does not say what to write", fix=f"end its name with {', '.join(ENDINGS)}")


def write_report(comparison: Comparison, path: Path) -> None:
    """Write a report by the ending of its name; a file that is there already is left alone.

    Raises:
        GlmtuneError: Another ending, or the file exists.
    """
    check_ending(path)
    kind = path.suffix.lower()
    text = (
        plain_json(as_dict(comparison), indent=2) + "\n"
        if kind == ".json"
        else html_report(comparison, MOST_SHOWN)
        if kind == ".html"
        else markdown(comparison)
    )
    try:
        with path.open("x", encoding="utf-8", errors="backslashreplace") as file:
            file.write(text)
    except FileExistsError:
        raise GlmtuneError(f"`{path}` exists already", fix="choose another name, or remove it first") from None


def as_dict(comparison: Comparison) -> dict[str, Any]:
    """Return the comparison as plain values."""
    found = asdict(comparison)
    for file in found["files"]:
        for other in file["others"]:
            other["calls"] = [{"from": old, "to": new, "turns": n} for (old, new), n in other["calls"].items()]
    return found


def markdown(comparison: Comparison, *, with_turns: bool = True) -> str:
    """Return the report as Markdown, with the turns that have changed most, or without any turn."""
    return "\n".join(line for file in comparison.files for line in _file(comparison.names, file, with_turns)) + "\n"


def _file(names: Sequence[str], file: FileComparison, with_turns: bool) -> Iterator[str]:
    yield f"## {_cell(file.data_file)}: {file.num_turns:,} turns"
    yield ""
    yield "| | " + " | ".join(_cell(name) for name in names) + " |"
    yield "|---|" + "---|" * len(names)
    for figure in figures_of(file):
        cells = [number_text(file.metrics[names[0]].get(figure))]
        for other in file.others:
            told = difference_text(other.differences.get(figure))
            cells.append(f"{number_text(file.metrics[other.name].get(figure))}{told and f' ({told})'}")
        yield f"| {figure} | " + " | ".join(cells) + " |"
    yield ""
    yield f"In brackets: the difference to {_cell(names[0])} with its 95 % interval; **bold** where that leaves out 0."
    if file.num_left_out:
        yield f"{file.num_left_out:,} rows or turns were left out."
    for other in file.others:
        yield ""
        yield f"**{_cell(other.name)}**: {summary(other, file)}"
        if with_turns:
            for title, turns in (("Better", other.better), ("Worse", other.worse)):
                for turn in turns[:MOST_SHOWN]:
                    yield from _turn(title, turn)
    yield ""


def _turn(title: str, turn: AnswerChange) -> Iterator[str]:
    calls = f", calls: {turn.tool_calls[0] or '-'} → {turn.tool_calls[1] or '-'}" if any(turn.tool_calls) else ""
    yield ""
    yield f"{title}: {_cell(turn.where)}, ROUGE-L {turn.rouge_l[0]:.1f} → {turn.rouge_l[1]:.1f}{calls}"
    yield ""
    for name, text in zip(("prompt", "reference", "first", "second"), (turn.prompt, turn.reference, *turn.answers)):
        yield f"- {name}: {_quoted(text)}"


def _cell(text: str) -> str:
    return shown(text).replace("|", "\\|")


def _quoted(text: str) -> str:
    """Return a text as code in one line, cut where it is long."""
    line = shown(text, ANSWER_KEEPS).replace("\n", "⏎")
    cut = line if len(line) <= MOST_CHARACTERS else f"{line[:MOST_CHARACTERS]}…"
    ticks = "`" * (1 + max((len(run) for run in cut.split() if set(run) == {"`"}), default=0))
    return f"{ticks} {cut} {ticks}" if "`" in cut else f"`{cut}`"
