"""Least squares in closed form, on sums of products of columns and targets.

Columns ``u`` end with a 1, so that the last row and column of a Gram matrix hold sums, and the last column of a weight is the
bias. Everything is float64.

- Ridge regression shrinks towards 0, in units of the mean square of a column's entries.
- The optimal brain surgeon (Hassibi and Stork, *Second order derivatives for network pruning*, 1993) removes the block of
  inputs whose removal costs least after the remaining weights were refitted, one block after the other.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ..passes.merge.algebra.tensors import Array64

RIDGE = 1e-3
"""The strength of the ridge, relative to the mean square of a column's entries."""


@dataclass(frozen=True)
class Sums:
    """Sums over the columns ``u`` of a region's input and the targets ``t`` of its output.

    Attributes:
        gram: ``(K + 1, K + 1)``: the sum of ``u u^T``.
        cross: ``(O, K + 1)``: the sum of ``t u^T``.
        squares: ``(O,)``: the sums of the squares of the targets.
    """

    gram: Array64
    cross: Array64
    squares: Array64

    @property
    def count(self) -> float:
        """The number of columns."""
        return float(self.gram[-1, -1])

    def take(self, columns: Array64) -> Sums:
        """The sums for columns ``columns @ u``."""
        return Sums(columns @ self.gram @ columns.T, self.cross @ columns.T, self.squares)

    def error(self, weight: Array64) -> float:
        """The squared error of ``weight @ u``, relative to the variance of the targets."""
        left = self.squares.sum() - 2 * (weight * self.cross).sum()
        left += ((weight @ self.gram) * weight).sum()
        spread = self.squares.sum() - (self.cross[:, -1] ** 2).sum() / self.count
        return float(max(left, 0.0) / max(spread, 1e-30))


def ridged(gram: Array64) -> Array64:
    """The Gram matrix as a mean over columns, plus the ridge; the constant column has none."""
    made: Array64 = gram / gram[-1, -1]
    size = len(made) - 1
    strength = RIDGE * np.trace(made[:-1, :-1]) / max(size, 1) + 1e-12
    made[np.arange(size), np.arange(size)] += strength
    return made


def ridge(sums: Sums) -> Array64:
    """The weight ``(O, K + 1)`` that predicts the targets best."""
    import scipy.linalg

    made: Array64 = scipy.linalg.solve(
        ridged(sums.gram), (sums.cross / sums.count).T, assume_a="pos"
    ).T
    return made


def surgery(
    gram: Array64, weight: Array64, block: int, sizes: list[int]
) -> Iterator[tuple[int, list[int], Array64]]:
    """Remove blocks of inputs of a layer, and refit it in the same elimination.

    Args:
        gram: ``(K + 1, K + 1)``: the sum of ``u u^T`` over its columns.
        weight: ``(O, K + 1)``: its weight and bias.
        block: The number of neighbouring columns that one channel has.
        sizes: The numbers of channels to keep.

    Yields:
        For each size, largest first: the size, the channels that are kept, and the weight ``(O, size * block + 1)``.
    """
    import scipy.linalg

    channels = (gram.shape[0] - 1) // block
    inverse = scipy.linalg.inv(ridged(gram))
    weight = weight.copy()
    alive = np.arange(channels)
    for size in sorted(set(sizes), reverse=True):
        while len(alive) > size:
            worst = int(np.argmin(_costs(inverse, weight, block)))
            cut = slice(worst * block, (worst + 1) * block)
            gain = scipy.linalg.solve(inverse[cut, cut], inverse[cut], assume_a="pos")
            weight -= weight[:, cut] @ gain
            inverse -= inverse[:, cut] @ gain
            rest = np.delete(np.arange(len(inverse)), np.r_[cut])
            weight, inverse = weight[:, rest], inverse[np.ix_(rest, rest)]
            alive = np.delete(alive, worst)
        yield size, alive.tolist(), weight.copy()


def _costs(inverse: Array64, weight: Array64, block: int) -> Array64:
    """The squared error that the removal of each channel costs after the best refit."""
    if block == 1:
        found: Array64 = (weight[:, :-1] ** 2).sum(0) / np.diag(inverse)[:-1]
        return found
    n = (len(inverse) - 1) // block
    spots = np.arange(n * block).reshape(n, block)
    blocks = inverse[spots[:, :, None], spots[:, None, :]]
    rows = weight[:, :-1].reshape(len(weight), n, block).transpose(1, 2, 0)
    solved = np.linalg.solve(blocks, rows)
    costs: Array64 = (rows * solved).sum((1, 2))
    return costs
