"""Relative errors of outputs, and the error to allow: a fixed tolerance, or the model's sensitivity to rounding."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ...ir import DType, Graph

Outputs = Sequence[npt.NDArray[Any]]
"""The outputs of a model."""

PerturbedRuns = Callable[[], Sequence[Callable[[Graph], Outputs]]]
"""Returns functions that run a graph, each on inputs that are moved by one rounding unit."""

TOLERANCE: dict[DType | None, float] = {
    DType.F64: 1e-10, DType.F32: 1e-4, DType.F16: 2e-2, DType.BF16: 1e-1, None: 1e-4,
}  # fmt: skip
"""How far an exact pass may move an output, relative to its largest value, by element type."""


UNITS: dict[DType | None, float] = {
    DType.F64: 2.0**-52,
    DType.F32: 2.0**-23,
    DType.F16: 2.0**-10,
    DType.BF16: 2.0**-7,
}
"""The rounding unit of each floating-point type, relative to a number."""


def spread_of(numbers: npt.NDArray[Any]) -> float:
    """What squared errors are divided by: the variance of what should be, its mean square if that is 0, or 1 if all numbers are 0."""
    wide = numbers.astype(np.float64)
    return float(wide.var() or np.square(wide).mean() or 1.0) if wide.size else 1.0


def squared_error(made: npt.NDArray[Any], wanted: npt.NDArray[Any]) -> float:
    """The mean squared error divided by :func:`spread_of` what should be, which is 1 - R2; infinite if the shapes differ."""
    if made.shape != wanted.shape:
        return float("inf")
    if not wanted.size:
        return 0.0
    error = np.square(made.astype(np.float64) - wanted.astype(np.float64)).mean()
    return float(error) / spread_of(wanted)


def relative_error(reference: Outputs, outputs: Outputs) -> float:
    """The largest error over all outputs, each relative to the largest magnitude of its reference.

    NaN and infinity must be at the same positions, and arrays of other types than floating-point must be equal.
    Otherwise, or if the shapes differ, the error is infinite.
    """
    if len(reference) != len(outputs):
        return float("inf")
    worst = 0.0
    for want, got in zip(reference, outputs, strict=True):
        if isinstance(want, list) and isinstance(got, list):  # A sequence of tensors.
            worst = max(worst, relative_error(want, got))
        else:
            worst = max(worst, _array_error(np.asarray(want), np.asarray(got)))
    return worst


def _array_error(want: npt.NDArray[Any], got: npt.NDArray[Any]) -> float:
    if want.shape != got.shape or want.dtype != got.dtype:
        return float("inf")
    if want.dtype.kind not in "fcV" or (want.dtype.kind == "V" and not want.dtype.isnative):
        return 0.0 if bool(np.all(want == got)) else float("inf")
    if want.dtype.kind != "c":
        want, got = want.astype(np.float64), got.astype(np.float64)
    finite = np.isfinite(want)
    if not np.array_equal(want[~finite], got[~finite], equal_nan=True):
        return float("inf")
    if not finite.any():
        return 0.0
    scale = float(np.abs(want[finite]).max())
    gap = float(np.abs(want[finite] - got[finite]).max())
    if not np.isfinite(gap):
        return float("inf")
    # The quotient of subnormal numbers would be noise.
    return gap / max(scale, 1e-30) if gap else 0.0


def tolerance_of(graph: Graph) -> float:
    """How far an exact pass may move the outputs of ``graph``, relative to their largest value.

    The coarsest floating-point type of any value decides: a half-precision body with float32 outputs has the rounding
    errors of half precision.
    """
    found = {v.type.dtype for v in graph.values()}
    return max(TOLERANCE[d] for d in (*(d for d in found if d in TOLERANCE), DType.F64))


def unit_of(graph: Graph) -> float:
    """The rounding unit of the coarsest floating-point type of any value; that of float64 if there is none."""
    return max([UNITS[DType.F64], *(UNITS.get(v.type.dtype, 0.0) for v in graph.values())])


NOISE_FACTOR = 4.0
"""An exact pass may move an output this many times as far as moving the inputs by one rounding unit does."""

MOST_NOISE = 0.05
"""The largest error that sensitivity to rounding can excuse."""


def noise_limit(tolerance: float, reference: Outputs, nudged: Iterable[Outputs]) -> float:
    """The error to allow for a model that amplifies rounding errors beyond ``tolerance``.

    The outputs of a network that ends in the small tail of a sigmoid move by percents if its inputs move by one
    rounding unit. A rewrite whose error is no larger than that of such a change of the inputs is backward stable, and
    no rewrite can be expected to be better.

    Args:
        tolerance: The error that is allowed in any case.
        reference: The outputs of the unchanged model.
        nudged: The outputs of the unchanged model for inputs that were moved at random by one rounding unit.

    Returns:
        The relative error to allow, at least ``tolerance``.
    """
    noise = max((relative_error(reference, outputs) for outputs in nudged), default=0.0)
    return max(tolerance, min(NOISE_FACTOR * noise, MOST_NOISE))


def allowed_error(
    tolerance: float, error: float, reference: Outputs, nudged: Callable[[], Iterable[Outputs]]
) -> float:
    """The error to allow: ``tolerance``, or more if the model that computed ``reference`` is sensitive to rounding.

    ``nudged`` returns that model's outputs for inputs that were moved by one rounding unit. It is called only if ``error`` is above
    ``tolerance`` and below the largest excusable error; see :func:`noise_limit`.
    """
    if not tolerance < error < MOST_NOISE:
        return tolerance
    return noise_limit(tolerance, reference, nudged())
