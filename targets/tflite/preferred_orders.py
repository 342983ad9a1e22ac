"""The order of axes that the readers of each value prefer, found in one walk from the outputs to the inputs.

A preference is used only where the emitter has a choice: for inputs, for axes of size 1 and for operands whose layouts
differ. The result is correct in any order; an order that a reader does not prefer may cost a TRANSPOSE.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from ...ir import (
    ArgReduce,
    AveragePool,
    Concat,
    Conv,
    ConvTranspose,
    DepthToSpace,
    Embedding,
    Flatten,
    Gather,
    GatherElements,
    GatherNd,
    GlobalAveragePool,
    Graph,
    GroupNorm,
    Linear,
    LocalResponseNorm,
    LogSoftmax,
    MatMul,
    MaxPool,
    Node,
    Pad,
    QuantizedConv,
    Range,
    Reduce,
    Reshape,
    Resize,
    Select,
    Softmax,
    SpaceToDepth,
    Split,
    Squeeze,
    TopK,
    Transpose,
    Unsqueeze,
    Value,
)
from ...ir.ops.recurrent import _Recurrent
from .layout import channels_last, order_after_reshape, reshape_parts

Perm = tuple[int, ...]

_NEEDS_CHANNELS_LAST = (
    Conv, ConvTranspose, AveragePool, MaxPool, GlobalAveragePool, GroupNorm, LocalResponseNorm, Resize, DepthToSpace, SpaceToDepth, QuantizedConv,
)  # fmt: skip
_NO_PREFERENCE = (
    MatMul, Embedding, _Recurrent, Select, Gather, GatherElements, GatherNd, ArgReduce, TopK, Range,
)  # fmt: skip


def preferred_orders(graph: Graph, nodes: Sequence[Node]) -> dict[Value, Perm]:
    """The order that most readers of a value prefer, for values with at least one reader that prefers some order."""
    votes: dict[Value, Counter[Perm]] = {}
    settled: dict[Value, Perm] = {}

    def preferred_of(value: Value) -> Perm | None:
        if value not in settled and value in votes:
            settled[value] = votes[value].most_common(1)[0][0]
        return settled.get(value)

    for node in reversed(nodes):
        after = next((p for p in map(preferred_of, node.outputs) if p is not None), None)
        for index, value in enumerate(node.inputs):
            if value is None or value.data is not None or value.type.rank is None:
                continue
            perm = _preference(node, index, value, after)
            if perm is not None and len(perm) == value.type.rank:
                votes.setdefault(value, Counter())[perm] += 1
    for value in graph.inputs:
        preferred_of(value)
    return settled


def _preference(node: Node, index: int, value: Value, after: Perm | None) -> Perm | None:
    """The order that one reader prefers for its input ``value``; ``after`` is the one preferred for its results."""
    op, rank = node.op, value.type.rank
    assert rank is not None
    if isinstance(op, _NEEDS_CHANNELS_LAST):
        return channels_last(rank).perm if index == 0 else None
    if isinstance(op, Linear):
        return tuple(range(rank)) if index == 0 else None
    if isinstance(op, _NO_PREFERENCE):
        return None
    if isinstance(op, Softmax | LogSoftmax) and after is None:
        axis = op.axis % rank
        return (*(a for a in range(rank) if a != axis), axis)
    if after is None:
        return None
    if isinstance(op, Transpose):
        return tuple(op.perm[axis] for axis in after)
    if isinstance(op, Reshape | Flatten | Squeeze | Unsqueeze):
        return _through_reshape(node, value, after)
    if isinstance(op, Reduce) and not op.keepdims:
        reduced = {axis % rank for axis in op.axes}
        kept = [axis for axis in range(rank) if axis not in reduced]
        return _with_reduced(tuple(kept[axis] for axis in after), reduced, rank)
    out_rank = node.output.type.rank
    if out_rank == rank:
        return after
    if isinstance(op, Pad | Concat | Split) or out_rank is None or out_rank < rank:
        return None
    # Broadcasting aligns an operand of lower rank with the last axes.
    offset = out_rank - rank
    return tuple(axis - offset for axis in after if axis >= offset)


def _with_reduced(kept: Perm, reduced: set[int], rank: int) -> Perm:
    """Channels last if the axes that are kept then have the order ``kept``, else ``kept`` followed by the reduced axes."""
    last = channels_last(rank).perm
    if tuple(a for a in last if a not in reduced) == kept:
        return last
    return (*kept, *sorted(reduced))


def _through_reshape(node: Node, value: Value, after: Perm) -> Perm | None:
    shape, out_shape = value.type.shape, node.output.type.shape
    if shape is None or out_shape is None:
        return None
    back = [(outs, ins) for ins, outs in reshape_parts(shape, out_shape)]
    return order_after_reshape(after, back, shape, [channels_last(len(shape)).perm])
