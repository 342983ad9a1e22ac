"""Timing of calls in turn, so that a shared machine that becomes slower or faster affects all of them equally."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

SAMPLE = 0.0005
"""A timed sample repeats a call for at least about this many seconds, so that the clock's resolution does not count.

It is shorter than the time slices of the system's scheduler: most samples are then not interrupted by other processes, and the
median leaves out those that are.
"""
LEAST = 15
"""The smallest number of rounds that a spread is judged by."""
MOST = 401
"""The largest number of rounds."""
ENOUGH = 0.03
"""No more rounds once the spread, divided by the square root of their number, is this share of the median or less."""

Call = Callable[[], object]


@dataclass(frozen=True)
class Ratio:
    """The time of a call, divided by that of a reference.

    Attributes:
        median: The median over rounds.
        spread: The distance between the quartiles.
        rounds: The number of rounds.
    """

    median: float
    spread: float
    rounds: int

    @staticmethod
    def of(samples: Sequence[float]) -> Ratio:
        """Median and spread of samples."""
        low, middle, high = np.quantile(samples, (0.25, 0.5, 0.75))
        return Ratio(float(middle), float(high - low), len(samples))


def repeats(call: Call) -> int:
    """How many times a call is repeated in one timed sample; also warms it up."""
    call()
    once = min(timed(call, 1) for _ in range(5))
    return max(1, min(10_000, int(SAMPLE / max(once, 1e-9))))


def timed(call: Call, count: int) -> float:
    """Seconds that one of ``count`` repeated calls takes."""
    start = time.perf_counter()
    for _ in range(count):
        call()
    return (time.perf_counter() - start) / count


def ratio(call: Call, reference: Call, seconds: float) -> Ratio:
    """Time a call in turn with a reference, until the median is settled or the time is over.

    Args:
        call: The call.
        reference: What its time is divided by.
        seconds: The upper limit; one round is always made.
    """
    end = time.perf_counter() + seconds
    count, reference_count = repeats(call), repeats(reference)
    samples: list[float] = []
    while len(samples) < MOST:
        # Which is first alternates, because the first one may find another one's data in the caches.
        if len(samples) % 2:
            below = timed(reference, reference_count)
            above = timed(call, count)
        else:
            above = timed(call, count)
            below = timed(reference, reference_count)
        samples.append(above / below)
        found = Ratio.of(samples)
        if time.perf_counter() > end or _is_settled(found):
            break
    return Ratio.of(samples)


def _is_settled(found: Ratio) -> bool:
    return found.rounds >= LEAST and found.spread <= ENOUGH * found.median * found.rounds**0.5


def in_turn(calls: Sequence[Call], rounds: int) -> list[list[float]]:
    """Milliseconds of each call in each round; every round starts with another call."""
    for call in calls:
        call()
    found: list[list[float]] = [[] for _ in calls]
    for turn in range(rounds):
        for i in range(len(calls)):
            which = (turn + i) % len(calls)
            found[which].append(timed(calls[which], 1) * 1e3)
    return found
