"""How ops that pick or repeat elements along axes are written in torch."""

from __future__ import annotations

import operator

import torch
from torch import fx

from .... import ir
from ....ir import DType, Value
from ..speller import Results, Speller, spells


@spells(ir.Gather)
def gather(s: Speller, op: ir.Gather) -> fx.Node:
    """``x[:, indices]``."""
    data, indices = s.values()
    if s.node.required(1).type.dtype not in (None, DType.I32, DType.I64):
        # torch takes bytes for a mask.
        indices = s.call("to", indices, torch.int64)
    whole = (slice(None),) * s.axis(op.axis)
    return s.call(operator.getitem, data, (*whole, indices) if whole else indices)


@spells(ir.Expand)
def expand(s: Speller, op: ir.Expand) -> fx.Node:
    """``Tensor.expand``, which is given the open sizes of the second input."""
    rank = s.rank
    if rank is None:
        raise s.refuse("of unknown rank")
    new = max(len(op.shape) - rank, 0)
    wide = (1,) * (rank + new - len(op.shape)) + op.shape
    first, *second = s.values()
    like = iter([s.call("size", second[0], axis) for axis in op.like])
    # The sizes of new axes in front must be given even if they are 1.
    sizes = [
        next(like) if d is None else d if a < new or d != 1 else -1 for a, d in enumerate(wide)
    ]
    return s.call("expand", first, *sizes)


@spells(ir.GatherElements)
def gather_elements(s: Speller, op: ir.GatherElements) -> fx.Node:
    """``torch.gather``, whose indices are not below zero."""
    data, indices = s.values()
    value = s.node.required(1)
    indices = _as_int64(s, value, indices)
    if (
        value.data is None
        or value.data.size > _MOST_TESTED
        or value.data.numpy().min(initial=0) < 0
    ):
        indices = s.call(torch.remainder, indices, s.call("size", data, op.axis))
    return s.call(torch.gather, data, op.axis, indices)


@spells(ir.GatherNd, note="vectors of known length")
def gather_nd(s: Speller, op: ir.GatherNd) -> fx.Node:
    """``x[i, j, ...]`` with a tensor for each axis; along batch axes with their own places."""
    data, indices = s.values()
    value, batch = s.node.required(1), op.batch_axes
    count, rank = value.type.dim(-1), value.type.rank
    if not isinstance(count, int) or not count or (batch and rank is None):
        raise s.refuse("of no or unknown axes")
    indices = _as_int64(s, value, indices)
    parts = [s.call(torch.select, indices, -1, i) for i in range(count)]
    own = []
    for axis in range(batch):
        device = s.call(getattr, indices, "device")
        places = s.call(torch.arange, s.call("size", data, axis), device=device)
        own.append(s.call(torch.reshape, places, (-1, *[1] * ((rank or 0) - 2 - axis))))
    return s.call(operator.getitem, data, (*own, *parts))


@spells(ir.TopK)
def top_k(s: Speller, op: ir.TopK) -> Results:
    """``torch.sort``, which unlike ``torch.topk`` keeps the order of equal numbers."""
    options = {"dim": op.axis, "descending": op.largest, "stable": True}
    made = s.call(torch.sort, s.value(), **options)
    results = [s.call(operator.getitem, made, i) for i in range(2)]
    if s.node.required(0).type.dim(op.axis) == op.k:
        return results
    return [s.call(torch.narrow, result, op.axis, 0, op.k) for result in results]


@spells(ir.Range)
def range_(s: Speller, _: ir.Range) -> fx.Node:
    """``torch.arange``, or the start plus steps; the number of elements may be 0."""
    if s.dtype is None:
        raise s.refuse("of unknown numbers")
    start, limit, delta = (s.value(i) for i in range(3))
    rest = {"dtype": s.dtype_of(s.dtype), "device": s.call(getattr, start, "device")}
    known = [sizes[0] for sizes in map(s.sizes, range(3)) if sizes]
    if len(known) == 3 and isinstance(known[2], int) and known[2]:
        # torch takes no limit on the wrong side of the start.
        end = s.call(torch.sym_max if known[2] > 0 else torch.sym_min, *known[:2])
        return s.call(torch.arange, known[0], end, known[2], **rest)
    if not s.dtype.is_int:
        # onnxruntime counts in float64: rounded to float32, a quotient just above an integer would lose an element.
        wide = s.call("to", s.call(operator.sub, limit, start), torch.float64)
        spans = s.call(torch.div, wide, delta)
        count = s.call("item", s.call("clamp", s.call(torch.ceil, spans), min=0))
        places = s.call(torch.arange, s.call(int, count), **rest)
        return s.call(operator.add, s.call(operator.mul, places, delta), start)
    steps = s.call(torch.floor_divide, s.call(operator.sub, start, limit), delta)
    count = s.call("clamp", s.call(operator.neg, steps), min=0)
    places = s.call(torch.arange, count, **rest)
    return s.call(operator.add, s.call(operator.mul, places, delta), start)


def _as_int64(s: Speller, value: Value, indices: fx.Node) -> fx.Node:
    return indices if value.type.dtype is DType.I64 else s.call("to", indices, torch.int64)


_MOST_TESTED = 1 << 16
"""The numbers of larger constants are not read."""
