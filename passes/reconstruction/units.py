"""Units: the pieces of a network that are reconstructed one after the other.

A unit lies between two cuts (:mod:`graphshrink.ir.analysis.cuts`). So the attention of a transformer is a unit and its MLP another one, a
residual block is a unit, and each layer of a plain chain is one. Units may read values besides that are computed without
weights, such as a mask of padding.

What follows a unit without layers of its own and keeps its shape, such as the norm behind a skip or an activation, belongs to the unit (but no
mean over positions: there would be less to fit to). Where a cut is far
away, as in networks with skips over everything, each layer is a unit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ...ir import (
    Add,
    Conv,
    ConvTranspose,
    DType,
    Graph,
    GroupNorm,
    LayerNorm,
    Linear,
    MatMul,
    Node,
    Opaque,
    Value,
)
from ...ir.analysis.cuts import is_layer, stretches

MOST_LAYERS = 16
"""The largest number of layers of a unit; larger pieces are reconstructed layer by layer."""

MOST_ADDED = 1 << 16
"""The largest constant that counts as a bias of an addition."""


@dataclass(frozen=True, eq=False)
class Tuned:
    """A constant that a unit may change.

    Attributes:
        value: The constant.
        layer: The first node that reads it.
        linear: Whether it is a weight that is multiplied with channels, not a bias or a vector of a norm.
    """

    value: Value
    layer: Node
    linear: bool


@dataclass(frozen=True, eq=False)
class Unit:
    """A piece of a graph that is reconstructed.

    Attributes:
        nodes: Its nodes in topological order, without nodes that compute constants.
        inputs: The values from outside that they read, constants left out.
        exit: The value that it should compute as the original does.
        tuned: The constants that may change.
    """

    nodes: tuple[Node, ...]
    inputs: tuple[Value, ...]
    exit: Value
    tuned: tuple[Tuned, ...]

    @property
    def layers(self) -> list[Node]:
        """The nodes with a tuned weight."""
        return list(dict.fromkeys(t.layer for t in self.tuned if t.linear))

    @property
    def name(self) -> str:
        """The name of its first layer, and of its last one if there are several."""
        names = [n.name for n in self.layers]
        return names[0] if len(names) == 1 else f"{names[0]} to {names[-1]}"


@dataclass(frozen=True)
class Found:
    """The units of a graph.

    Attributes:
        units: The units, in topological order.
        refused: Layers that belong to no unit, each with the reason.
    """

    units: tuple[Unit, ...]
    refused: tuple[tuple[Node, str], ...]


def find_units(graph: Graph, originals: Mapping[str, Value]) -> Found:
    """Divide a graph into units.

    Args:
        graph: The graph as it is now.
        originals: The values of the original graph by name; a value of the graph corresponds to the one of its name and shape.
    """
    units: list[Unit] = []
    refused: list[tuple[Node, str]] = []
    for nodes, exit in _pieces(graph, originals):
        layers = [n for n in nodes if is_layer(n)]
        barrier = next((n for n in nodes if isinstance(n.op, Opaque)), None)
        whole = exit is not None and barrier is None and len(layers) <= MOST_LAYERS
        parts = [(nodes, exit)] if whole else [([n], n.output) for n in layers]
        for part, end in parts:
            own = [n for n in part if is_layer(n)]
            assert end is not None
            reason = ""
            if not is_same_place(end, originals):
                reason = f"the original has no %{end.name} of type {end.type}, which it could be compared with"
                if barrier is not None:
                    reason += (
                        f"; {barrier.name} beside it is {barrier.op_name}, which is not understood"
                    )
            unit, frozen = _unit(part, end)
            refused += frozen
            if reason:
                refused += [(n, reason) for n in own]
            elif unit.tuned and unit.layers:
                units.append(unit)
    return Found(tuple(units), tuple(refused))


def is_same_place(value: Value, originals: Mapping[str, Value]) -> bool:
    """Whether the original has a value of the same name and shape."""
    found = originals.get(value.name)
    return (
        found is not None
        and found.type.dtype == value.type.dtype
        and found.type.shape == value.type.shape
        and found.data is None
    )


def _pieces(graph: Graph, originals: Mapping[str, Value]) -> list[tuple[list[Node], Value | None]]:
    """Nodes between cuts, each with the value that leaves it (``None`` if there is no such value)."""
    pieces: list[tuple[list[Node], Value | None]] = []
    for stretch in stretches(graph, lambda value: is_same_place(value, originals)):
        nodes, cut = list(stretch.nodes), stretch.exit
        last = pieces[-1][1] if pieces else None
        bare = last is not None and last is stretch.entry and not stretch.layers
        if bare and last is not None and cut is not None and cut.type == last.type:
            pieces[-1] = ([*pieces[-1][0], *nodes], cut)
        else:
            pieces.append((nodes, cut))
    return pieces


def _unit(nodes: Sequence[Node], exit: Value) -> tuple[Unit, list[tuple[Node, str]]]:
    """A unit of some nodes, and the layers in it whose weights cannot change."""
    inside = set(nodes)
    inputs = dict.fromkeys(
        v for n in nodes for v in n.inputs
        if v is not None and v.data is None and v.producer not in inside
    )  # fmt: skip
    tuned: dict[Value, Tuned] = {}
    frozen: list[tuple[Node, str]] = []
    for node in nodes:
        for index, linear in _places(node):
            value = node.input(index)
            if value is None or value.data is None or value in tuned:
                continue
            reason = _fixed(value, inside)
            if not reason:
                tuned[value] = Tuned(value, node, linear)
            elif linear:
                frozen.append((node, reason))
    return Unit(tuple(nodes), tuple(inputs), exit, tuple(tuned.values())), frozen


def _places(node: Node) -> list[tuple[int, bool]]:
    """The inputs of a node that may be tuned, each with whether it is a weight that is multiplied with channels."""
    match node.op:
        case Conv() | ConvTranspose() | Linear():
            return [(1, True), (2, False)]
        case MatMul():
            return [(0, True), (1, True)]
        case LayerNorm() | GroupNorm():
            return [(1, False), (2, False)]
        case Add():
            vectors = [i for i in (0, 1) if _is_vector(node.input(i))]
            return [(i, False) for i in vectors]
    return []


def _is_vector(value: Value | None) -> bool:
    return value is not None and value.data is not None and 1 < value.data.size <= MOST_ADDED


def _fixed(value: Value, inside: set[Node]) -> str:
    """The reason why a constant cannot change; empty if it can."""
    assert value.data is not None
    if value.producer is not None:
        return "nodes compute its weight from other constants"
    if value.data.dtype not in (DType.F32, DType.F64):
        return f"its weight is {value.data.dtype.value}: reconstruct the float32 network, then convert it"
    if not inside.issuperset(value.users) or value.is_output:
        return "other parts of the network read its weight too"
    return ""


__all__ = ["Found", "Tuned", "Unit", "find_units", "is_same_place"]
