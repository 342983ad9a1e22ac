"""Gram matrices and moments of what layers read, column by column."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ...ir import (
    Node,
    UsageError,
    Value,
)
from ..merge.algebra.tensors import Array64
from .finite import check_finite, diagonals
from .im2col import Array, columns, columns_size
from .requests import Accumulator, R, Request

GRAM_BYTES = 1 << 29
"""The largest Gram matrix that is made: K = 8192 for one group."""


@dataclass(frozen=True)
class _OfColumns(Request[R]):
    """A statistic of the columns that a layer reads."""

    node: Node

    def values(self) -> tuple[Value, ...]:
        x = self.node.inputs[0]
        assert x is not None
        return (x,)


class _ColumnAccumulator(Accumulator[R]):
    """The running mean of columns, relative to the first column of each group."""

    def __init__(self, node: Node) -> None:
        self.node, self.count = node, 0
        self.origin = np.zeros(columns_size(node))
        self.apart = np.zeros_like(self.origin)

    def add(self, *arrays: Array) -> None:
        for part in columns(self.node, arrays[0]):
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
                shift = mean - self.apart
                self.take(part, shift, self.count * n / total)
                self.apart += shift * (n / total)
            self.count = total

    def take(self, part: Array64, shift: Array64, weight: float) -> None:
        """Add up what else is asked for.

        Args:
            part: Columns ``(groups, K, n)`` without their mean.
            shift: How far their mean is from that of all columns before.
            weight: What the square of the shift counts.
        """
        raise NotImplementedError

    @property
    def mean(self) -> Array64:
        """The mean column."""
        found: Array64 = self.origin + self.apart
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
class GramMatrix(_OfColumns[Gram]):
    """The Gram matrix of what a convolution, transposed convolution or dense layer reads.

    Attributes:
        node: The layer.
    """

    def nbytes(self) -> int:
        groups, k = columns_size(self.node)
        return 8 * groups * k * k

    def problem(self) -> str:
        """Why the matrix is not made; empty when it is."""
        size, k = self.nbytes(), columns_size(self.node)[1]
        if size <= GRAM_BYTES:
            return ""
        return (
            f"the Gram matrix of its {k} inputs would take {size / 2**30:.1f} GiB, "
            f"allowed are {GRAM_BYTES / 2**30:.1f}"
        )

    def accumulator(self) -> Accumulator[Gram]:
        if self.problem():
            raise UsageError(f"{self.node.name}: {self.problem()}")
        return _GramAccumulator(self.node)


class _GramAccumulator(_ColumnAccumulator[Gram]):
    def __init__(self, node: Node) -> None:
        super().__init__(node)
        groups, k = self.origin.shape
        self.scatter = np.zeros((groups, k, k))

    def take(self, part: Array64, shift: Array64, weight: float) -> None:
        for matrix, rows, apart in zip(self.scatter, part, shift, strict=True):
            matrix += rows @ rows.T
            if weight:
                product = np.outer(apart, apart)
                product *= weight
                matrix += product

    def result(self) -> Gram:
        found = Gram(self.scatter, self.mean, self.count)
        # The largest numbers of both matrices are on their diagonals.
        check_finite(self.node.name, *diagonals(found.scatter, found.mean, found.count))
        return found


@dataclass(frozen=True)
class InputStats:
    """Statistics of each input of a layer's columns.

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
class InputMoments(_OfColumns[InputStats]):
    """The diagonal of :class:`GramMatrix`, for layers of any size.

    Attributes:
        node: The layer.
    """

    def accumulator(self) -> Accumulator[InputStats]:
        return _InputAccumulator(self.node)


class _InputAccumulator(_ColumnAccumulator[InputStats]):
    def __init__(self, node: Node) -> None:
        super().__init__(node)
        self.scatter = np.zeros_like(self.origin)

    def take(self, part: Array64, shift: Array64, weight: float) -> None:
        self.scatter += np.einsum("gkn,gkn->gk", part, part) + weight * shift**2

    def result(self) -> InputStats:
        found = InputStats(self.scatter, self.mean, self.count)
        with np.errstate(all="ignore"):
            squares = found.squares
        check_finite(self.node.name, found.mean, squares)
        return found
