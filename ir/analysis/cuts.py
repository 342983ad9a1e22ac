"""Cuts: values that everything computed with weights flows through.

The nodes are swept in topological order, and the values that later nodes still read are counted: where only one is left, it is a cut.
So the streams between the blocks of residual networks and between the sub-layers of transformers are cuts. Values that are computed
without any weights, such as a mask of padding that all layers read, are not counted; regions of one entry
(:mod:`.regions`) end at such values.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..graph import Graph, Node, Value
from ..ops import Conv, ConvTranspose, Embedding, Linear, MatMul
from ..ops.recurrent import _Recurrent

LAYERS = (Conv, ConvTranspose, Linear, MatMul)


@dataclass(frozen=True, eq=False)
class Stretch:
    """The nodes between two cuts.

    Attributes:
        nodes: The nodes in topological order, without nodes that compute constants or need no weights.
        entry: The cut in front; ``None`` for the first stretch.
        exit: The cut behind; ``None`` if the graph ends without one.
    """

    nodes: tuple[Node, ...]
    entry: Value | None
    exit: Value | None

    @property
    def layers(self) -> list[Node]:
        """The nodes that multiply with constant weights."""
        return [node for node in self.nodes if is_layer(node)]


def is_layer(node: Node) -> bool:
    """Whether a node multiplies with a constant weight."""
    if not isinstance(node.op, LAYERS):
        return False
    weights: Sequence[Value | None] = node.inputs[1:2]
    if isinstance(node.op, MatMul):
        weights = node.inputs[:2]
    return any(v is not None and v.data is not None for v in weights)


def stretches(graph: Graph, accepts: Callable[[Value], bool] = lambda value: True) -> list[Stretch]:
    """Divide a graph at its cuts.

    Args:
        graph: The graph.
        accepts: Whether a value may be a cut.
    """
    found: list[Stretch] = []
    left: dict[Value, int] = {}
    flowing: set[Value] = set()
    nodes: list[Node] = []
    entry: Value | None = None
    for node in graph.nodes:
        weighted = is_layer(node) or isinstance(node.op, Embedding | _Recurrent)
        if node.is_constant or not (weighted or any(v in flowing for v in node.inputs)):
            continue
        nodes.append(node)
        for value in node.inputs:
            if value in left:
                assert value is not None
                left[value] -= 1
                if not left[value]:
                    del left[value]
        for value in node.outputs:
            flowing.add(value)
            readers = sum(not user.is_constant for user, _ in value.uses)
            if readers:
                left[value] = readers
        ends = [v for v in node.outputs if v.is_output]
        cut = next(iter(left)) if len(left) == 1 else ends[0] if ends and not left else None
        if cut is not None and cut.producer is not None and accepts(cut):
            found.append(Stretch(tuple(nodes), entry, cut))
            nodes, entry = [], cut
    if nodes:
        found.append(Stretch(tuple(nodes), entry, None))
    return found


__all__ = ["Stretch", "is_layer", "stretches"]
