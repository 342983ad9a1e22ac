"""ONNX operators that cut and pick: slices, pieces, rows of tables."""

from __future__ import annotations

from .... import ir
from ....ir.ops.base import axis_of
from ...lowering import Lowered
from ...lowering.indexing import gather
from ...lowering.shapes import slicing
from ..node import OnnxNode
from ..registry import reads


@reads("Split", makes=ir.Split, note="into constant sizes")
def _split(node: OnnxNode) -> Lowered | None:
    rank, count = node.type().rank, node.outputs
    if rank is None:
        return None
    axis = axis_of(node.attribute("axis", 0), rank)
    sizes, total = node.ints("split", 1), node.type().dim(axis)
    if sizes is None:
        if node.input(1) is not None or total is None:
            return None
        chunk = -(-total // count)
        if node.opset < 18 and total % count:
            return None
        sizes = (*[chunk] * (count - 1), total - chunk * (count - 1))
    if len(sizes) != count or min(sizes) < 0:
        return None
    return ir.Split(sizes, axis), node.inputs[:1]


@reads("Slice", makes=[ir.Slice, ir.Identity], note="constant bounds, steps above zero")
def _slice(node: OnnxNode) -> Lowered | None:
    starts, ends, rank = node.ints("starts", 1), node.ints("ends", 2), node.type().rank
    axes, steps = node.ints("axes", 3), node.ints("steps", 4)
    if starts is None or ends is None or rank is None:
        return None
    for index, found in ((3, axes), (4, steps)):
        if node.input(index) is not None and found is None:
            return None
    axes = axes if axes is not None else tuple(range(len(starts)))
    steps = steps if steps is not None else (1,) * len(starts)
    if any(step <= 0 for step in steps):
        return None
    return slicing(node.type(), starts, ends, node.axes(axes, rank), steps), node.inputs[:1]


@reads("Gather", makes=[ir.Gather, ir.Select, ir.Embedding])
def _gather(node: OnnxNode) -> Lowered | None:
    return gather(node.required(0), node.required(1), node.attribute("axis", 0))
