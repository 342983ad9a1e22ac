"""Latency of two calls as a paired ratio.

Runs alternate (A B, then B A), so that other load on the machine affects both equally. The ratio is the median over
pairs. Its interval comes from the order statistics of the pairs, as in a sign test: the number of pairs below the
true median is binomial with probability 1/2, for any distribution of the times.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class PairedLatency:
    """The latency of B compared with A.

    Attributes:
        milliseconds: The median times of A and of B.
        speedup: The median of A's time divided by B's; above 1, B is faster.
        interval: The 95 % interval of the speedup.
    """

    milliseconds: tuple[float, float]
    speedup: float
    interval: tuple[float, float]

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.speedup:.2f}x (95 % interval {low:.2f} to {high:.2f})"


def paired_latency(
    first: Callable[[], object], second: Callable[[], object], pairs: int = 30, warm_up: int = 2
) -> PairedLatency:
    """Time two calls in alternation.

    Args:
        first: A.
        second: B.
        pairs: The number of timed pairs; with fewer than 6 the interval is the range of the ratios.
        warm_up: The number of pairs that run first and are not timed.
    """
    times = np.empty((pairs, 2))
    calls = (first, second)
    for turn in range(-warm_up, pairs):
        for which in ((0, 1), (1, 0))[turn % 2]:
            start = time.perf_counter()
            calls[which]()
            if turn >= 0:
                times[turn, which] = time.perf_counter() - start
    a, b = np.median(times, axis=0) * 1e3
    ratios = times[:, 0] / times[:, 1]
    return PairedLatency((float(a), float(b)), float(np.median(ratios)), median_interval(ratios))


def paired_latency_for(
    seconds: float,
    first: Callable[[], object],
    second: Callable[[], object],
    *,
    least: int = 9,
    most: int = 301,
) -> PairedLatency:
    """Like :func:`paired_latency`, with as many pairs as fit into a given time.

    Args:
        seconds: The time for all pairs.
        first: A.
        second: B.
        least: The smallest number of pairs.
        most: The largest number of pairs.
    """
    first()
    second()
    start = time.perf_counter()
    first()
    second()
    once = time.perf_counter() - start
    return paired_latency(first, second, max(least, min(most, int(seconds / once))), 3)


def median_interval(samples: npt.NDArray[np.float64]) -> tuple[float, float]:
    """The narrowest symmetric pair of order statistics that contains the median with a probability of 95 % or more.

    With fewer than 6 samples there is no such pair, and their range is returned.
    """
    ordered = np.sort(samples)
    n = len(ordered)
    # Order statistics r and n-1-r (from 0) miss the median when r samples or fewer lie on one side.
    rank, tail = 0, 2.0**-n
    while (tail := tail + math.comb(n, rank + 1) / 2**n) <= 0.025:
        rank += 1
    return float(ordered[rank]), float(ordered[n - 1 - rank])
