"""The report of a comparison as one web page: no scripts, nothing from elsewhere, readable without a network."""

from __future__ import annotations

import html
from collections.abc import Iterator, Sequence

from glmtune.errors import shown
from glmtune.text.visible_text import ANSWER_KEEPS

from .bootstrap import PairedDifference
from .comparison import LENGTH, AgainstFirst, AnswerChange, Comparison, FileComparison
from .wording import difference_text, figures_of, is_gain, number_text, summary

STYLE = """\
:root{color-scheme:light dark;--text:#1f2328;--faint:#59636e;--page:#fff;--box:#f6f8fa;--line:#d1d9e0;
--good:#1a7f37;--bad:#cf222e}
@media(prefers-color-scheme:dark){:root{--text:#e6edf3;--faint:#9198a1;--page:#0d1117;--box:#151b23;--line:#3d444d;
--good:#3fb950;--bad:#ff7b72}}
body{max-width:64rem;margin:0 auto;padding:1rem;background:var(--page);color:var(--text);font:15px/1.6 system-ui,\
sans-serif}
h1{font-size:1.4rem}h2{font-size:1.15rem;margin-top:2rem}h3{font-size:1rem}
.scroll{overflow-x:auto}
table{border-collapse:collapse;font-variant-numeric:tabular-nums}
th,td{padding:.3rem .8rem;border-bottom:1px solid var(--line);text-align:right;vertical-align:top}
th:first-child,td:first-child{text-align:left}
small,.faint{color:var(--faint)}small{white-space:nowrap}
.good{color:var(--good)}.bad{color:var(--bad)}
svg{display:block;width:100%;min-width:34rem;height:auto}svg text{fill:currentColor;font:13px system-ui,sans-serif}
details{border:1px solid var(--line);border-radius:6px;margin:.5rem 0;padding:.4rem .8rem}
summary{cursor:pointer}
dt{color:var(--faint);margin-top:.4rem}
dd{margin:0;padding:.4rem .6rem;background:var(--box);border-radius:4px;white-space:pre-wrap;overflow-wrap:anywhere}
"""

HEAD = """\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>
{style}</style>
</head>
<body>
<h1>{title}</h1>
"""

WIDTH, LINE, LABEL, NUMBERS = 760, 26, 170, 190
"""Of the picture, in its own units: all of it, a figure's line, its name at the left, its numbers at the right."""


def html_report(comparison: Comparison, most_shown: int) -> str:
    """Return the page.

    Args:
        comparison: What is told.
        most_shown: Turns that got better, and as many that got worse.
    """
    title = _text(" / ".join(comparison.names))
    parts = [HEAD.format(title=title, style=STYLE)]
    for file in comparison.files:
        parts.extend(_file(comparison.names, file, most_shown))
    return "".join(parts) + "</body>\n</html>\n"


def _file(names: Sequence[str], file: FileComparison, most_shown: int) -> Iterator[str]:
    yield f"<h2>{_text(file.data_file)}: {file.num_turns:,} turns</h2>\n"
    if file.num_left_out:
        yield f'<p class="faint">{file.num_left_out:,} rows or turns were left out.</p>\n'
    yield from _table(names, file)
    for other in file.others:
        yield f"<h3>{_text(other.name)} against {_text(names[0])}</h3>\n<p>{_text(summary(other, file))}</p>\n"
        yield _picture(other)
        for title, turns in (("Better", other.better), ("Worse", other.worse)):
            if turns:
                yield f"<h4>{title}: {min(most_shown, len(turns)):,} of {len(turns):,}</h4>\n"
                for turn in turns[:most_shown]:
                    yield _turn(turn, (names[0], other.name))
        if other.judgement:
            prompt = _text(other.judgement.prompt)
            yield f"<details><summary>What the judge was asked</summary><dl><dd>{prompt}</dd></dl></details>\n"


def _table(names: Sequence[str], file: FileComparison) -> Iterator[str]:
    yield (
        '<div class="scroll"><table>\n<tr><th></th>' + "".join(f"<th>{_text(name)}</th>" for name in names) + "</tr>\n"
    )
    for figure in figures_of(file):
        cells = [f"<td>{number_text(file.metrics[names[0]].get(figure))}</td>"]
        for other in file.others:
            found = other.differences.get(figure)
            told = difference_text(found).strip("*")
            mark = {True: ' class="good"', False: ' class="bad"', None: ""}[is_gain(figure, found)]
            small = f"<br><small{mark}>{told}</small>" if told else ""
            cells.append(f"<td>{number_text(file.metrics[other.name].get(figure))}{small}</td>")
        yield f"<tr><td>{_text(figure)}</td>{''.join(cells)}</tr>\n"
    yield "</table></div>\n"
    yield f'<p class="faint">Below a figure: the difference to {_text(names[0])} and its 95 % interval.</p>\n'


def _picture(other: AgainstFirst) -> str:
    """Return the differences of figures from 0 to 100 as lines over their intervals, around 0."""
    found = {name: each for name, each in other.differences.items() if name != LENGTH and each.low == each.low}
    if not found:
        return ""
    reach = max((abs(end) for each in found.values() for end in (each.low, each.high)), default=0.0) or 1.0
    height = LINE * len(found) + 10
    middle = LABEL + (WIDTH - LABEL - NUMBERS) / 2
    scale = (WIDTH - LABEL - NUMBERS) / 2 / reach
    label = f"differences of {_text(other.name)} with their intervals"
    lines = [
        f'<div class="scroll"><svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{label}">\n',
        f'<line x1="{middle}" x2="{middle}" y1="0" y2="{height}" stroke="currentColor" stroke-opacity=".4"/>\n',
    ]
    for number, (name, each) in enumerate(found.items()):
        lines.append(_line(name, each, y=LINE * number + LINE / 2 + 5, middle=middle, scale=scale))
    return "".join(lines) + "</svg></div>\n"


def _line(name: str, found: PairedDifference, *, y: float, middle: float, scale: float) -> str:
    color = {True: "var(--good)", False: "var(--bad)", None: "var(--faint)"}[is_gain(name, found)]
    low, value, high = (f"{middle + scale * each:.1f}" for each in (found.low, found.value, found.high))
    return (
        f'<text x="0" y="{y + 4}">{_text(name)}</text>'
        f'<line x1="{low}" x2="{high}" y1="{y}" y2="{y}" stroke="{color}" stroke-width="3"/>'
        f'<circle cx="{value}" cy="{y}" r="5" fill="{color}"/>'
        f'<text x="{WIDTH}" y="{y + 4}" text-anchor="end">{difference_text(found).strip("*")}</text>\n'
    )


def _turn(turn: AnswerChange, names: tuple[str, str]) -> str:
    calls = f", calls: {turn.tool_calls[0] or '-'} → {turn.tool_calls[1] or '-'}" if any(turn.tool_calls) else ""
    told = f"{turn.where}, ROUGE-L {turn.rouge_l[0]:.1f} → {turn.rouge_l[1]:.1f}{calls}"
    texts = zip(("prompt", "reference", *names), (turn.prompt, turn.reference, *turn.answers))
    inside = "".join(f"<dt>{_text(name)}</dt><dd>{_text(text)}</dd>" for name, text in texts)
    return f"<details><summary>{_text(told)}</summary><dl>{inside}</dl></details>\n"


def _text(text: str) -> str:
    """Return a text as HTML shows it; controls and what turns the direction of reading are written out."""
    return html.escape(shown(text, ANSWER_KEEPS))
