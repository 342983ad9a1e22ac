"""Statistics that must be finite, and errors that name the layer where they are not."""

from __future__ import annotations

import numpy as np

from ...ir import (
    UsageError,
)
from ..merge.algebra.tensors import Array64


def check_finite(what: str, *arrays: Array64) -> None:
    """Check statistics.

    Raises:
        UsageError: If sums of finite numbers have left the range of float64.
    """
    if not all(np.isfinite(array).all() for array in arrays):
        raise UsageError(
            f"{what}: on the calibration data the squares of its numbers leave the range of float64; "
            "scale the data, or leave the layer out"
        )


def diagonals(scatter: Array64, mean: Array64, count: int) -> tuple[Array64, Array64]:
    """The diagonals of a scatter matrix and of the Gram matrix."""
    diagonal = np.diagonal(scatter, axis1=1, axis2=2)
    with np.errstate(all="ignore"):
        return diagonal, diagonal + count * mean**2
