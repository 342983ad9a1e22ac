"""A walk through a graph: the values that are alive at a place are kept, so that only what follows has to be run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ...ir import Graph, Node, Value
from ..quality import Outputs, part_runner
from ..samples import Batch

KEPT_BYTES = 1 << 29
"""The largest size of the values that are kept at a place."""


class Walk:
    """Runs a graph on batches from a place on; the place moves forward.

    Args:
        graph: The graph, from ONNX. Nodes behind the place may change between runs.
        batches: Batches of its inputs.
    """

    def __init__(self, graph: Graph, batches: Sequence[Batch]) -> None:
        self.graph = graph
        self.alive: list[Value] = list(graph.inputs)
        self.kept = list(batches)

    def advance(self, node: Node) -> None:
        """Move in front of a node, unless too much is alive there."""
        alive = self._alive(node)
        if alive == self.alive or not self.kept:
            return
        first = next(self.values(alive, self.kept[:1]))
        size = sum(a.nbytes for a in first) / max(len(first[0]) if first[0].ndim else 1, 1)
        samples = sum(len(b[0]) if b[0].ndim else 1 for b in self.kept if b)
        if size * samples <= KEPT_BYTES:
            self.kept = [tuple(found) for found in self.values(alive)]
            self.alive = alive

    def _alive(self, node: Node) -> list[Value]:
        done: set[Value] = set(self.graph.inputs)
        for earlier in self.graph.nodes:
            if earlier is node:
                break
            done.update(v for v in earlier.outputs if v.data is None)
        read: dict[Value, None] = {}
        for later in reversed(list(self.graph.nodes)):
            read.update((v, None) for v in later.inputs if v is not None and v in done)
            if later is node:
                break
        read.update((v, None) for v in self.graph.outputs if v in done)
        return [v for v in self.graph.values() if v in read]

    def values(
        self, wanted: Sequence[Value], batches: Sequence[Batch] | None = None
    ) -> Iterator[Outputs]:
        """The arrays of some values, for each batch; they must not lie in front of the place."""
        batches = self.kept if batches is None else batches
        fresh = [v for v in dict.fromkeys(wanted) if v not in self.alive]
        run = part_runner(self.graph, self.alive, fresh) if fresh else lambda _: []
        for batch in batches:
            found: dict[Value, npt.NDArray[Any]] = dict(zip(self.alive, batch, strict=True))
            found.update(zip(fresh, run(batch), strict=True))
            yield [np.asarray(found[v]) for v in wanted]
