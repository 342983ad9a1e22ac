"""What ``merge-linear`` would make one map of, found without touching the graph.

The pass itself runs on a copy of the structure (tensors are shared, composed weights stay lazy), so that a
preview and the pass never disagree about what can be merged and what pays.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ...ir import Exactness, Graph, Node, Rewriter, Value
from .algebra.affine import Affine
from .merge_linear import MergeLinear, Walk


@dataclass(frozen=True, eq=False)
class Merged:
    """Nodes that become one map.

    Attributes:
        source: The value that the map is applied to.
        nodes: The nodes, in topological order; the last one makes the result.
        affine: The map.
        exactness: How well it stands for the nodes, all steps of its making counted.
    """

    source: Value
    nodes: Sequence[Node]
    affine: Affine
    exactness: Exactness


@dataclass(frozen=True, eq=False)
class Preview:
    """What a merge would do.

    Attributes:
        merged: The maps that it would end with, in topological order.
        reasons: For nodes that were not merged with the one in front of them: why.
    """

    merged: Sequence[Merged]
    reasons: Mapping[Node, str]


def preview(graph: Graph, options: MergeLinear) -> Preview:
    """What ``merge-linear`` with these options would merge in ``graph``, which stays as it is."""
    twin = graph.clone()
    values = dict(zip(twin.values(), graph.values(), strict=True))
    nodes = dict(zip(twin.nodes, graph.nodes, strict=True))
    place = {m: i for i, m in enumerate(graph.nodes)}
    walk = Walk(options, Rewriter(twin))
    walk.run(twin)
    parts: dict[Node, tuple[list[Node], Exactness]] = {}
    final: dict[Node, Merged] = {}
    for merge, made in walk.merges:
        inside: list[Node] = []
        exactness = merge.affine.exactness
        for node in merge.nodes:
            final.pop(node, None)
            found, was = parts.pop(node, ([nodes[node]] if node in nodes else [], Exactness.EXACT))
            inside += found
            exactness = max(exactness, was)
        parts[made] = inside, exactness
        source = values.get(merge.source)
        if source is not None:
            final[made] = Merged(source, inside, merge.affine, exactness)
    merged = [
        Merged(m.source, sorted(m.nodes, key=place.__getitem__), m.affine, m.exactness)
        for m in final.values()
    ]
    merged.sort(key=lambda m: place[m.nodes[-1]])
    reasons = {
        nodes[n]: r.reason for n, r in walk.reasons.items() if n in nodes and n.graph is twin
    }
    return Preview(merged, reasons)
