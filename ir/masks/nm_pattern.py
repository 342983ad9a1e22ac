"""N:M sparsity of arrays: at most n of every m consecutive numbers along a reduction axis are not zero.

A product sums over its reduction axis: axis 1 of a convolution's weight, for every tap by itself; axis 0 of a transposed
convolution's, in blocks of one group each. :class:`Reduction` reads such a weight as a matrix ``(rows, length)`` whose
rows are what is summed over, so that the m numbers of one group stand side by side. Flattening a kernel to
``(out, in * taps)`` instead would mix taps, which hardware does not take for kernels larger than 1x1.

Mishra et al., "Accelerating sparse deep neural networks", 2021, describe the pattern 2:4 and magnitude pruning to it.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Mask = npt.NDArray[np.bool_]

_PAIRWISE = 16
"""Up to this m, numbers are ranked by comparing all pairs; beyond, by sorting."""


@dataclass(frozen=True)
class Pattern:
    """At most ``n`` of every ``m`` consecutive numbers are not zero.

    Attributes:
        n: How many are kept.
        m: Of how many.
    """

    n: int = 2
    m: int = 4

    def __post_init__(self) -> None:
        if not 1 <= self.n < self.m:
            raise ValueError(f"{self.n}:{self.m} is no pattern: 1 <= n < m")

    @classmethod
    def of(cls, text: str) -> Pattern:
        """The pattern of a text like ``"2:4"``.

        Raises:
            ValueError: If the text is none.
        """
        found = re.fullmatch(r"\s*([0-9]{1,6})\s*:\s*([0-9]{1,6})\s*", text)
        if found is None:
            raise ValueError(f"{text!r} is no pattern like 2:4")
        return cls(int(found[1]), int(found[2]))

    def __str__(self) -> str:
        return f"{self.n}:{self.m}"

    @property
    def density(self) -> float:
        """The part of the numbers that is kept."""
        return self.n / self.m

    # On arrays whose last axis is the reduction axis.

    def groups(self, array: Array) -> Array:
        """The array as ``(..., groups, m)``.

        Raises:
            ValueError: If the last axis is no multiple of m.
        """
        length = array.shape[-1] if array.ndim else 0
        if array.ndim == 0 or length % self.m:
            raise ValueError(f"{self} along an axis of {length}, which is no multiple of {self.m}")
        return array.reshape(*array.shape[:-1], length // self.m, self.m)

    def mask(self, scores: Array) -> Mask:
        """Which numbers to keep: exactly the n largest scores of every m along the last axis.

        Among equal scores the first are kept. NaN counts as the largest, so that it is seen and not lost.

        Args:
            scores: Any shape; the last axis is a multiple of m.
        """
        found = self.groups(scores)
        if found.dtype.kind not in "fiub":
            found = found.astype(np.float32)  # NumPy compares and sorts its own types only.
        if found.dtype.kind == "f" and bool(np.isnan(found).any()):
            found = np.where(np.isnan(found), np.inf, found)
        if self.m > _PAIRWISE:
            # A stable sort of the mirrored array, read backwards, has the first of equal scores first.
            order = self.m - 1 - np.argsort(found[..., ::-1], axis=-1, kind="stable")[..., ::-1]
            kept = np.zeros(found.shape, bool)
            np.put_along_axis(kept, order[..., : self.n], True, axis=-1)
            return kept.reshape(scores.shape)
        ahead = np.zeros(found.shape, np.int8)
        for i in range(self.m):
            for j in range(i):
                first = found[..., j] >= found[..., i]
                ahead[..., i] += first
                ahead[..., j] += ~first
        kept = ahead < self.n
        return kept.reshape(scores.shape)

    def holds(self, array: Array) -> bool:
        """Whether at most n of every m along the last axis are not zero; false for other lengths."""
        if array.ndim == 0 or array.shape[-1] % self.m:
            return False
        return bool((np.count_nonzero(self.groups(array), axis=-1) <= self.n).all())

    def kept(self, scores: Array) -> float:
        """The sum of the scores that :meth:`mask` keeps."""
        found = self.groups(np.asarray(scores, np.float64))
        top = np.partition(found, self.m - self.n, axis=-1)[..., self.m - self.n :]
        return float(top.sum())


def unstructured_mask(scores: Array, density: float) -> Mask:
    """Which numbers to keep of a whole array: its largest scores, the first among equals.

    Args:
        scores: Any shape.
        density: The part to keep, from 0 to 1; rounded to whole numbers, halves up.

    Raises:
        ValueError: If the density is out of range.
    """
    if not 0 <= density <= 1:
        raise ValueError(f"the density is between 0 and 1, not {density:g}")
    flat = np.where(np.isnan(scores), np.inf, scores).reshape(-1)
    count = math.floor(density * flat.size + 0.5)
    kept = np.zeros(flat.size, bool)
    if count:
        least = np.partition(flat, flat.size - count)[flat.size - count]
        kept = flat > least
        kept[np.flatnonzero(flat == least)[: count - np.count_nonzero(kept)]] = True
    return kept.reshape(scores.shape)


@dataclass(frozen=True)
class Reduction:
    """How a weight is summed over.

    Attributes:
        shape: The weight's shape.
        axis: The axis that is summed over.
        blocks: How many runs of the axis are summed over separately: more than 1 for the groups of a transposed
            convolution. (Groups of a convolution stand along its axis 0 and need nothing.)
    """

    shape: tuple[int, ...]
    axis: int
    blocks: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.axis < len(self.shape) or self.shape[self.axis] % self.blocks:
            raise ValueError(f"{self.shape} is not summed over axis {self.axis} in {self.blocks}")

    @property
    def length(self) -> int:
        """How many numbers are summed."""
        return self.shape[self.axis] // self.blocks

    @property
    def count(self) -> int:
        """The number of rows."""
        return self.blocks * math.prod(d for a, d in enumerate(self.shape) if a != self.axis)

    @property
    def _split(self) -> tuple[int, ...]:
        before, after = self.shape[: self.axis], self.shape[self.axis + 1 :]
        return (*before, self.blocks, self.length, *after)

    def rows(self, array: Array) -> Array:
        """The weight as ``(count, length)``: a view where that is possible.

        The order of rows is that of the weight's other axes; the blocks of an axis stand in its place.

        Raises:
            ValueError: If the array has another shape.
        """
        if tuple(array.shape) != self.shape:
            raise ValueError(f"an array of shape {array.shape} where {self.shape} was expected")
        moved = np.moveaxis(array.reshape(self._split), self.axis + 1, -1)
        return moved.reshape(self.count, self.length)

    def restore(self, rows: Array) -> Array:
        """The inverse of :meth:`rows`."""
        split = self._split
        moved = rows.reshape(*split[: self.axis + 1], *split[self.axis + 2 :], self.length)
        return np.moveaxis(moved, -1, self.axis + 1).reshape(self.shape)

    def mask(self, scores: Array, pattern: Pattern) -> Mask:
        """:meth:`Pattern.mask` of a weight's scores, in the weight's shape."""
        return self.restore(pattern.mask(self.rows(scores)))

    def holds(self, array: Array, pattern: Pattern) -> bool:
        """Whether a weight has the pattern."""
        return pattern.holds(self.rows(array))


__all__ = ["Pattern", "Reduction", "unstructured_mask"]
