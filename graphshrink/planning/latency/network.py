"""Splits a network into its ops, each as a graph that can be timed alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ...ir import (
    Activation,
    Conv,
    ConvTranspose,
    Graph,
    GraphError,
    InferenceError,
    Linear,
    MatMul,
    Node,
    Opaque,
    TensorType,
    Value,
)
from .signature import finished

_LINEAR = (Conv, ConvTranspose, Linear, MatMul)


@dataclass(frozen=True)
class Piece:
    """One op of a network, with the activation behind it if it is linear.

    Attributes:
        kind: The names of its ops.
        graph: The ops as a graph without a host.
    """

    kind: str
    graph: Graph


def pieces(graph: Graph, *, one: bool = False) -> tuple[list[Piece], list[str]]:
    """Split a network into its ops, without those that no output depends on.

    Args:
        graph: The network.
        one: Whether an open batch becomes a batch of one sample, as where plans time networks.

    Returns:
        The pieces in order; and, for each node that cannot be timed alone, a line with its name and the reason.
    """
    found: list[Piece] = []
    left: list[str] = []
    taken: set[Node] = set()
    needed = {v for v in finished(graph) if v.data is None}
    for node in graph.nodes:
        if node in taken or needed.isdisjoint(node.outputs):
            continue
        if isinstance(node.op, Opaque):
            left.append(f"{node.name}: {node.op.kind} is not an op of the IR")
            continue
        group = [node]
        behind = _activation_behind(node)
        if behind is not None:
            group.append(behind)
            taken.add(behind)
        types = {v: v.type.one_sample() if one else v.type for v in _read(group)}
        unknown = [t for v, t in types.items() if v.data is None and not t.is_static]
        if unknown:
            left.append(f"{node.name}: its input is {unknown[0]} (--fix-shape gives sizes)")
            continue
        kind = " + ".join(_kind(n) for n in group)
        try:
            found.append(Piece(kind, extract(group, node.name, one=one)))
        except (GraphError, InferenceError) as error:
            if not one:
                raise
            # The op is bound to another batch than one, such as a reshape into stated sizes.
            left.append(f"{node.name}: not for one sample: {error}")
    return found, left


def extract(nodes: Sequence[Node], name: str = "piece", *, one: bool = False) -> Graph:
    """Copy nodes of a graph into a new graph without a host; its outputs are the results that other nodes read.

    Args:
        nodes: The nodes, in order.
        name: The name of the new graph.
        one: Whether an open batch becomes a batch of one sample.
    """
    made = Graph(name)
    type_of = TensorType.one_sample if one else lambda type_: type_
    values: dict[Value, Value] = {}
    for value in _read(nodes):
        if value.data is None:
            values[value] = made.add_input(value.name, type_of(value.type))
        else:
            values[value] = made.add_constant(value.data, value.name)
    for node in nodes:
        copied = made.append(
            node.op,
            [None if v is None else values[v] for v in node.inputs],
            name=node.name,
            types=[type_of(v.type) for v in node.outputs],
        )
        values.update(zip(node.outputs, copied.outputs, strict=True))
    inside = set(nodes)
    for node in nodes:
        for value in node.outputs:
            if value.is_output or any(user not in inside for user in value.users):
                made.add_output(values[value])
    return made


def _read(nodes: Sequence[Node]) -> list[Value]:
    """The values that nodes read but do not compute, each once."""
    own = {v for node in nodes for v in node.outputs}
    read = (v for node in nodes for v in node.inputs if v is not None and v not in own)
    return list(dict.fromkeys(read))


def _activation_behind(node: Node) -> Node | None:
    """The activation behind a linear op, if it is the only reader of the result."""
    if not isinstance(node.op, _LINEAR) or not node.output.has_one_use:
        return None
    (user,) = node.output.users
    return user if isinstance(user.op, Activation) else None


def _kind(node: Node) -> str:
    return node.op.kind if isinstance(node.op, Activation) else node.op.name
