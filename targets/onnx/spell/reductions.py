"""How reductions over axes, places of extrema and running sums are written in ONNX."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .... import ir
from ....ir import ArrayTensor
from ..speller import Speller, spells

_OPERATORS = {
    "mean": "ReduceMean", "sum": "ReduceSum", "max": "ReduceMax", "min": "ReduceMin",
    "prod": "ReduceProd", "l1": "ReduceL1", "l2": "ReduceL2",
}  # fmt: skip


@spells(ir.Reduce, writes=_OPERATORS)
def reduce(s: Speller, op: ir.Reduce) -> None:
    """The operator of the reduction."""
    _reduce(s, op.kind, s.inputs[0], op.axes, op.keepdims, s.outputs[0])


def reduce_mean(s: Speller, x: str, axes: Sequence[int]) -> str:
    """The mean over axes, which stay with size 1."""
    return _reduce(s, "mean", x, axes, True, None)


def _reduce(
    s: Speller, kind: str, x: str, axes: Sequence[int], keepdims: bool, output: str | None
) -> str:
    """A reduction; its axes are an input from opset 18 on, of a sum from opset 13 on."""
    if s.opset >= (13 if kind == "sum" else 18):
        inputs = [x, s.ints(axes, "axes")]
        return s.emit(_OPERATORS[kind], inputs, output, keepdims=int(keepdims))
    return s.emit(_OPERATORS[kind], [x], output, axes=list(axes), keepdims=int(keepdims))


@spells(ir.ArgReduce, writes={"max": "ArgMax", "min": "ArgMin"})
def arg_reduce(s: Speller, op: ir.ArgReduce) -> None:
    """ArgMax or ArgMin."""
    attrs: dict[str, Any] = {"axis": op.axis, "keepdims": int(op.keepdims)}
    if op.last:
        if s.opset < 12:
            raise s.refuse("of the last place does not exist")
        attrs["select_last_index"] = 1
    s.plain(f"Arg{op.kind.capitalize()}", **attrs)


@spells(ir.CumSum, writes="CumSum")
def cumulative_sum(s: Speller, op: ir.CumSum) -> None:
    """CumSum, whose axis is an input."""
    axis = s.new_constant(ArrayTensor(np.array(op.axis, np.int64)), "axis")
    attrs = {"exclusive": int(op.exclusive), "reverse": int(op.reverse)}
    s.emit("CumSum", [s.inputs[0], axis], s.outputs[0], **attrs)
