"""Ops that pick or repeat elements along axes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from ....ir import Expand, Gather, GatherElements, GatherNd, Node, Range, TopK, Value
from ..emitter import Emitter, Unsupported, spells
from ..flat import DYNAMIC, FlatTensor
from ..layout import Layout, model_order
from .activations import Elementwise
from .slices import strided_slice


@spells(Gather)
def gather(e: Emitter, node: Node, op: Gather) -> None:
    """GATHER; the axes of the indices replace the axis."""
    data, indices = node.required(0), node.required(1)
    layout = Layout(e.layout_of(data).perm)
    tensor = e.get(data, layout)
    axis = op.axis % layout.rank
    place = layout.place(axis)
    count = len(e.shape(indices))
    if indices.data is not None:
        (size,) = e.known_sizes(data, [axis])
        index = e.constant(e.numbers(indices).astype(np.int64) % size, "INT32", indices.name)
    else:
        index = from_the_end(e, e.get(indices, model_order(count)), tensor.shape[place])
    shape = (*tensor.shape[:place], *index.shape, *tensor.shape[place + 1 :])
    made = e.op("GATHER", [tensor, index], shape, tensor.dtype,
                ("GatherOptions", {"axis": place, "batchDims": 0}))  # fmt: skip
    perm: list[int] = []
    for old in layout.perm:
        if old == axis:
            perm += range(axis, axis + count)
        else:
            perm.append(old if old < axis else old - 1 + count)
    e.put(node.output, made, Layout(tuple(perm)))


def _whole(e: Emitter, index: FlatTensor) -> FlatTensor:
    """Return computed indices as int32 or int64."""
    if index.dtype in ("INT32", "INT64"):
        return index
    return e.op("CAST", [index], index.shape, "INT32", ("CastOptions", {}))


def from_the_end(e: Emitter, index: FlatTensor, size: int) -> FlatTensor:
    """Return computed indices with negative ones counted from the end, which TFLite's GATHER does not do."""
    index = _whole(e, index)
    if size == DYNAMIC:
        return index
    return e.op("FLOOR_MOD", [index, e.constant(size, index.dtype)], index.shape, index.dtype,
                ("FloorModOptions", {}))  # fmt: skip


_MOST_COORDINATES = 1 << 22
"""GATHER_ND reads a number for each axis of each element: larger constants of them are not written."""

_PICKED = ("FLOAT32", "INT32", "INT64")
"""The element types that GATHER_ND is written for."""


@spells(GatherElements, note="indices of known shape")
def gather_elements(e: Emitter, node: Node, op: GatherElements) -> None:
    """GATHER_ND by the places of each element along all axes."""
    data, indices = node.required(0), node.required(1)
    layout = Layout(e.layout_of(data).perm)
    place = layout.place(op.axis)
    tensor = _picked(e, e.get(data, layout))
    shape = layout.stored_shape(e.shape(indices))
    e.known_sizes(indices, range(layout.rank))
    sizes = tuple(d for d in shape if isinstance(d, int))
    if math.prod(sizes) * layout.rank > _MOST_COORDINATES:
        raise Unsupported(
            f"it picks {math.prod(sizes)} elements, too many for their places to be written"
        )
    (size,) = e.known_sizes(data, [op.axis])
    if indices.data is not None:
        found = np.indices(sizes)
        found[place] = e.numbers(indices).astype(np.int64).transpose(layout.perm) % size
        where = e.constant(np.moveaxis(found, 0, -1), "INT32", indices.name)
    else:
        index = from_the_end(e, e.get(indices, layout), size)
        where = _coordinates(e, e.reshape(index, (*sizes, 1)), place)
    made = e.op("GATHER_ND", [tensor, where], sizes, tensor.dtype, ("GatherNdOptions", {}))
    e.put(node.output, _as(e, made, e.dtype(data)), layout)


def _coordinates(e: Emitter, index: FlatTensor, place: int) -> FlatTensor:
    """Join computed places along one axis, ``(..., 1)``, with those along the other axes, which are constant."""
    *sizes, _ = index.shape
    others = np.moveaxis(np.indices(sizes), 0, -1)
    parts = [others[..., :place], None, others[..., place + 1 :]]
    wide = [
        index if part is None else e.constant(part, index.dtype)
        for part in parts
        if part is None or part.size
    ]
    if len(wide) == 1:
        return index
    return e.op("CONCATENATION", wide, (*sizes, len(sizes)), index.dtype,
                ("ConcatenationOptions", {"axis": len(sizes), "fusedActivationFunction": 0}))  # fmt: skip


