"""Least squares in closed form, on sums of products of columns and targets.

Columns ``u`` end with a 1, so that the last row and column of a Gram matrix hold sums, and the last column of a weight is the
bias. Everything is float64.

- Ridge regression shrinks towards 0, in units of the mean square of a column's entries.
- The optimal brain surgeon (Hassibi and Stork, *Second order derivatives for network pruning*, 1993) removes the block of
  inputs whose removal costs least after the remaining weights were refitted, one block after the other. A block is a channel or a head;
  several layers that read it lose it together.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..passes.merge.algebra.tensors import Array64

RIDGE = 1e-3
"""The strength of the ridge, relative to the mean square of a column's entries."""


Columns = npt.NDArray[np.int64]


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


@dataclass(frozen=True)
class Reader:
    """A layer that sums over channels of which some are to go.

    Attributes:
        gram: ``(K + 1, K + 1)``: the sum of ``u u^T`` over its columns.
        weight: ``(O, K + 1)``: its weight and bias.
        columns: ``(channels, width)``: the columns of each channel. Other columns stay.
    """

    gram: Array64
    weight: Array64
    columns: Columns


@dataclass(frozen=True)
class Refit:
    """A layer that was refitted to fewer channels.

    Attributes:
        weight: ``(O, k + 1)``: its weight and bias.
        columns: ``(k + 1,)``: the columns that are left, the constant one among them.
    """

    weight: Array64
    columns: Columns


def surgery(
    readers: Sequence[Reader], sizes: Sequence[int]
) -> Iterator[tuple[int, list[int], list[Refit]]]:
    """Remove channels from all layers that read them, and refit these in the same elimination.

    The error of each layer counts relative to the variance of its result.

    Args:
        readers: The layers; all of them read the same channels.
        sizes: The numbers of channels to keep.

    Yields:
        For each size, largest first: the size, the channels that are kept, and the layers with what they have left.
    """
    states = [_Elimination(reader) for reader in readers]
    alive = np.arange(len(readers[0].columns))
    for size in sorted(set(sizes), reverse=True):
        while len(alive) > size:
            costs = np.sum([state.costs() for state in states], axis=0)
            worst = int(np.argmin(costs))
            for state in states:
                state.remove(worst)
            alive = np.delete(alive, worst)
        yield size, alive.tolist(), [state.refit() for state in states]


class _Elimination:
    """One layer while channels go: its weight, and the inverse of the Gram matrix of the columns that are left.

    Rows and columns of what has gone are zero until they are many.
    """

    def __init__(self, reader: Reader) -> None:
        import scipy.linalg

        gram = ridged(reader.gram)
        self.inverse: Array64 = scipy.linalg.inv(gram)
        self.weight = reader.weight.copy()
        self.places = reader.columns.copy()
        self.left: Columns = np.arange(len(gram), dtype=np.int64)
        self.gone = np.zeros(len(gram), bool)
        inner = reader.weight[:, :-1]
        mean = reader.gram[-1, :-1] / reader.gram[-1, -1]
        second = ((inner @ gram[:-1, :-1]) * inner).sum()
        self.scale = max(second - float(((inner @ mean) ** 2).sum()), 1e-30)

    def costs(self) -> Array64:
        """The squared error that the removal of each channel costs after the best refit, relative to the variance of the result."""
        rows = self.weight[:, self.places].transpose(1, 2, 0)
        if self.places.shape[1] == 1:
            found: Array64 = (rows[:, 0] ** 2).sum(1) / np.diag(self.inverse)[self.places[:, 0]]
            found /= self.scale
            return found
        blocks = self.inverse[self.places[:, :, None], self.places[:, None, :]]
        made: Array64 = (rows * np.linalg.solve(blocks, rows)).sum((1, 2)) / self.scale
        return made

    def remove(self, channel: int) -> None:
        """Remove a channel, by its place among those that are left."""
        import scipy.linalg

        cut = self.places[channel]
        gain = scipy.linalg.solve(self.inverse[np.ix_(cut, cut)], self.inverse[cut], assume_a="pos")
        self.weight -= self.weight[:, cut] @ gain
        self.inverse -= self.inverse[:, cut] @ gain
        self.gone[cut] = True
        self.places = np.delete(self.places, channel, 0)
        if self.gone.sum() * 8 > len(self.gone):
            self._compact()

    def refit(self) -> Refit:
        """The layer as it is now."""
        self._compact()
        return Refit(self.weight.copy(), self.left.copy())

    def _compact(self) -> None:
        rest = np.flatnonzero(~self.gone)
        number = np.cumsum(~self.gone) - 1
        self.weight, self.inverse = self.weight[:, rest], self.inverse[np.ix_(rest, rest)]
        self.left, self.places = self.left[rest], number[self.places]
        self.gone = np.zeros(len(rest), bool)
