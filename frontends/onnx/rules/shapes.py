"""ONNX operators that change shapes: reshapes, permutations, new axes, joins, pads."""

from __future__ import annotations

import numpy as np
from onnx import numpy_helper

from .... import ir
from ....ir import Value
from ....ir.ops.base import axis_of
from ...lowering import Lowered
from ...lowering.shapes import expanding, reshaping
from ...support import LeftAlone
from ..node import OnnxNode
from ..registry import reads


@reads("Reshape", makes=[ir.Reshape, ir.Flatten], note="one size may be unknown")
def _reshape(node: OnnxNode) -> Lowered | None:
    stated, zeros = node.ints("shape"), node.flag("allowzero")
    shape = node.sizes(1) if stated is None else stated
    if shape is None:
        return None
    if shape == (0, -1) and not zeros and (node.type().rank or 0) >= 2:
        return ir.Flatten(1), node.inputs[:1]
    target: list[int | None] = []
    for axis, size in enumerate(shape):
        if isinstance(size, int):
            target.append(None if size == 0 and not zeros else size)
        else:
            # A size that is computed from the same axis is copied; one computed otherwise is inferred (-1).
            target.append(None if node.is_own(axis, size) else -1)
    return (
        (reshaping(node.type(), tuple(target)), node.inputs[:1]) if target.count(-1) < 2 else None
    )


@reads("Flatten", makes=ir.Flatten)
def _flatten(node: OnnxNode) -> Lowered | None:
    axis, rank = node.attribute("axis", 1), node.type().rank
    if axis < 0:
        if rank is None:
            return None
        axis = axis_of(axis, rank)
    return ir.Flatten(axis), node.inputs


@reads("Transpose", makes=ir.Transpose)
def _transpose(node: OnnxNode) -> Lowered | None:
    perm, rank = node.ints("perm"), node.type().rank
    if perm is None:
        if rank is None:
            return None
        perm = tuple(reversed(range(rank)))
    return ir.Transpose(perm), node.inputs


@reads("Squeeze", makes=ir.Squeeze, note="constant axes")
def _squeeze(node: OnnxNode) -> Lowered | None:
    axes, rank, shape = node.ints("axes", 1), node.type().rank, node.type().static_shape
    if axes is None:
        if node.input(1) is not None:
            return None
        if shape is None:
            raise LeftAlone(
                "it drops the axes of size 1, and a size is not known: fix the sizes of the inputs"
            )
        axes = tuple(i for i, d in enumerate(shape) if d == 1)
    if rank is None:
        return None
    return ir.Squeeze(tuple(sorted(node.axes(axes, rank)))), node.inputs[:1]


@reads("Unsqueeze", makes=ir.Unsqueeze, note="constant axes")
def _unsqueeze(node: OnnxNode) -> Lowered | None:
    axes, rank = node.ints("axes", 1), node.type().rank
    if axes is None or rank is None:
        return None
    return ir.Unsqueeze(tuple(sorted(node.axes(axes, rank + len(axes))))), node.inputs[:1]


@reads("Concat", makes=ir.Concat, since=4)
def _concat(node: OnnxNode) -> Lowered | None:
    axis, rank = node.attribute("axis", 1), node.type().rank
    if axis < 0:
        if rank is None:
            return None
        axis = axis_of(axis, rank)
    return ir.Concat(axis), node.inputs


@reads(
    "Expand",
    makes=[ir.Expand, ir.Identity],
    note="sizes that are known, or those of another value's axes",
)
def _expand(node: OnnxNode) -> Lowered | None:
    sizes = node.sizes(1)
    return None if sizes is None else expanding(node.inputs[0], sizes, node.known.roots)


@reads("ConstantOfShape", makes=ir.Expand, note="floats; some sizes those of another value's axes")
def _constant_of_shape(node: OnnxNode) -> Lowered | None:
    sizes, given = node.sizes(0), node.attribute("value")
    number = np.zeros(1, np.float32) if given is None else numpy_helper.to_array(given)
    # Where all sizes are known the result is a constant.
    if sizes is None or number.dtype.kind != "f" or all(isinstance(n, int) for n in sizes):
        return None
    shape: list[int | None] = []
    like: list[int] = []
    second: Value | None = None
    for size in sizes:
        if isinstance(size, tuple):
            value, place = size
            if value.data is not None or second not in (None, value):
                return None
            second, size = value, None
            like.append(place)
        elif size is None or size < 0:
            return None
        shape.append(size)
    return ir.Expand(tuple(shape), tuple(like)), [ir.ArrayTensor(number.reshape(1)), second]


@reads("Pad", makes=ir.Pad, note="constant amounts, floats")
def _pad(node: OnnxNode) -> Lowered | None:
    pads, rank = node.ints("pads", 1), node.type().rank
    mode, dtype = node.text("mode", "constant"), node.type().dtype
    if pads is None or mode not in ("constant", "reflect", "edge", "wrap"):
        return None
    if node.input(3) is not None:
        axes = node.ints("axes", 3)
        if axes is None or rank is None:
            return None
        whole = [0] * (2 * rank)
        for i, axis in enumerate(node.axes(axes, rank)):
            whole[axis] = pads[i]
            whole[rank + axis] = pads[len(axes) + i]
        pads = tuple(whole)
    value: float | None = node.number("value", 0.0)
    if node.input(2) is not None:
        value = node.scalar(2)
    if dtype is None or not dtype.is_wide_float or value is None or np.isnan(value):
        return None
    return ir.Pad(pads, mode, value if mode == "constant" else 0.0), node.inputs[:1]
