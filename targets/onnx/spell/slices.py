"""How ops that cut and join along axes are written in ONNX."""

from __future__ import annotations

import numpy as np

from .... import ir
from ....ir import ArrayTensor
from ..speller import Speller, spells


@spells(ir.Slice, writes="Slice")
def slice_(s: Speller, op: ir.Slice) -> None:
    """Slice, whose numbers are inputs from opset 10 on."""
    if s.opset >= 10:
        parts = [s.ints(v, "slice") for v in (op.starts, op.ends, op.axes, op.steps)]
        s.emit("Slice", [s.inputs[0], *parts], s.outputs[0])
        return
    if any(step != 1 for step in op.steps):
        raise s.refuse("with steps does not exist")
    attrs = {"starts": list(op.starts), "ends": list(op.ends), "axes": list(op.axes)}
    s.emit("Slice", s.inputs[:1], s.outputs[0], **attrs)


@spells(ir.DynamicSlice, writes="Slice")
def dynamic_slice(s: Speller, op: ir.DynamicSlice) -> None:
    """Slice, whose numbers are inputs, all of the type of the bounds, from opset 10 on."""
    if s.opset < 10:
        raise s.refuse("does not exist")
    dtype = s.node.required(1).type.dtype or s.node.required(2).type.dtype
    if dtype is None:
        raise s.refuse("with bounds of unknown element type does not exist")
    axes, steps = (
        s.new_constant(ArrayTensor(np.array(v, dtype.numpy)), "slice") for v in (op.axes, op.steps)
    )
    s.emit("Slice", [*s.inputs, axes, steps], s.outputs[0])


@spells(ir.Select, writes="Gather")
def select(s: Speller, op: ir.Select) -> None:
    """Gather by one number, which may be negative from opset 11 on."""
    index = op.index
    if index < 0 and s.opset < 11:
        size = s.node.required(0).type.dim(op.axis)
        if size is None:
            raise s.refuse("of a negative index does not exist")
        index += size
    where = s.new_constant(ArrayTensor(np.array(index, np.int64)), "index")
    s.emit("Gather", [s.inputs[0], where], s.outputs[0], axis=op.axis)


@spells(ir.Split, writes="Split")
def split(s: Speller, op: ir.Split) -> None:
    """Split, whose sizes are an input from opset 13 on."""
    if s.opset >= 13:
        s.many("Split", [s.inputs[0], s.ints(op.sizes, "split")], s.outputs, axis=op.axis)
    else:
        s.many("Split", [s.inputs[0]], s.outputs, axis=op.axis, split=list(op.sizes))


@spells(ir.Concat, writes="Concat")
def concat(s: Speller, op: ir.Concat) -> None:
    """Concat."""
    s.plain("Concat", axis=op.axis)
