"""Timing of calls in turn, so that a shared machine that becomes slower or faster affects all of them equally.

What the system interrupted is measured again: on a busy machine a long call nearly always waits for other processes and a short one hardly ever,
so that turns with a reference do not help. What it interrupts again and again counts by the processor's time for this thread, if the thread computes
everything itself.
"""

from __future__ import annotations

import contextlib
import importlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

_resource: Any = None
with contextlib.suppress(ImportError):  # There is none on Windows: all rounds count there.
    _resource = importlib.import_module("resource")

SAMPLE = 0.0005
"""The minimal length of a timed sample in seconds: the call is repeated, so that the clock's resolution has no influence.

It is shorter than the time slices of the system's scheduler: most samples are then not interrupted by other processes, and the
median ignores those that are.
"""
LEAST = 15
"""The smallest number of undisturbed rounds before measuring may end."""
MOST = 401
"""The largest number of rounds."""
PATIENCE = 4
"""How many times longer, or more often, something is measured that is interrupted again and again."""
FEWEST = 5
"""If fewer rounds were undisturbed, all count."""
ENOUGH = 0.03
"""Measuring ends when the spread, divided by the square root of the number of rounds, is at most this share of the median."""

Call = Callable[[], object]
Clock = Callable[[], float]
"""A clock that stands still while another process has the processor, such as ``time.thread_time``."""


def own_clock() -> Clock | None:
    """The clock of the processor's time for this thread; ``None`` where it is too coarse."""
    return time.thread_time if time.get_clock_info("thread_time").resolution < 1e-5 else None


@dataclass(frozen=True)
class Ratio:
    """The time of a call, divided by that of a reference.

    Attributes:
        median: The median over rounds.
        spread: The interquartile range.
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
    """The number of repetitions of a call in one timed sample; also warms the call up."""
    call()
    once = min(timed(call, 1) for _ in range(5))
    return max(1, min(10_000, int(SAMPLE / max(once, 1e-9))))


def timed(call: Call, count: int) -> float:
    """The mean seconds of ``count`` repeated calls."""
    start = time.perf_counter()
    for _ in range(count):
        call()
    return (time.perf_counter() - start) / count


def _both(call: Call, count: int, own: Clock | None) -> tuple[float, float]:
    """The mean seconds of repeated calls by real time and by a clock of their own, if there is one."""
    start = own() if own is not None else 0.0
    seconds = timed(call, count)
    return seconds, seconds if own is None else (own() - start) / count


def interruptions() -> int:
    """How often the system has taken the processor away from this process; 0 where it does not say so."""
    if _resource is None:
        return 0
    return int(_resource.getrusage(_resource.RUSAGE_SELF).ru_nivcsw)


def ratio(call: Call, reference: Call, seconds: float, own: Clock | None = None) -> Ratio:
    """Time a call in turn with a reference, until the median has settled or the time is over.

    Args:
        call: The call.
        reference: The call by whose time the result is divided.
        seconds: The upper limit of the measuring time, or of a quarter of it while hardly any round was undisturbed; there is always
            at least one round.
        own: The clock for rounds if hardly any was undisturbed; real time if not given.
    """
    start = time.perf_counter()
    count, reference_count = repeats(call), repeats(reference)
    samples: list[float] = []
    quiet: list[float] = []
    while len(samples) < MOST:
        before = interruptions()
        # The order alternates, because the first call may find the caches filled with other data.
        if len(samples) % 2:
            below = _both(reference, reference_count, own)
            above = _both(call, count, own)
        else:
            above = _both(call, count, own)
            below = _both(reference, reference_count, own)
        samples.append(above[1] / below[1])
        if interruptions() == before:
            quiet.append(above[0] / below[0])
            if _is_settled(Ratio.of(quiet)):
                break
        allowed = seconds if len(quiet) >= FEWEST else seconds * PATIENCE
        if time.perf_counter() - start > allowed:
            break
    return Ratio.of(quiet if len(quiet) >= FEWEST else samples)


def _is_settled(found: Ratio) -> bool:
    return found.rounds >= LEAST and found.spread <= ENOUGH * found.median * found.rounds**0.5


def in_turn(
    calls: Sequence[Call],
    rounds: int,
    most: int = 0,
    seconds: float = 0.0,
    own: Clock | None = None,
) -> list[list[float]]:
    """For each call, its milliseconds in each round; successive rounds start with different calls.

    Args:
        calls: The calls.
        rounds: The number of rounds.
        most: The largest number of rounds, if quick calls are to have more of them.
        seconds: There are more rounds than ``rounds`` only while this time is not over.
        own: The clock for calls that are interrupted again and again; real time if not given.
    """
    for call in calls:
        call()
    found: list[list[float]] = [[] for _ in calls]
    start = time.perf_counter()
    for turn in range(max(rounds, most)):
        if turn >= rounds and time.perf_counter() - start > seconds:
            break
        for i in range(len(calls)):
            which = (turn + i) % len(calls)
            found[which].append(_undisturbed(calls[which], own) * 1e3)
    return found


def _undisturbed(call: Call, own: Clock | None) -> float:
    """The seconds of a call, which is repeated a few times until it was not interrupted; otherwise the shortest ones."""
    times = []
    for _ in range(PATIENCE):
        before = interruptions()
        seconds, mine = _both(call, 1, own)
        if interruptions() == before:
            return seconds
        times.append(mine)
    return min(times)
