"""N:M sparsity of arrays: at most n of every m consecutive numbers along a reduction axis are nonzero.

A product sums over its reduction axis: axis 1 of a convolution's weight, for each kernel tap separately; axis 0 of a
transposed convolution's weight, for each group separately. :class:`Reduction` reshapes such a weight to a matrix
``(rows, length)`` with one sum in each row, so that the m numbers of a pattern group are adjacent. Flattening a kernel to
``(out, in * taps)`` instead would mix taps, which sparse hardware does not support for kernels larger than 1x1.

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
"""For m up to this number, scores are ranked by comparing all pairs; for larger m, by sorting."""


@dataclass(frozen=True)
class Pattern:
    """The N:M pattern: at most ``n`` of every ``m`` consecutive numbers are nonzero.

    Attributes:
        n: The number of kept numbers in each group.
        m: The size of a group.
    """

    n: int = 2
    m: int = 4

    def __post_init__(self) -> None:
        if not 1 <= self.n < self.m:
            raise ValueError(f"{self.n}:{self.m} is not a pattern: it must have 1 <= n < m")

    @classmethod
    def of(cls, text: str) -> Pattern:
        """Parse a pattern like ``"2:4"``.

        Raises:
            ValueError: If the text is not a pattern.
        """
        found = re.fullmatch(r"\s*([0-9]{1,6})\s*:\s*([0-9]{1,6})\s*", text)
        if found is None:
            raise ValueError(f"{text!r} is not a pattern like 2:4")
        return cls(int(found[1]), int(found[2]))

    def __str__(self) -> str:
        return f"{self.n}:{self.m}"

    @property
    def density(self) -> float:
        """The fraction of numbers that is kept, ``n / m``."""
        return self.n / self.m

    # The last axis of the arrays below is the reduction axis.

    def groups(self, array: Array) -> Array:
        """The array reshaped from ``(..., length)`` to ``(..., length // m, m)``.

        Raises:
            ValueError: If the length is not a multiple of m.
        """
        length = array.shape[-1] if array.ndim else 0
        if array.ndim == 0 or length % self.m:
            raise ValueError(
                f"{self} along an axis of size {length}, which is not a multiple of {self.m}"
            )
        return array.reshape(*array.shape[:-1], length // self.m, self.m)

    def mask(self, scores: Array) -> Mask:
        """The mask that keeps exactly the n largest of every m scores along the last axis.

        Among equal scores the first are kept. NaN counts as the largest score, so that a NaN weight is not hidden by zeros.

        Args:
            scores: An array of any shape whose last axis is a multiple of m.
        """
        found = self.groups(scores)
        if found.dtype.kind not in "fiub":
            found = found.astype(np.float32)  # NumPy compares and sorts only its own types.
        if found.dtype.kind == "f" and bool(np.isnan(found).any()):
            found = np.where(np.isnan(found), np.inf, found)
        if self.m > _PAIRWISE:
            # Sort the reversed array stably and reverse the result: among equal scores the first comes first.
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
        """Whether at most n of every m along the last axis are nonzero; false if it is not a multiple of m."""
        if array.ndim == 0 or array.shape[-1] % self.m:
            return False
        return bool((np.count_nonzero(self.groups(array), axis=-1) <= self.n).all())

    def kept_score(self, scores: Array) -> float:
        """The sum of the scores that :meth:`mask` keeps."""
        found = self.groups(np.asarray(scores, np.float64))
        top = np.partition(found, self.m - self.n, axis=-1)[..., self.m - self.n :]
        return float(top.sum())


def unstructured_mask(scores: Array, density: float) -> Mask:
    """The mask that keeps the largest scores of a whole array, the first among equal ones.

    Args:
        scores: An array of any shape.
        density: The fraction to keep, from 0 to 1; the count is rounded, halves up.

    Raises:
        ValueError: If the density is out of range.
    """
    if not 0 <= density <= 1:
        raise ValueError(f"the density must be between 0 and 1, not {density:g}")
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
    """The axis of a weight that its product sums over.

    Attributes:
        shape: The weight's shape.
        axis: The axis that is summed over.
        blocks: The number of equal parts of the axis that are summed separately: the groups of a transposed
            convolution, else 1. (The groups of a convolution lie along its axis 0 and need no blocks.)
    """

    shape: tuple[int, ...]
    axis: int
    blocks: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.axis < len(self.shape) or self.shape[self.axis] % self.blocks:
            raise ValueError(
                f"axis {self.axis} of the shape {self.shape} does not divide into {self.blocks} blocks"
            )

    @property
    def length(self) -> int:
        """The number of summands in one sum."""
        return self.shape[self.axis] // self.blocks

    @property
    def count(self) -> int:
        """The number of sums: the rows of :meth:`rows`."""
        return self.blocks * math.prod(d for a, d in enumerate(self.shape) if a != self.axis)

    @property
    def _split(self) -> tuple[int, ...]:
        before, after = self.shape[: self.axis], self.shape[self.axis + 1 :]
        return (*before, self.blocks, self.length, *after)

    def rows(self, array: Array) -> Array:
        """The weight reshaped to ``(count, length)``, as a view where possible.

        Rows are in the order of the weight's other axes, with the blocks in the place of the reduction axis.

        Raises:
            ValueError: If the array has another shape.
        """
        if tuple(array.shape) != self.shape:
            raise ValueError(f"expected an array of shape {self.shape}, found {array.shape}")
        moved = np.moveaxis(array.reshape(self._split), self.axis + 1, -1)
        return moved.reshape(self.count, self.length)

    def restore(self, rows: Array) -> Array:
        """The inverse of :meth:`rows`."""
        split = self._split
        moved = rows.reshape(*split[: self.axis + 1], *split[self.axis + 2 :], self.length)
        return np.moveaxis(moved, -1, self.axis + 1).reshape(self.shape)

    def mask(self, scores: Array, pattern: Pattern) -> Mask:
        """:meth:`Pattern.mask` along the reduction axis, for scores in the weight's shape."""
        return self.restore(pattern.mask(self.rows(scores)))

    def holds(self, array: Array, pattern: Pattern) -> bool:
        """Whether a weight has the pattern along the reduction axis."""
        return pattern.holds(self.rows(array))


__all__ = ["Pattern", "Reduction", "unstructured_mask"]
