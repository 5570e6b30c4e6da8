"""Rows as a web page: the text as the model reads it, every token with its id and label, what is trained in colour.

The page is one file without scripts; it loads nothing from elsewhere, so that private rows stay private.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from glmtune.errors import shown
from glmtune.family import IGNORE_INDEX

HALF = "\ufffd"  # what a tokenizer decodes half of a character to
MAX_GROUP_TOKENS = 16  # a character has four bytes at most, but a token may end one and begin the next

# `<b>` is a trained token and `<i>` a masked one: short names keep a page of a thousand rows small.
STYLE = """\
:root{color-scheme:light dark;--text:#1f2328;--faint:#656d76;--page:#fff;--box:#f6f8fa;--line:#d1d9e0;
--trained:46 160 67;--control:#8250df;--bad:#cf222e}
@media(prefers-color-scheme:dark){:root{--text:#e6edf3;--faint:#9198a1;--page:#0d1117;--box:#151b23;--line:#3d444d;
--trained:63 185 80;--control:#d2a8ff;--bad:#ff7b72}}
body{display:flex;flex-direction:column;max-width:60rem;margin:0 auto;padding:1rem;background:var(--page);
color:var(--text);font:15px/1.6 system-ui,sans-serif}
header,#totals{order:-1}
h1{font-size:1.3rem;margin:.2rem 0}
#totals{margin:.2rem 0 1rem}
h2{font-size:.9rem;margin:1.2rem 0 .3rem}
h2 span,header{color:var(--faint);font-weight:400}
h1{color:var(--text)}
section{content-visibility:auto;contain-intrinsic-size:auto 12rem}
p.row{margin:0;padding:.6rem .8rem;background:var(--box);border:1px solid var(--line);border-radius:6px;
white-space:pre-wrap;overflow-wrap:anywhere;font:14px/1.9 ui-monospace,monospace}
b,i{font-weight:400;font-style:normal;border-radius:2px;box-shadow:inset -1px 0 var(--line);padding:.1rem 0}
i{color:var(--faint)}
b{color:var(--text);background:rgb(var(--trained)/calc(.08 + .27*var(--w,1)))}
b:hover,i:hover{outline:1px solid currentcolor}
.c{color:var(--control);font-weight:600}
p.bad{margin:0;padding:.6rem .8rem;border:1px solid var(--bad);border-radius:6px;color:var(--bad)}
"""

HEAD = """\
<!DOCTYPE html>
<html lang="en">
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>
{style}</style>
<header>
<h1>{title}</h1>
<b>trained</b> <b style="--w:.3">trained, weight 0.3</b> <i>masked</i> <b class=c>&lt;control token></b>
· ⏎ newline · ⇥ tab · ␣ a space that would not be seen<br>
Point at a token to see its id → its label ({ignored} is masked). Tokens that make up one character are shown together.
</header>
"""


@dataclass(frozen=True, kw_only=True)
class PageRow:
    """One row to show."""

    number: int
    """In its file, from 0."""
    where: str
    """`file:line`."""
    input_ids: Sequence[int] = ()
    labels: Sequence[int] = ()
    weights: Sequence[float] | None = None
    """Of every token in the loss; None where all are 1."""
    problem: str = ""
    """Why training refuses the row; it has no tokens then."""


def write_page(path: Path, rows: Iterable[PageRow], tokenizer: PreTrainedTokenizerBase, title: str) -> None:
    """Write the page of the rows; one row at a time is held in memory."""
    with path.open("w", encoding="utf-8", errors="backslashreplace") as file:
        file.writelines(html_page(rows, tokenizer, title))


def html_page(rows: Iterable[PageRow], tokenizer: PreTrainedTokenizerBase, title: str) -> Iterator[str]:
    """Yield the page in pieces: its head, every row, and the totals, which the style moves to the top."""
    tokens = _Tokens(tokenizer)
    num_rows = num_refused = num_tokens = num_trained = 0
    yield HEAD.format(title=_shown(title), style=STYLE, ignored=IGNORE_INDEX)
    for row in rows:
        trained = sum(label != IGNORE_INDEX for label in row.labels)
        num_rows += 1
        num_refused += bool(row.problem)
        num_tokens += len(row.input_ids)
        num_trained += trained
        about = "refused" if row.problem else f"{len(row.input_ids):,} tokens, {trained:,} trained"
        yield f"<section><h2>row {row.number} <span>{_shown(row.where)} · {about}</span></h2>\n"
        if row.problem:
            yield f"<p class=bad>{_shown(row.problem)}</p></section>\n"
        else:
            yield f"<p class=row>{''.join(tokens.spans(row))}</p></section>\n"
    share = f" ({num_trained / num_tokens:.1%})" if num_tokens else ""
    refused = f" · {num_refused:,} refused" if num_refused else ""
    rows_text = "1 row" if num_rows == 1 else f"{num_rows:,} rows"
    yield f"<p id=totals>{rows_text}{refused} · {num_tokens:,} tokens · {num_trained:,} trained{share}</p>\n"


class _Tokens:
    """Turns tokens to text; remembers what it decoded, as the same tokens come again and again."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        special = {token for token, added in tokenizer.added_tokens_decoder.items() if added.special}
        self.control_ids = special | set(tokenizer.all_special_ids)
        self.texts: dict[int, str] = {}

    def spans(self, row: PageRow) -> Iterator[str]:
        """Yield an element for every token, or for the tokens that make up one character."""
        start = 0
        while start < len(row.input_ids):
            end = self._end_of_group(row, start)
            yield self._span(row, start, end)
            start = end

    def _end_of_group(self, row: PageRow, start: int) -> int:
        """Return where the tokens from `start` make whole text; the next place where they never do."""
        is_trained = row.labels[start] != IGNORE_INDEX
        for end in range(start + 1, min(start + MAX_GROUP_TOKENS, len(row.input_ids)) + 1):
            if (row.labels[end - 1] != IGNORE_INDEX) != is_trained:
                break
            if HALF not in self._text(row.input_ids[start:end]):
                return end
        return start + 1  # the text itself holds this character, or the row is cut inside of one

    def _text(self, ids: Sequence[int]) -> str:
        if len(ids) > 1:
            return self._decode(ids)
        if ids[0] not in self.texts:
            self.texts[ids[0]] = self._decode(ids)
        return self.texts[ids[0]]

    def _decode(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(ids), clean_up_tokenization_spaces=False))

    def _span(self, row: PageRow, start: int, end: int) -> str:
        ids, labels = row.input_ids[start:end], row.labels[start:end]
        tip = " ".join(f"{token}→{label}" for token, label in zip(ids, labels))
        name = "i" if labels[0] == IGNORE_INDEX else "b"
        more = " class=c" if ids[0] in self.control_ids else ""
        weights = row.weights[start:end] if row.weights is not None else ()
        if any(weight != 1 for weight in weights):
            tip += f" weight {' '.join(f'{weight:g}' for weight in weights)}"
            more += f' style="--w:{min(1, max(0, weights[0])):g}"'
        return f'<{name}{more} title="{tip}">{html.escape(_visible(self._text(ids)), quote=False)}</{name}>'


def _shown(text: str) -> str:
    """Return a name or message as HTML, harmless to look at."""
    return html.escape(shown(text))


def _visible(text: str) -> str:
    """Return the text with a sign for whatever would not be seen: white space, and characters without a shape."""
    text = re.sub(r"(?<=\s) | (?=\s|$)", "␣", text)
    signs = {"\n": "⏎\n", "\t": "⇥\t", "\r": "␍"}
    return "".join(signs.get(char, char if char.isprintable() else repr(char)[1:-1]) for char in text)
