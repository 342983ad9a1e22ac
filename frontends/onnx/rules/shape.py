"""ONNX operators that move elements, and reductions over axes, in the IR."""

from __future__ import annotations

from .... import ir
from ....ir.ops.base import axis_of
from ...lowering import Lowered, expanding, reshaping, slicing
from ..node import Rule, Site


def _reduce(kind: str) -> Rule:
    def rule(s: Site) -> Lowered | None:
        axes, x = s.ints("axes", 1), s.type()
        keep, noop = s.flag("keepdims", 1), s.flag("noop_with_empty_axes")
        rank = x.rank
        if rank is None or (axes is None and s.input(1) is not None):
            return None
        if not axes:
            if noop:
                return None
            axes = tuple(range(rank))
        axes = tuple(sorted(s.axes(axes, rank)))
        spatial = rank in ir.GlobalAveragePool.RANKS and axes == tuple(range(2, rank))
        if kind == "mean" and keep and spatial and x.dtype is not None and x.dtype.is_wide_float:
            return ir.GlobalAveragePool(), s.inputs[:1]
        return ir.Reduce(kind, axes, keep), s.inputs[:1]

    return rule


def _reshape(s: Site) -> Lowered | None:
    stated, zeros = s.ints("shape"), s.flag("allowzero")
    shape = s.sizes(1) if stated is None else stated
    if shape is None:
        return None
    if shape == (0, -1) and not zeros and (s.type().rank or 0) >= 2:
        return ir.Flatten(1), s.inputs[:1]
    target: list[int | None] = []
    for axis, size in enumerate(shape):
        if isinstance(size, int):
            target.append(None if size == 0 and not zeros else size)
        else:
            # What is the size of the same axis already is copied; another one is what is left.
            target.append(None if s.is_own(axis, size) else -1)
    return (reshaping(s.type(), tuple(target)), s.inputs[:1]) if target.count(-1) < 2 else None


def _flatten(s: Site) -> Lowered | None:
    axis, rank = s.attribute("axis", 1), s.type().rank
    if axis < 0:
        if rank is None:
            return None
        axis = axis_of(axis, rank)
    return ir.Flatten(axis), s.inputs


def _transpose(s: Site) -> Lowered | None:
    perm, rank = s.ints("perm"), s.type().rank
    if perm is None:
        if rank is None:
            return None
        perm = tuple(reversed(range(rank)))
    return ir.Transpose(perm), s.inputs


def _squeeze(s: Site) -> Lowered | None:
    axes, rank, shape = s.ints("axes", 1), s.type().rank, s.type().static_shape
    if axes is None:
        if s.input(1) is not None or shape is None:
            return None
        axes = tuple(i for i, d in enumerate(shape) if d == 1)
    if rank is None:
        return None
    return ir.Squeeze(tuple(sorted(s.axes(axes, rank)))), s.inputs[:1]


def _unsqueeze(s: Site) -> Lowered | None:
    axes, rank = s.ints("axes", 1), s.type().rank
    if axes is None or rank is None:
        return None
    return ir.Unsqueeze(tuple(sorted(s.axes(axes, rank + len(axes))))), s.inputs[:1]


def _concat(s: Site) -> Lowered | None:
    axis, rank = s.attribute("axis", 1), s.type().rank
    if axis < 0:
        if rank is None:
            return None
        axis = axis_of(axis, rank)
    return ir.Concat(axis), s.inputs


def _split(s: Site) -> Lowered | None:
    rank, count = s.type().rank, s.outputs
    if rank is None:
        return None
    axis = axis_of(s.attribute("axis", 0), rank)
    sizes, total = s.ints("split", 1), s.type().dim(axis)
    if sizes is None:
        if s.input(1) is not None or total is None:
            return None
        chunk = -(-total // count)
        if s.opset < 18 and total % count:
            return None
        sizes = (*[chunk] * (count - 1), total - chunk * (count - 1))
    if len(sizes) != count or min(sizes) < 0:
        return None
    return ir.Split(sizes, axis), s.inputs[:1]


def _slice(s: Site) -> Lowered | None:
    starts, ends, rank = s.ints("starts", 1), s.ints("ends", 2), s.type().rank
    axes, steps = s.ints("axes", 3), s.ints("steps", 4)
    if starts is None or ends is None or rank is None:
        return None
    for index, found in ((3, axes), (4, steps)):
        if s.input(index) is not None and found is None:
            return None
    axes = axes if axes is not None else tuple(range(len(starts)))
    steps = steps if steps is not None else (1,) * len(starts)
    if any(step <= 0 for step in steps):
        return None
    return slicing(s.type(), starts, ends, s.axes(axes, rank), steps), s.inputs[:1]


def _gather(s: Site) -> Lowered | None:
    index, rank, axis = s.data(1), s.type().rank, s.attribute("axis", 0)
    table = s.data(0)
    matrix = table is not None and len(table.shape) == 2 and table.dtype.is_wide_float
    if index is None and matrix and axis in (0, -2):
        return ir.Embedding(), s.inputs[::-1]
    if not rank or s.type(1).dtype is None:
        return None
    if index is not None and index.shape == () and index.dtype.is_int:
        return ir.Select(axis_of(axis, rank), int(index.numpy())), s.inputs[:1]
    return ir.Gather(axis_of(axis, rank)), s.inputs


def _expand(s: Site) -> Lowered | None:
    sizes = s.sizes(1)
    return None if sizes is None else expanding(s.inputs[0], sizes, s.known.roots)


def _arg(kind: str) -> Rule:
    def rule(s: Site) -> Lowered | None:
        axis, rank = s.attribute("axis", 0), s.type().rank
        if not rank:
            return None
        keep, last = s.flag("keepdims", 1), s.flag("select_last_index")
        return ir.ArgReduce(kind, axis_of(axis, rank), keep, last), s.inputs

    return rule


def _cumsum(s: Site) -> Lowered | None:
    axis, rank = s.ints("axis", 1), s.type().rank
    if axis is None or len(axis) != 1 or not rank:
        return None
    op = ir.CumSum(axis_of(axis[0], rank), s.flag("exclusive"), s.flag("reverse"))
    return op, s.inputs[:1]


SHAPE_RULES: dict[str, Rule] = {
    "ArgMax": _arg("max"),
    "ArgMin": _arg("min"),
    "Concat": _concat,
    "CumSum": _cumsum,
    "Expand": _expand,
    "Flatten": _flatten,
    "Gather": _gather,
    "ReduceL1": _reduce("l1"),
    "ReduceL2": _reduce("l2"),
    "ReduceMax": _reduce("max"),
    "ReduceMean": _reduce("mean"),
    "ReduceMin": _reduce("min"),
    "ReduceProd": _reduce("prod"),
    "ReduceSum": _reduce("sum"),
    "Reshape": _reshape,
    "Slice": _slice,
    "Split": _split,
    "Squeeze": _squeeze,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}
