"""How much is read between two tokens: as much as others can wait for, by what was measured."""

from __future__ import annotations

import time

import pytest

from glmtune.generation.pace import FIRST_TOKENS, GAPS_FOR_READING, LEAST_TOKENS, MOST_TOKENS, Pace


class Machine:
    """Rounds that take as long as this machine needs for them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, gap: float, token: float, floor: float = 0.0) -> None:
        self.now, self.gap, self.token, self.floor = 0.0, gap, token, floor
        self.pace = Pace()
        monkeypatch.setattr(time, "perf_counter", lambda: self.now)

    def round(self, *, reads: bool, is_writing: bool = True, num_readers: int = 1) -> tuple[int, float]:
        """Return the tokens that were read, and the seconds that the round took."""
        start = self.now
        self.pace.begin(is_writing=is_writing)
        number = self.pace.num_tokens(num_readers) if reads else 0
        self.pace.note_read(number)
        self.now += (self.gap if is_writing else 0) + (max(self.floor, number * self.token) if reads else 0)
        self.pace.end()
        return number, self.now - start


@pytest.mark.parametrize("floor", [0.0, 0.04])
def test_others_wait_no_longer_than_five_times_as_long_as_usual(monkeypatch, floor: float) -> None:
    machine = Machine(monkeypatch, gap=0.05, token=0.003, floor=floor)
    for _ in range(3):
        machine.round(reads=False)
    rounds = [machine.round(reads=True) for _ in range(30)]
    assert rounds[0][0] == FIRST_TOKENS
    assert max(seconds for _, seconds in rounds) < 5 * machine.gap
    assert rounds[-1][0] == pytest.approx(GAPS_FOR_READING * 0.05 / 0.003, rel=0.1)
    assert machine.round(reads=True, num_readers=2)[0] == pytest.approx(rounds[-1][0] / 2, abs=1)


def test_where_nobody_waits_more_is_read(monkeypatch) -> None:
    machine = Machine(monkeypatch, gap=0.05, token=0.003)
    assert machine.round(reads=True, is_writing=False)[0] == MOST_TOKENS


@pytest.mark.parametrize(("token", "number"), [(1.0, LEAST_TOKENS), (1e-9, MOST_TOKENS)])
def test_what_is_read_stays_within_bounds(monkeypatch, token: float, number: int) -> None:
    machine = Machine(monkeypatch, gap=0.05, token=token)
    machine.round(reads=False)
    for _ in range(20):
        machine.round(reads=True)
    assert machine.round(reads=True)[0] == number
