"""Figures and differences as a report tells them."""

from __future__ import annotations

from .bootstrap import PairedDifference
from .comparison import LENGTH, LESS_IS_BETTER, AgainstFirst, FileComparison


def figures_of(file: FileComparison) -> list[str]:
    """Return the names of the figures, in the order in which the models have them."""
    return list(dict.fromkeys(figure for metrics in file.metrics.values() for figure in metrics))


def summary(other: AgainstFirst, file: FileComparison) -> str:
    """Return in one line how a model's answers stand to the first one's."""
    told = [
        f"{len(other.better):,} of {file.num_turns:,} answers better, {len(other.worse):,} worse",
        f"{other.num_equal:,} the same to the letter",
    ]
    moved = {change: number for change, number in other.calls.items() if change[0] != change[1]}
    if moved:
        told.append("calls: " + ", ".join(f"{number:,} × {old} → {new}" for (old, new), number in moved.items()))
    if other.judgement:
        found = other.judgement
        told.append(f"the judge: {found.wins:,} won, {found.losses:,} lost, {found.ties:,} ties")
        if found.unread:
            told.append(f"{found.unread:,} without a verdict")
    return "; ".join(told)


def number_text(value: float | None) -> str:
    """Return a figure with four digits that count."""
    return "-" if value is None else f"{value:.4g}" if abs(value) < 1000 else f"{value:,.0f}"


def difference_text(found: PairedDifference | None) -> str:
    """Return a difference with its interval, marked where it is clear; empty where there is none."""
    if found is None or found.value != found.value:
        return ""
    if found.low != found.low:
        return f"{found.value:+.3g}, of too few rows"
    text = f"{found.value:+.3g}, {found.low:+.3g} to {found.high:+.3g}"
    return f"**{text}**" if found.is_clear else text


def is_gain(figure: str, found: PairedDifference | None) -> bool | None:
    """Whether a difference is clearly one to the better; None where it is not clear, or neither better nor worse."""
    if found is None or not found.is_clear or figure == LENGTH:
        return None
    return (found.value > 0) != (figure in LESS_IS_BETTER)
