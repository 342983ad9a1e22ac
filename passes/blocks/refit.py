"""Refit the blocks of a weight to what the dense layer computed, and say how far the outputs are off.

All that is needed of the calibration data is the Gram matrix of the layer's inputs. With the covariance S of the inputs,
the rows W of one block and its columns C, ridge regression of the outputs on the inputs that are left gives::

    V = W S[:, C] (S[C, C] + ridge)^-1        what is added to the bias:  (W - V) mean

and the variance that a row leaves unexplained is ``w S w' - (w S[:, C]) (S[C, C] + ridge)^-1 (w S[:, C])'`` (for a ridge
that is not 0, up to the ridge's own share). So the gain of every row in every block is known before the rows
are chosen, and for given columns the best rows are again a transportation problem: its optimum is the smallest
output error after the refit, exactly.

The error of a layer is the root of its unexplained over its whole output variance: 0.1 means that outputs are 10 % off.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from .blocks import Array64, Blocks, Ids

RIDGE = 1e-4
"""The ridge, relative to the mean variance of the inputs."""


@dataclass(frozen=True, eq=False)
class Covariance:
    """Covariance and mean of a layer's inputs.

    For a convolution the inputs are patches, in the order of its weight: channel, then tap.

    Attributes:
        matrix: Of shape (inputs, inputs).
        mean: Of shape (inputs,).
    """

    matrix: Array64
    mean: Array64

    @classmethod
    def of(cls, x: Array64) -> Covariance:
        """The statistics of samples of shape (samples, inputs)."""
        mean = x.mean(0)
        centred = x - mean
        return cls(centred.T @ centred / len(x), mean)


def taps(columns: Ids, count: int) -> Ids:
    """The places of channels in flattened patches of ``count`` taps."""
    return (columns[:, None] * count + np.arange(count)).reshape(-1)


@dataclass(frozen=True, eq=False)
class Layer:
    """A dense layer as the refit sees it.

    Attributes:
        weight: Of shape (rows, columns, taps); one tap for a dense layer.
        inputs: The statistics of its inputs.
        ridge: See :data:`RIDGE`.
    """

    weight: Array64
    inputs: Covariance
    ridge: float = RIDGE

    def __post_init__(self) -> None:
        n = self.weight.shape[1] * self.weight.shape[2]
        if self.inputs.matrix.shape != (n, n) or self.inputs.mean.shape != (n,):
            raise ValueError(
                f"statistics of {self.inputs.mean.size} inputs for a weight of {n}: "
                f"{self.inputs.matrix.shape}"
            )
        # Derived once: they are asked for once a candidate.
        flat = self.weight.reshape(len(self.weight), n)
        object.__setattr__(self, "_flat", flat)
        with np.errstate(all="ignore"):  # See :attr:`problem`.
            object.__setattr__(self, "_cross", flat @ self.inputs.matrix)

    _flat: Array64 = None  # type: ignore[assignment]
    _cross: Array64 = None  # type: ignore[assignment]

    @property
    def problem(self) -> str:
        """What its numbers have against other blocks; empty when nothing."""
        if not np.isfinite(self._flat).all():
            return "its weight is not finite everywhere"
        with np.errstate(all="ignore"):
            if not (np.isfinite(self.saliency()).all() and np.isfinite(self.variance).all()):
                return "the variances of its outputs leave the range of float64"
        return ""

    @property
    def variance(self) -> Array64:
        """The variance of each output."""
        return np.asarray(np.einsum("ij,ij->i", self._cross, self._flat))

    def saliency(self) -> Array64:
        """Squared weights times the variance of what they read, summed over taps: (rows, columns)."""
        powers = np.diagonal(self.inputs.matrix).reshape(self.weight.shape[1:])
        return np.asarray(np.einsum("oit,it->oi", self.weight**2, powers))

    def gains(self, columns: Ids, count: int) -> Array64:
        """The variance that each row keeps after a refit in each block: (rows, blocks)."""
        gained = np.empty((len(self.weight), count))
        for block in range(count):
            places = taps(np.flatnonzero(columns == block), self.weight.shape[2])
            cross = self._cross[:, places]
            gained[:, block] = np.einsum("ij,ij->i", self._solved(cross, places), cross)
        return gained

    def _solved(self, cross: Array64, places: Ids) -> Array64:
        """``cross (S[C, C] + ridge)^-1``."""
        covariance = self.inputs.matrix
        # Relative to the mean variance: whatever the unit of the inputs is, nothing leaves the range of float64.
        size = float(np.diagonal(covariance).mean()) or 1.0
        inner = covariance[np.ix_(places, places)] / size + self.ridge * np.eye(places.size)
        return np.asarray(np.linalg.solve(inner, cross.T / size).T)

    def refitted(self, blocks: Blocks) -> tuple[Array64, Array64]:
        """The weight in blocks, zero elsewhere, and what is added to the bias."""
        found = np.zeros_like(self._flat)
        for rows, columns in blocks:
            places = taps(columns, self.weight.shape[2])
            found[np.ix_(rows, places)] = self._solved(self._cross[np.ix_(rows, places)], places)
        return found.reshape(self.weight.shape), (self._flat - found) @ self.inputs.mean

    def masked(self, blocks: Blocks) -> tuple[Array64, Array64]:
        """The weight with zeros outside the blocks, and what is added to the bias: nothing."""
        return np.where(blocks.mask()[:, :, None], self.weight, 0.0), np.zeros(len(self.weight))

    def error(self, weight: Array64, shift: Array64) -> float:
        """How far the outputs of another weight and bias are off; see the module.

        Infinite where outputs that never vary become others.
        """
        rest = self._flat - weight.reshape(self._flat.shape)
        mean = rest @ self.inputs.mean
        bias = mean - shift
        # Means that cancel but for rounding.
        bias[np.abs(bias) <= 1e-12 * (np.abs(rest) @ np.abs(self.inputs.mean) + np.abs(shift))] = (
            0.0
        )
        off = float((np.einsum("ij,ij->i", rest @ self.inputs.matrix, rest) + bias**2).sum())
        if off <= 0:
            return 0.0
        size = float(self.variance.sum())
        return math.sqrt(off / size) if size > 0 else math.inf


__all__ = ["RIDGE", "Covariance", "Layer", "taps"]
