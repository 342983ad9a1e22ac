"""Which order of axes the readers of each value would like: one walk from the outputs to the inputs.

A wish decides only where there is a choice (inputs, axes of size 1, operands that differ). Whatever is chosen, the
result is right; a wish that is not met costs a TRANSPOSE.
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
    GlobalAveragePool,
    Graph,
    GroupNorm,
    Linear,
    LogSoftmax,
    Lstm,
    MatMul,
    MaxPool,
    Node,
    Pad,
    Reduce,
    Reshape,
    Resize,
    Select,
    Softmax,
    SpaceToDepth,
    Split,
    Squeeze,
    Transpose,
    Unsqueeze,
    Value,
)
from .layout import carried, channels_last, groups

Perm = tuple[int, ...]

_CHANNELS_LAST = (
    Conv, ConvTranspose, AveragePool, MaxPool, GlobalAveragePool, GroupNorm, Resize, DepthToSpace, SpaceToDepth,
)  # fmt: skip
_SILENT = (MatMul, Embedding, Lstm, Select, Gather, ArgReduce)


def wishes(graph: Graph, nodes: Sequence[Node]) -> dict[Value, Perm]:
    """The order that most readers of a value would like, for values whose readers like any."""
    votes: dict[Value, Counter[Perm]] = {}
    settled: dict[Value, Perm] = {}

    def wish_of(value: Value) -> Perm | None:
        if value not in settled and value in votes:
            settled[value] = votes[value].most_common(1)[0][0]
        return settled.get(value)

    for node in reversed(nodes):
        wanted = next((w for w in map(wish_of, node.outputs) if w is not None), None)
        for index, value in enumerate(node.inputs):
            if value is None or value.data is not None or value.type.rank is None:
                continue
            perm = _wish(node, index, value, wanted)
            if perm is not None and len(perm) == value.type.rank:
                votes.setdefault(value, Counter())[perm] += 1
    for value in graph.inputs:
        wish_of(value)
    return settled


def _wish(node: Node, index: int, value: Value, wanted: Perm | None) -> Perm | None:
    """What one reader would like."""
    op, rank = node.op, value.type.rank
    assert rank is not None
    if isinstance(op, _CHANNELS_LAST):
        return channels_last(rank).perm if index == 0 else None
    if isinstance(op, Linear):
        return tuple(range(rank)) if index == 0 else None
    if isinstance(op, _SILENT):
        return None
    if isinstance(op, Softmax | LogSoftmax) and wanted is None:
        axis = op.axis % rank
        return (*(a for a in range(rank) if a != axis), axis)
    if wanted is None:
        return None
    if isinstance(op, Transpose):
        return tuple(op.perm[axis] for axis in wanted)
    if isinstance(op, Reshape | Flatten | Squeeze | Unsqueeze):
        return _through_reshape(node, value, wanted)
    if isinstance(op, Reduce) and not op.keepdims:
        gone = {axis % rank for axis in op.axes}
        kept = [axis for axis in range(rank) if axis not in gone]
        return _with_gone(tuple(kept[axis] for axis in wanted), gone, rank)
    out_rank = node.output.type.rank
    if out_rank == rank:
        return wanted
    if isinstance(op, Pad | Concat | Split) or out_rank is None or out_rank < rank:
        return None
    # A smaller operand of a broadcast stands at the end.
    offset = out_rank - rank
    return tuple(axis - offset for axis in wanted if axis >= offset)


def _with_gone(kept: Perm, gone: set[int], rank: int) -> Perm:
    """Channels last if that leaves the rest in this order, else the reduced axes behind."""
    last = channels_last(rank).perm
    if tuple(a for a in last if a not in gone) == kept:
        return last
    return (*kept, *sorted(gone))


def _through_reshape(node: Node, value: Value, wanted: Perm) -> Perm | None:
    before, after = value.type.shape, node.output.type.shape
    if before is None or after is None:
        return None
    back = [(outs, ins) for ins, outs in groups(before, after)]
    return carried(wanted, back, before, [channels_last(len(before)).perm])
