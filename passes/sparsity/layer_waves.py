"""The order in which layers are changed one after another, and which of them can be measured in one run.

A layer whose inputs do not depend on another changed layer can be measured together with it: the query, key and value
projections of an attention block, the branches of a residual block.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar

from ...ir import Graph, Node, Value

T = TypeVar("T")


def waves(graph: Graph, layers: Mapping[T, Sequence[Node]]) -> list[list[T]]:
    """Layers in an order in which each comes after those that its inputs depend on, in groups that share a run.

    Args:
        graph: The graph.
        layers: The nodes of each layer: one, or several that read one weight. Such a layer comes where its last node
            stands; the inputs of that node may depend on the layer itself.
    """
    own: dict[Node, list[T]] = {}
    for layer, nodes in layers.items():
        for node in nodes:
            own.setdefault(node, []).append(layer)
    depth: dict[Value, int] = {}
    wave: dict[T, int] = {}
    for node in graph.nodes:
        base = max((depth.get(v, 0) for v in node.inputs if v is not None), default=0)
        for layer in own.get(node, ()):
            wave[layer] = max(wave.get(layer, 0), base)
        after = max((wave[layer] + 1 for layer in own.get(node, ())), default=base)
        depth.update(dict.fromkeys(node.outputs, after))
    found: dict[int, list[T]] = {}
    for layer in layers:
        found.setdefault(wave.get(layer, 0), []).append(layer)
    return [found[number] for number in sorted(found)]
