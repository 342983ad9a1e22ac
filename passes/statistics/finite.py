"""Checks that statistics are finite, with errors that name the layer."""

from __future__ import annotations

import numpy as np

from ...ir import UsageError
from ..merge.algebra.tensors import Array64


def check_finite(what: str, *arrays: Array64) -> None:
    """Check that statistics are finite.

    Args:
        what: The layer or value, for the error.
        arrays: The statistics.

    Raises:
        UsageError: If a sum of finite numbers left the range of float64.
    """
    if not all(np.isfinite(array).all() for array in arrays):
        raise UsageError(
            f"{what}: on the calibration data the squares of its numbers leave the range of float64; "
            "scale the data, or leave the layer out"
        )


def diagonals(scatter: Array64, mean: Array64, count: int) -> tuple[Array64, Array64]:
    """The diagonals ``(groups, K)`` of a scatter matrix and of its Gram matrix.

    Args:
        scatter: ``(groups, K, K)``: the sum of ``(x - mean) (x - mean)^T``.
        mean: ``(groups, K)``.
        count: The number of summands.
    """
    diagonal = np.diagonal(scatter, axis1=1, axis2=2)
    with np.errstate(all="ignore"):
        return diagonal, diagonal + count * mean**2