@spells(GatherNd, note="along axes of known size")
def gather_nd(e: Emitter, node: Node, op: GatherNd) -> None:
    """GATHER_ND; along batch axes, each index is joined with its own place."""
    data, indices = node.required(0), node.required(1)
    batch = op.batch_axes
    rank, count = len(e.shape(indices)), e.known_sizes(indices, [-1])[0]
    tensor = _picked(e, e.get(data, model_order(len(e.shape(data)))))
    sizes = np.array(e.known_sizes(data, range(batch, batch + count)), np.int64)
    if indices.data is not None:
        index = e.constant(e.numbers(indices).astype(np.int64) % sizes, "INT32", indices.name)
    else:
        index = _whole(e, e.get(indices, model_order(rank)))
        index = e.op("FLOOR_MOD", [index, e.constant(sizes, index.dtype)], index.shape, index.dtype,
                     ("FloorModOptions", {}))  # fmt: skip
    if batch:
        index = _with_batch(e, index, e.known_sizes(indices, range(rank - 1)), batch)
    shape = (*index.shape[:-1], *tensor.shape[batch + count :])
    made = e.op("GATHER_ND", [tensor, index], shape, tensor.dtype, ("GatherNdOptions", {}))
    e.put(node.output, _as(e, made, e.dtype(data)), model_order(len(shape)))


def _with_batch(e: Emitter, index: FlatTensor, places: tuple[int, ...], batch: int) -> FlatTensor:
    """Join indices ``(*places, n)`` with their own places along the first axes."""
    own = np.moveaxis(np.indices(places)[:batch], 0, -1)
    if own.size > _MOST_COORDINATES:
        raise Unsupported(f"it picks {math.prod(places)} times, too often for batch axes")
    parts = [e.constant(own, index.dtype), index]
    axis = len(places)
    return e.op("CONCATENATION", parts, (*places, batch + index.shape[-1]), index.dtype,
                ("ConcatenationOptions", {"axis": axis, "fusedActivationFunction": 0}))  # fmt: skip


def _picked(e: Emitter, tensor: FlatTensor) -> FlatTensor:
    """Return the tensor to pick from; booleans are picked as integers."""
    if tensor.dtype == "BOOL":
        return e.op("CAST", [tensor], tensor.shape, "INT32", ("CastOptions", {}))
    if tensor.dtype not in _PICKED:
        raise Unsupported(f"LiteRT has no kernel for {tensor.dtype.lower()}")
    return tensor


def _as(e: Emitter, made: FlatTensor, dtype: str) -> FlatTensor:
    """Return picked elements in the type of the data."""
    if made.dtype == dtype:
        return made
    return e.op("CAST", [made], made.shape, dtype, ("CastOptions", {}))


@spells(TopK, note="of float32 and int32, of integers the largest")
def top_k(e: Emitter, node: Node, op: TopK) -> None:
    """TOPK_V2 along the last stored axis; the smallest numbers are the largest of the negated ones."""
    x = node.required(0)
    own = Layout(e.layout_of(x).perm)
    axis = op.axis % own.rank
    layout = Layout((*(a for a in own.perm if a != axis), axis))
    tensor, m = e.get(x, layout), Elementwise(e)
    if tensor.dtype not in ("FLOAT32", "INT32"):
        raise Unsupported(f"LiteRT has no kernel for {tensor.dtype.lower()}")
    if not op.largest and tensor.dtype != "FLOAT32":
        raise Unsupported("LiteRT has no kernel for the smallest of integers")
    if op.k == 0:
        raise Unsupported("its result has no elements")
    if not op.largest:
        tensor = m.unary("NEG", tensor, "NegOptions")
    shape = (*tensor.shape[:-1], op.k)
    found, index = e.tensor("top", shape, tensor.dtype), e.tensor("places", shape, "INT32")
    e.add_operation(
        "TOPK_V2", [tensor, e.constant(op.k, "INT32")], [found, index], ("TopKV2Options", {})
    )
    if not op.largest:
        found = m.unary("NEG", found, "NegOptions")
    e.put(node.outputs[0], found, layout)
    if len(node.outputs) > 1 and node.outputs[1].use_count + node.outputs[1].is_output:
        e.put(node.outputs[1], e.op("CAST", [index], shape, "INT64", ("CastOptions", {})), layout)


