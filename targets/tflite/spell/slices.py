"""Slices, splits and concatenations."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ....ir import Concat, DynamicSlice, Node, Select, Slice, Split
from ..emitter import Emitter, Unsupported, spells
from ..flat import DYNAMIC, NUMPY_TYPES, FlatTensor
from ..layout import Layout, model_order
from ..operands import common_layout


def strided_slice(
    e: Emitter,
    tensor: FlatTensor,
    starts: Sequence[int],
    stops: Sequence[int | None],
    steps: Sequence[int],
) -> FlatTensor:
    """Return the tensor after a STRIDED_SLICE; a stop of ``None`` is the end of the axis."""
    begin_mask = sum(1 << i for i, start in enumerate(starts) if start == 0)
    end_mask = sum(1 << i for i, stop in enumerate(stops) if stop is None)
    shape = []
    for d, start, stop, step in zip(tensor.shape, starts, stops, steps, strict=True):
        if d == DYNAMIC and (start, stop, step) != (0, None, 1):
            raise Unsupported("it slices an axis whose size is not known")
        shape.append(d if d == DYNAMIC else len(range(d)[start:stop:step]))
    if tuple(shape) == tensor.shape:
        return tensor
    if 0 in shape:
        return empty_part(e, tensor, shape)
    inputs = [tensor] + [
        e.constant(np.array(numbers), "INT32")
        for numbers in (starts, [0 if stop is None else stop for stop in stops], steps)
    ]
    made = e.op("STRIDED_SLICE", inputs, shape, tensor.dtype,
                ("StridedSliceOptions", {"beginMask": begin_mask, "endMask": end_mask}))  # fmt: skip
    made.quantization = tensor.quantization
    return made


def empty_part(e: Emitter, tensor: FlatTensor, shape: Sequence[int]) -> FlatTensor:
    """Return a constant without elements, which only a concatenation may read."""
    if DYNAMIC in shape:
        raise Unsupported("its result has no elements")
    return e.constant(np.zeros(shape, NUMPY_TYPES[tensor.dtype]), tensor.dtype)


@spells(Slice)
def slice_(e: Emitter, node: Node, op: Slice) -> None:
    """``x[..., start:end:step, ...]``."""
    x = node.required(0)
    layout, shape = Layout(e.layout_of(x).perm), e.shape(x)
    rank = len(shape)
    starts: list[int] = [0] * rank
    stops: list[int | None] = [None] * rank
    steps = [1] * rank
    for start, end, axis, step in zip(op.starts, op.ends, op.axes, op.steps, strict=True):
        place, size = layout.place(axis), shape[axis % rank]
        if isinstance(size, int):
            part = range(size)[start:end:step]
            starts[place], steps[place] = part.start, step
            stops[place] = None if part.stop >= size else part.stop
        elif (start, step) != (0, 1) or end < 2**31 - 1:
            raise Unsupported("it slices an axis whose size is not known")
    e.put(node.output, strided_slice(e, e.get(x, layout), starts, stops, steps), layout)


@spells(DynamicSlice)
def dynamic_slice(e: Emitter, node: Node, op: DynamicSlice) -> None:
    """STRIDED_SLICE with computed bounds, which are clipped to int32."""
    x = node.required(0)
    layout = Layout(e.layout_of(x).perm)
    tensor, rank = e.get(x, layout), layout.rank
    if rank > 5:
        raise Unsupported("LiteRT supports at most 5 axes")
    places = [layout.place(axis) for axis in op.axes]
    if not places:
        e.put(node.output, tensor, layout)
        return
    kept = [a for a in range(rank) if a not in places]
    steps = np.ones(rank, np.int64)
    steps[places] = op.steps
    order = e.constant(np.argsort([*places, *kept]), "INT32")
    inputs = [tensor]
    for index in (1, 2):
        bounds = _int32(e, e.get(node.required(index), model_order(1)))
        if kept:
            # The bounds of the other axes are not read: their masks are set.
            parts = [bounds, e.constant(np.zeros(len(kept)), "INT32")]
            bounds = e.op("CONCATENATION", parts, (rank,), "INT32",
                          ("ConcatenationOptions", {"axis": 0, "fusedActivationFunction": 0}))  # fmt: skip
        inputs.append(e.op("GATHER", [bounds, order], (rank,), "INT32",
                           ("GatherOptions", {"axis": 0, "batchDims": 0})))  # fmt: skip
    mask = sum(1 << a for a in kept)
    shape = e.stored_shape(node.output, layout)
    made = e.op("STRIDED_SLICE", [*inputs, e.constant(steps, "INT32")], shape, tensor.dtype,
                ("StridedSliceOptions", {"beginMask": mask, "endMask": mask}))  # fmt: skip
    made.quantization = tensor.quantization
    e.put(node.output, made, layout)


def _int32(e: Emitter, bounds: FlatTensor) -> FlatTensor:
    if bounds.dtype == "INT32":
        return bounds
    for code, most in (("MINIMUM", 2**31 - 1), ("MAXIMUM", -(2**31) + 1)):
        bounds = e.op(code, [bounds, e.constant(most, bounds.dtype)], bounds.shape, bounds.dtype,
                      ("MaximumMinimumOptions", {}))  # fmt: skip
    return e.op("CAST", [bounds], bounds.shape, "INT32", ("CastOptions", {}))


@spells(Select)
def select(e: Emitter, node: Node, op: Select) -> None:
    """``x[:, index]``."""
    x = node.required(0)
    layout = Layout(e.layout_of(x).perm)
    place = layout.place(op.axis)
    tensor = e.get(x, layout)
    size = tensor.shape[place]
    if size == DYNAMIC and op.index < 0:
        raise Unsupported("its index counts from the end of an axis whose size is not known")
    rest = layout.without([op.axis])
    shape = [d for i, d in enumerate(tensor.shape) if i != place]
    if size == 1:
        e.put(node.output, e.reshape(tensor, shape), rest)
        return
    index = op.index if size == DYNAMIC else op.index % size
    if tensor.rank <= 5 and size != DYNAMIC:
        starts = [index if i == place else 0 for i in range(tensor.rank)]
        stops = [index + 1 if i == place else None for i in range(tensor.rank)]
        made = e.reshape(strided_slice(e, tensor, starts, stops, [1] * tensor.rank), shape)
    else:
        made = e.op("GATHER", [tensor, e.constant(index, "INT32")], shape, tensor.dtype,
                    ("GatherOptions", {"axis": place, "batchDims": 0}))  # fmt: skip
    e.put(node.output, made, rest)


@spells(Concat)
def concat(e: Emitter, node: Node, op: Concat) -> None:
    """CONCATENATION of the inputs that have elements."""
    values = [v for v in node.inputs if v is not None]
    layout = common_layout(e, node.output, values)
    place = layout.place(op.axis)
    parts = [e.get(v, layout) for v in values]
    shape = list(parts[0].shape)
    for i in range(len(shape)):
        if i != place:
            shape[i] = max(part.shape[i] for part in parts)
    sizes = [part.shape[place] for part in parts]
    shape[place] = DYNAMIC if DYNAMIC in sizes else sum(sizes)
    parts = [part for part in parts if 0 not in part.shape]
    if len(parts) == 1:
        e.put(node.output, parts[0], layout)
        return
    made = e.op("CONCATENATION", parts, shape, parts[0].dtype,
                ("ConcatenationOptions", {"axis": place, "fusedActivationFunction": 0}))  # fmt: skip
    made.quantization = parts[0].quantization
    e.put(node.output, made, layout)


@spells(Split)
def split(e: Emitter, node: Node, op: Split) -> None:
    """SPLIT into equal pieces, SPLIT_V into others."""
    x = node.required(0)
    layout = Layout(e.layout_of(x).perm)
    place = layout.place(op.axis)
    tensor = e.get(x, layout)
    outs = []
    for value, size in zip(node.outputs, op.sizes, strict=True):
        shape = [size if i == place else d for i, d in enumerate(tensor.shape)]
        if size == 0:
            e.put(value, empty_part(e, tensor, shape), layout)
            continue
        out = e.tensor(value.name, shape, tensor.dtype)
        out.quantization = tensor.quantization
        outs.append(out)
        e.put(value, out, layout)
    axis = e.constant(place, "INT32")
    sizes = [size for size in op.sizes if size]
    if len(set(sizes)) == 1:
        e.add_operation("SPLIT", [axis, tensor], outs, ("SplitOptions", {"numSplits": len(outs)}))
    else:
        table = e.constant(np.array(sizes), "INT32")
        e.add_operation(
            "SPLIT_V", [tensor, table, axis], outs, ("SplitVOptions", {"numSplits": len(outs)})
        )
