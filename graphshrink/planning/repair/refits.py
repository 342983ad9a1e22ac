"""Corrections of a layer in closed form, from sums over what it reads and what it should compute.

All matrices have a leading axis of groups, as grouped convolutions have; a dense layer has one group. Columns end with a 1, so
the last column of a weight is the bias. Everything is float64.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ...passes.merge.algebra.tensors import Array64

CALM = 0.03
"""The ridge of a channel's own factor, relative to the variance of the channel."""


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


def refit(sums: GroupSums, weight: Array64, strength: float) -> Array64:
    """The weight ``(groups, O, K + 1)`` of the smallest squared error plus a ridge towards ``weight``.

    Args:
        sums: The sums.
        weight: The present weight and bias.
        strength: The strength of the ridge, relative to the mean square of a group's columns; the bias has none.
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
    change = np.linalg.solve(made, left.swapaxes(1, 2)).swapaxes(1, 2)
    return weight + np.asarray(change, np.float64)


def shift(sums: GroupSums, weight: Array64) -> Array64:
    """The weight with the biases that give each output the mean of its target."""
    made = weight.copy()
    means = (weight * sums.gram[:, None, :, -1]).sum(2)
    made[:, :, -1] += (sums.cross[:, :, -1] - means) / sums.count
    return made


def rescale(sums: GroupSums, weight: Array64, *, spread: bool) -> Array64:
    """The weight with a factor and a constant for each output.

    Args:
        sums: The sums.
        weight: The present weight and bias.
        spread: Give each output the mean and the variance of its target, as an estimate of normalisation statistics does; otherwise the
            factor has the smallest squared error, with a small ridge towards 1.
    """
    count = sums.count
    mean = (weight * sums.gram[:, None, :, -1]).sum(2) / count
    own = np.maximum(((weight @ sums.gram) * weight).sum(2) / count - mean**2, 0)
    target = sums.cross[:, :, -1] / count
    if spread:
        wanted = np.maximum(sums.squares / count - target**2, 0)
        # Rounding leaves a constant output with a tiny variance: it keeps its factor.
        alive = own > 1e-9 * (own + mean**2) + 1e-30
        factor = np.where(alive, np.sqrt(wanted / np.where(alive, own, 1)), 1)
        factor = np.clip(factor, 0.25, 4)
    else:
        both = (weight * sums.cross).sum(2) / count - mean * target
        ridge = CALM * own + 1e-9 * mean**2 + 1e-30
        factor = (both + ridge) / (own + ridge)
    made = weight * factor[:, :, None]
    made[:, :, -1] += target - factor * mean
    return made
