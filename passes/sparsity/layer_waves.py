"""Waves of layers: layers whose inputs do not depend on each other, which one calibration run can measure together.

Examples are the query, key and value projections of an attention block, and the first layers of parallel branches.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar

from ...ir import Graph, Node, Value

T = TypeVar("T")


def layer_waves(graph: Graph, layers: Mapping[T, Sequence[Node]]) -> list[list[T]]:
    """Groups of layers in topological order: each layer comes after the groups that its inputs depend on.

    Args:
        graph: The graph.
        layers: The nodes of each layer: one node, or several that read the same weight. A layer with several nodes is
            in the group of its last node, whose inputs may depend on the layer itself.
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
