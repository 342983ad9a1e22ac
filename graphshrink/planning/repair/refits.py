"""Corrections of a layer in closed form, from sums over what it reads and what it should compute.

All matrices have a leading axis of groups, as grouped convolutions have; a dense layer has one group. Columns end with a 1, so
the last column of a weight is the bias. Everything is float64.
"""

from __future__ import annotations

import numpy as np

from ...passes.merge.algebra.tensors import Array64
from ...passes.statistics.least_squares import GroupSums

CALM = 0.03
"""The ridge of a channel's own factor, relative to the variance of the channel."""


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
    factor, mean, target, own = _spread(sums, weight)
    if not spread:
        both = (weight * sums.cross).sum(2) / sums.count - mean * target
        ridge = CALM * own + 1e-9 * mean**2 + 1e-30
        factor = (both + ridge) / (own + ridge)
    made = weight * factor[:, :, None]
    made[:, :, -1] += target - factor * mean
    return made


def _spread(sums: GroupSums, weight: Array64) -> tuple[Array64, Array64, Array64, Array64]:
    """The factor that gives each output the variance of its target; the means of outputs and targets; the variance of outputs."""
    count = sums.count
    mean = (weight * sums.gram[:, None, :, -1]).sum(2) / count
    own = np.maximum(((weight @ sums.gram) * weight).sum(2) / count - mean**2, 0)
    target = sums.cross[:, :, -1] / count
    wanted = np.maximum(sums.squares / count - target**2, 0)
    # Rounding leaves a constant output with a tiny variance: it keeps its factor.
    alive = own > 1e-9 * (own + mean**2) + 1e-30
    factor = np.clip(np.where(alive, np.sqrt(wanted / np.where(alive, own, 1)), 1), 0.25, 4)
    return factor, mean, target, own


def moves(sums: GroupSums, weight: Array64) -> dict[str, tuple[Array64, Array64]]:
    """Directions in which a layer can be moved: for each output a relative change of its factor, and a constant.

    An amount of 1 moves to the correction of that name; ``gain`` doubles all outputs.
    """
    factor, mean, target, _ = _spread(sums, weight)
    none = np.zeros_like(mean)
    return {
        "bias": (none, target - mean),
        "moments": (factor - 1, target - factor * mean),
        "gain": (none + 1, none),
    }


def moved(weight: Array64, factor: Array64, constant: Array64) -> Array64:
    """A weight after relative changes of its factors and constants; both for each output."""
    made = weight * (1 + factor.reshape(weight.shape[:2]))[:, :, None]
    made[:, :, -1] += constant.reshape(weight.shape[:2])
    return made
