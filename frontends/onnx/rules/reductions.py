"""ONNX's reductions, ArgMax and ArgMin, and cumulative sums."""

from __future__ import annotations

import numpy as np

from .... import ir
from ....ir import ArrayTensor
from ....ir.ops.base import axis_of
from ...lowering import Lowered, Steps
from ...lowering.base import Builder
from ...lowering.pools import reduce
from ...lowering.reductions import log_sum_exp
from ...support import LeftAlone, Makes
from ..node import OnnxNode
from ..registry import reads


def _reduction(operator: str, kind: str) -> None:
    rows: list[Makes] = [(ir.Reduce, kind), *([ir.GlobalAveragePool] if kind == "mean" else [])]

    @reads(operator, makes=rows, note="along constant axes")
    def rule(node: OnnxNode) -> Lowered | None:
        axes = _axes(node)
        if axes is None:
            return None
        return reduce(kind, node.required(0), axes, node.flag("keepdims", 1))


def _axes(node: OnnxNode) -> tuple[int, ...] | None:
    """The axes that a node reduces; ``None`` if they are not known.

    Raises:
        LeftAlone: If it reduces none.
    """
    axes, rank = node.ints("axes", 1), node.type().rank
    noop = node.flag("noop_with_empty_axes")
    if rank is None or (axes is None and node.input(1) is not None):
        return None
    if not axes and noop:
        raise LeftAlone("it has no axes and noop_with_empty_axes: it reduces nothing")
    return node.axes(axes or range(rank), rank)


for _name, _kind in (
    ("ReduceL1", "l1"),
    ("ReduceL2", "l2"),
    ("ReduceMax", "max"),
    ("ReduceMean", "mean"),
    ("ReduceMin", "min"),
    ("ReduceProd", "prod"),
    ("ReduceSum", "sum"),
):
    _reduction(_name, _kind)


_IN_STEPS = "of floats, along constant axes"


@reads("ReduceSumSquare", makes=[ir.Mul, (ir.Reduce, "sum")], note=_IN_STEPS, several=True)
def _sum_of_squares(node: OnnxNode) -> Steps | None:
    total = _total(node)
    if total is None:
        return None
    made, x = Builder(), node.input(0)
    made.add(total, made.add(ir.Mul(), x, x))
    return made.steps()


@reads("ReduceLogSum", makes=[(ir.Reduce, "sum"), (ir.Unary, "log")], note=_IN_STEPS, several=True)
def _log_of_sum(node: OnnxNode) -> Steps | None:
    total = _total(node)
    if total is None:
        return None
    made = Builder()
    made.add(ir.Unary("log"), made.add(total, node.input(0)))
    return made.steps()


@reads(
    "ReduceLogSumExp",
    makes=[(ir.Reduce, "max"), (ir.Reduce, "sum"), (ir.Unary, "exp"), (ir.Unary, "log")],
    note=_IN_STEPS,
    several=True,
)
def _log_of_sum_of_powers(node: OnnxNode) -> Steps | None:
    total, rank = _total(node), node.type().rank
    if total is None or not rank:
        return None
    if any(node.type().dim(axis) == 0 for axis in total.axes):
        raise LeftAlone("it sums up nothing")
    return log_sum_exp(node.required(0), total.axes, total.keepdims)


@reads(
    "Hardmax",
    makes=[(ir.ArgReduce, "max"), (ir.Compare, "equal"), ir.Cast],
    note="along an axis of known size",
    several=True,
)
def _hardmax(node: OnnxNode) -> Steps | None:
    """1 at the place of the largest number, 0 elsewhere."""
    axis, shape, dtype = (
        node.attribute("axis", -1 if node.opset >= 13 else 1),
        node.type().shape,
        node.type().dtype,
    )
    if not shape or dtype is None or not dtype.is_wide_float:
        return None
    axis = axis_of(axis, len(shape))
    # Below opset 13, the axes from ``axis`` on are joined into one.
    if node.opset < 13 and any(size != 1 for size in shape[axis + 1 :]):
        raise LeftAlone("in this version of ONNX it joins axes")
    size = shape[axis]
    if not isinstance(size, int) or not size:
        raise LeftAlone("the size of its axis is not known")
    places = np.arange(size).reshape(-1, *[1] * (len(shape) - axis - 1))
    made = Builder()
    best = made.add(ir.ArgReduce("max", axis), node.input(0))
    made.add(ir.Cast(dtype.value), made.add(ir.Compare("equal"), best, ArrayTensor(places)))
    return made.steps()


def _total(node: OnnxNode) -> ir.Reduce | None:
    """The sum inside a reduction that combines a sum of floats with another op."""
    axes, dtype = _axes(node), node.type().dtype
    if axes is None or dtype is None or not dtype.is_wide_float:
        return None
    return ir.Reduce("sum", axes, node.flag("keepdims", 1))


def _place(operator: str, kind: str) -> None:
    @reads(operator, makes=(ir.ArgReduce, kind))
    def rule(node: OnnxNode) -> Lowered | None:
        axis, rank = node.attribute("axis", 0), node.type().rank
        if not rank:
            return None
        keep, last = node.flag("keepdims", 1), node.flag("select_last_index")
        return ir.ArgReduce(kind, axis_of(axis, rank), keep, last), node.inputs


_place("ArgMax", "max")
_place("ArgMin", "min")


@reads("CumSum", makes=ir.CumSum, note="along a constant axis")
def _cumsum(node: OnnxNode) -> Lowered | None:
    axis, rank = node.ints("axis", 1), node.type().rank
    if axis is None or len(axis) != 1 or not rank:
        return None
    op = ir.CumSum(axis_of(axis[0], rank), node.flag("exclusive"), node.flag("reverse"))
    return op, node.inputs[:1]
