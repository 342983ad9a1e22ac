"""Weights of a layer by least squares, from sums over what it reads and what it should compute.

All matrices have a leading axis of groups, as grouped convolutions have; a dense layer has one group. Columns end with a 1, so
the last column of a weight is the bias. Everything is float64.

:func:`refit` has weights that stay 0 where a mask says so: row by row, only the kept columns take part in the normal equations,
which is what Boza, *Fast and effective weight update for pruned large language models* (2024), solves approximately.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..merge.algebra.tensors import Array64


@dataclass
class GroupSums:
    """Sums over columns ``u`` and targets ``t`` of each group.

    Attributes:
        gram: ``(groups, K + 1, K + 1)``: the sums of ``u u^T``.
        cross: ``(groups, O, K + 1)``: the sums of ``t u^T``.
        squares: ``(groups, O)``: the sums of the squares of the targets.
    """

    gram: Array64
    cross: Array64
    squares: Array64

    @classmethod
    def zeros(cls, groups: int, columns: int, outputs: int) -> GroupSums:
        """Empty sums, for ``columns`` columns without the constant one, and ``outputs`` targets of each group."""
        size = columns + 1
        return cls(
            np.zeros((groups, size, size)),
            np.zeros((groups, outputs, size)),
            np.zeros((groups, outputs)),
        )

    def add(self, columns: Array64, targets: Array64) -> None:
        """Add columns ``(n, groups, K)`` with their targets ``(n, groups, O)``."""
        ones = np.ones((*columns.shape[:2], 1), columns.dtype)
        u = np.concatenate([columns, ones], 2).swapaxes(0, 1)
        t = targets.swapaxes(0, 1)
        self.gram += u.swapaxes(1, 2) @ u
        self.cross += t.swapaxes(1, 2) @ u
        self.squares += np.square(t, dtype=np.float64).sum(1)

    @property
    def count(self) -> float:
        """The number of columns."""
        return float(self.gram[0, -1, -1])

    def error(self, weight: Array64) -> float:
        """The squared error of ``weight @ u``, relative to the variance of the targets; 0 if both are 0."""
        left = self.squares.sum() - 2 * (weight * self.cross).sum()
        left += ((weight @ self.gram) * weight).sum()
        spread = self.squares.sum() - (self.cross[:, :, -1] ** 2).sum() / self.count
        tiny = 1e-12 * float(self.squares.sum())
        return float(left / max(spread, tiny)) if left > tiny else 0.0


def refit(
    sums: GroupSums, weight: Array64, strength: float, kept: npt.NDArray[np.bool_] | None = None
) -> Array64:
    """The weight ``(groups, O, K + 1)`` of the smallest squared error plus a ridge towards ``weight``.

    Args:
        sums: The sums.
        weight: The present weight and bias.
        strength: The strength of the ridge, relative to the mean square of a group's columns; the bias has none.
        kept: ``(groups, O, K + 1)``: the numbers that may change; the others stay what they are. All if not given.
    """
    gram = np.asarray(sums.gram / sums.count, np.float64)
    cross = np.asarray(sums.cross / sums.count, np.float64)
    size = gram.shape[-1] - 1
    squares = np.diagonal(gram, axis1=1, axis2=2)[:, :-1]
    mean = squares.mean(1) if size else np.zeros(len(gram))
    # A group that reads only zeros keeps its weights; any positive number says so.
    ridge = np.where(mean > 0, strength * mean, 1.0)
    made: Array64 = gram.copy()
    spots = np.arange(size)
    made[:, spots, spots] += ridge[:, None]
    left = cross - weight @ gram
    if kept is None or kept.all():
        change = np.linalg.solve(made, left.swapaxes(1, 2)).swapaxes(1, 2)
        return weight + np.asarray(change, np.float64)
    result = weight.copy()
    for matrix, rows, wanted, mask in zip(made, result, left, kept, strict=True):
        _solve_rows(matrix, rows, wanted, mask)
    return result


def _solve_rows(matrix: Array64, rows: Array64, left: Array64, kept: npt.NDArray[np.bool_]) -> None:
    """Add to each row the change of its kept numbers that solves its part of the normal equations; rows with equal masks share one."""
    from scipy.linalg import solve

    patterns, which = np.unique(np.packbits(kept, axis=1), axis=0, return_inverse=True)
    for i in range(len(patterns)):
        members = np.flatnonzero(which.reshape(-1) == i)
        free = np.flatnonzero(kept[members[0]])
        if free.size:
            part, wanted = matrix[np.ix_(free, free)], left[np.ix_(members, free)]
            try:
                change = solve(part, wanted.T, assume_a="pos").T
            except np.linalg.LinAlgError:
                # Without a ridge, columns that depend on each other leave it singular.
                change = np.linalg.lstsq(part, wanted.T, rcond=None)[0].T
            rows[np.ix_(members, free)] += change
