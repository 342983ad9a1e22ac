"""Random permutations of every channel group of a graph."""

from __future__ import annotations

import numpy as np

from graphshrink.ir import Conv, ConvTranspose, Graph, Linear, Rewriter
from graphshrink.ir.analysis import ChannelGroups, channel_groups
from graphshrink.passes.channels.apply import apply_permutations


def derangement(size: int, rng: np.random.Generator) -> np.ndarray:
    """A random permutation without fixed points."""
    order = rng.permutation(size)
    result = np.empty(size, np.int64)
    result[order] = np.roll(order, 1)
    return result


def permute_all(graph: Graph, seed: int = 0) -> ChannelGroups:
    """Permute every group at random, all at once, and check the structure."""
    found = channel_groups(graph)
    rng = np.random.default_rng(seed)
    rw = Rewriter(graph)
    apply_permutations(graph, rw, [(g, derangement(g.size, rng)) for g in found])
    assert rw.changed == bool(found.groups)
    graph.verify()
    return found


def freedom(graph: Graph, found: ChannelGroups) -> float:
    """The part of all rows and columns of dense and convolution weights that some group moves."""
    moved = total = 0
    weights = dict.fromkeys(
        node.inputs[1]
        for node in graph.nodes
        if isinstance(node.op, (Conv, ConvTranspose, Linear)) and node.inputs[1] is not None
    )
    for weight in weights:
        assert weight.data is not None
        for axis in (0, 1):
            size = weight.data.shape[axis]
            if size == 1:
                continue
            places = {int(p) % size for _, q in found.along(weight, axis) for p in q.positions.flat}
            moved += len(places)
            total += size
    return moved / total
