"""Interrupted calls do not count; clock and interruptions are scripted, so that no figure of a clock is judged."""

from __future__ import annotations

import itertools
import time

import pytest

from graphshrink.planning.latency import device, timing


class _Machine:
    """A clock, and calls that another process interrupts from time to time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.own, self.interruptions = 0.0, 0.0, 0
        monkeypatch.setattr(timing.time, "perf_counter", lambda: self.now)
        monkeypatch.setattr(timing, "interruptions", lambda: self.interruptions)

    def call(self, seconds: float, every: int = 0) -> timing.Call:
        """A call that takes so long, and a second more each so many times."""
        count = itertools.count(1)

        def run() -> None:
            self.now += seconds
            self.own += seconds
            if every and next(count) % every == 0:
                self.now += 1.0
                self.interruptions += 1

        return run


@pytest.mark.parametrize("every", [0, 2, 3])
def test_interrupted_calls_do_not_count(monkeypatch: pytest.MonkeyPatch, every: int) -> None:
    machine = _Machine(monkeypatch)
    long, short = machine.call(0.02, every), machine.call(0.001)
    found = timing.ratio(long, short, seconds=1e9)
    assert found.median == pytest.approx(20)
    assert found.rounds >= timing.LEAST
    for a, b in zip(*timing.in_turn([long, short], 7), strict=True):
        assert (a, b) == (pytest.approx(20), pytest.approx(1))


def test_a_machine_that_is_never_quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = _Machine(monkeypatch)
    found = timing.ratio(machine.call(0.02, every=1), machine.call(0.001), seconds=3)
    assert found.median == pytest.approx(1020)
    ((milliseconds,),) = timing.in_turn([machine.call(0.02, every=1)], 1)
    assert milliseconds == pytest.approx(1020)


def test_calls_that_are_always_interrupted_count_by_a_clock_of_their_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    machine = _Machine(monkeypatch)
    long, short = machine.call(0.02, every=1), machine.call(0.001)
    found = timing.ratio(long, short, 3, lambda: machine.own)
    assert found.median == pytest.approx(20)
    ((milliseconds,), _) = timing.in_turn([long, short], 1, own=lambda: machine.own)
    assert milliseconds == pytest.approx(20)


def test_one_thread_of_a_processor_has_a_clock_of_its_own() -> None:
    one, two = (device("ort-cpu", threads).own_clock for threads in (1, 2))
    assert two is None
    assert one is timing.own_clock()
    if one is not None:
        before = one()
        time.sleep(0.05)
        assert one() - before < 0.04  # Sleep is no work.


def test_the_system_is_asked() -> None:
    assert timing.interruptions() >= 0
