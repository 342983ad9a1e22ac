"""The merges that ``merge-linear`` would do, found without changing the graph.

The pass itself runs on a copy of the graph (the copy shares the tensors, and composed weights stay lazy), so that a
preview and the pass always agree.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from ...ir import Exactness, Graph, Identity, Node, Rewriter, Value
from .algebra.affine import Affine
from .merge_linear import LinearMerger, MergeLinear


@dataclass(frozen=True, eq=False)
class Merged:
    """Nodes that become one map.

    Attributes:
        source: The value that the map is applied to.
        nodes: The nodes, in topological order; the last one makes the result.
        affine: The map.
        exactness: The weakest exactness class among the merges that lead to the map.
    """

    source: Value
    nodes: Sequence[Node]
    affine: Affine
    exactness: Exactness


@dataclass(frozen=True, eq=False)
class Preview:
    """The result of a preview.

    Attributes:
        merged: The merged maps that the graph would have in the end, in topological order.
        reasons: For a node that was not merged with the node before it: the reason.
    """

    merged: Sequence[Merged]
    reasons: Mapping[Node, str]


def preview(graph: Graph, options: MergeLinear, through: Collection[Node] = ()) -> Preview:
    """The merges that ``merge-linear`` with these options would do in ``graph``, which is not changed.

    Args:
        graph: The graph.
        options: The options of the merge.
        through: Activations that count as identities.
    """
    twin = graph.clone()
    values = dict(zip(twin.values(), graph.values(), strict=True))
    nodes = dict(zip(twin.nodes, graph.nodes, strict=True))
    place = {m: i for i, m in enumerate(graph.nodes)}
    rw = Rewriter(twin)
    for own, original in nodes.items():
        if original in through:
            rw.replace(own, Identity(), own.inputs[:1])
    merger = LinearMerger(options, rw)
    merger.run(twin)
    parts: dict[Node, tuple[list[Node], Exactness]] = {}
    final: dict[Node, Merged] = {}
    for merge, made in merger.merges:
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
        nodes[n]: r.reason for n, r in merger.reasons.items() if n in nodes and n.graph is twin
    }
    return Preview(merged, reasons)
