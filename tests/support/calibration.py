"""Calibration data that are run by the oracle, in float64."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from graphshrink.ir import Graph, Value
from graphshrink.passes import Calibration

from .evaluate import evaluate


class Oracle(Calibration):
    """Calibration batches, each a list of the graph's inputs; counts how often they are run."""

    def __init__(self, *batches: Sequence[Any]) -> None:
        self.batches = batches
        self.runs = 0

    def stream(self, graph: Graph, values: Sequence[Value]) -> Iterator[tuple[Any, ...]]:
        self.runs += 1
        order = list(graph.values())
        twin = graph.clone()
        twins = list(twin.values())
        for value in values:
            twin.add_output(twins[order.index(value)])
        for batch in self.batches:
            yield tuple(evaluate(twin, batch)[-len(values) :])
