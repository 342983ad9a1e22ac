"""Ranges of activations on calibration data, and the scale and zero point that represent them in 8 bits.

Three methods choose a range ``[low, high]`` from a histogram of the numbers:

- ``min-max``: the smallest and the largest number.
- ``percentile``: the quantiles ``1 - p`` and ``p``.
- ``mse``: the range with the smallest expected squared error of rounding and clipping, over the histogram's centres. The search is a
  coordinate descent over fractions of the smallest and the largest number.

Every range includes 0, so that zeros (padding, ReLU) are exact.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from ...ir import Value
from ..merge.algebra.tensors import Array64
from ..statistics.im2col import Array
from ..statistics.requests import Accumulator, Request

Method = Literal["min-max", "percentile", "mse"]

BINS = 4096
"""The number of bins of a histogram: 16 for each of the 256 levels of the whole range."""

_FRACTIONS = np.linspace(0.2, 1, 65)
"""The fractions of the largest number that the search for the least squared error tries."""

CHUNK = 1 << 20
"""Numbers that are put into bins at a time."""


@dataclass(frozen=True)
class Extent:
    """The range of the numbers of a value.

    Attributes:
        low: The smallest number.
        high: The largest number.
    """

    low: float
    high: float

    def union(self, other: Extent) -> Extent:
        """The smallest range that holds both."""
        return Extent(min(self.low, other.low), max(self.high, other.high))

    def with_zero(self) -> Extent:
        """The smallest range that holds this one and 0."""
        return Extent(min(self.low, 0.0), max(self.high, 0.0))


@dataclass(frozen=True)
class Extremes(Request[Extent]):
    """Requests the smallest and the largest number of a value.

    Attributes:
        value: The value.
    """

    value: Value

    def values(self) -> tuple[Value, ...]:
        return (self.value,)

    def accumulator(self) -> Accumulator[Extent]:
        return _ExtremesAccumulator()


class _ExtremesAccumulator(Accumulator[Extent]):
    def __init__(self) -> None:
        self.low, self.high = np.inf, -np.inf

    def add(self, *arrays: Array) -> None:
        self.low = min(self.low, float(arrays[0].min(initial=np.inf)))
        self.high = max(self.high, float(arrays[0].max(initial=-np.inf)))

    def result(self) -> Extent:
        return Extent(self.low, self.high)


@dataclass(frozen=True)
class Histogram(Request[Array64]):
    """Requests how many numbers of a value lie in each of :data:`BINS` equal bins.

    Attributes:
        value: The value.
        extent: The range that the bins divide; numbers outside count in the first and the last bin.
    """

    value: Value
    extent: Extent

    def values(self) -> tuple[Value, ...]:
        return (self.value,)

    def accumulator(self) -> Accumulator[Array64]:
        return _HistogramAccumulator(self.extent)


class _HistogramAccumulator(Accumulator[Array64]):
    def __init__(self, extent: Extent) -> None:
        self.low, width = extent.low, extent.high - extent.low
        self.factor = BINS / width if width > 0 else 0.0
        self.counts = np.zeros(BINS)

    def add(self, *arrays: Array) -> None:
        flat = arrays[0].reshape(-1)
        for start in range(0, flat.size, CHUNK):
            part = flat[start : start + CHUNK].astype(np.float64)
            part -= self.low
            part *= self.factor
            places = part.astype(np.int64)
            np.clip(places, 0, BINS - 1, out=places)
            self.counts += np.bincount(places, minlength=BINS)

    def result(self) -> Array64:
        return self.counts


def centres(extent: Extent) -> Array64:
    """The centres of the bins of a histogram."""
    width = (extent.high - extent.low) / BINS
    return np.asarray(extent.low + width * (np.arange(BINS) + 0.5), np.float64)


def percentile_range(extent: Extent, counts: Array64, percentile: float) -> Extent:
    """The range between two quantiles.

    Args:
        extent: The range of the histogram.
        counts: ``(BINS,)``: its counts.
        percentile: The upper quantile in percent; the lower one is 100 minus it.
    """
    total = np.cumsum(counts)
    edges = np.linspace(extent.low, extent.high, BINS + 1)
    tail = (1 - percentile / 100) * total[-1]
    first = int(np.searchsorted(total, tail, side="right"))
    last = int(np.searchsorted(total, total[-1] - tail, side="left"))
    first, last = min(first, BINS - 1), min(last, BINS - 1)
    if last < first:
        return extent
    return Extent(float(edges[first]), float(edges[last + 1]))


def mse_range(extent: Extent, counts: Array64, levels: Levels) -> Extent:
    """The range with the least squared error.

    Args:
        extent: The range of the histogram.
        counts: ``(BINS,)``: its counts.
        levels: The integers.
    """
    whole = extent.with_zero()
    used = counts > 0
    at, weight = centres(extent)[used], counts[used]

    def error(low: float, high: float) -> float:
        scale, zero = levels.parameters(Extent(low, high))
        rounded = np.clip(np.rint(at / scale) + zero, levels.low, levels.high)
        return float(weight @ np.square((rounded - zero) * scale - at))

    best = (1.0, 1.0)
    least = error(whole.low, whole.high)
    for _ in range(2):
        for side in (0, 1):
            if (whole.low, whole.high)[side] == 0:
                continue
            for fraction in _FRACTIONS:
                trial = (fraction, best[1]) if side == 0 else (best[0], fraction)
                found = error(whole.low * trial[0], whole.high * trial[1])
                if found < least:
                    best, least = trial, found
    return Extent(whole.low * best[0], whole.high * best[1])


@dataclass(frozen=True)
class Levels:
    """The integers that represent the numbers of a value.

    Attributes:
        dtype: ``"u8"`` or ``"i8"``.
        symmetric: The zero point is 0, and the range is the same on both sides.
    """

    dtype: Literal["u8", "i8"]
    symmetric: bool = False

    @property
    def low(self) -> int:
        """The smallest integer."""
        return 0 if self.dtype == "u8" else -127 if self.symmetric else -128

    @property
    def high(self) -> int:
        """The largest integer."""
        return 255 if self.dtype == "u8" else 127

    def parameters(self, extent: Extent) -> tuple[np.float32, int]:
        """The scale and the zero point of a range; the scale is 1 if the range is 0 alone.

        The scale is rounded down to float32, so that the levels do not leave the range: onnxruntime drops a Clip behind a layer
        only if no level lies outside its bounds.
        """
        whole = extent.with_zero()
        if self.symmetric:
            width, count = max(-whole.low, whole.high), self.high
        else:
            width, count = whole.high - whole.low, self.high - self.low
        exact = width / count
        scale = np.float32(exact)
        if float(scale) > exact:
            scale = np.nextafter(scale, np.float32(0))
        if not scale > np.finfo(np.float32).tiny:
            return np.float32(1), 0 if self.symmetric else self.low
        if self.symmetric:
            return scale, 0
        zero = int(np.clip(round(self.low - whole.low / float(scale)), self.low, self.high))
        return scale, zero