@spells(Range, note="of integers")
def range_(e: Emitter, node: Node, _: Range) -> None:
    """RANGE, in int32."""
    values = [node.required(i) for i in range(3)]
    dtype = e.dtype(values[0])
    if dtype not in ("INT32", "INT64"):
        raise Unsupported(
            "LiteRT has no kernel for other numbers than integers that gives as many of them"
        )
    narrow = []
    for value in values:
        tensor = e.get(value, model_order(0))
        if dtype == "INT64":
            tensor = e.op("CAST", [tensor], (), "INT32", ("CastOptions", {}))
        narrow.append(tensor)
    shape = e.stored_shape(node.output, model_order(1))
    made = e.op("RANGE", narrow, shape, "INT32", ("RangeOptions", {}))
    if dtype == "INT64":
        made = e.op("CAST", [made], shape, "INT64", ("CastOptions", {}))
    e.put(node.output, made, model_order(1))


@spells(Expand)
def expand(e: Emitter, node: Node, op: Expand) -> None:
    """BROADCAST_TO, or a product with ones if a size of the result is only known from the input."""
    x, out = node.required(0), node.output
    rank, own = len(e.shape(out)), Layout(e.layout_of(x).perm)
    layout = own.leading(rank - own.rank)
    tensor = e.reshape(e.get(x, own), (1,) * (rank - own.rank) + e.stored_shape(x, own))
    shape = e.stored_shape(out, layout)
    wanted = (1,) * (rank - len(op.shape)) + op.shape
    sizes = [wanted[axis] for axis in layout.perm]
    if DYNAMIC not in shape:
        if tensor.shape != shape:
            tensor = _broadcast(e, tensor, e.constant(np.array(shape), "INT32"), shape)
    elif op.like:
        sizes = [have if d == 1 else d for d, have in zip(sizes, shape, strict=True)]
        if DYNAMIC in sizes:
            raise Unsupported("a size is not known: fix it with --fix-shape or fixed_shapes")
        axes = [op.like[wanted[:a].count(None)] for a in layout.perm if wanted[a] is None]
        tensor = _broadcast(e, tensor, _sizes(e, node.required(1), sizes, axes), shape)
    elif tensor.shape != shape:
        if tensor.dtype != "FLOAT32":
            raise Unsupported("a size is not known: fix it with --fix-shape or fixed_shapes")
        ones = e.constant(np.ones([1 if d is None else d for d in sizes], np.float32))
        tensor = e.op("MUL", [tensor, ones], shape, tensor.dtype,
                      ("MulOptions", {"fusedActivationFunction": 0}))  # fmt: skip
    e.put(out, tensor, layout)


def _broadcast(
    e: Emitter, tensor: FlatTensor, sizes: FlatTensor, shape: Sequence[int]
) -> FlatTensor:
    return e.op("BROADCAST_TO", [tensor, sizes], shape, tensor.dtype, ("BroadcastToOptions", {}))


def _sizes(
    e: Emitter, second: Value, sizes: Sequence[int | None], axes: Sequence[int]
) -> FlatTensor:
    """Return sizes as a tensor; those that are ``None`` are read, in order, from ``axes`` of the value ``second``."""
    layout, like = Layout(e.layout_of(second).perm), iter(axes)
    asked = e.op("SHAPE", [e.get(second, layout)], (layout.rank,), "INT32",
                 ("ShapeOptions", {"outType": 2}))  # fmt: skip
    parts = []
    for size in sizes:
        if size is not None:
            parts.append(e.constant([size], "INT32"))
        else:
            place = layout.place(next(like))
            parts.append(strided_slice(e, asked, (place,), (place + 1,), (1,)))
    if len(parts) == 1:
        return parts[0]
    return e.op("CONCATENATION", parts, (len(parts),), "INT32",
                ("ConcatenationOptions", {"axis": 0, "fusedActivationFunction": 0}))  # fmt: skip
