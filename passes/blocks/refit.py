"""Refit the blocks of a weight to the outputs of the dense layer, and compute the output error.

The refit needs only the Gram matrix of the layer's inputs. With the covariance S of the inputs, the rows W of one block
and its columns C, ridge regression of the outputs on the inputs of the block gives::

    V = W S[:, C] (S[C, C] + ridge)^-1        the bias grows by  (W - V) mean

and the unexplained variance of a row is ``w S w' - (w S[:, C]) (S[C, C] + ridge)^-1 (w S[:, C])'`` (up to the
contribution of the ridge). So the gain of every row in every block is known before the rows are chosen. For given
columns, choosing the rows is a transportation problem, whose optimum has exactly the smallest output error after the
refit.

The error of a layer is the square root of its unexplained output variance divided by its whole output variance: 0.1 is
an error of 10 %.
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
    """The covariance and the mean of a layer's inputs.

    For a convolution the inputs are patches, in the order of its weight: channel, then tap.

    Attributes:
        matrix: The covariance, of shape (inputs, inputs).
        mean: The mean, of shape (inputs,).
    """

    matrix: Array64
    mean: Array64

    @classmethod
    def of(cls, x: Array64) -> Covariance:
        """The statistics of samples of shape (samples, inputs)."""
        mean = x.mean(0)
        centred = x - mean
        return cls(centred.T @ centred / len(x), mean)


def patch_positions(columns: Ids, count: int) -> Ids:
    """The positions of channels in flattened patches of ``count`` taps."""
    return (columns[:, None] * count + np.arange(count)).reshape(-1)


@dataclass(frozen=True, eq=False)
class RefitLayer:
    """The weight of a layer and the statistics of its inputs.

    Attributes:
        weight: The weight, of shape (rows, columns, taps); one tap for a dense layer.
        inputs: The statistics of the inputs.
        ridge: The ridge; see :data:`RIDGE`.
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
        # Computed once, because every candidate uses them.
        flat = self.weight.reshape(len(self.weight), n)
        object.__setattr__(self, "_flat", flat)
        with np.errstate(all="ignore"):  # ``problem`` checks the result.
            object.__setattr__(self, "_cross", flat @ self.inputs.matrix)

    _flat: Array64 = None  # type: ignore[assignment]
    _cross: Array64 = None  # type: ignore[assignment]

    @property
    def problem(self) -> str:
        """The reason why the numbers allow no search for blocks; empty if they do."""
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
        """Squared weights times the variance of their inputs, summed over taps: (rows, columns)."""
        powers = np.diagonal(self.inputs.matrix).reshape(self.weight.shape[1:])
        return np.asarray(np.einsum("oit,it->oi", self.weight**2, powers))

    def gains(self, columns: Ids, count: int) -> Array64:
        """The output variance that each row keeps after a refit in each block: (rows, blocks).

        Args:
            columns: The label of each column.
            count: The number of blocks.
        """
        gained = np.empty((len(self.weight), count))
        for block in range(count):
            places = patch_positions(np.flatnonzero(columns == block), self.weight.shape[2])
            cross = self._cross[:, places]
            gained[:, block] = np.einsum("ij,ij->i", self._solved(cross, places), cross)
        return gained

    def _solved(self, cross: Array64, places: Ids) -> Array64:
        """``cross (S[C, C] + ridge)^-1``."""
        covariance = self.inputs.matrix
        # Relative to the mean variance, so that the numbers stay in the range of float64 for any unit of the inputs.
        size = float(np.diagonal(covariance).mean()) or 1.0
        inner = covariance[np.ix_(places, places)] / size + self.ridge * np.eye(places.size)
        return np.asarray(np.linalg.solve(inner, cross.T / size).T)

    def refitted(self, blocks: Blocks) -> tuple[Array64, Array64]:
        """The refitted weight, zero outside the blocks, and the vector that is added to the bias."""
        found = np.zeros_like(self._flat)
        for rows, columns in blocks:
            places = patch_positions(columns, self.weight.shape[2])
            found[np.ix_(rows, places)] = self._solved(self._cross[np.ix_(rows, places)], places)
        return found.reshape(self.weight.shape), (self._flat - found) @ self.inputs.mean

    def masked(self, blocks: Blocks) -> tuple[Array64, Array64]:
        """The present weight with zeros outside the blocks, and a vector of zeros to add to the bias."""
        return np.where(blocks.mask()[:, :, None], self.weight, 0.0), np.zeros(len(self.weight))

    def error(self, weight: Array64, shift: Array64) -> float:
        """The relative error of the outputs for another weight and a bias change ``shift``; see the module.

        Infinite if outputs that never vary change.
        """
        rest = self._flat - weight.reshape(self._flat.shape)
        mean = rest @ self.inputs.mean
        bias = mean - shift
        # Treat a mean as 0 if it is 0 up to rounding.
        bias[np.abs(bias) <= 1e-12 * (np.abs(rest) @ np.abs(self.inputs.mean) + np.abs(shift))] = (
            0.0
        )
        off = float((np.einsum("ij,ij->i", rest @ self.inputs.matrix, rest) + bias**2).sum())
        if off <= 0:
            return 0.0
        size = float(self.variance.sum())
        return math.sqrt(off / size) if size > 0 else math.inf


__all__ = ["RIDGE", "Covariance", "RefitLayer", "patch_positions"]
