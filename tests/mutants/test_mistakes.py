"""The list of mistakes fits the code: a stale one would be tried for nothing."""

from __future__ import annotations

from run_mutants import LIST, PROJECT, read_mistakes, stale


def test_every_mistake_can_be_made() -> None:
    mistakes = read_mistakes(LIST.read_text(encoding="utf-8"))
    assert len(mistakes) > 250
    assert [reason for mistake in mistakes if (reason := stale(mistake, PROJECT))] == []
