"""How far arrays are from those that are wanted, over batches."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from ...ir import Graph, UsageError
from .im2col import Array
from .requests import Calibration


def relative_error(pairs: Iterable[tuple[Array, Array]]) -> float:
    """The squared error of arrays, relative to the variance of those that are wanted; infinite if one is not finite, or their squares are not.

    Args:
        pairs: What was computed and what was wanted, for each batch.
    """
    error = total = squares = 0.0
    count = 0
    for made, wanted in pairs:
        goal = wanted.astype(np.float64)
        with np.errstate(over="ignore", invalid="ignore"):
            error += float(np.square(made.astype(np.float64) - goal).sum())
            total += float(goal.sum())
            squares += float(np.square(goal).sum())
        count += goal.size
    spread = squares - total**2 / max(count, 1)
    if not np.isfinite(error) or not np.isfinite(spread):
        return float("inf")
    return error / max(spread, 1e-12 * squares, 1e-300)


def check_outputs(arrays: Sequence[Array], what: str) -> None:
    """Check what the original computes.

    Raises:
        UsageError: If a number is not finite.
    """
    for array in arrays:
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise UsageError(
                f"{what} is not finite everywhere on the calibration data: leave out samples with NaN or infinity, or mend the original"
            )


class NetworkError:
    """The error of the outputs of changed networks on some data.

    Args:
        reference: The original network.
        data: The data.

    Raises:
        UsageError: If an output of the original is not finite.
    """

    def __init__(self, reference: Graph, data: Calibration) -> None:
        self.data = data
        self.wanted = [list(batch) for batch in data.stream(reference, list(reference.outputs))]
        for name, arrays in zip(
            reference.output_names, zip(*self.wanted, strict=True), strict=True
        ):
            check_outputs(arrays, f"output {name!r} of the original")

    def __call__(self, graph: Graph) -> float:
        """The mean over outputs of their squared errors, each relative to the variance of the original's; infinite if one is not finite."""
        found = [list(batch) for batch in self.data.stream(graph, list(graph.outputs))]
        errors = [
            relative_error(
                (made[i], goal[i]) for made, goal in zip(found, self.wanted, strict=True)
            )
            for i, value in enumerate(graph.outputs)
            if value.type.dtype is None or value.type.dtype.is_float
        ]
        return float(np.mean(errors)) if errors else 0.0
