"""Gram matrices and moments of the inputs of linear layers (columns; see :mod:`.im2col`)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ...ir import Node, UsageError, Value
from ..merge.algebra.tensors import Array64
from .finite import check_finite, diagonals
from .im2col import Array, columns, columns_size
from .recurrent_columns import column_values
from .requests import Accumulator, R, Request

GRAM_BYTES = 1 << 29
"""The largest Gram matrix that is computed, in bytes: K = 8192 for one group."""


@dataclass(frozen=True)
class _ColumnRequest(Request[R]):
    """A statistic of the columns that a layer reads."""

    node: Node
    index: int = 1

    def values(self) -> tuple[Value, ...]:
        return column_values(self.node, self.index)


class _ColumnAccumulator(Accumulator[R]):
    """Computes the mean of columns, as a distance from the first column of each group."""

    def __init__(self, node: Node, index: int = 1) -> None:
        self.node, self.index, self.count = node, index, 0
        self.origin = np.zeros(columns_size(node, index))
        self.distance = np.zeros_like(self.origin)

    def add(self, *arrays: Array) -> None:
        for part in columns(self.node, arrays[0], index=self.index, others=arrays[1:]):
            n = part.shape[2]
            if not n:
                continue
            if not self.count:
                self.origin = part[:, :, 0].copy()
            total = self.count + n
            with np.errstate(all="ignore"):  # Results are checked by :func:`check_finite`.
                part -= self.origin[:, :, None]
                mean = part.mean(2)
                part -= mean[:, :, None]
                shift = mean - self.distance
                self.update(part, shift, self.count * n / total)
                self.distance += shift * (n / total)
            self.count = total

    def update(self, part: Array64, shift: Array64, weight: float) -> None:
        """Update the other statistics with new columns.

        Args:
            part: The columns ``(groups, K, n)`` minus their mean.
            shift: ``(groups, K)``: their mean minus the mean of all earlier columns.
            weight: The factor of the square of ``shift`` in a sum of squares.
        """
        raise NotImplementedError

    @property
    def mean(self) -> Array64:
        """The mean column."""
        found: Array64 = self.origin + self.distance
        return found


@dataclass(frozen=True)
class Gram:
    """The Gram matrix of the columns that a layer reads (see :mod:`.im2col`), and their mean.

    Attributes:
        scatter: ``(groups, K, K)``: the sum of ``(x - mean) (x - mean)^T`` over all columns ``x``.
        mean: ``(groups, K)``: the mean column.
        count: The number of columns.
    """

    scatter: Array64
    mean: Array64
    count: int

    @property
    def matrix(self) -> Array64:
        """``(groups, K, K)``: the sum of ``x x^T`` over all columns ``x``."""
        found: Array64 = self.scatter + self.count * np.einsum("gi,gj->gij", self.mean, self.mean)
        return found


@dataclass(frozen=True)
class GramMatrix(_ColumnRequest[Gram]):
    """Requests the Gram matrix of the inputs of a convolution, transposed convolution, dense or recurrent layer.

    Attributes:
        node: The layer.
        index: Which input the weight is: 2 for the recurrent matrix of a recurrent layer.
    """

    def nbytes(self) -> int:
        groups, k = columns_size(self.node, self.index)
        return 8 * groups * k * k

    def problem(self) -> str:
        """The reason why the matrix is not computed; empty if it is."""
        size, k = self.nbytes(), columns_size(self.node, self.index)[1]
        if size <= GRAM_BYTES:
            return ""
        return (
            f"the Gram matrix of its {k} inputs would take {size / 2**30:.1f} GiB, "
            f"allowed are {GRAM_BYTES / 2**30:.1f}"
        )

    def accumulator(self) -> Accumulator[Gram]:
        if self.problem():
            raise UsageError(f"{self.node.name}: {self.problem()}")
        return _GramAccumulator(self.node, self.index)


class _GramAccumulator(_ColumnAccumulator[Gram]):
    def __init__(self, node: Node, index: int = 1) -> None:
        super().__init__(node, index)
        groups, k = self.origin.shape
        self.scatter = np.zeros((groups, k, k))

    def update(self, part: Array64, shift: Array64, weight: float) -> None:
        for matrix, rows, row_shift in zip(self.scatter, part, shift, strict=True):
            matrix += rows @ rows.T
            if weight:
                product = np.outer(row_shift, row_shift)
                product *= weight
                matrix += product

    def result(self) -> Gram:
        found = Gram(self.scatter, self.mean, self.count)
        # The largest numbers of both matrices are on their diagonals.
        check_finite(self.node.name, *diagonals(found.scatter, found.mean, found.count))
        return found


@dataclass(frozen=True)
class InputStats:
    """The mean and the spread of each entry of a layer's columns.

    Attributes:
        scatter: ``(groups, K)``: the sums of squared distances from the mean.
        mean: ``(groups, K)``: the mean column.
        count: The number of columns.
    """

    scatter: Array64
    mean: Array64
    count: int

    @property
    def squares(self) -> Array64:
        """``(groups, K)``: the sums of squares, the diagonal of the Gram matrix."""
        return self.scatter + self.count * self.mean**2


@dataclass(frozen=True)
class InputMoments(_ColumnRequest[InputStats]):
    """Requests the diagonal of the Gram matrix, for layers of any size.

    Attributes:
        node: The layer.
        index: Which input the weight is: 2 for the recurrent matrix of a recurrent layer.
    """

    def accumulator(self) -> Accumulator[InputStats]:
        return _InputAccumulator(self.node, self.index)


class _InputAccumulator(_ColumnAccumulator[InputStats]):
    def __init__(self, node: Node, index: int = 1) -> None:
        super().__init__(node, index)
        self.scatter = np.zeros_like(self.origin)

    def update(self, part: Array64, shift: Array64, weight: float) -> None:
        self.scatter += np.einsum("gkn,gkn->gk", part, part) + weight * shift**2

    def result(self) -> InputStats:
        found = InputStats(self.scatter, self.mean, self.count)
        with np.errstate(all="ignore"):
            squares = found.squares
        check_finite(self.node.name, found.mean, squares)
        return found
