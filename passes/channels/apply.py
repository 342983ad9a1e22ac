"""Reorder the channels of a graph: all constants of a coupled group move together.

Unit ``i`` of a permuted group is unit ``permutation[i]`` of the original one. Every constant that holds the group is
replaced by one that reads the original in the new order; the numbers are only moved, never rounded, and
nothing is read before it is emitted.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from ...ir import (
    DerivedTensor,
    Exactness,
    Graph,
    GraphError,
    LazyTensor,
    MaskedTensor,
    MovedTensor,
    Node,
    Rewrite,
    Rewriter,
    Tensor,
    Value,
    remasked,
)
from ...ir.analysis import REORDERED, ChannelGroup, Placement

Ids = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Told:
    """What the report says of a group.

    Attributes:
        what: What was done.
        measures: What was measured of it, by name.
    """

    what: str
    measures: Mapping[str, float] = field(default_factory=dict)


def apply_permutation(
    graph: Graph, rw: Rewriter, group: ChannelGroup, permutation: Sequence[int] | Ids
) -> None:
    """Reorder one group; see :func:`apply_permutations`."""
    apply_permutations(graph, rw, [(group, permutation)])


def apply_permutations(
    graph: Graph,
    rw: Rewriter,
    permutations: Iterable[tuple[ChannelGroup, Sequence[int] | Ids]],
    said: Mapping[ChannelGroup, Told] | None = None,
) -> None:
    """Reorder groups of :func:`graphshrink.ir.analysis.channels.groups`, one after the other.

    What the graph computes stays the same, up to the order in which sums are rounded. A constant that moves in
    several groups is replaced once. Host nodes that compute constants keep reading the original ones.

    Args:
        graph: The graph that the groups were found in. Constants may have been replaced since by this
            function only, in which case the groups must be found again.
        rw: Its rewriter.
        permutations: Groups, each with an order: a permutation of ``range(group.size)``.
        said: What the report says of groups, instead of their names.

    Raises:
        GraphError: If an order is no permutation, or a constant is not in the graph or not as it was.
    """
    orders: dict[Value, _Order] = {}
    # Which constants are replaced in the name of which group: the first that moves them.
    owned: dict[ChannelGroup, list[Value]] = {}
    for group, given in permutations:
        permutation = np.asarray(given, np.int64)
        if sorted(permutation.tolist()) != list(range(group.size)):
            raise GraphError(
                f"group {group.name} has {group.size} units: {given} is no order of them"
            )
        if bool((permutation == np.arange(group.size)).all()):
            continue
        own = owned.setdefault(group, [])
        moved: dict[Value, list[Placement]] = {}
        for placement in group.placements:
            moved.setdefault(placement.value, []).append(placement)
        for value, placements in moved.items():
            if value not in orders:
                orders[value] = _Order(value)
                own.append(value)
            orders[value].permute(placements, permutation)
    if not orders:
        return
    # All is checked before anything is changed.
    readers = {value: _readers(value, graph) for value in orders}
    if REORDERED not in graph.notes:
        graph.notes.append(REORDERED)
    for group, values in owned.items():
        told = (said or {}).get(group, Told(f"permute {group.name}"))
        if not values:
            # Groups before it replace all that it moves: it is in the report nevertheless.
            nodes = dict.fromkeys(n.name for v in group.values for n, _ in readers[v])
            rw.rewrites.append(
                Rewrite(told.what, tuple(nodes), Exactness.EXACT, measures=dict(told.measures))
            )
            continue
        users = dict.fromkeys(node for value in values for node, _ in readers[value])
        with rw.rewrite(told.what, *users, exactness=Exactness.EXACT, measures=told.measures):
            for value in values:
                constant = rw.constant(orders[value].tensor(), value.name)
                for node, index in readers[value]:
                    rw.set_input(node, index, constant)
                if value.producer is None and not value.use_count:
                    rw.erase_constant(value)


def _readers(value: Value, graph: Graph) -> list[tuple[Node, int]]:
    """Who reads a constant as a weight: not the nodes that compute constants from it."""
    if value.data is None or any(node.graph is not graph for node, _ in value.uses):
        raise GraphError(
            f"%{value.name} is no constant of this graph: find its channel groups again"
        )
    found = [(node, i) for node, i in value.uses if any(v.data is None for v in node.outputs)]
    if not found or value.is_output:
        raise GraphError(f"%{value.name} is read differently now: find its channel groups again")
    return found


class _Order:
    """The order in which a constant's elements are read."""

    def __init__(self, value: Value) -> None:
        if value.data is None:
            raise GraphError(f"%{value.name} is no constant: find its channel groups again")
        self.value, self.data = value, value.data
        self.axes: dict[int, Ids] = {}
        self.inner: dict[int, Ids] = {}

    def permute(self, placements: Sequence[Placement], permutation: Ids) -> None:
        """Apply one more permutation after those that came before."""
        for placement in placements:
            size = self.data.shape[placement.axis] * placement.blocks
            if placement.offset < 0 or int(placement.positions.max()) >= size:
                raise GraphError(f"%{self.value.name} has another shape now")
            step = np.arange(size, dtype=np.int64)
            step[placement.positions] = placement.positions[permutation]
            if placement.blocks == 1:
                known = self.axes.get(placement.axis)
                self.axes[placement.axis] = step if known is None else known[step]
            else:
                self._blocks(step, placement)

    def _blocks(self, step: Ids, placement: Placement) -> None:
        """An axis that differs from block to block; whole blocks move by the placement on axis 0."""
        axis = placement.axis
        size = self.data.shape[axis]
        step = step.reshape(placement.blocks, size)
        inner = self.inner.get(axis)
        if inner is None:
            inner = np.tile(np.arange(size, dtype=np.int64), (placement.blocks, 1))
        # Block j now holds what block ``source[j]`` held, whose channels were in an order of their own.
        source = step[:, 0] // size
        self.inner[axis] = np.take_along_axis(inner[source], step % size, 1)

    def tensor(self) -> Tensor:
        """The reordered constant."""
        return self._moved(self.data)

    def _moved(self, data: Tensor) -> Tensor:
        axes, inner = dict(self.axes), dict(self.inner)

        def moved(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
            for axis, order in axes.items():
                array = array.take(order, axis)
            for axis, orders in inner.items():
                rows = np.repeat(orders, array.shape[0] // len(orders), 0)
                wide = [n if a in (0, axis) else 1 for a, n in enumerate(array.shape)]
                array = np.take_along_axis(array, rows.reshape(wide), axis)
            return array

        if isinstance(data, MaskedTensor):
            return remasked(data, self._moved(data.weight), moved)
        if isinstance(data, DerivedTensor):
            return MovedTensor(data, moved)
        return LazyTensor(data.shape, data.dtype, lambda: moved(data.numpy()), source=data)


__all__ = ["Told", "apply_permutation", "apply_permutations"]
