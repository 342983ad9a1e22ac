"""ONNX operators that select parts of a tensor: Slice, Split, Gather, TopK; Tile and Range."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from .... import ir
from ....ir import ArrayTensor
from ....ir.ops.base import axis_of
from ...lowering import Lowered, Operand, Step, Steps
from ...lowering.base import Builder
from ...lowering.indexing import gather
from ...lowering.shapes import MOST_COPIES, repeated, slicing
from ...support import LeftAlone
from ..node import OnnxNode
from ..registry import reads
from ..sizes import Size


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


@reads(
    "Slice",
    makes=[ir.Slice, ir.DynamicSlice, ir.Identity, ir.Gather],
    note="backwards with constant bounds, along axes of known size",
    several=True,
)
def _slice(node: OnnxNode) -> Lowered | Steps | None:
    starts, ends, rank = _bounds(node, "starts", 1), _bounds(node, "ends", 2), node.type().rank
    axes, steps = node.ints("axes", 3), node.ints("steps", 4)
    count = node.type(1).dim(0) if starts is None else len(starts)
    if rank is None or count is None:
        return None
    for index, found in ((3, axes), (4, steps)):
        if node.input(index) is not None and found is None:
            return None
    axes = node.axes(axes if axes is not None else range(count), rank)
    steps = steps if steps is not None else (1,) * count
    if 0 in steps or not count == len(axes) == len(steps):
        return None
    known = _known_ends(node, ends, axes, steps)
    if starts is None or known is None or not all(isinstance(start, int) for start in starts):
        return _computed_slice(node, axes, steps)
    if len(known) != count:
        return None
    begin = [start for start in starts if isinstance(start, int)]
    cuts = list(zip(begin, known, axes, steps, strict=True))
    backwards = [cut for cut in cuts if cut[3] < 0]
    forwards = [cut for cut in cuts if cut[3] > 0]
    if not backwards:
        return slicing(node.type(), begin, known, axes, steps), node.inputs[:1]
    return _backwards(node, forwards, backwards)


def _bounds(node: OnnxNode, name: str, index: int) -> tuple[Size, ...] | None:
    """Numbers from an attribute or a constant, or the sizes that an input holds; ``None`` if nothing is known."""
    found = node.ints(name, index)
    return node.sizes(index) if found is None else found


_END = 2**63 - 1
"""An end that is open, as exporters write it."""


def _known_ends(
    node: OnnxNode, ends: Sequence[Size] | None, axes: Sequence[int], steps: Sequence[int]
) -> list[int] | None:
    """The ends as numbers, where the size of the axis itself is an open end; ``None`` if one is not known."""
    if ends is None or len(ends) != len(axes):
        return None
    known = [
        _END if step > 0 and node.is_own(axis, end) else end
        for end, axis, step in zip(ends, axes, steps, strict=True)
    ]
    numbers = [end for end in known if isinstance(end, int)]
    return numbers if len(numbers) == len(known) else None


def _computed_slice(node: OnnxNode, axes: Sequence[int], steps: Sequence[int]) -> Lowered | None:
    if min(steps, default=1) < 1:
        raise LeftAlone("it goes backwards, with computed bounds")
    bounds = (node.type(1), node.type(2))
    if len(node.inputs) < 3 or any(b.rank != 1 or b.dtype is None for b in bounds):
        return None
    return ir.DynamicSlice(tuple(axes), tuple(steps)), node.inputs[:3]


def _backwards(node: OnnxNode, forwards: Sequence[_Cut], backwards: Sequence[_Cut]) -> Steps | None:
    """Read a Slice with negative steps: the IR's Slice has none, so a Gather with a list of indices is used."""
    made = Builder()
    found: Operand | Step = node.input(0)
    if forwards:
        found = made.add(slicing(node.type(), *zip(*forwards, strict=True)), found)
    for start, end, axis, step in backwards:
        size = node.type().dim(axis)
        if not isinstance(size, int) or size > MOST_INDICES:
            return None
        indices = range(*slice(start, end, step).indices(size))
        found = made.add(ir.Gather(axis), found, ArrayTensor(np.array(indices, np.int64)))
    return made.steps()


_Cut = tuple[int, int, int, int]
"""Start, end, axis and step."""

MOST_INDICES = 1 << 16
"""Backward slices along longer axes stay opaque, because the list of indices would be large."""


@reads("Tile", makes=[ir.Concat, ir.Identity], note="a few constant copies", several=True)
def _tile(node: OnnxNode) -> Lowered | Steps | None:
    times, rank = node.ints("repeats", 1), node.type().rank
    if times is None or rank is None or len(times) != rank or node.type().dtype is None:
        return None
    if min(times, default=1) < 1 or math.prod(times) > MOST_COPIES:
        return None
    made = Builder()
    last: Operand | Step = node.input(0)
    for axis, count in enumerate(times):
        if count > 1:
            last = made.chain(repeated(last, axis, count))
    return made.steps() if made.parts else (ir.Identity(), node.inputs[:1])


@reads("Gather", makes=[ir.Gather, ir.Select, ir.Embedding])
def _gather(node: OnnxNode) -> Lowered | None:
    return gather(node.required(0), node.required(1), node.attribute("axis", 0))


@reads("GatherElements", makes=ir.GatherElements)
def _gather_elements(node: OnnxNode) -> Lowered | None:
    axis, rank = node.attribute("axis", 0), node.type().rank
    if not rank or node.type(1).rank is None or node.type(1).dtype is None:
        return None
    return ir.GatherElements(axis_of(axis, rank)), node.inputs


@reads("GatherND", makes=ir.GatherNd, note="vectors of known length")
def _gather_nd(node: OnnxNode) -> Lowered | None:
    indices = node.type(1)
    if node.type().rank is None or not indices.rank or indices.dtype is None:
        return None
    if indices.dim(-1) is None:
        raise LeftAlone("the length of its index vectors is not known")
    return ir.GatherNd(node.attribute("batch_dims", 0)), node.inputs


@reads("TopK", makes=ir.TopK, note="a constant number of them, sorted")
def _top_k(node: OnnxNode) -> Lowered | None:
    k, axis, rank = node.ints("k", 1), node.attribute("axis", -1), node.type().rank
    largest = node.flag("largest", 1)
    if not node.flag("sorted", 1):
        raise LeftAlone("its results have no defined order")
    if k is None:
        raise LeftAlone("the number of its results is computed")
    if not rank or len(k) != 1:
        return None
    return ir.TopK(k[0], axis_of(axis, rank), largest), node.inputs[:1]


@reads("Range", makes=ir.Range)
def _range(node: OnnxNode) -> Lowered | None:
    scalars = all(node.type(i).rank == 0 and node.type(i).dtype is not None for i in range(3))
    return (ir.Range(), node.inputs) if scalars else None
