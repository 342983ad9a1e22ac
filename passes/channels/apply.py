"""Reorder the channels of a graph: all constants of a coupled group move together.

Unit ``i`` of a permuted group is unit ``permutation[i]`` of the original one. Every constant of the group is replaced by
a lazy tensor that reads the original one in the new order. The numbers are only moved, never rounded, and are not read
before the model is emitted.
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
class GroupReport:
    """The entry of a group in the report.

    Attributes:
        what: A description of the permutation.
        measures: Numbers about it, by name.
    """

    what: str
    measures: Mapping[str, float] = field(default_factory=dict)


def apply_permutations(
    graph: Graph,
    rw: Rewriter,
    permutations: Iterable[tuple[ChannelGroup, Sequence[int] | Ids]],
    reports: Mapping[ChannelGroup, GroupReport] | None = None,
) -> None:
    """Reorder channel groups of :func:`graphshrink.ir.analysis.channel_groups`, one after the other.

    The graph computes the same function, up to the order in which sums are rounded. A constant that is part of several
    groups is replaced once. Host nodes that compute constants still read the original ones.

    Args:
        graph: The graph that the groups were found in, unchanged since.
        rw: The rewriter of the graph.
        permutations: Groups, each with a permutation of ``range(group.size)``.
        reports: Report entries for groups; a group without one is reported by its name.

    Raises:
        GraphError: If an order is not a permutation, or a constant is not in the graph or has changed.
    """
    orders: dict[Value, _ConstantOrder] = {}
    # For each group, the constants that its rewrite replaces: those that no earlier group moves.
    owned: dict[ChannelGroup, list[Value]] = {}
    for group, given in permutations:
        permutation = np.asarray(given, np.int64)
        if sorted(permutation.tolist()) != list(range(group.size)):
            raise GraphError(
                f"group {group.name} has {group.size} units: {given} is not a permutation of them"
            )
        if bool((permutation == np.arange(group.size)).all()):
            continue
        own = owned.setdefault(group, [])
        moved: dict[Value, list[Placement]] = {}
        for placement in group.placements:
            moved.setdefault(placement.value, []).append(placement)
        for value, placements in moved.items():
            if value not in orders:
                orders[value] = _ConstantOrder(value)
                own.append(value)
            orders[value].permute(placements, permutation)
    if not orders:
        return
    # Check all constants before any of them is replaced.
    readers = {value: _readers(value, graph) for value in orders}
    if REORDERED not in graph.notes:
        graph.notes.append(REORDERED)
    for group, values in owned.items():
        report = (reports or {}).get(group, GroupReport(f"permute {group.name}"))
        if not values:
            # Rewrites of earlier groups replace all of its constants; the report names it nevertheless.
            nodes = dict.fromkeys(n.name for v in group.values for n, _ in readers[v])
            rw.rewrites.append(
                Rewrite(report.what, tuple(nodes), Exactness.EXACT, measures=dict(report.measures))
            )
            continue
        users = dict.fromkeys(node for value in values for node, _ in readers[value])
        with rw.rewrite(report.what, *users, exactness=Exactness.EXACT, measures=report.measures):
            for value in values:
                _replace_constant(rw, value, orders[value].tensor(), readers[value])


def _replace_constant(
    rw: Rewriter, value: Value, data: Tensor, readers: Sequence[tuple[Node, int]]
) -> None:
    constant = rw.constant(data, value.name)
    for node, index in readers:
        rw.set_input(node, index, constant)
    if value.producer is None and not value.use_count:
        rw.erase_constant(value)


def _readers(value: Value, graph: Graph) -> list[tuple[Node, int]]:
    """The (node, input index) pairs that read a constant, without nodes that compute constants from it."""
    if value.data is None or any(node.graph is not graph for node, _ in value.uses):
        raise GraphError(
            f"%{value.name} is not a constant of this graph: find its channel groups again"
        )
    found = [(node, i) for node, i in value.uses if any(v.data is None for v in node.outputs)]
    if not found or value.is_output:
        raise GraphError(f"%{value.name} is read differently now: find its channel groups again")
    return found


class _ConstantOrder:
    """The new order of a constant's elements, composed of one or several permutations."""

    def __init__(self, value: Value) -> None:
        if value.data is None:
            raise GraphError(f"%{value.name} is not a constant: find its channel groups again")
        self.value, self.data = value, value.data
        self.axes: dict[int, Ids] = {}
        self.inner: dict[int, Ids] = {}

    def permute(self, placements: Sequence[Placement], permutation: Ids) -> None:
        """Compose the order with one more permutation."""
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
        """Compose the order of an axis that has its own order in each block; axis 0 moves whole blocks separately."""
        axis = placement.axis
        size = self.data.shape[axis]
        step = step.reshape(placement.blocks, size)
        inner = self.inner.get(axis)
        if inner is None:
            inner = np.tile(np.arange(size, dtype=np.int64), (placement.blocks, 1))
        # Block j receives block ``source[j]``: compose with the order inside that block.
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


__all__ = ["GroupReport", "apply_permutations"]
