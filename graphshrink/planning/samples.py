"""Calibration samples in two parts: candidates are fitted on one and scored on the other.

A candidate that is scored on the samples that it was fitted on looks about twice as good as it is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..data.calibration import CalibrationData, GraphCalibration, calibrated
from ..data.sources import Source, some_samples
from ..ir import Graph, UsageError
from ..ir.errors import counted
from ..passes import Calibration

PIECE = 8
"""The number of samples of a batch, where the model allows any."""

SCORED = 8
"""Of this number of batches one is for scoring."""

MOST_SCORED = 96
"""The largest number of samples that candidates are scored on; all others are for fitting."""

BATCHES = 4
"""The smallest number of batches: some are for fits, the others for scores."""

LEAST = 32
"""The smallest number of samples."""

Batch = tuple[npt.NDArray[Any], ...]


@dataclass(frozen=True)
class Samples:
    """Batches with one array for each input of the graph, in order.

    Attributes:
        fitting: The batches that candidates are fitted on.
        scoring: The batches that candidates are scored on.
        digest: A hash of all samples.
        count: The number of samples.
    """

    fitting: tuple[Batch, ...]
    scoring: tuple[Batch, ...]
    digest: str
    count: int

    def statistics(self, graph: Graph) -> Calibration:
        """The fitting part, in the form that statistics are collected from."""
        return calibrated(graph, "onnx", list(self.fitting))


def read_samples(graph: Graph, data: Any) -> Samples:
    """Read calibration data and divide them.

    Args:
        graph: A graph from ONNX.
        data: As for :func:`graphshrink.shrink`.

    Raises:
        UsageError: If they do not fit the model, or are too few.
    """
    given = data if isinstance(data, CalibrationData) else CalibrationData(data)
    bound = GraphCalibration(graph, "onnx", given, None)
    pieces: list[Batch] = []
    digest = hashlib.sha256()
    for found in bound.batches():
        batch = tuple(found)
        for array in batch:
            digest.update(f"{array.dtype}{array.shape}".encode())
            digest.update(np.ascontiguousarray(array).data)
        pieces += _cut(batch, bound.source) if bound.fixed is None else [batch]
    sizes = [bound.source.count(batch) for batch in pieces]
    count = sum(sizes)
    if count >= LEAST and len(pieces) < BATCHES:
        raise UsageError(
            f"the model's batch is fixed, and the calibration data have {len(pieces)} {'batch' if len(pieces) == 1 else 'batches'}; the planner needs at least {BATCHES}"
        )
    if count < LEAST:
        raise UsageError(
            f"the calibration data have {counted(count, 'sample')}; the planner needs at least {LEAST}, "
            "and a few hundred are better"
        )
    step = max(2, min(SCORED, len(pieces) // 2))
    scoring: list[int] = []
    for i in range(step // 2, len(pieces), step):
        if sum(sizes[j] for j in scoring) < MOST_SCORED:
            scoring.append(i)
    chosen = set(scoring)
    return Samples(
        tuple(batch for i, batch in enumerate(pieces) if i not in chosen),
        tuple(pieces[i] for i in scoring),
        digest.hexdigest(),
        count,
    )


def _cut(batch: Batch, source: Source) -> Iterator[Batch]:
    """A batch in pieces, if it can be divided."""
    shared = source.shared(batch)
    count = source.divisible(batch)
    if not count:
        yield batch
        return
    for start in range(0, count, PIECE):
        yield tuple(some_samples(batch, shared, slice(start, start + PIECE)))
