"""How far two results may be apart: relative errors, and what one rounding unit of the inputs does."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ...ir import (
    DType,
    Graph,
)

Outputs = Sequence[npt.NDArray[Any]]


Nudged = Callable[[], Sequence[Callable[[Graph], Outputs]]]


TOLERANCE: dict[DType | None, float] = {
    DType.F64: 1e-10, DType.F32: 1e-4, DType.F16: 2e-2, DType.BF16: 1e-1, None: 1e-4,
}  # fmt: skip
"""How far an exact pass may move an output, relative to its largest value, by element type."""


def relative_error(reference: Outputs, outputs: Outputs) -> float:
    """The largest error over all outputs, each relative to the largest magnitude of its reference.

    NaN and infinity must stand at the same places; anything else than numbers must be equal. A
    difference of that kind, or of shape, counts as infinite.
    """
    if len(reference) != len(outputs):
        return float("inf")
    worst = 0.0
    for want, got in zip(reference, outputs, strict=True):
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
    # Below the smallest normal float32 the quotient would be noise.
    return gap / max(scale, 1e-30) if gap else 0.0


def tolerance_of(graph: Graph) -> float:
    """How far an exact pass may move the outputs of ``graph``, relative to their largest value.

    The coarsest floating-point type anywhere decides: a half-precision body with float32 outputs rounds
    like half precision.
    """
    found = {v.type.dtype for v in graph.values()}
    return max(TOLERANCE[d] for d in (*(d for d in found if d in TOLERANCE), DType.F64))


NOISE_FACTOR = 4.0
"""An exact pass may move an output this many times as far as rounding the inputs otherwise does."""


MOST_NOISE = 0.05
"""Beyond this error no sensitivity to rounding excuses an exact pass."""


def noise_limit(tolerance: float, reference: Outputs, nudged: Iterable[Outputs]) -> float:
    """The error to allow where a model amplifies rounding so much that ``tolerance`` is out of reach.

    A network whose outputs are the small tail of a sigmoid moves by percents of them when its inputs move by one
    rounding unit. No rewrite can be held to more than that: an error within what such a change of the inputs causes
    is what numerical analysis calls backward stable.

    Args:
        tolerance: The error allowed in any case.
        reference: The outputs of the unchanged model.
        nudged: Its outputs for inputs that were moved by one rounding unit, at random, several times.
    """
    noise = max((relative_error(reference, outputs) for outputs in nudged), default=0.0)
    return max(tolerance, min(NOISE_FACTOR * noise, MOST_NOISE))


def allowed(
    tolerance: float, error: float, reference: Outputs, graph: Graph, nudged: Nudged
) -> float:
    """``tolerance``, or more where ``graph`` is so sensitive to rounding that ``error`` may come of that.

    ``nudged`` is only called where it decides; see :func:`noise_limit`.
    """
    if not tolerance < error < MOST_NOISE:
        return tolerance
    return noise_limit(tolerance, reference, (run(graph) for run in nudged()))
