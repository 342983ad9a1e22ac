"""The straight line that fits an activation best, from moments of its input and output.

``E[(a*x + b - y)**2]`` is smallest for ``a = cov(x, y) / var(x)`` and ``b = E[y] - a * E[x]``: ordinary least squares,
for each channel separately.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..merge.algebra.tensors import Array64


@dataclass(frozen=True)
class ActivationStats:
    """Statistics of an activation ``y = act(x)`` for each channel (float64 vectors of one size).

    Attributes:
        axis: The axis of the channels.
        mean_x: The mean of the input.
        mean_y: The mean of the output.
        var_x: The variance of the input.
        cov_xy: The covariance of input and output.
    """

    axis: int
    mean_x: Array64
    mean_y: Array64
    var_x: Array64
    cov_xy: Array64


def best_line(moments: ActivationStats) -> tuple[Array64, Array64]:
    """Slopes and offsets of the best lines; the slope is 1 for an input that never varies.

    Args:
        moments: The moments of the activation.

    Raises:
        ValueError: If a moment is not finite or a variance is negative.
    """
    found = (moments.mean_x, moments.mean_y, moments.var_x, moments.cov_xy)
    mean_x, mean_y, var_x, cov = (np.asarray(array, np.float64) for array in found)
    if not all(np.isfinite(array).all() for array in (mean_x, mean_y, var_x, cov)):
        raise ValueError("its moments are not finite")
    if (var_x < 0).any():
        raise ValueError("a variance is negative")
    slope = np.divide(cov, var_x, out=np.ones_like(cov), where=var_x > 0)
    offset = mean_y - slope * mean_x
    return slope, offset
